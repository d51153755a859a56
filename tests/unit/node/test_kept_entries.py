"""What sessions kept of a master that is gone, handed to the next one over real streams."""

import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.unit.metadata.test_adopt import make
from tests.unit.node.serving import Mount, Served, open_machine, serving
from wormfs.core.errors import NotFoundError, UnavailableError
from wormfs.rpc import methods as m
from wormfs.rpc.v1 import metadata_pb2, types_pb2

MINE, OTHER = 1, 2


@dataclass
class Kept:
    folder: Path
    entries: Sequence[bytes]
    told: Sequence[types_pb2.Attributes]


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    """Two commands of a session that a master answered, and that the log in `folder` does not have."""
    (tmp_path / "before").mkdir()
    machine = open_machine(tmp_path / "before", disks=2)
    assert (machine.open_session("mine"), machine.open_session("other")) == (MINE, OTHER)
    make(machine, MINE, 1, b"zero")
    after = tmp_path / "after"
    shutil.copytree(tmp_path / "before", after)
    for disk in after.iterdir():
        shutil.rmtree(disk / "metadata" / "state", ignore_errors=True)
    sequence = machine.sequence
    told = [make(machine, MINE, 2, b"one"), make(machine, MINE, 3, b"two")]
    entries = [record.payload for record in machine.keeper.log.read(sequence)]
    machine.close()
    assert len(entries) == 2
    return Kept(after, entries, told)


async def resume(
    mount: Mount, session: int, entries: Sequence[bytes] = (), *, given_up: bool = False, attempt: int = 0
) -> metadata_pb2.OpenSessionReply:
    """`given_up`: its client does not wait for the answer, and says no more on that connection."""
    request = metadata_pb2.OpenSessionRequest(
        session_id=session, label="test", kept_entries=entries, attempt=attempt
    )
    reply = await mount.call(m.METADATA_OPEN_SESSION, request)
    assert (reply.resumed, reply.session_id) == (True, session)
    mount.session = session
    if not given_up:
        assert await mount.renew()
    return reply


@asynccontextmanager
async def mounts(served: Served) -> AsyncIterator[tuple[Mount, Mount]]:
    async with served.mount(session=False) as mine, served.mount(session=False) as other:
        yield mine, other


@asynccontextmanager
async def waiting_for(mount: Mount, name: bytes) -> AsyncIterator[list[types_pb2.Attributes]]:
    """The name is looked up, and not answered before the block; it is when the block has ended."""
    seen: list[types_pb2.Attributes] = []
    async with trio.open_nursery() as nursery:

        async def look() -> None:
            seen.append(await mount.lookup(name))

        nursery.start_soon(look)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not seen
        yield seen


async def test_others_wait_until_the_entries_are_there(kept: Kept) -> None:
    async with serving(kept.folder) as served, mounts(served) as (mine, other):
        await resume(other, OTHER)
        async with waiting_for(other, b"two") as seen:
            assert not (await resume(mine, MINE, kept.entries)).entries_lost
        assert seen == [kept.told[1]]


async def test_entries_of_one_that_comes_when_others_were_served_are_lost(kept: Kept) -> None:
    async with serving(kept.folder, lease_s=1.0) as served, mounts(served) as (mine, other):
        await resume(other, OTHER)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.keep_alive)
            with pytest.raises(NotFoundError):
                await other.lookup(b"two")  # it waits for the other session's lease to run out
            nursery.cancel_scope.cancel()
        assert (await resume(mine, MINE, kept.entries)).entries_lost
        with pytest.raises(NotFoundError):
            await mine.lookup(b"one")


async def test_a_session_that_was_silent_loses_nothing_while_nobody_was_served(kept: Kept) -> None:
    """One user, whose machine slept while a master failed."""
    async with serving(kept.folder, lease_s=0.5) as served, mounts(served) as (mine, _):
        with trio.fail_after(5):
            while served.master.leases.lapsed != {MINE, OTHER}:  # noqa: ASYNC110 - the table has no event
                await trio.sleep(0.05)
        assert not (await resume(mine, MINE, kept.entries)).entries_lost
        assert await mine.lookup(b"two") == kept.told[1]


async def test_a_late_resume_of_an_older_connection_costs_no_entries(kept: Kept) -> None:
    """It was sent before the entries were: nobody is served until the session is heard of again."""
    async with serving(kept.folder) as served, mounts(served) as (mine, other):
        await resume(other, OTHER)
        async with served.mount(session=False) as late:
            assert not (await resume(late, MINE, given_up=True, attempt=1)).entries_lost
        async with waiting_for(other, b"two") as seen:
            assert not (await resume(mine, MINE, kept.entries, attempt=2)).entries_lost
        assert seen == [kept.told[1]]


async def test_what_a_session_claims_counts_anew_while_it_was_not_heard(kept: Kept) -> None:
    """It took the lease after it had given up the attempt which a new master reads late."""
    inode = kept.told[0].inode
    async with serving(kept.folder) as served, mounts(served) as (mine, late):
        await resume(late, MINE, given_up=True)
        request = metadata_pb2.OpenSessionRequest(
            session_id=MINE, open_inodes=[inode], write_leases=[inode], kept_entries=kept.entries
        )
        reply = await mine.call(m.METADATA_OPEN_SESSION, request)
        assert reply.granted_write_leases == [inode]


async def test_a_session_that_is_not_heard_of_loses_its_lease_in_time(kept: Kept) -> None:
    async with serving(kept.folder, lease_s=1.0) as served, mounts(served) as (mine, late):
        await resume(late, OTHER, given_up=True)
        assert not (await resume(mine, MINE, kept.entries)).entries_lost
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mine.keep_alive)
            with trio.fail_after(5):
                assert await mine.lookup(b"two") == kept.told[1]
            nursery.cancel_scope.cancel()
        assert served.master.leases.lapsed == {OTHER}


async def test_an_attempt_that_was_given_up_moves_no_session_back(kept: Kept) -> None:
    """It tells of the files that were open, and the leases that were held, when it was sent."""
    inode = kept.told[0].inode
    async with serving(kept.folder) as served, mounts(served) as (mine, late):
        request = metadata_pb2.OpenSessionRequest(
            session_id=MINE, open_inodes=[inode], write_leases=[inode], kept_entries=kept.entries, attempt=2
        )
        await mine.call(m.METADATA_OPEN_SESSION, request)
        mine.session = MINE
        with pytest.raises(UnavailableError, match="taken up again"):
            await resume(late, MINE, attempt=1)
        assert await mine.renew()
        assert served.master.leases.is_open(inode)
        assert served.master.leases.writers == {inode: MINE}


async def test_a_session_that_was_given_up_is_not_told_of_a_loss_of_what_the_log_has(kept: Kept) -> None:
    """It slept for a minute; the master was there all the time."""
    async with serving(kept.folder) as served, mounts(served) as (mine, other):
        await resume(other, OTHER)
        await resume(mine, MINE, kept.entries)
        served.master._end_session(MINE)
        again = metadata_pb2.OpenSessionRequest(session_id=MINE, label="test", kept_entries=kept.entries)
        reply = await mine.call(m.METADATA_OPEN_SESSION, again)
        assert (reply.resumed, reply.entries_lost) == (False, False)
