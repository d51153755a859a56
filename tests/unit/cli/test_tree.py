"""Paths as the file commands take them."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from wormfs.cli.gateway import Gateway
from wormfs.cli.tree import Tree, clean_path
from wormfs.core.errors import BadHandleError, InvalidError
from wormfs.rpc import methods
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
    """Answers anything; the requests of uploads and downloads are kept."""

    def __init__(self) -> None:
        self.uploads: list[list[filesystem_pb2.WriteRequest]] = []
        self.downloads: list[filesystem_pb2.ReadRequest] = []
        self.idle = False  # the handle was closed as such

    def call(self, method: Any, request: Any, *, timeout_s: float | None = None) -> Any:
        if method is methods.FILESYSTEM_RELEASE and self.idle:
            raise BadHandleError("handle 7 is not open on this node")
        return filesystem_pb2.OpenReply(handle=7)

    def stream(self, method: Any, request: Any, *, timeout_s: float) -> Iterator[Any]:
        self.downloads.append(request)
        for _ in range(request.length_bytes >> 20):
            yield filesystem_pb2.ReadReply(data=bytes(1 << 20))

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


def test_a_file_of_any_length_is_one_download_whose_reader_may_be_slow() -> None:
    """Between two the handle would be idle; and all bytes are on their way before the last are taken."""
    gateway = KeptRequests()
    gateway.idle = True
    read = sum(len(piece) for piece in Tree(gateway).read_file(5, 70 << 20))
    assert read == 70 << 20
    (download,) = gateway.downloads
    assert (download.handle, download.offset_bytes, download.length_bytes) == (7, 0, 70 << 20)
