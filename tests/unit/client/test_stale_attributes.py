"""Attributes asked for just before a change: the answer that comes is not trusted after it."""

import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.unit.client.masters import Masters, Mount, masters
from wormfs.core.limits import ROOT_INODE

pytestmark = pytest.mark.timeout(30)
MODE = 0o100644
ROUNDS = 20
"""Which of two requests the master takes first is not ours to say."""


async def ask_and_change(
    made: Masters, mount: Mount, inode: int, change: Callable[[], Awaitable[object]]
) -> None:
    """Have a question for attributes and a change reach the master together; both are answered then."""
    made.cut_off(0)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.fs.getattr, inode)
            await trio.testing.wait_all_tasks_blocked(0.005)
            nursery.start_soon(change)
            await trio.testing.wait_all_tasks_blocked(0.005)
            made.mend(0)


async def test_a_completed_chmod_elsewhere_is_seen(tmp_path: Path) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one, made.mount("two") as two:
        inode = (await one.fs.make_node(ROOT_INODE, b"f", MODE, 0, 0)).attributes.inode
        handle = await one.fs.open(inode, os.O_RDONLY)
        seen = []
        for _ in range(ROUNDS):
            await one.fs.read(handle, 0, 1)
            await two.fs.setattr(inode, mode=0o600)  # the next getattr asks
            await ask_and_change(made, one, inode, partial(two.fs.setattr, inode, mode=0o640))
            seen.append((await one.fs.getattr(inode)).attributes.mode & 0o777)
        assert seen == [0o640] * ROUNDS


async def test_an_own_unlink_is_seen(tmp_path: Path) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one:
        inode = (await one.fs.make_node(ROOT_INODE, b"f", MODE, 0, 0)).attributes.inode
        handle = await one.fs.open(inode, os.O_RDONLY)
        seen = []
        for _ in range(ROUNDS):
            await one.fs.link(inode, ROOT_INODE, b"g")  # the next getattr asks
            await one.fs.read(handle, 0, 1)
            await one.fs.setxattr(inode, b"user.a", b"1")
            await ask_and_change(made, one, inode, partial(one.fs.unlink, ROOT_INODE, b"g"))
            seen.append((await one.fs.getattr(inode)).attributes.nlink)
        assert seen == [1] * ROUNDS
