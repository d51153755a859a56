"""Files that have nothing uncommitted any more: what was local of them is over."""

import os
from pathlib import Path

import pytest
import trio

from tests.unit.client.chunk_stand_in import IN_STRIPES_BYTES, STRIPE_BYTES, Stripes, add_disks
from tests.unit.client.masters import masters
from wormfs.client.filesystem import FileSystem, Handle, open_filesystem
from wormfs.client.options import ClientOptions
from wormfs.core.limits import ROOT_INODE

pytestmark = pytest.mark.timeout(30)


async def new_file(fs: FileSystem, name: bytes) -> Handle:
    return (await fs.create(ROOT_INODE, name, 0o100644, 0, 0, os.O_RDWR))[1]


async def make_clean(fs: FileSystem, handle: Handle, how: str) -> None:
    """Have nothing of it be uncommitted, but not by a flush."""
    if how == "stored behind the writer":
        await fs.write(handle, 0, b"x" * STRIPE_BYTES)
        with trio.fail_after(5):
            while handle.state.has_dirty:  # noqa: ASYNC110 - no event
                await trio.sleep(0.01)
    else:
        await fs.write(handle, 0, b"x" * 10)
        await fs.setattr(handle.inode, size_bytes=0)
    assert not handle.state.has_dirty


HOW = pytest.mark.parametrize("how", ["stored behind the writer", "cut off"])


@HOW
async def test_times_set_behind_the_last_write_are_shown(tmp_path: Path, how: str) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one:
        add_disks(made)
        Stripes().serve(one.fs)
        handle = await new_file(one.fs, b"f")
        await make_clean(one.fs, handle, how)
        entry = await one.fs.setattr(handle.inode, mtime_ns=1_000)
        assert entry.attributes.mtime_ns == 1_000
        assert (await one.fs.getattr(handle.inode)).attributes.mtime_ns == 1_000


@HOW
async def test_they_do_not_stand_before_those_to_be_written_back(tmp_path: Path, how: str) -> None:
    limit = 4 * STRIPE_BYTES
    options = ClientOptions(dirty_bytes=limit)
    stripes = Stripes()
    async with masters(tmp_path) as made, open_filesystem(made.addresses, label="one", options=options) as fs:
        add_disks(made)
        stripes.serve(fs)
        await make_clean(fs, await new_file(fs, b"clean"), how)
        for number in range(10):
            handle = await new_file(fs, b"%d" % number)
            await fs.write(handle, 0, b"x" * IN_STRIPES_BYTES)
            for _ in range(40):
                await fs.write(handle, 0, b"y")
        assert fs._writer.dirty_bytes() <= limit + STRIPE_BYTES
