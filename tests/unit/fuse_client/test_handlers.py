"""The handlers, through the kernel, against the in-memory stand-in."""

import contextlib
import errno
import os
import stat
from pathlib import Path

import pytest
import trio

from tests.unit.fuse_client.memory_filesystem import BrokenError, MemoryFileSystem
from tests.unit.fuse_client.memory_mount import MountFactory
from wormfs.client.filesystem import DirPage
from wormfs.core.limits import ROOT_INODE

NOBODY = 65534


def _errno_of(function: object, *arguments: object) -> int | None:
    try:
        function(*arguments)  # type: ignore[operator]
    except OSError as error:
        return error.errno
    return None


async def test_files_directories_and_links(mounting: MountFactory) -> None:
    async with mounting() as mounted:
        await mounted.call(_files_directories_and_links, mounted.point)


def _files_directories_and_links(point: Path) -> None:
    data = os.urandom(3_000_001)
    (point / "d").mkdir(mode=0o750)
    (point / "d" / "f").write_bytes(data)
    assert (point / "d" / "f").read_bytes() == data
    assert stat.S_IMODE((point / "d").stat().st_mode) == 0o750
    (point / "l").symlink_to("d/f")
    assert os.readlink(point / "l") == "d/f"
    assert (point / "l").read_bytes() == data
    os.link(point / "d" / "f", point / "h")
    assert (point / "h").stat().st_nlink == 2
    os.mkfifo(point / "fifo", 0o600)
    os.mknod(point / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert (point / "null").stat().st_rdev == os.makedev(1, 3)
    os.rename(point / "h", point / "d" / "g")
    assert sorted(os.listdir(point)) == ["d", "fifo", "l", "null"]
    assert _errno_of(os.rmdir, point / "d") == errno.ENOTEMPTY
    assert _errno_of(os.stat, point / "nothing") == errno.ENOENT
    assert _errno_of(os.mkdir, point / "d") == errno.EEXIST
    os.truncate(point / "d" / "g", 5)
    assert (point / "d" / "f").read_bytes() == data[:5]
    assert os.statvfs(point).f_namemax == 255


async def test_extended_attributes(mounting: MountFactory) -> None:
    async with mounting() as mounted:
        await mounted.call(_extended_attributes, mounted.point)


def _extended_attributes(point: Path) -> None:
    file = point / "f"
    file.touch()
    os.setxattr(file, "user.a", b"1")
    assert os.getxattr(file, "user.a") == b"1"
    assert os.listxattr(file) == ["user.a"]
    assert _errno_of(os.setxattr, file, "user.a", b"2", os.XATTR_CREATE) == errno.EEXIST
    assert _errno_of(os.setxattr, file, "user.b", b"2", os.XATTR_REPLACE) == errno.ENODATA
    os.removexattr(file, "user.a")
    assert _errno_of(os.getxattr, file, "user.a") == errno.ENODATA
    assert _errno_of(os.getxattr, file, "system.posix_acl_access") == errno.EOPNOTSUPP
    assert _errno_of(os.getxattr, file, "security.capability") == errno.ENODATA
    os.setxattr(point, "fuse_stacktrace", b"1")


async def test_errors_become_their_errno_and_bugs_eio(mounting: MountFactory) -> None:
    async with mounting() as mounted:
        mounted.filesystem.failure = BrokenError("broken")
        assert await mounted.call(_errno_of, os.stat, mounted.point / "f") == errno.ENOLINK
        mounted.filesystem.failure = ZeroDivisionError("a bug")
        assert await mounted.call(_errno_of, os.stat, mounted.point / "f") == errno.EIO
        mounted.filesystem.failure = None
        assert await mounted.call(_errno_of, os.stat, mounted.point / "f") == errno.ENOENT


async def test_fsync_of_files_and_directories_reaches_the_file_system(mounting: MountFactory) -> None:
    async with mounting() as mounted:
        for step in ("f", "."):
            before = mounted.filesystem.synced
            await mounted.call(_sync, mounted.point / step)
            assert mounted.filesystem.synced == before + 1


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_CREAT | os.O_WRONLY)
    os.fsync(descriptor)
    os.close(descriptor)


class _SmallPages(MemoryFileSystem):
    async def readdir(self, inode: int, after: bytes, limit: int) -> DirPage:
        return await super().readdir(inode, after, 7)


async def test_listing_survives_changes_under_it(mounting: MountFactory) -> None:
    filesystem = _SmallPages()
    names = [b"%04d" % number for number in range(1000)]
    for name in names:
        await filesystem.make_node(ROOT_INODE, name, stat.S_IFREG | 0o644, 0, 0)
    async with mounting(filesystem) as mounted:
        seen = await mounted.call(_list_removing, mounted.point)
        assert sorted(seen) == names
        assert await mounted.call(os.listdir, mounted.point) == []


def _list_removing(point: Path) -> list[bytes]:
    seen = []
    with os.scandir(os.fsencode(point)) as listing:
        for entry in listing:
            seen.append(entry.name)
            os.unlink(entry.path)
    return seen


async def test_listing_gives_the_dots(mounting: MountFactory) -> None:
    async with mounting() as mounted:
        done = await trio.run_process(["ls", "-a", str(mounted.point)], capture_stdout=True)
        assert done.stdout.split() == [b".", b".."]


async def test_forgotten_inodes_are_told(mounting: MountFactory) -> None:
    async with mounting(MemoryFileSystem(3600.0)) as mounted:
        path = mounted.point / "f"
        await mounted.call(path.touch)
        inode = (await mounted.filesystem.lookup(ROOT_INODE, b"f")).attributes.inode
        assert inode in mounted.tables.lookups
        await mounted.call(path.unlink)
        with trio.fail_after(10):
            while inode not in mounted.filesystem.forgotten:  # noqa: ASYNC110 - told by the kernel
                await trio.sleep(0.01)
        assert inode not in mounted.tables.lookups


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
async def test_set_id_bits_are_taken_by_writes_and_chown(mounting: MountFactory) -> None:
    async with mounting() as mounted:
        file = mounted.point / "f"
        await mounted.call(file.write_bytes, b"x")
        await mounted.call(os.chmod, file, 0o6777)
        await mounted.call(file.write_bytes, b"y")  # by root: keeps them
        assert await mounted.call(_mode, file) == 0o6777
        await trio.run_process(["sh", "-c", "echo z >> f"], cwd=mounted.point, user=NOBODY, group=NOBODY)
        assert await mounted.call(_mode, file) == 0o777
        await mounted.call(os.chmod, file, 0o6777)
        await mounted.call(os.chown, file, NOBODY, NOBODY)
        assert await mounted.call(_mode, file) == 0o777


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_closed_files_leave_the_table(mounting: MountFactory) -> None:
    async with mounting() as mounted:
        await mounted.call((mounted.point / "f").write_bytes, b"x")
        with contextlib.suppress(trio.TooSlowError), trio.fail_after(5):
            while len(mounted.tables.files):  # noqa: ASYNC110 - releases come after close(2)
                await trio.sleep(0.01)
        assert len(mounted.tables.files) == 0
