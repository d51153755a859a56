"""When orphans are freed: over a real machine, sessions and restarts of the master."""

from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.unit.node.serving import Mount, Served, serving
from wormfs.node.collector import free_orphans, opens_are_known
from wormfs.rpc import methods as m
from wormfs.rpc.v1 import filesystem_pb2, metadata_pb2

LEASE_S = 0.5
CONTENT = b"fsynced"
pytestmark = pytest.mark.timeout(30)


async def make_orphan(mount: Mount) -> int:
    """A file that is open, written, synced, and has no name any more."""
    inode = (await mount.create(b"tmp")).attributes.inode
    await mount.commit(inode, CONTENT)
    await mount.call(m.METADATA_SYNC, metadata_pb2.SyncRequest(session_id=mount.session))
    await mount.command(m.METADATA_UNLINK, filesystem_pb2.UnlinkRequest(parent=1, name=b"tmp"))
    return inode


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - the table has no event
            await trio.sleep(0.02)


async def collect(served: Served) -> list[int]:
    """Free what may be freed; the orphans that are left."""
    await free_orphans(served.machine, served.master.leases)
    return served.machine.orphans()


@pytest.fixture
async def orphaned(tmp_path: Path) -> tuple[int, int]:
    """The master stopped while this session held this orphan open."""
    async with serving(tmp_path, lease_s=LEASE_S) as served, served.mount() as mine:
        return mine.session, await make_orphan(mine)


async def test_a_silent_session_keeps_its_open_files(tmp_path: Path) -> None:
    async with serving(tmp_path, lease_s=LEASE_S) as served, served.mount() as mine:
        inode = await make_orphan(mine)
        await until(lambda: mine.session in served.master.leases.lapsed)
        assert await collect(served) == [inode]


async def test_also_across_a_failover_within_which_its_lease_ends(
    tmp_path: Path, orphaned: tuple[int, int]
) -> None:
    session, inode = orphaned
    async with serving(tmp_path, lease_s=LEASE_S) as served, served.mount(session=False) as back:
        leases = served.master.leases
        assert await collect(served) == [inode]
        await until(lambda: session in leases.lapsed)
        assert not leases.in_grace
        assert await collect(served) == [inode]
        assert (await back.open_session(session, open_inodes=[inode])).resumed
        assert opens_are_known(leases)
        assert await collect(served) == [inode]
        shown = await back.call(m.METADATA_GET_FILE_MAP, metadata_pb2.GetFileMapRequest(inode=inode, count=1))
        assert [extent.data for extent in shown.extents] == [CONTENT]
        await back.open_session(session)  # it has nothing open any more
        assert await collect(served) == []


async def test_they_are_freed_once_the_session_is_given_up(tmp_path: Path, orphaned: tuple[int, int]) -> None:
    session, inode = orphaned
    async with serving(tmp_path, lease_s=LEASE_S) as served:
        leases = served.master.leases
        leases.keep_s = 1.5
        await until(lambda: session in leases.lapsed)
        assert await collect(served) == [inode]
        await until(lambda: session not in leases.sessions)
        assert await collect(served) == []


async def test_one_that_came_back_does_not_answer_for_another(
    tmp_path: Path, orphaned: tuple[int, int]
) -> None:
    """Only who holds a file open can tell."""
    session, inode = orphaned
    async with serving(tmp_path, lease_s=LEASE_S) as served, served.mount(session=False) as late:
        second = (await late.open_session()).session_id
    async with serving(tmp_path, lease_s=LEASE_S) as served, served.mount(session=False) as back:
        await back.open_session(second)
        await until(lambda: session in served.master.leases.lapsed)
        assert await collect(served) == [inode]
