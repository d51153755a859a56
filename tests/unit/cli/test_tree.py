"""Paths as the file commands take them."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from wormfs.cli.gateway import Gateway
from wormfs.cli.tree import Tree, clean_path
from wormfs.core.errors import InvalidError
from wormfs.rpc.v1 import filesystem_pb2


@pytest.mark.parametrize(
    ("path", "clean"),
    [
        ("/", b"/"),
        ("a", b"/a"),
        ("//a//b/", b"/a/b"),
        ("/a/./b/../c", b"/a/c"),
        ("/../..", b"/"),
        (b"/\xff", b"/\xff"),
    ],
)
def test_paths_are_absolute_and_plain(path: str | bytes, clean: bytes) -> None:
    assert clean_path(path) == clean


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(InvalidError):
        clean_path(path)


class KeptRequests(Gateway):
    """Answers anything; the requests of uploads are kept."""

    def __init__(self) -> None:
        self.uploads: list[list[filesystem_pb2.WriteRequest]] = []

    def call(self, method: Any, request: Any, *, timeout_s: float | None = None) -> Any:
        return filesystem_pb2.OpenReply(handle=7)

    def send(self, method: Any, requests: Iterable[Any], *, timeout_s: float) -> Any:
        self.uploads.append([])
        for request in requests:
            self.uploads[-1].append(request)
        return filesystem_pb2.WriteReply()


def test_a_file_of_any_length_is_one_upload_that_names_its_handle_before_the_source_is_read() -> None:
    """So the node keeps the handle, however long the source takes."""
    gateway = KeptRequests()

    def source() -> Iterator[bytes]:
        assert [(each.handle, each.data) for each in gateway.uploads[0]] == [(7, b"")]
        for _ in range(70):
            yield bytes(1 << 20)

    Tree(gateway).write_file(1, b"name", 0o644, source())
    (upload,) = gateway.uploads
    assert {each.handle for each in upload} == {7}
    assert [each.offset_bytes for each in upload[1:]] == [at << 20 for at in range(70)]
