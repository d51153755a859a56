"""Invalidations reach the kernel, and none of them waits for a lock that waits for us."""

import os
import stat
from pathlib import Path

import trio

from tests.unit.fuse_client.memory_filesystem import MemoryFileSystem, MemoryHandle
from tests.unit.fuse_client.memory_mount import Mounted, MountFactory
from wormfs.client.filesystem import Entry
from wormfs.core.limits import ROOT_INODE

CACHED_S = 3600.0


def _size(point: Path) -> int:
    return point.stat().st_size


async def test_attributes_are_cached_until_invalidated(mounting: MountFactory) -> None:
    async with mounting(MemoryFileSystem(CACHED_S)) as mounted:
        path = mounted.point / "f"
        await mounted.call(path.write_bytes, b"1234")
        assert await mounted.call(_size, path) == 4
        inode = (await mounted.filesystem.lookup(ROOT_INODE, b"f")).attributes.inode
        await mounted.filesystem.setattr(inode, size_bytes=9)
        assert await mounted.call(_size, path) == 4
        await mounted.kernel.invalidate_inode(inode, data=False)
        assert await mounted.call(_size, path) == 9


async def test_pages_are_dropped_with_data(mounting: MountFactory) -> None:
    async with mounting(MemoryFileSystem(CACHED_S)) as mounted:
        path = mounted.point / "f"
        await mounted.call(path.write_bytes, b"old!")
        assert await mounted.call(path.read_bytes) == b"old!"
        inode = (await mounted.filesystem.lookup(ROOT_INODE, b"f")).attributes.inode
        await mounted.filesystem.write(MemoryHandle(inode, 0), 0, b"new!")
        await mounted.kernel.invalidate_inode(inode, data=True)
        assert await mounted.call(path.read_bytes) == b"new!"


async def test_unknown_inodes_and_names_are_no_error(mounting: MountFactory) -> None:
    async with mounting() as mounted:
        await mounted.kernel.invalidate_inode(4711, data=True)
        await mounted.kernel.invalidate_entry(ROOT_INODE, b"nothing")
        await mounted.kernel.invalidate_entry(4711, b"nothing")


async def test_name_is_dropped(mounting: MountFactory) -> None:
    async with mounting(MemoryFileSystem(CACHED_S)) as mounted:
        path = mounted.point / "f"
        await mounted.call(path.write_bytes, b"x")
        await mounted.filesystem.unlink(ROOT_INODE, b"f")
        assert await mounted.call(path.exists)
        await mounted.kernel.invalidate_entry(ROOT_INODE, b"f")
        assert not await mounted.call(path.exists)


class _SlowCreate(MemoryFileSystem):
    """A create that waits, as one does whose recall another mount must answer first."""

    def __init__(self) -> None:
        super().__init__(CACHED_S)
        self.waiting = trio.Event()
        self.go_on = trio.Event()

    async def create(
        self, parent: int, name: bytes, mode: int, uid: int, gid: int, flags: int
    ) -> tuple[Entry, MemoryHandle]:
        if name == b"slow":
            self.waiting.set()
            await self.go_on.wait()
        return await super().create(parent, name, mode, uid, gid, flags)


class _SlowRead(MemoryFileSystem):
    """A read that waits until it is let go on."""

    def __init__(self) -> None:
        super().__init__(CACHED_S)
        self.waiting = trio.Event()
        self.go_on = trio.Event()

    async def read(self, handle: MemoryHandle, offset_bytes: int, length_bytes: int) -> memoryview:
        self.waiting.set()
        await self.go_on.wait()
        return await super().read(handle, offset_bytes, length_bytes)


async def test_invalidation_does_not_wait_for_a_read_that_waits_for_it(mounting: MountFactory) -> None:
    filesystem = _SlowRead()
    entry = await filesystem.make_node(ROOT_INODE, b"f", stat.S_IFREG | 0o644, 0, 0)
    inode = entry.attributes.inode
    await filesystem.write(MemoryHandle(inode, 0), 0, b"old!")
    async with mounting(filesystem) as mounted, trio.open_nursery() as nursery:
        path = mounted.point / "f"
        nursery.start_soon(mounted.call, path.read_bytes)
        await filesystem.waiting.wait()
        await filesystem.write(MemoryHandle(inode, 0), 0, b"new!")
        with trio.fail_after(1):
            await mounted.kernel.invalidate_inode(inode, data=True)
        filesystem.go_on.set()
        assert await mounted.call(path.read_bytes) == b"new!"


def _make(point: Path) -> None:
    os.close(os.open(point, os.O_CREAT | os.O_EXCL | os.O_WRONLY))


async def test_name_is_dropped_while_a_create_holds_the_directory(mounting: MountFactory) -> None:
    filesystem = _SlowCreate()
    async with mounting(filesystem) as mounted, trio.open_nursery() as nursery:
        path = mounted.point / "f"
        await mounted.call(_make, path)
        nursery.start_soon(mounted.call, _make, mounted.point / "slow")
        await filesystem.waiting.wait()
        await filesystem.unlink(ROOT_INODE, b"f")
        with trio.fail_after(1):
            await mounted.kernel.invalidate_entry(ROOT_INODE, b"f")
        filesystem.go_on.set()
        await _until_gone(mounted, path)


async def _until_gone(mounted: Mounted, path: Path) -> None:
    with trio.fail_after(5):  # at once from Linux 6.16 on; before, when the create is answered
        while await mounted.call(path.exists):  # noqa: ASYNC110 - the kernel has no event for it
            await trio.sleep(0.01)
