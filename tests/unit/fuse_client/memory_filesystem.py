"""An in-memory stand-in for the client's FileSystem: exercises and measures the FUSE layer alone."""

import errno
import os
import stat
import time
from dataclasses import dataclass, field
from typing import cast

from wormfs.client.filesystem import DirPage, Entry, FileSystem
from wormfs.core.errors import ExistsError, NotEmptyError, NotFoundError, NoXattrError, WormError
from wormfs.core.limits import ROOT_INODE
from wormfs.rpc.v1 import filesystem_pb2, types_pb2


@dataclass(slots=True)
class _Inode:
    attributes: types_pb2.Attributes
    data: bytearray = field(default_factory=bytearray)
    names: dict[bytes, int] = field(default_factory=dict)
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class MemoryHandle:
    inode: int
    flags: int
    keep_cache: bool = True


class MemoryFileSystem:
    """The methods that handlers call. `cache_s` is handed to the kernel as is."""

    def __init__(self, cache_s: float = 0.0) -> None:
        self.cache_s = cache_s
        self.forgotten: list[int] = []
        self.synced = 0
        self.failure: Exception | None = None
        self._inodes: dict[int, _Inode] = {}
        self._next = ROOT_INODE
        self._new(stat.S_IFDIR | 0o755, 0, 0)

    @property
    def port(self) -> FileSystem:
        """As the type the handlers want."""
        return cast(FileSystem, self)

    def _new(self, mode: int, uid: int, gid: int, rdev: int = 0) -> int:
        now = time.time_ns()
        number = self._next
        self._next += 1
        attributes = types_pb2.Attributes(
            inode=number,
            mode=mode,
            nlink=1,
            uid=uid,
            gid=gid,
            rdev=rdev,
            atime_ns=now,
            mtime_ns=now,
            ctime_ns=now,
        )
        self._inodes[number] = _Inode(attributes)
        return number

    def _entry(self, number: int) -> Entry:
        return Entry(self._inodes[number].attributes, self.cache_s)

    def _names(self, parent: int) -> dict[bytes, int]:
        return self._inodes[parent].names

    async def lookup(self, parent: int, name: bytes) -> Entry:
        if self.failure:
            raise self.failure
        number = self._names(parent).get(name)
        if number is None:
            raise NotFoundError("no such name")
        return self._entry(number)

    async def getattr(self, inode: int) -> Entry:
        return self._entry(inode)

    async def setattr(self, inode: int, *, size_bytes: int | None = None, **changes: int | None) -> Entry:
        found = self._inodes[inode]
        for name, value in changes.items():
            if value is not None and name == "mode":
                found.attributes.mode = stat.S_IFMT(found.attributes.mode) | value
            elif value is not None:
                setattr(found.attributes, name, value)
        if size_bytes is not None:
            del found.data[size_bytes:]
            found.data.extend(bytes(size_bytes - len(found.data)))
            found.attributes.size_bytes = size_bytes
        return self._entry(inode)

    async def make_node(
        self, parent: int, name: bytes, mode: int, uid: int, gid: int, *, rdev: int = 0, target: bytes = b""
    ) -> Entry:
        names = self._names(parent)
        if name in names:
            raise ExistsError("taken")
        number = names[name] = self._new(mode, uid, gid, rdev)
        self._inodes[number].target = target
        return self._entry(number)

    async def create(
        self, parent: int, name: bytes, mode: int, uid: int, gid: int, flags: int
    ) -> tuple[Entry, MemoryHandle]:
        entry = await self.make_node(parent, name, stat.S_IFREG | mode, uid, gid)
        return entry, MemoryHandle(entry.attributes.inode, flags)

    async def open(self, inode: int, flags: int) -> MemoryHandle:
        if flags & os.O_TRUNC:
            await self.setattr(inode, size_bytes=0)
        return MemoryHandle(inode, flags)

    async def read(self, handle: MemoryHandle, offset_bytes: int, length_bytes: int) -> memoryview:
        return memoryview(self._inodes[handle.inode].data)[offset_bytes : offset_bytes + length_bytes]

    async def write(self, handle: MemoryHandle, offset_bytes: int, data: bytes) -> int:
        found = self._inodes[handle.inode]
        size = len(found.data)
        if offset_bytes > size:
            found.data.extend(bytes(offset_bytes - size))
        found.data[offset_bytes : offset_bytes + len(data)] = data
        found.attributes.size_bytes = len(found.data)
        found.attributes.mtime_ns = time.time_ns()
        return len(data)

    async def flush(self, handle: MemoryHandle) -> None: ...

    async def fsync(self, handle: MemoryHandle, data_only: bool = False) -> None:
        self.synced += 1

    async def release(self, handle: MemoryHandle) -> None: ...

    async def sync(self) -> None:
        self.synced += 1

    async def fsync_directory(self, inode: int) -> None:
        self.synced += 1

    async def readdir(self, inode: int, after: bytes, limit: int) -> DirPage:
        names = self._names(inode)
        wanted = sorted(name for name in names if name > after)
        return DirPage([(name, self._entry(names[name])) for name in wanted[:limit]], len(wanted) <= limit)

    async def readlink(self, inode: int) -> bytes:
        return self._inodes[inode].target

    async def link(self, inode: int, parent: int, name: bytes) -> Entry:
        if name in self._names(parent):
            raise ExistsError("taken")
        self._names(parent)[name] = inode
        self._inodes[inode].attributes.nlink += 1
        return self._entry(inode)

    async def unlink(self, parent: int, name: bytes) -> None:
        number = self._names(parent).pop(name, None)
        if number is None:
            raise NotFoundError("no such name")
        self._inodes[number].attributes.nlink -= 1

    async def rmdir(self, parent: int, name: bytes) -> None:
        if self._names(self._names(parent)[name]):
            raise NotEmptyError("has entries")
        del self._names(parent)[name]

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        old, new = self._names(parent), self._names(new_parent)
        if flags == 1 and new_name in new:
            raise ExistsError("taken")
        if flags == 2:
            old[name], new[new_name] = new[new_name], old[name]
        else:
            new[new_name] = old.pop(name)

    async def getxattr(self, inode: int, name: bytes) -> bytes:
        try:
            return self._inodes[inode].xattrs[name]
        except KeyError:
            raise NoXattrError("none") from None

    async def setxattr(self, inode: int, name: bytes, value: bytes, flags: int = 0) -> None:
        self._inodes[inode].xattrs[name] = value

    async def listxattrs(self, inode: int) -> list[bytes]:
        return list(self._inodes[inode].xattrs)

    async def removexattr(self, inode: int, name: bytes) -> None:
        if self._inodes[inode].xattrs.pop(name, None) is None:
            raise NoXattrError("none")

    async def statfs(self) -> filesystem_pb2.StatFsReply:
        return filesystem_pb2.StatFsReply(
            total_bytes=1 << 40, free_bytes=1 << 39, inode_count=len(self._inodes), free_inodes=1 << 40
        )

    def forget(self, inodes: list[int]) -> None:
        self.forgotten += inodes


class BrokenError(WormError):
    """For the errno map."""

    errno = errno.ENOLINK
