"""Kinds of settings: how a YAML scalar, an environment variable or a flag becomes a value.

A kind says what it expects in words; `parse` raises ValueError or TypeError, whose text adds the why.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SIZE_UNITS = {
    "": 1,
    "b": 1,
    "k": 10**3,
    "kb": 10**3,
    "kib": 2**10,
    "m": 10**6,
    "mb": 10**6,
    "mib": 2**20,
    "g": 10**9,
    "gb": 10**9,
    "gib": 2**30,
    "t": 10**12,
    "tb": 10**12,
    "tib": 2**40,
}
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER_WITH_UNIT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of value: `expected` completes the sentence "expected ...".

    `many` marks a list; from the environment and flags its items come comma-separated.
    """

    expected: str
    parse: Callable[[object], Any]
    many: bool = False


def parse_size_bytes(value: object) -> int:
    """Bytes of `1MiB`, `64 kB`, `4096`. Raises ValueError or TypeError."""
    amount, unit = _split(value)
    factor = _SIZE_UNITS.get(unit.lower())
    if factor is None:
        raise ValueError(f"no such unit: {unit}")
    size = amount * factor
    if size != int(size):
        raise ValueError("not a whole number of bytes")
    return int(size)


def parse_duration_s(value: object) -> float:
    """Seconds of `6s`, `250ms`, `5m`, `1h`, `2d`; a bare number is seconds. Raises ValueError, TypeError."""
    amount, unit = _split(value)
    factor = _DURATION_UNITS.get(unit.lower())
    if factor is None:
        raise ValueError(f"no such unit: {unit}")
    return amount * factor


def _split(value: object) -> tuple[float, str]:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    match = _NUMBER_WITH_UNIT.fullmatch(str(value))
    if match is None:
        raise ValueError
    return float(match[1]), match[2]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _full_text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in {"true", "yes", "on", "1", "false", "no", "off", "0"}:
        return value.lower() in {"true", "yes", "on", "1"}
    raise ValueError


def _path(value: object) -> Path:
    text = _full_text(value)
    if "\0" in text:
        raise ValueError("a path holds no NUL")
    return Path(text).expanduser()


def is_address(text: str) -> bool:
    """Whether `text` is `host:port` (an IPv6 host in brackets) or `unix:/absolute/path`."""
    if text.startswith("unix:"):
        return text[5:].startswith("/")
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        return False
    if host.startswith("["):
        return host.endswith("]")
    return ":" not in host


def _address(value: object) -> str:
    text = _full_text(value).strip()
    if not is_address(text):
        raise ValueError
    return text


TEXT = Kind("text", _text)
FULL_TEXT = Kind("text that is not empty", _full_text)
BOOLEAN = Kind("true or false", _boolean)
PATH = Kind("a path", _path)
ADDRESS = Kind("an address such as 10.0.0.1:7400 or unix:/run/wormfs/node.sock", _address)


def optional(kind: Kind) -> Kind:
    """The same kind, where empty text means none (an empty string)."""

    def parse(value: object) -> Any:
        return "" if value is None or value == "" else kind.parse(value)

    return Kind(f"{kind.expected}, or nothing", parse)


def integer(low: int, high: int) -> Kind:
    """A whole number from `low` to `high`."""

    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise TypeError
        number = int(value)
        if not low <= number <= high:
            raise ValueError
        return number

    return Kind(f"a whole number from {low} to {high}", parse)


def size(low: int, high: int) -> Kind:
    """Bytes from `low` to `high`, with a unit such as KiB, MiB, GB."""

    def parse(value: object) -> int:
        number = parse_size_bytes(value)
        if not low <= number <= high:
            raise ValueError(f"out of range: {number} bytes")
        return number

    return Kind(f"a size such as 1MiB, from {low} to {high} bytes", parse)


def duration(low_s: float, high_s: float) -> Kind:
    """Seconds from `low_s` to `high_s`, with a unit such as ms, s, m, h, d."""

    def parse(value: object) -> float:
        number = parse_duration_s(value)
        if not low_s <= number <= high_s:
            raise ValueError("out of range")
        return number

    return Kind(f"a duration such as 500ms, 6s or 5m, from {low_s:g} to {high_s:g} seconds", parse)


def choice(*words: str) -> Kind:
    """One of `words`, in any case."""

    def parse(value: object) -> str:
        if not isinstance(value, str) or value.lower() not in words:
            raise ValueError
        return value.lower()

    return Kind("one of " + ", ".join(words), parse)


def list_of(kind: Kind) -> Kind:
    """A list of `kind`. A single item may stand without its list."""

    def parse(value: object) -> tuple[Any, ...]:
        items: Sequence[object] = value if isinstance(value, list | tuple) else [value]
        return tuple(kind.parse(item) for item in items)

    return Kind(f"a list of {kind.expected}", parse, many=True)
