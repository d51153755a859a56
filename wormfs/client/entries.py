"""What the file system hands out (entries, pages, handles), and the kernel cache it takes back from."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from wormfs.client.file_reader import ReadPattern
from wormfs.client.inode_state import InodeState
from wormfs.rpc.v1 import types_pb2


@dataclass(frozen=True, slots=True)
class Entry:
    """One inode's attributes, and for how many seconds the kernel may keep them."""

    attributes: types_pb2.Attributes
    cache_s: float


@dataclass(frozen=True, slots=True)
class DirPage:
    """Part of a directory, in byte order of the names."""

    entries: list[tuple[bytes, Entry]]
    end: bool


class Handle:
    """One open file."""

    __slots__ = ("flags", "keep_cache", "open", "pattern", "state")

    def __init__(self, state: InodeState, flags: int, *, keep_cache: bool) -> None:
        self.state = state
        self.flags = flags
        self.keep_cache = keep_cache  # pages the kernel has of the inode are still right
        self.pattern = ReadPattern()
        self.open = True

    @property
    def inode(self) -> int:
        """The file's inode."""
        return self.state.inode

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY


@asynccontextmanager
async def locked_for_writing(
    state: InodeState, handle: Handle | None = None, offset_bytes: int = 0
) -> AsyncIterator[None]:
    """Hold the state's lock in a block that may need the write lease.

    `handle` and the kernel's `offset_bytes` of an append: as InodeState.lock_for_writing.
    """
    await state.lock_for_writing(handle, offset_bytes)
    try:
        yield
    finally:
        state.lock.release()


class KernelCache(Protocol):
    """What a mount lets the client take back from the kernel."""

    @property
    def one_change_at_a_time(self) -> bool:
        """Whether a change or lookup in a directory is asked for only when the change before is answered."""

    async def invalidate_inode(self, inode: int, data: bool) -> None:
        """Drop attributes, and with `data` the pages, of an inode."""

    async def invalidate_written(self, inode: int) -> None:
        """The same for an inode a write of which waits for its answer: it need only begin."""

    async def invalidate_entry(self, parent: int, name: bytes) -> None:
        """Drop a directory entry."""


class NoKernelCache:
    """For clients that no kernel caches for."""

    one_change_at_a_time = False

    async def invalidate_inode(self, inode: int, data: bool) -> None:
        """Nothing to drop."""

    async def invalidate_written(self, inode: int) -> None:
        """Nothing to drop."""

    async def invalidate_entry(self, parent: int, name: bytes) -> None:
        """Nothing to drop."""
