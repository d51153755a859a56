"""What a client has not saved when the mastership moves, and for how long it asks who is not there."""

import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.unit.client.masters import LEASE_S, Masters, Mount, masters
from tests.unit.node.serving import open_machine
from wormfs.client.filesystem import Handle
from wormfs.core.errors import DataLossError, NotFoundError
from wormfs.core.limits import ROOT_INODE
from wormfs.rpc.methods import METADATA_COMMIT_WRITE
from wormfs.rpc.v1 import metadata_pb2, types_pb2

pytestmark = pytest.mark.timeout(60)
APPEND = os.O_RDWR | os.O_APPEND
MODE = 0o100644


async def appended(mount: Mount, name: bytes, data: bytes) -> Handle:
    """A new file with bytes that only the client has."""
    _, handle = await mount.fs.create(ROOT_INODE, name, MODE, 0, 0, APPEND)
    await mount.fs.write(handle, 0, data)
    return handle


async def content(made: Masters, name: bytes) -> bytes:
    async with made.mount("reader") as reader:
        entry = await reader.fs.lookup(ROOT_INODE, name)
        handle = await reader.fs.open(entry.attributes.inode, os.O_RDONLY)
        found = bytes(await reader.fs.read(handle, 0, 1000))
        assert len(found) == entry.attributes.size_bytes
        await reader.fs.release(handle)
        return found


def change_by_another(folder: Path, inode: int) -> None:
    """What a session did to a file under a master before, long after ours had lapsed there."""
    machine = open_machine(folder)
    request = metadata_pb2.CommitWriteRequest(
        caller=types_pb2.Caller(), inode=inode, size_bytes=5, mtime_ns=time.time_ns()
    )
    request.extents.add(offset_bytes=0, data=b"other")
    machine.execute(request)
    machine.close()


async def test_a_call_that_hangs_on_a_cut_off_master_goes_to_the_next(tmp_path: Path) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one, trio.open_nursery() as nursery:
        answered = trio.Event()

        async def ask() -> None:
            with pytest.raises(NotFoundError):
                await one.fs.lookup(ROOT_INODE, b"nothing")
            answered.set()

        made.cut_off(0)
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked(0.05)
        await made.lead(1)
        with trio.fail_after(3.0):
            await answered.wait()


async def test_a_session_with_nothing_to_do_says_at_once_that_it_resumed(tmp_path: Path) -> None:
    """Others wait for it: what a master was asked may have been given up before it came."""
    async with masters(tmp_path) as made, made.mount("idle") as idle:
        made.opened = trio.Event()
        await made.lead(1)
        with trio.fail_after(2 * LEASE_S):
            await made.opened.wait()
        with trio.fail_after(LEASE_S / 6):  # half of the time until it renews next
            while made.service.leases.must_wait(idle.fs.session.session_id):  # noqa: ASYNC110 - no event
                await trio.sleep(0.01)


@pytest.mark.unsampled
async def test_a_call_that_the_master_holds_back_is_waited_for(tmp_path: Path) -> None:
    """Its connection is not given up: the master says on it that it is master."""
    async with masters(tmp_path) as made, made.mount("one") as one, trio.open_nursery() as nursery:
        handle = await appended(one, b"f", b"one")
        await made.lead(0, lose_answers_of=METADATA_COMMIT_WRITE)
        nursery.start_soon(one.fs.fsync, handle)
        with trio.fail_after(5):
            await made.lost.wait()
        made.opened = trio.Event()
        with trio.move_on_after(3.0):
            await made.opened.wait()
        assert not made.opened.is_set()
        await made.lead(1)


async def test_unsaved_bytes_are_saved_when_the_next_master_comes_after_the_lease(tmp_path: Path) -> None:
    """Nobody else could have the file meanwhile: who waits for it comes later."""
    async with masters(tmp_path) as made, made.mount("one") as one, made.mount("two") as two:
        _, handle = await one.fs.create(ROOT_INODE, b"f", MODE, 0, 0, APPEND)
        other = await two.fs.open(handle.inode, APPEND)
        await one.fs.write(handle, 0, b"one")
        await made.depose()
        await one.lapsed()

        async def append_other() -> None:
            await two.fs.write(other, 0, b"two")
            await two.fs.fsync(other)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(append_other)
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.start_soon(one.fs.fsync, handle)
            await made.lead(1)
        assert await content(made, b"f") == b"onetwo"


async def test_a_commit_whose_answer_was_lost_is_done_once(tmp_path: Path) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one:
        await made.lead(0, lose_answers_of=METADATA_COMMIT_WRITE)
        handle = await appended(one, b"f", b"one")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.fs.fsync, handle)
            await made.lost.wait()
            await made.depose()
            await one.lapsed()
            await made.lead(1)
        await one.fs.write(handle, 0, b"two")
        await one.fs.fsync(handle)
        assert await content(made, b"f") == b"onetwo"


@pytest.mark.parametrize("under_way", [False, True], ids=["unsent", "under-way"])
async def test_bytes_of_others_are_not_written_over(tmp_path: Path, under_way: bool) -> None:
    """The next master does not know that the session had lapsed at the one before; the client finds out."""
    async with masters(tmp_path) as made, made.mount("one") as one, trio.open_nursery() as nursery:
        handle = await appended(one, b"f", b"mine.")
        failed = trio.Event()

        async def save() -> None:
            with pytest.raises(DataLossError, match="changed since"):
                await one.fs.fsync(handle)
            failed.set()

        if under_way:
            made.cut_off(0)
            nursery.start_soon(save)
            await trio.testing.wait_all_tasks_blocked(0.05)
        await made.depose()
        change_by_another(tmp_path, handle.inode)
        await one.lapsed()
        await made.lead(1)
        if not under_way:
            nursery.start_soon(save)
        with trio.fail_after(10):
            await failed.wait()
        assert await content(made, b"f") == b"other"


@pytest.mark.parametrize("told_by", ["fsync", "close"])
async def test_bytes_given_up_for_another_are_told_to_their_owner(tmp_path: Path, told_by: str) -> None:
    """They were given up while the master took the file back, not while the owner asked for anything."""
    async with masters(tmp_path) as made, made.mount("one") as one:
        handle = await appended(one, b"f", b"mine.")
        await made.depose()
        change_by_another(tmp_path, handle.inode)
        await one.lapsed()
        await made.lead(1)
        with trio.fail_after(10):
            while handle.state.lapsed_change == 0:  # noqa: ASYNC110 - until it knows of the lapse
                await trio.sleep(0.01)
            with pytest.raises(DataLossError):
                await one.fs._ensure_write_lease(handle.state)  # as a recall does
        assert not handle.state.has_dirty
        tell = one.fs.fsync if told_by == "fsync" else one.fs.flush
        with pytest.raises(DataLossError, match="changed since"):
            await tell(handle)
        await tell(handle)  # once
        assert await content(made, b"f") == b"other"


async def test_what_was_lost_is_told_once_and_shown_no_more(tmp_path: Path) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one:
        handle = await appended(one, b"f", b"one")
        await one.fs.fsync(handle)
        handle.state.attributes.change += 1000  # as a master told that is gone with what it had ordered
        handle.state.attributes.size_bytes = handle.state.size_bytes = 999
        one.fs.on_lost(frozenset())
        assert (await one.fs.getattr(handle.inode)).attributes.size_bytes == 3
        with pytest.raises(DataLossError, match="lost"):
            await one.fs.fsync(handle)
        await one.fs.fsync(handle)
        with pytest.raises(DataLossError, match="lost"):
            await one.fs.sync()
        await one.fs.sync()
        assert bytes(await one.fs.read(handle, 0, 1000)) == b"one"


async def test_every_fsync_of_what_lost_changes_touched_tells(tmp_path: Path) -> None:
    """Of a file opened since, and of each directory; others know nothing of it."""
    async with masters(tmp_path) as made, made.mount("one") as one:
        handle = await appended(one, b"f", b"one")
        other = await appended(one, b"g", b"two")
        await one.fs.flush(handle)
        await one.fs.fsync(other)
        await one.fs.release(handle)
        await one.fs.release(other)
        folders = [
            (await one.fs.make_node(ROOT_INODE, name, 0o40755, 0, 0)).attributes.inode
            for name in (b"d", b"e")
        ]
        one.fs.on_lost(frozenset((handle.inode, *folders)))
        again = [await one.fs.open(each.inode, os.O_RDWR) for each in (handle, other)]
        with pytest.raises(DataLossError, match="lost"):
            await one.fs.fsync(again[0])
        for folder in folders:
            with pytest.raises(DataLossError, match="lost"):
                await one.fs.fsync_directory(folder)
        for each in again:
            await one.fs.fsync(each)
        for folder in (*folders, ROOT_INODE):
            await one.fs.fsync_directory(folder)
        with pytest.raises(DataLossError, match="lost"):
            await one.fs.sync()


async def test_nothing_is_safe_at_a_master_that_was_not_handed_what_is_kept(tmp_path: Path) -> None:
    """The same node leads again, on the same connections: the session must be there before its fsync is."""
    async with masters(tmp_path) as made, made.mount("one") as one:
        handle = await appended(one, b"f", b"one")
        await one.fs.flush(handle)
        before = one.fs.session._link
        await made.lead(0)
        assert one.fs.session._link is before
        assert before is not None
        assert not before.connection.closed.is_set()
        await one.fs.fsync(handle)
        assert one.fs.session._link is not before
        assert made.service.leases.sessions[one.fs.session.session_id].resumed


async def test_a_loss_of_nobody_knows_what_is_told_by_every_fsync_once(tmp_path: Path) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one:
        handle = await appended(one, b"f", b"one")
        await one.fs.fsync(handle)
        one.fs.on_lost(None)
        tells: tuple[Callable[[], Awaitable[None]], ...] = (
            partial(one.fs.fsync, handle),
            partial(one.fs.fsync_directory, ROOT_INODE),
            one.fs.sync,
        )
        for tell in tells:
            with pytest.raises(DataLossError, match="lost"):
                await tell()
            await tell()
        new = await appended(one, b"new", b"two")
        await one.fs.fsync(new)  # nothing of it can be lost


async def test_an_fsync_of_a_session_that_is_gone_is_of_the_next_one(tmp_path: Path) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one:
        handle = await appended(one, b"f", b"one")
        await one.fs.flush(handle)
        before = one.fs.session.session_id
        made.service._end_session(before)  # as after a minute of silence
        with trio.fail_after(3):
            await one.fs.fsync(handle)
        assert one.fs.session.session_id != before
        assert list(made.service.leases.sessions) == [one.fs.session.session_id]
