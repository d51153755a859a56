"""Whoever writes a client reads proto/wormfs/v1: everything declared there is described there."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FileDescriptor

from wormfs.rpc.v1 import (
    chunk_pb2,
    cluster_pb2,
    etcd_pb2,
    event_pb2,
    filesystem_pb2,
    metadata_pb2,
    replication_pb2,
    types_pb2,
)

FOLDER = Path(__file__).parents[3] / "proto"
FILES: tuple[FileDescriptor, ...] = tuple(
    module.DESCRIPTOR
    for module in (
        chunk_pb2,
        cluster_pb2,
        etcd_pb2,
        event_pb2,
        filesystem_pb2,
        metadata_pb2,
        replication_pb2,
        types_pb2,
    )
)
_TOKEN = re.compile(
    r"\b(?P<scope>message|enum|service|oneof)\s+(?P<opened>\w+)\s*\{"
    r"|\brpc\s+(?P<rpc>\w+)"
    r"|\b(?P<field>\w+)\s*=\s*\d+\s*[;\[]"
    r"|(?P<close>\})"
)


class Declaration(NamedTuple):
    """A message, field, enum, value, service, rpc or oneof; `name` is without the package."""

    name: str
    line: int
    commented: bool


def declarations(text: str) -> Iterator[Declaration]:
    """Everything declared in a .proto file that keeps to one declaration a line, or a message in one line.

    A comment describes what is on its line; comment lines of the same indentation right above a line
    describe the first thing declared on it, and nothing further down.
    """
    scopes: list[str] = []  # empty: a oneof, which is no part of its fields' names
    above = -1  # indentation of the comment lines right above; -1: there are none
    for number, line in enumerate(text.splitlines(), 1):
        code, _, comment = line.partition("//")
        indentation = len(code) - len(code.lstrip())
        if not code.strip():
            above = len(code) if comment.strip() else -1
            continue
        for token in _TOKEN.finditer(code):
            if token["close"]:
                scopes.pop()
                continue
            declared = token["opened"] or token["rpc"] or token["field"]
            name = ".".join([*filter(None, scopes), declared])
            yield Declaration(name, number, bool(comment.strip()) or above == indentation)
            above = -1
            if token["opened"]:
                scopes.append("" if token["scope"] == "oneof" else declared)
        above = -1


def _names_in_enum(enum: EnumDescriptor, prefix: str) -> Iterator[str]:
    yield prefix + enum.name
    for value in enum.values:
        yield f"{prefix}{enum.name}.{value.name}"


def _names_in_message(message: Descriptor, prefix: str = "") -> Iterator[str]:
    inside = f"{prefix}{message.name}."
    yield prefix + message.name
    for field in message.fields:
        yield inside + field.name
    for oneof in message.oneofs:
        if not oneof.name.startswith("_"):  # else it is one `optional` field's
            yield inside + oneof.name
    for enum in message.enum_types:
        yield from _names_in_enum(enum, inside)
    for nested in message.nested_types:
        yield from _names_in_message(nested, inside)


def _names_in_file(file: FileDescriptor) -> Iterator[str]:
    for message in file.message_types_by_name.values():
        yield from _names_in_message(message)
    for enum in file.enum_types_by_name.values():
        yield from _names_in_enum(enum, "")
    for service in file.services_by_name.values():
        yield service.name
        for method in service.methods:
            yield f"{service.name}.{method.name}"


def test_every_file_is_looked_at() -> None:
    there = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.proto")}
    assert {file.name for file in FILES} == there


@pytest.mark.parametrize("file", FILES, ids=lambda file: Path(file.name).stem)
def test_every_declaration_has_a_comment(file: FileDescriptor) -> None:
    found = list(declarations((FOLDER / file.name).read_text(encoding="utf-8")))
    assert sorted(each.name for each in found) == sorted(_names_in_file(file))  # none is overlooked
    bare = [f"{file.name}:{each.line}: {each.name}" for each in found if not each.commented]
    assert not bare, "no comment on its line or right above:\n" + "\n".join(bare)


def _bare(text: str) -> list[str]:
    return [each.name for each in declarations(text) if not each.commented]


def test_a_comment_block_describes_only_the_first_field_below_it() -> None:
    text = "// A.\nmessage A {\n  // Two\n  // lines.\n  uint32 a = 1;\n  uint32 b = 2;\n}\n"
    assert _bare(text) == ["A.b"]


def test_the_second_line_of_a_trailing_comment_describes_nothing_below() -> None:
    text = "// A.\nmessage A {\n  uint32 a = 1;  // long,\n                 // longer\n  uint32 b = 2;\n}\n"
    assert _bare(text) == ["A.b"]


def test_a_comment_apart_from_the_field_or_empty_is_none() -> None:
    text = "// A.\nmessage A {\n  // Of nothing.\n\n  uint32 a = 1;\n  uint32 b = 2;  //\n}\n"
    assert _bare(text) == ["A.a", "A.b"]


def test_a_message_in_one_line_is_described_on_it() -> None:
    assert _bare("// A.\nmessage A { uint32 a = 1; }\n") == ["A.a"]
    assert _bare("message A { uint32 a = 1; }  // A of a\n") == []


def test_services_enums_and_oneofs_are_looked_at() -> None:
    text = (
        "service S {\n  rpc Do(A) returns (A);\n}\n"
        "message A {\n  enum E {\n    V = 0;\n  }\n  oneof one {\n    E e = 1 [deprecated = true];\n  }\n}\n"
    )
    assert _bare(text) == ["S", "S.Do", "A", "A.E", "A.E.V", "A.one", "A.e"]
