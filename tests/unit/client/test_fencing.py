"""A session that leaves a recall unanswered trusts nothing by the time the master goes on without it."""

import os
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.unit.client.masters import LEASE_S, masters
from wormfs.client import session
from wormfs.core.limits import ROOT_INODE
from wormfs.node import master_service

pytestmark = pytest.mark.timeout(60)
LIMIT_S = 5.0


@pytest.mark.unsampled
@pytest.mark.parametrize("moved", [False, True], ids=["one connection", "a new one meanwhile"])
async def test_a_fenced_session_has_stopped_to_trust_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    """What the kernel was told it may keep is over then, too: all of it was for as long as the trust."""
    for module in (session, master_service):
        monkeypatch.setattr(module, "RECALL_LIMIT_S", LIMIT_S)
    async with masters(tmp_path) as made, made.mount("one") as one, made.mount("two") as two:
        _, handle = await one.fs.create(ROOT_INODE, b"f", 0o100644, 0, 0, os.O_RDWR)
        await one.fs.write(handle, 0, b"one")
        await one.fs.fsync(handle)
        _, other = await one.fs.create(ROOT_INODE, b"g", 0o100644, 0, 0, os.O_RDWR)
        assert (await one.fs.getattr(handle.inode)).cache_s > 0
        asked = one.kernel.hold(handle.inode)
        changed = trio.Event()

        async def change() -> None:
            await two.fs.setattr(handle.inode, mode=0o600)
            changed.set()
            assert one.fs.session.lease_left_s() == 0
            assert one.fs.session._handed_until_s < trio.current_time()
            assert (await one.fs.getattr(handle.inode)).attributes.mode & 0o777 == 0o600

        async def write() -> None:
            """Of another file, all the time: the mount has no trouble but that recall."""
            number = 0
            while not changed.is_set():
                await one.fs.write(other, 0, b"%d" % number)
                await one.fs.fsync(other)
                number += 1
                await trio.sleep(0.05)

        with trio.fail_after(LIMIT_S + 3 * LEASE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(change)
                nursery.start_soon(write)
                await asked.wait()
                if moved:
                    await trio.sleep(LIMIT_S / 2)
                    one.fs.session._unlink(one.fs.session._link)
        one.kernel.go_on(handle.inode)
        with trio.fail_after(LEASE_S):
            while one.fs.session.lease_left_s() == 0:  # noqa: ASYNC110 - no event
                await trio.sleep(0.01)
        assert not one.fs.session._owed
        await one.fs.write(handle, 0, b"two")
        await one.fs.fsync(handle)
