"""Closed files are told to the master once, whatever happens on the way."""

import os
import stat
from pathlib import Path

import pytest
import trio.testing

from tests.unit.client.masters import Masters, Mount, masters
from wormfs.client.open_files import CLOSE_LINGER_S
from wormfs.core.limits import ROOT_INODE
from wormfs.rpc.methods import METADATA_CLOSE_FILES
from wormfs.rpc.v1 import metadata_pb2

pytestmark = pytest.mark.timeout(60)
FILE = stat.S_IFREG | 0o644


async def twice_open(mount: Mount) -> tuple[int, list[object]]:
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
        await one.fs.release(handles[0])  # type: ignore[arg-type]
        if how == "failover":
            await made.lead(1)
        elif how == "connection lost":
            one.fs.session._unlink(one.fs.session._link)
        await all_told(one)
        assert opens(made, one) == {inode: 1}
        await one.fs.release(handles[1])  # type: ignore[arg-type]
        await all_told(one)
        assert opens(made, one) == {}


async def test_closes_while_there_is_no_master(tmp_path: Path) -> None:
    """One is being told, another waits for its turn."""
    async with masters(tmp_path) as made, made.mount("one") as one:
        inode, handles = await twice_open(one)
        handles.append(await one.fs.open(inode, os.O_RDWR))
        await made.depose()
        await one.fs.release(handles[0])  # type: ignore[arg-type]
        await trio.testing.wait_all_tasks_blocked(5 * CLOSE_LINGER_S)
        await one.fs.release(handles[1])  # type: ignore[arg-type]
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
