"""Calls that are cancelled, as the gateway's are when a program of its goes away: what was done counts."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.unit.client.masters import masters
from wormfs.core.limits import ROOT_INODE
from wormfs.rpc.methods import METADATA_SET_ATTR

pytestmark = pytest.mark.timeout(30)
MODE = 0o100644


async def test_a_release_that_is_cancelled_closes_the_file(tmp_path: Path) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one:
        _, handle = await one.fs.create(ROOT_INODE, b"f", MODE, 0, 0, os.O_RDWR)
        await one.fs.write(handle, 0, b"bytes")
        made.cut_off(0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.fs.release, handle)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        made.mend(0)
        opens = made.service.leases.sessions[one.fs.session.session_id].opens
        with trio.fail_after(5):
            while one.fs._states or opens:  # noqa: ASYNC110 - no event tells of it
                await trio.sleep(0.01)
        again = await one.fs.open(handle.inode, os.O_RDONLY)
        assert bytes(await one.fs.read(again, 0, 100)) == b"bytes"


@pytest.mark.parametrize("change", [{"size_bytes": 0}, {"mode": 0o600}], ids=["size", "mode"])
async def test_a_setattr_that_was_done_and_cancelled_is_seen_here_as_elsewhere(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    async with masters(tmp_path) as made:
        await made.lead(0, lose_answers_of=METADATA_SET_ATTR)
        async with made.mount("one") as one, made.mount("two") as two:
            _, handle = await one.fs.create(ROOT_INODE, b"f", MODE, 0, 0, os.O_RDWR)
            await one.fs.write(handle, 0, b"old bytes")
            await one.fs.fsync(handle)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(one.fs.setattr, handle.inode, **change))
                with trio.fail_after(5):
                    await made.lost.wait()
                nursery.cancel_scope.cancel()
            made.answer_all()
            bytes_here = len(await one.fs.read(handle, 0, 100))
            here = (await one.fs.getattr(handle.inode)).attributes
            there = (await two.fs.getattr(handle.inode)).attributes
            assert (here.mode, here.size_bytes) == (there.mode, there.size_bytes)
            expected = (0o100600, 9) if "mode" in change else (MODE, 0)
            assert (there.mode, there.size_bytes, bytes_here) == (*expected, expected[1])
