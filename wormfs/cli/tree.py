"""Paths, listings and file contents over the gRPC FileSystem service, for commands without a mount."""

import os
import posixpath
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from wormfs.cli.gateway import Gateway
from wormfs.core.errors import BadHandleError, InvalidError, NotDirectoryError, NotFoundError
from wormfs.core.limits import ROOT_INODE
from wormfs.rpc import methods
from wormfs.rpc.v1 import filesystem_pb2, types_pb2

PIECE_BYTES = 1 << 20
PIECE_TIMEOUT_S = 180.0
"""So long the node may take for a piece, or to make all of them durable."""
_LINKS_FOLLOWED_MAX = 40


@dataclass(frozen=True, slots=True)
class Place:
    """A name in a directory; `attributes` is None while nothing has that name."""

    parent: int
    name: bytes
    path: bytes
    attributes: types_pb2.Attributes | None


def clean_path(path: str | bytes) -> bytes:
    """An absolute path without `.`, `..` and doubled slashes. Raises InvalidError."""
    raw = os.fsencode(path)
    if not raw:
        raise InvalidError("an empty path names nothing; the root is /")
    if b"\0" in raw:
        raise InvalidError("a path holds no NUL")
    return b"/" + posixpath.normpath(b"/" + raw).lstrip(b"/")


def is_directory(attributes: types_pb2.Attributes) -> bool:
    """Whether an inode is a directory."""
    return stat.S_ISDIR(attributes.mode)


class Tree:
    """The namespace as seen through one node."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def resolve(self, path: str | bytes, *, follow: bool = True) -> types_pb2.Attributes:
        """The inode at a path; a symlink at its end is followed unless told otherwise.

        Raises NotFoundError, NotDirectoryError with the path.
        """
        place = self.place(path, follow=follow)
        if place.attributes is None:
            raise NotFoundError(f"{os.fsdecode(clean_path(path))}: no such file or directory")
        return place.attributes

    def place(self, path: str | bytes, *, follow: bool = True) -> Place:
        """The directory and name that a path means, whether or not something is there."""
        todo = [part for part in clean_path(path).split(b"/") if part]
        shown = os.fsdecode(clean_path(path))
        here = self._attributes(ROOT_INODE)
        place = Place(ROOT_INODE, b".", b"/", here)
        walked: list[bytes] = []
        links = 0
        while todo:
            name = todo.pop(0)
            if place.attributes is None:
                raise NotFoundError(f"{shown}: no such directory: {os.fsdecode(place.path)}")
            if not is_directory(place.attributes):
                raise NotDirectoryError(f"{shown}: {os.fsdecode(place.path)} is not a directory")
            parent = place.attributes.inode
            found = self.lookup(parent, name)
            if found is not None and stat.S_ISLNK(found.mode) and (follow or todo):
                links += 1
                if links > _LINKS_FOLLOWED_MAX:
                    raise InvalidError(f"{shown}: too many symbolic links")
                target = self.read_link(found.inode)
                base = b"/" if target.startswith(b"/") else b"/" + b"/".join(walked)
                todo = [part for part in clean_path(base + b"/" + target).split(b"/") if part] + todo
                walked = []
                place = Place(ROOT_INODE, b".", b"/", here)
                continue
            walked.append(name)
            place = Place(parent, name, b"/" + b"/".join(walked), found)
        return place

    def lookup(self, parent: int, name: bytes) -> types_pb2.Attributes | None:
        """An entry's inode; None when there is none."""
        try:
            reply = self.gateway.call(
                methods.FILESYSTEM_LOOKUP, filesystem_pb2.LookupRequest(parent=parent, name=name)
            )
        except NotFoundError:
            return None
        return reply.attributes

    def _attributes(self, inode: int) -> types_pb2.Attributes:
        request = filesystem_pb2.GetAttrRequest(inode=inode)
        return self.gateway.call(methods.FILESYSTEM_GET_ATTR, request).attributes

    def read_link(self, inode: int) -> bytes:
        """A symlink's target."""
        request = filesystem_pb2.ReadLinkRequest(inode=inode)
        return self.gateway.call(methods.FILESYSTEM_READ_LINK, request).target

    def entries(self, inode: int, *, attributes: bool = True) -> Iterator[filesystem_pb2.DirEntry]:
        """A directory's entries in byte order, a page in memory at a time."""
        after = b""
        while True:
            request = filesystem_pb2.ReadDirRequest(inode=inode, after=after, want_attributes=attributes)
            page = self.gateway.call(methods.FILESYSTEM_READ_DIR, request)
            yield from page.entries
            if page.end or not page.entries:
                return
            after = page.entries[-1].name

    def make_directory(self, parent: int, name: bytes, mode: int) -> types_pb2.Attributes:
        """A new directory, the caller's. Raises ExistsError."""
        return self._make(parent, name, stat.S_IFDIR | mode)

    def make_symlink(self, parent: int, name: bytes, target: bytes) -> types_pb2.Attributes:
        """A new symlink, the caller's. Raises ExistsError."""
        return self._make(parent, name, stat.S_IFLNK | 0o777, target)

    def _make(self, parent: int, name: bytes, mode: int, target: bytes = b"") -> types_pb2.Attributes:
        request = filesystem_pb2.MakeNodeRequest(
            parent=parent,
            name=name,
            mode=mode,
            uid=os.getuid(),
            gid=os.getgid(),
            target=target,
            exclusive=True,
        )
        return self.gateway.call(methods.FILESYSTEM_MAKE_NODE, request).attributes

    def set_attributes(
        self,
        inode: int,
        *,
        mode: int | None = None,
        owner: tuple[int, int] | None = None,
        mtime_ns: int | None = None,
    ) -> None:
        """Change permission bits, (uid, gid) and modification time, those given."""
        request = filesystem_pb2.SetAttrRequest(inode=inode, mode=mode, mtime_ns=mtime_ns)
        if owner is not None:
            request.uid, request.gid = owner
        self.gateway.call(methods.FILESYSTEM_SET_ATTR, request)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, *, replace: bool) -> None:
        """Move an entry. Raises ExistsError when not to replace and the new name is taken."""
        request = filesystem_pb2.RenameRequest(
            parent=parent, name=name, new_parent=new_parent, new_name=new_name, flags=0 if replace else 1
        )
        self.gateway.call(methods.FILESYSTEM_RENAME, request)

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove anything but a directory."""
        self.gateway.call(methods.FILESYSTEM_UNLINK, filesystem_pb2.UnlinkRequest(parent=parent, name=name))

    def remove_directory(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        request = filesystem_pb2.RemoveDirRequest(parent=parent, name=name)
        self.gateway.call(methods.FILESYSTEM_REMOVE_DIR, request)

    def sync(self) -> None:
        """Return when all that was answered is durable."""
        self.gateway.call(methods.FILESYSTEM_FSYNC, filesystem_pb2.FsyncRequest(handle=0))

    def read_file(self, inode: int, size_bytes: int) -> Iterator[bytes]:
        """A file's bytes, in pieces, in order; up to the size or the end, whichever comes first."""
        opened = self.gateway.call(
            methods.FILESYSTEM_OPEN, filesystem_pb2.OpenRequest(inode=inode, flags=os.O_RDONLY)
        )
        try:
            # In one call: the node keeps the handle for as long, however slow the reader is.
            request = filesystem_pb2.ReadRequest(handle=opened.handle, length_bytes=size_bytes)
            for reply in self.gateway.stream(
                methods.FILESYSTEM_READ_STREAM, request, timeout_s=PIECE_TIMEOUT_S
            ):
                yield reply.data
        finally:
            with suppress(BadHandleError):  # idle for the node, while the last bytes were on their way
                self._release(opened.handle)

    def write_file(
        self, parent: int, name: bytes, mode: int, pieces: Iterable[bytes]
    ) -> types_pb2.Attributes:
        """Make a file, write it, and return when it is durable. Raises ExistsError."""
        request = filesystem_pb2.CreateRequest(
            parent=parent,
            name=name,
            mode=mode,
            uid=os.getuid(),
            gid=os.getgid(),
            flags=os.O_WRONLY | os.O_CREAT | os.O_EXCL,
        )
        opened = self.gateway.call(methods.FILESYSTEM_CREATE, request)
        try:
            self._write(opened.handle, pieces)
            self.gateway.call(
                methods.FILESYSTEM_FSYNC,
                filesystem_pb2.FsyncRequest(handle=opened.handle),
                timeout_s=PIECE_TIMEOUT_S,
            )
        finally:
            self._release(opened.handle)
        return opened.attributes

    def _write(self, handle: int, pieces: Iterable[bytes]) -> None:
        """All pieces in one call: a source that is slow may take any time between two of them."""

        def requests() -> Iterator[filesystem_pb2.WriteRequest]:
            # The node keeps the handle for as long as a call writes to it, so it is told at once.
            yield filesystem_pb2.WriteRequest(handle=handle)
            offset = 0
            for piece in pieces:
                yield filesystem_pb2.WriteRequest(handle=handle, offset_bytes=offset, data=piece)
                offset += len(piece)

        self.gateway.send(methods.FILESYSTEM_WRITE_STREAM, requests(), timeout_s=PIECE_TIMEOUT_S)

    def _release(self, handle: int) -> None:
        self.gateway.call(methods.FILESYSTEM_RELEASE, filesystem_pb2.ReleaseRequest(handle=handle))
