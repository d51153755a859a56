"""Writes behind the map's first page, while opens, recalls and lapses drop pages: nothing becomes zeros."""

import os
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.unit.client.chunk_stand_in import IN_STRIPES_BYTES, STRIPE_BYTES, Stripes, add_disks
from tests.unit.client.masters import masters
from wormfs.client.filesystem import FileSystem
from wormfs.core.limits import ROOT_INODE
from wormfs.rpc.methods import METADATA_GET_FILE_MAP

pytestmark = pytest.mark.timeout(30)
MODE = 0o100644
SECOND_PAGE = 256 * STRIPE_BYTES


async def drop_page(fs: FileSystem, inode: int) -> None:
    """As after a failover that left the write lease, and an open by another program on the mount."""
    fs._distrust(frozenset({inode}))
    await fs.release(await fs.open(inode, os.O_RDONLY))


@pytest.mark.parametrize("doubted_by", ["setxattr", "failover"])
async def test_a_recall_commits_part_of_a_stripe_over_what_was_there(tmp_path: Path, doubted_by: str) -> None:
    """An open of the file, by another program on the mount, has dropped the stripe's page of the map."""
    async with masters(tmp_path) as made, made.mount("one") as one, made.mount("two") as two:
        add_disks(made)
        Stripes().serve(one.fs, two.fs)
        _, handle = await one.fs.create(ROOT_INODE, b"f", MODE, 0, 0, os.O_RDWR)
        await one.fs.write(handle, SECOND_PAGE, b"A" * STRIPE_BYTES)
        await one.fs.fsync(handle)
        await one.fs.write(handle, SECOND_PAGE, b"B" * IN_STRIPES_BYTES)
        if doubted_by == "setxattr":  # the inode's `change` moves on
            await one.fs.setxattr(handle.inode, b"user.a", b"1")
        else:  # what is cached is not trusted any more; the write lease is kept
            await made.depose()
            await one.lapsed()
            await made.lead(1)
            add_disks(made)
        await one.fs.release(await one.fs.open(handle.inode, os.O_RDONLY))

        entry = await two.fs.lookup(ROOT_INODE, b"f")  # recalls the write lease
        assert entry.attributes.size_bytes == SECOND_PAGE + STRIPE_BYTES
        seen = await two.fs.open(handle.inode, os.O_RDONLY)
        found = bytes(await two.fs.read(seen, SECOND_PAGE, STRIPE_BYTES))
        assert found[:IN_STRIPES_BYTES] == b"B" * IN_STRIPES_BYTES
        assert found.count(b"A") == STRIPE_BYTES - IN_STRIPES_BYTES


async def test_a_file_that_is_only_appended_to_keeps_what_was_synced(tmp_path: Path) -> None:
    """It is renamed and opened before the rest of its last stripe is sent."""
    async with masters(tmp_path) as made, made.mount("one") as one, made.mount("two") as two:
        add_disks(made)
        Stripes().serve(one.fs, two.fs)
        _, handle = await one.fs.create(ROOT_INODE, b"f.part", MODE, 0, 0, os.O_RDWR)
        await one.fs.setattr(handle.inode, size_bytes=SECOND_PAGE)  # holes, to be quick
        await one.fs.write(handle, SECOND_PAGE, b"A" * 60_000)
        await one.fs.fsync(handle)
        await one.fs.write(handle, SECOND_PAGE + 60_000, b"B" * 66_000)
        await one.fs.rename(ROOT_INODE, b"f.part", ROOT_INODE, b"f", 0)
        await one.fs.release(await one.fs.open(handle.inode, os.O_RDONLY))
        await two.fs.getattr(handle.inode)  # recalls the write lease
        seen = await two.fs.open(handle.inode, os.O_RDONLY)
        found = bytes(await two.fs.read(seen, SECOND_PAGE, STRIPE_BYTES))
        assert (found.count(b"A"), found.count(b"B"), len(found)) == (60_000, 66_000, 126_000)


async def test_an_open_during_an_fsync_takes_no_stripe_from_the_map(tmp_path: Path) -> None:
    """More stripes than are stored at one time; the open comes while the later ones wait for their turn."""
    async with masters(tmp_path) as made, made.mount("one") as one:
        add_disks(made)
        stripes = Stripes()
        stripes.serve(one.fs)
        starts = [SECOND_PAGE + number * STRIPE_BYTES for number in range(5)]
        _, handle = await one.fs.create(ROOT_INODE, b"f", MODE, 0, 0, os.O_RDWR)
        for start in starts:
            await one.fs.write(handle, start, b"A" * STRIPE_BYTES)
        await one.fs.fsync(handle)
        for start in starts:
            await one.fs.write(handle, start, b"B" * IN_STRIPES_BYTES)
        stripes.hold()
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.fs.fsync, handle)
                await stripes.asked.wait()
                await drop_page(one.fs, handle.inode)
                stripes.go_on()
        expected = b"B" * IN_STRIPES_BYTES + b"A" * (STRIPE_BYTES - IN_STRIPES_BYTES)
        for start in starts:
            assert bytes(await one.fs.read(handle, start, STRIPE_BYTES)) == expected


async def test_small_writes_behind_an_open_are_counted_with_those_before_them(tmp_path: Path) -> None:
    """Together they are too much to be kept in the metadata; the open comes as their fsync waits its turn."""
    async with masters(tmp_path) as made, made.mount("one") as one:
        add_disks(made)
        stripes = Stripes()
        stripes.serve(one.fs)
        _, handle = await one.fs.create(ROOT_INODE, b"f", MODE, 0, 0, os.O_RDWR)
        small = SECOND_PAGE + 5 * STRIPE_BYTES
        for start in range(SECOND_PAGE, small, STRIPE_BYTES):
            await one.fs.write(handle, start, b"A" * STRIPE_BYTES)
        await one.fs.write(handle, small, b"A" * 40_000)
        await one.fs.fsync(handle)
        for start in range(SECOND_PAGE, small, STRIPE_BYTES):
            await one.fs.write(handle, start, b"B" * IN_STRIPES_BYTES)
        await one.fs.write(handle, small + 40_000, b"B" * 40_000)
        assert stripes.puts == 5
        stripes.hold()
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.fs.fsync, handle)
                await stripes.asked.wait()
                await drop_page(one.fs, handle.inode)
                stripes.go_on()
        assert stripes.puts == 5 + 6
        assert bytes(await one.fs.read(handle, small, STRIPE_BYTES)) == b"A" * 40_000 + b"B" * 40_000


async def test_an_append_that_waits_for_the_map_writes_behind_what_was_appended_meanwhile(
    tmp_path: Path,
) -> None:
    """Its lease ran out while it waited, and another mount appended and synced."""
    append = os.O_RDWR | os.O_APPEND
    async with masters(tmp_path) as made, made.mount("one") as one, made.mount("two") as two:
        inode = (await one.fs.make_node(ROOT_INODE, b"f", MODE, 0, 0)).attributes.inode
        await one.fs.setattr(inode, size_bytes=SECOND_PAGE)
        mine = await one.fs.open(inode, append)
        other = await two.fs.open(inode, append)
        await one.fs._ensure_write_lease(mine.state)  # as a write before had it

        session: Any = one.fs.session
        ask, cut, mended = session._ask, trio.Event(), trio.Event()

        async def cut_off(link: Any, method: Any, *args: Any, **more: Any) -> Any:
            if method is METADATA_GET_FILE_MAP:
                cut.set()
            if cut.is_set():
                await mended.wait()
            return await ask(link, method, *args, **more)

        session._ask = cut_off  # between this mount and the master, as its append asks for the map
        with trio.fail_after(15):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.fs.write, mine, SECOND_PAGE, b"one")
                await cut.wait()
                await two.fs.write(other, SECOND_PAGE, b"two")  # once the lease of mount one has run out
                await two.fs.fsync(other)
                mended.set()
        await one.fs.fsync(mine)
        seen = await two.fs.open(inode, os.O_RDONLY)
        assert bytes(await two.fs.read(seen, SECOND_PAGE, 100)) == b"twoone"
