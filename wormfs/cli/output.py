"""Messages as JSON, and sizes and tables for people.

JSON keeps the proto field names; numbers are numbers (64-bit ones too), enum values their names in
small letters without the prefix, and names of files text, in which a byte that is no UTF-8 stands
as Python's surrogateescape does it (os.fsencode gives the bytes back).
"""

import json
import os
import sys
from typing import Any

from google.protobuf.message import Message


def to_plain(message: Message) -> dict[str, Any]:
    """Every field of a message as JSON knows it, unset ones with their default."""
    plain: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            plain[field.name] = [_plain_value(field, item) for item in value]
        else:
            plain[field.name] = _plain_value(field, value)
    return plain


def _plain_value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return to_plain(value)
    if field.enum_type is not None:
        return _enum_name(field.enum_type, value)
    return os.fsdecode(value) if isinstance(value, bytes) else value


def _enum_name(enum: Any, number: int) -> str:
    """`DISK_STATE_ONLINE` of enum DiskState is `online`."""
    # Descriptors have two unrelated classes, one of them private: so `Any`.
    known = enum.values_by_number.get(number)
    if known is None:
        return str(number)
    zero: str = enum.values_by_number[0].name
    name: str = known.name
    return name.removeprefix(zero.removesuffix("UNSPECIFIED")).lower()


def print_json(plain: object) -> None:
    """One JSON document on standard output."""
    json.dump(plain, sys.stdout, indent=2, ensure_ascii=True)
    sys.stdout.write("\n")


def human_bytes(size_bytes: int) -> str:
    """Such as `1.5 GiB`."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if size < 1024 or unit == "PiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def printable(name: bytes) -> str:
    """A file's name for a terminal: control characters and bytes that are no UTF-8 are escaped."""
    text = os.fsdecode(name)
    return "".join(
        char
        if char.isprintable()
        else char.encode("utf-8", "surrogateescape").decode("latin-1").translate(_ESCAPES)
        for char in text
    )


_ESCAPES = {number: f"\\x{number:02x}" for number in [*range(0x20), *range(0x7F, 0x100)]}


def table(header: list[str], rows: list[list[str]], *, right: frozenset[int] = frozenset()) -> str:
    """Columns padded to their widest cell; the columns of `right` end flush right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
