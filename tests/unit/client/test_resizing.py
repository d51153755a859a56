"""Sizes that are set by path while the file is being opened: what was cut off does not come back."""

import os
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.unit.client.chunk_stand_in import IN_STRIPES_BYTES, Stripes, add_disks
from tests.unit.client.masters import Mount, masters
from wormfs.client.filesystem import Handle
from wormfs.core.limits import ROOT_INODE
from wormfs.rpc.methods import METADATA_SET_ATTR

pytestmark = pytest.mark.timeout(30)


def hold_resizes(mount: Mount) -> trio.Event:
    """Have changes of sizes wait for what this answers before they are sent."""
    session: Any = mount.fs.session
    command, go_on = session.command, trio.Event()

    async def asked(method: Any, request: Any) -> Any:
        if method is METADATA_SET_ATTR:
            await go_on.wait()
        return await command(method, request)

    session.command = asked
    return go_on


@pytest.mark.parametrize("opened_before", [False, True], ids=["closed", "being closed"])
@pytest.mark.parametrize("length", [100, IN_STRIPES_BYTES], ids=["small", "stripe"])
async def test_an_open_that_overtakes_a_truncation_does_not_see_what_was_cut_off(
    tmp_path: Path, length: int, opened_before: bool
) -> None:
    stripes = Stripes()
    async with masters(tmp_path) as made, made.mount("one") as one:
        add_disks(made)
        stripes.serve(one.fs)
        _, first = await one.fs.create(ROOT_INODE, b"f", 0o100644, 0, 0, os.O_RDWR)
        await one.fs.write(first, 0, b"x" * length)
        await one.fs.fsync(first)
        if not opened_before:
            await one.fs.release(first)
        go_on = hold_resizes(one)
        opened: list[Handle] = []

        async def open_it() -> None:
            opened.append(await one.fs.open(first.inode, os.O_RDWR))

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: one.fs.setattr(first.inode, size_bytes=0))
                await trio.testing.wait_all_tasks_blocked(0.02)
                if opened_before:
                    await one.fs.release(first)
                nursery.start_soon(open_it)
                await trio.testing.wait_all_tasks_blocked(0.02)
                go_on.set()
        (handle,) = opened
        assert (await one.fs.getattr(first.inode)).attributes.size_bytes == 0
        await one.fs.write(handle, length, b"y" * length)
        wanted = bytes(length) + b"y" * length
        assert bytes(await one.fs.read(handle, 0, 2 * length)) == wanted
        await one.fs.fsync(handle)
        async with made.mount("reader") as reader:
            stripes.serve(reader.fs)
            seen = await reader.fs.open(handle.inode, os.O_RDONLY)
            assert bytes(await reader.fs.read(seen, 0, 2 * length)) == wanted


async def test_a_truncation_that_fails_lets_opens_go_on(tmp_path: Path) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one:
        _, first = await one.fs.create(ROOT_INODE, b"f", 0o100644, 0, 0, os.O_RDWR)
        await one.fs.release(first)
        hold_resizes(one)
        with trio.move_on_after(0.05):
            await one.fs.setattr(first.inode, size_bytes=0)
        with trio.fail_after(5):
            await one.fs.release(await one.fs.open(first.inode, os.O_RDWR))
