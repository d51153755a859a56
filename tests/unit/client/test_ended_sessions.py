"""What goes on in the next session when one ends under it, and what waits for a server to be back."""

import os
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from tests.unit.client.chunk_stand_in import IN_STRIPES_BYTES, Stripes, add_disks
from tests.unit.client.masters import masters
from wormfs.client.entries import Handle
from wormfs.client.filesystem import FileSystem
from wormfs.core.limits import ROOT_INODE

pytestmark = pytest.mark.timeout(40)
OLD, NEW = b"o" * IN_STRIPES_BYTES, b"n" * IN_STRIPES_BYTES


async def written(fs: FileSystem, data: bytes) -> Handle:
    """A new file, and bytes of it that only the client has."""
    _, handle = await fs.create(ROOT_INODE, b"f", 0o100644, 0, 0, os.O_RDWR)
    await fs.write(handle, 0, data)
    return handle


async def test_a_command_that_was_refused_with_its_session_is_done_in_the_next(tmp_path: Path) -> None:
    """It was surely not done before."""
    async with masters(tmp_path) as made, made.mount("one") as one:
        session = one.fs.session
        await session._renew()  # so that no renewal comes between
        before = session.session_id
        made.service._end_session(before)
        entry = await one.fs.make_node(ROOT_INODE, b"d", 0o40755, 0, 0)
        assert session.session_id != before
        assert (await one.fs.lookup(ROOT_INODE, b"d")).attributes.inode == entry.attributes.inode


async def test_a_stripe_of_a_session_that_ended_is_stored_anew(tmp_path: Path) -> None:
    """The ended session's stripes are garbage: none can be committed by the next one."""
    async with masters(tmp_path) as made, made.mount("one") as one:
        add_disks(made)
        stripes = Stripes()
        stripes.serve(one.fs)
        handle = await written(one.fs, OLD)
        session, writer = one.fs.session, cast("Any", one.fs._stripe_writer)
        put, putting, ended = writer._put_all, trio.Event(), trio.Event()

        async def put_when_ended(*arguments: Any) -> Any:
            putting.set()
            await ended.wait()
            return await put(*arguments)

        writer._put_all = put_when_ended
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.fs.fsync, handle)
                await putting.wait()
                before = session.session_id
                made.service._end_session(before)
                await session._renew()
                assert session.session_id != before
                ended.set()
        assert stripes.puts == 2
        assert bytes(await one.fs.read(handle, 0, len(OLD))) == OLD


async def test_an_fsync_of_part_of_a_stripe_waits_for_a_server_that_is_restarted(tmp_path: Path) -> None:
    """What the stripe held before has to be read."""
    async with masters(tmp_path) as made, made.mount("one") as one:
        add_disks(made)
        stripes = Stripes()
        stripes.serve(one.fs)
        handle = await written(one.fs, OLD)
        await one.fs.fsync(handle)
        await one.fs.write(handle, 0, NEW[:-1])
        await made.depose()
        stripes.down = True
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.fs.fsync, handle)
                await stripes.asked.wait()
                await trio.testing.wait_all_tasks_blocked(0.05)
                stripes.down = False
                await made.lead(0)
                add_disks(made)
        assert bytes(await one.fs.read(handle, 0, len(OLD))) == NEW[:-1] + OLD[-1:]
