"""The mount that the tests of this folder use."""

from pathlib import Path

import pytest

from tests.unit.fuse_client.memory_filesystem import MemoryFileSystem
from tests.unit.fuse_client.memory_mount import MountFactory, mount_memory


@pytest.fixture
def mounting(tmp_path: Path) -> MountFactory:
    """`async with mounting(filesystem) as mounted`."""
    point = tmp_path / "mnt"
    point.mkdir()
    return lambda filesystem=None: mount_memory(point, filesystem or MemoryFileSystem())
