"""How a mount ends when reading its device fails: what was written is written back all the same."""

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pyfuse3
import pytest
import trio

from fuse_client import serving
from fuse_client.serving import MountSettings, serve_mount
from tests.unit.fuse_client.memory_filesystem import MemoryFileSystem
from wormfs.cli.mounts import find_kernel_mount
from wormfs.client.options import ClientOptions
from wormfs.core.errors import UnavailableError

pytestmark = pytest.mark.timeout(30)


class ClusterFileSystem(MemoryFileSystem):
    """Its sync may be refused."""

    refused = False

    async def sync(self) -> None:
        if self.refused:
            raise UnavailableError("the master is away")
        await super().sync()


@pytest.fixture
def point(tmp_path: Path) -> Path:
    """Where to mount."""
    made = tmp_path / "mnt"
    made.mkdir()
    return made


@pytest.fixture
def filesystem(point: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterFileSystem:
    """The file system that a mount process connects to; the kernel's device cannot be read."""
    made = ClusterFileSystem()

    @asynccontextmanager
    async def opened(*_: object, **__: object) -> AsyncIterator[ClusterFileSystem]:
        yield made

    async def broken(**_: object) -> None:
        assert find_kernel_mount(point) is not None
        raise OSError(errno.ENOMEM, "fuse_session_receive_buf failed with Cannot allocate memory")

    monkeypatch.setattr(serving, "open_filesystem", opened)
    monkeypatch.setattr(pyfuse3, "main", broken)
    return made


async def serve(point: Path) -> None:
    """A real mount, until it fails."""
    with trio.fail_after(20):
        await serve_mount(MountSettings(point, ("a:1",), ClientOptions()), lambda: None)


async def test_what_was_written_is_written_back(filesystem: ClusterFileSystem, point: Path) -> None:
    """And the error is told."""
    broken = pytest.RaisesExc(OSError, match="Cannot allocate memory")
    with pytest.RaisesGroup(broken, flatten_subgroups=True):
        await serve(point)
    assert filesystem.synced == 1
    assert find_kernel_mount(point) is None


async def test_what_is_not_written_back_is_told_first(filesystem: ClusterFileSystem, point: Path) -> None:
    """Lost writes are worse news than how the mount ended."""
    filesystem.refused = True
    with pytest.raises(UnavailableError, match="not everything could be written back: the master is away"):
        await serve(point)
    assert find_kernel_mount(point) is None
