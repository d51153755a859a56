"""Closed files are told to the master once, whatever happens on the way."""

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import trio.testing

from tests.unit.client.masters import Masters, Mount, masters
from wormfs.client import session
from wormfs.client.entries import Handle
from wormfs.client.open_files import CLOSE_LINGER_S
from wormfs.core.limits import ROOT_INODE
from wormfs.rpc.methods import METADATA_CLOSE_FILES, METADATA_MAKE_NODE, METADATA_OPEN_FILE
from wormfs.rpc.v1 import metadata_pb2

pytestmark = pytest.mark.timeout(60)
FILE = stat.S_IFREG | 0o644


async def twice_open(mount: Mount) -> tuple[int, list[Handle]]:
    _, first = await mount.fs.create(ROOT_INODE, b"f", FILE, 0, 0, os.O_RDWR)
    return first.inode, [first, await mount.fs.open(first.inode, os.O_RDWR)]


def opens(made: Masters, mount: Mount) -> dict[int, int]:
    return made.service.leases.sessions[mount.fs.session.session_id].opens


async def all_told(mount: Mount) -> None:
    await mount.fs.getattr(ROOT_INODE)  # connected
    await trio.testing.wait_all_tasks_blocked(5 * CLOSE_LINGER_S)
    assert not mount.fs._closed
    assert not mount.fs._closing_now.inodes


@pytest.mark.parametrize("how", ["nothing", "connection lost", "failover"])
async def test_one_of_two_handles_is_closed(tmp_path: Path, how: str) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one:
        inode, handles = await twice_open(one)
        assert opens(made, one) == {inode: 2}
        await one.fs.release(handles[0])
        if how == "failover":
            await made.lead(1)
        elif how == "connection lost":
            one.fs.session._unlink(one.fs.session._link)
        await all_told(one)
        assert opens(made, one) == {inode: 1}
        await one.fs.release(handles[1])
        await all_told(one)
        assert opens(made, one) == {}


async def test_closes_while_there_is_no_master(tmp_path: Path) -> None:
    """One is being told, another waits for its turn."""
    async with masters(tmp_path) as made, made.mount("one") as one:
        inode, handles = await twice_open(one)
        handles.append(await one.fs.open(inode, os.O_RDWR))
        await made.depose()
        await one.fs.release(handles[0])
        await trio.testing.wait_all_tasks_blocked(5 * CLOSE_LINGER_S)
        await one.fs.release(handles[1])
        await made.lead(1)
        await all_told(one)
        assert opens(made, one) == {inode: 1}


async def test_what_is_asked_again_is_done_once(tmp_path: Path) -> None:
    """Its answer was held back for longer than one attempt waits."""
    async with masters(tmp_path) as made, made.mount("one") as one:
        inode, _ = await twice_open(one)
        request = metadata_pb2.CloseFilesRequest(
            session_id=one.fs.session.session_id, inodes=[inode], number=1000
        )
        for _ in range(2):
            await one.fs.session.query(METADATA_CLOSE_FILES, request)
        assert opens(made, one) == {inode: 1}
        request.number += 1
        await one.fs.session.query(METADATA_CLOSE_FILES, request)
        assert opens(made, one) == {}


async def test_an_older_program_does_not_count(tmp_path: Path) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one:
        inode, _ = await twice_open(one)
        request = metadata_pb2.CloseFilesRequest(session_id=one.fs.session.session_id, inodes=[inode])
        for left in ({inode: 1}, {}):
            await one.fs.session.query(METADATA_CLOSE_FILES, request)
            assert opens(made, one) == left


async def test_a_close_the_master_did_not_take_in_time_is_told_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one:
        inode, handles = await twice_open(one)
        monkeypatch.setattr(one.fs.session, "_options", replace(one.fs.session._options, deadline_s=0.2))
        made.cut_off(0)
        await one.fs.release(handles[0])
        with trio.move_on_after(0.5):
            await trio.sleep_forever()
        made.mend(0)
        await all_told(one)
        assert opens(made, one) == {inode: 1}


async def test_a_file_made_and_answered_on_the_next_connection_is_open(tmp_path: Path) -> None:
    """The session told what it has open before it knew of this one."""
    async with masters(tmp_path) as made, made.mount("one") as one, trio.open_nursery() as nursery:
        await made.lead(0, lose_answers_of=METADATA_MAKE_NODE)
        found: list[Handle] = []

        async def create() -> None:
            found.append((await one.fs.create(ROOT_INODE, b"f", FILE, 0, 0, os.O_RDWR))[1])

        async with trio.open_nursery() as creating:
            creating.start_soon(create)
            with trio.fail_after(5):
                await made.lost.wait()
            made.answer_all()
            one.fs.session._unlink(one.fs.session._link)
        assert opens(made, one) == {found[0].inode: 1}
        nursery.cancel_scope.cancel()


async def test_an_open_answered_too_late_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "TRY_S", 0.3)
    async with masters(tmp_path) as made, made.mount("one") as one, trio.open_nursery() as nursery:
        inode, _ = await twice_open(one)
        await made.lead(0, lose_answers_of=METADATA_OPEN_FILE)
        await one.fs.getattr(ROOT_INODE)
        async with trio.open_nursery() as opening:
            opening.start_soon(one.fs.open, inode, os.O_RDWR)
            with trio.fail_after(5):
                await made.lost.wait()
            made.answer_all()
        assert opens(made, one) == {inode: 3}
        nursery.cancel_scope.cancel()


async def test_an_open_that_was_given_up_does_not_stay(tmp_path: Path) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one, trio.open_nursery() as nursery:
        await made.lead(0, lose_answers_of=METADATA_MAKE_NODE)
        await one.fs.getattr(ROOT_INODE)
        with trio.CancelScope() as creating:

            async def give_up() -> None:
                await made.lost.wait()
                creating.cancel()

            nursery.start_soon(give_up)
            await one.fs.create(ROOT_INODE, b"f", FILE, 0, 0, os.O_RDWR)
        assert creating.cancelled_caught
        assert len(opens(made, one)) == 1
        made.answer_all()
        await one.fs.getattr(ROOT_INODE)
        assert opens(made, one) == {}
