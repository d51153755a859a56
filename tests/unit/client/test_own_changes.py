"""Unsaved bytes over a failover: who changed their file meanwhile, we or another, is told apart."""

import os
from pathlib import Path

import pytest
import trio

from tests.unit.client.masters import masters
from tests.unit.client.test_failover import appended, change_by_another, content
from wormfs.core.limits import ROOT_INODE
from wormfs.rpc.methods import METADATA_COMMIT_WRITE

pytestmark = pytest.mark.timeout(30)
MODE = 0o100644


async def test_unsaved_bytes_survive_a_failover_behind_changes_of_our_own(tmp_path: Path) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one:
        handles = {}
        for name in (b"unlink", b"rename", b"setxattr", b"removexattr"):
            _, handles[name] = await one.fs.create(ROOT_INODE, name, MODE, 0, 0, os.O_RDWR)
        await one.fs.setxattr(handles[b"removexattr"].inode, b"user.a", b"1")
        await one.fs.unlink(ROOT_INODE, b"unlink")  # as tmpfile(3)
        for name, handle in handles.items():
            await one.fs.write(handle, 0, b"mine: " + name)
        await one.fs.rename(ROOT_INODE, b"rename", ROOT_INODE, b"renamed", 0)
        await one.fs.setxattr(handles[b"setxattr"].inode, b"user.a", b"1")  # as cp -a
        await one.fs.removexattr(handles[b"removexattr"].inode, b"user.a")
        await made.depose()
        await one.lapsed()
        await made.lead(1)
        with trio.fail_after(10):
            for name, handle in handles.items():
                await one.fs.fsync(handle)
                assert bytes(await one.fs.read(handle, 0, 100)) == b"mine: " + name


async def test_what_another_wrote_behind_our_commit_is_read(tmp_path: Path) -> None:
    """The commit was done, its answer lost, our session lapsed; a program here reads all the time."""
    async with masters(tmp_path) as made, made.mount("one") as one, trio.open_nursery() as nursery:
        await made.lead(0, lose_answers_of=METADATA_COMMIT_WRITE)
        handle = await appended(one, b"f", b"one")
        saved = trio.Event()

        async def save() -> None:
            await one.fs.fsync(handle)
            saved.set()

        async def tail() -> None:
            while not saved.is_set():
                await one.fs.read(handle, 0, 100)
                await trio.sleep(0.001)

        nursery.start_soon(save)
        with trio.fail_after(5):
            await made.lost.wait()
        await made.depose()
        change_by_another(tmp_path, handle.inode)
        await one.lapsed()
        nursery.start_soon(tail)
        await made.lead(1)
        with trio.fail_after(10):
            await saved.wait()
        assert bytes(await one.fs.read(handle, 0, 100)) == b"other"
        assert await content(made, b"f") == b"other"
