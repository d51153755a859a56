"""Names changed through a mount: an fsync of anything through it saves them from a power cut."""

import os
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.unit.client.masters import masters
from tests.unit.node.serving import open_machine
from wormfs.client.filesystem import FileSystem
from wormfs.core.limits import ROOT_INODE
from wormfs.metadata import keeper
from wormfs.rpc.v1 import filesystem_pb2
from wormfs.sim.disk import SimDisk, faked_disks

pytestmark = pytest.mark.timeout(60)
FILE, FOLDER, SYMLINK = 0o100644, 0o040755, 0o120777
CHANGED = {b"folder", b"linked", b"new", b"link", b"symbolic"}


class Harshest(Random):
    """Of all that a power cut may do to a disk: nothing is left of what was not synced."""

    def choice(self, fates: Any) -> Any:
        return next(fate for fate in fates if fate in ("cut", "state-gone"))


async def change_names(fs: FileSystem) -> None:
    """A rename, an mkdir, an unlink, a link and a symlink: CHANGED is what there is behind them."""
    for name in (b"old", b"gone", b"linked"):
        await fs.make_node(ROOT_INODE, name, FILE, 0, 0)
    folder = (await fs.make_node(ROOT_INODE, b"folder", FOLDER, 0, 0)).attributes.inode
    await fs.link((await fs.lookup(ROOT_INODE, b"linked")).attributes.inode, folder, b"link")
    await fs.make_node(folder, b"symbolic", SYMLINK, 0, 0, target=b"new")
    await fs.unlink(ROOT_INODE, b"gone")
    await fs.rename(ROOT_INODE, b"old", folder, b"new", 0)


async def sync_other(fs: FileSystem, how: str) -> None:
    """Sync something that none of the changes touched."""
    _, handle = await fs.create(ROOT_INODE, b"other", FILE, 0, 0, os.O_RDWR)
    other = (await fs.make_node(ROOT_INODE, b"other-folder", FOLDER, 0, 0)).attributes.inode
    await change_names(fs)
    if how == "file":
        await fs.fsync(handle)
    elif how == "folder":
        await fs.fsync_directory(other)


def names_left(disks: list[SimDisk], after: Path) -> set[bytes]:
    """The names that a master finds which starts behind the power cut, but for those of `sync_other`."""
    after.mkdir()
    for disk in disks:
        image = disk.image()
        disk.lose_power(image)
        image.rename(after / disk.folder.name)
    machine = open_machine(after)
    found: set[bytes] = set()
    folders = [ROOT_INODE]
    while folders:
        request = filesystem_pb2.ReadDirRequest(inode=folders.pop(), limit=100, want_attributes=True)
        for entry in machine.execute(request).reply.entries:  # type: ignore[attr-defined]
            found.add(entry.name)
            if entry.attributes.mode & 0o170000 == 0o040000:
                folders.append(entry.attributes.inode)
    machine.close()
    return found - {b"other", b"other-folder"}


@pytest.mark.parametrize(
    ("how", "left"),
    [("file", CHANGED), ("folder", CHANGED), ("nothing", set())],
    ids=["file", "folder", "nothing"],
)
async def test_changes_of_names_are_durable_after_an_fsync_of_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, left: set[bytes]
) -> None:
    monkeypatch.setattr(keeper, "SYNC_INTERVAL_S", 3600)  # none but the one that is asked for
    disks = [SimDisk(tmp_path / f"disk-{number}", Harshest()) for number in (1, 2)]
    with faked_disks(disks):
        for disk in disks:
            disk.begin_life()
        async with masters(tmp_path, 1) as made, made.mount("one") as one:
            await one.fs.sync()  # the one at the start is over, too
            await sync_other(one.fs, how)
            assert names_left(disks, tmp_path / "after") == left
