"""Bytes that cannot be written: who is told, whom they keep from writing, and what waiting bytes cost."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.unit.client.chunk_stand_in import IN_STRIPES_BYTES, Stripes, add_disks
from tests.unit.client.masters import Masters, masters
from wormfs.client.filesystem import FileSystem, Handle, open_filesystem
from wormfs.client.options import ClientOptions
from wormfs.core.errors import NoSpaceError, UnavailableError
from wormfs.core.limits import ROOT_INODE

pytestmark = pytest.mark.timeout(30)


@asynccontextmanager
async def mounted(made: Masters, stripes: Stripes, options: ClientOptions) -> AsyncIterator[FileSystem]:
    """A file system whose stripes are kept."""
    add_disks(made)
    async with open_filesystem(made.addresses, label="one", options=options) as fs:
        stripes.serve(fs)
        yield fs


async def new_file(fs: FileSystem, name: bytes, flags: int = os.O_RDWR) -> Handle:
    return (await fs.create(ROOT_INODE, name, 0o100644, 0, 0, flags))[1]


async def test_a_write_is_not_told_what_is_wrong_with_another_file(tmp_path: Path) -> None:
    stripes = Stripes()
    options = ClientOptions(dirty_bytes=100_000)  # what the buffer of one stripe is more than
    async with masters(tmp_path) as made, mounted(made, stripes, options) as fs:
        bad = await new_file(fs, b"bad")
        good = await new_file(fs, b"good", os.O_RDWR | os.O_APPEND)
        stripes.full_for.add(bad.inode)
        await fs.write(bad, 0, b"b" * IN_STRIPES_BYTES)
        try:
            for number in range(100):
                await fs.write(good, number, b"g")
            with pytest.raises(NoSpaceError):
                await fs.fsync(bad)
        finally:
            stripes.full_for.clear()
        await fs.fsync(good)
        assert bytes(await fs.read(good, 0, 1000)) == b"g" * 100


async def test_one_file_that_cannot_be_written_keeps_no_other_from_it(tmp_path: Path) -> None:
    """As at the end of a mount."""
    stripes = Stripes()
    async with masters(tmp_path) as made, mounted(made, stripes, ClientOptions()) as fs:
        bad, good = await new_file(fs, b"bad"), await new_file(fs, b"good")
        stripes.full_for.add(bad.inode)
        await fs.write(bad, 0, b"b" * IN_STRIPES_BYTES)
        await fs.write(good, 0, b"good")
        with pytest.raises(NoSpaceError):
            await fs.sync()
        stripes.full_for.clear()
        assert (bad.state.has_dirty, good.state.has_dirty) == (True, False)


async def test_a_stripe_that_no_disk_takes_is_not_tried_without_pause(tmp_path: Path) -> None:
    stripes = Stripes()
    async with masters(tmp_path) as made, mounted(made, stripes, ClientOptions(deadline_s=0.5)) as fs:
        handle = await new_file(fs, b"f")
        await fs.write(handle, 0, b"x" * IN_STRIPES_BYTES)
        stripes.refusing = True
        with pytest.raises(UnavailableError):
            await fs.flush(handle)
        stripes.refusing = False
        assert 2 <= stripes.puts < 10


async def test_bytes_written_one_by_one_are_kept_in_few_pieces(tmp_path: Path) -> None:
    """What a write and a commit cost grows with the pieces that a stripe has."""
    count = 6000
    async with masters(tmp_path) as made, made.mount("one") as one:
        handle = await new_file(one.fs, b"f")
        for number in range(count):
            await one.fs.write(handle, number, b"%d" % (number % 10))
        assert len(handle.state.dirty[0].pieces) <= 2
        await one.fs.fsync(handle)
        assert len(handle.state.extents[0]) <= 2
        assert bytes(await one.fs.read(handle, 0, count)) == b"0123456789" * (count // 10)
