"""Bytes that are given up: what was on its way does not come later, and who wrote them is told."""

import os
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.unit.client.chunk_stand_in import IN_STRIPES_BYTES, STRIPE_BYTES, Stripes, add_disks
from tests.unit.client.masters import Mount, masters
from wormfs.client.filesystem import Handle
from wormfs.core.errors import DataLossError, NoSpaceError
from wormfs.core.limits import ROOT_INODE
from wormfs.rpc.methods import METADATA_COMMIT_WRITE, METADATA_SET_ATTR

pytestmark = pytest.mark.timeout(30)


async def new_file(mount: Mount) -> Handle:
    return (await mount.fs.create(ROOT_INODE, b"f", 0o100644, 0, 0, os.O_RDWR))[1]


class Refusing:
    """The master refuses this as one without room for it, stripes excepted, as long as `on` says so."""

    def __init__(self, mount: Mount, refused: Any = METADATA_COMMIT_WRITE) -> None:
        self.on = True
        session: Any = mount.fs.session
        command = session.command

        async def asked(method: Any, request: Any) -> Any:
            if self.on and method is refused and not getattr(request, "stripes", ()):
                raise NoSpaceError("the metadata's disk is full")
            return await command(method, request)

        session.command = asked


async def test_a_stripe_on_its_way_does_not_come_behind_what_was_written_since(tmp_path: Path) -> None:
    stripes = Stripes()
    async with masters(tmp_path) as made, made.mount("one") as one, trio.open_nursery() as nursery:
        add_disks(made)
        stripes.serve(one.fs)
        writer: Any = one.fs._stripe_writer
        put_all, held = writer._put_all, trio.Event()

        async def slowly(*args: Any) -> Any:
            await held.wait()
            return await put_all(*args)

        writer._put_all = slowly
        handle = await new_file(one)
        refusing = Refusing(one)
        await one.fs.write(handle, 0, b"a" * STRIPE_BYTES + b"small")
        nursery.start_soon(one.fs.release, handle)
        await trio.testing.wait_all_tasks_blocked(0.05)
        refusing.on = False
        writer._put_all = put_all
        again = await one.fs.open(handle.inode, os.O_RDWR)

        async def save() -> None:
            await one.fs.write(again, 0, b"b" * STRIPE_BYTES)
            await one.fs.fsync(again)

        with trio.fail_after(10):
            async with trio.open_nursery() as saving:
                saving.start_soon(save)
                await trio.testing.wait_all_tasks_blocked(0.05)
                held.set()
        await trio.testing.wait_all_tasks_blocked(0.05)
        async with made.mount("reader") as reader:
            stripes.serve(reader.fs)
            seen = await reader.fs.open(handle.inode, os.O_RDONLY)
            assert set(bytes(await reader.fs.read(seen, 0, STRIPE_BYTES))) == set(b"b")


async def test_another_error_does_not_hide_that_bytes_are_lost(tmp_path: Path) -> None:
    """They will not be there when that error is over, and the next fsync must not say so."""
    async with masters(tmp_path) as made, made.mount("one") as one:
        handle = await new_file(one)
        handle.state.lost = DataLossError("bytes given up while the file was recalled")
        refusing = Refusing(one)
        await one.fs.write(handle, 0, b"more")
        with pytest.raises(NoSpaceError):
            await one.fs.fsync(handle)
        refusing.on = False
        with pytest.raises(DataLossError, match="given up"):
            await one.fs.fsync(handle)
        await one.fs.fsync(handle)


async def test_bytes_cut_off_by_a_truncation_that_failed_are_not_told_to_be_safe(tmp_path: Path) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one:
        handle = await new_file(one)
        await one.fs.write(handle, 0, b"0123456789")
        refusing = Refusing(one, METADATA_SET_ATTR)
        with pytest.raises(NoSpaceError):
            await one.fs.setattr(handle.inode, size_bytes=4)
        refusing.on = False
        with pytest.raises(DataLossError, match="cut off"):
            await one.fs.fsync(handle)
        await one.fs.fsync(handle)
        assert (await one.fs.getattr(handle.inode)).attributes.size_bytes == 4
        assert bytes(await one.fs.read(handle, 0, 10)) == b"0123"


async def test_bytes_no_disk_has_room_for_are_cut_off_unsaved(tmp_path: Path) -> None:
    """Who frees space need not have it first."""
    stripes = Stripes()
    async with masters(tmp_path) as made, made.mount("one") as one:
        add_disks(made)
        stripes.serve(one.fs)
        handle = await new_file(one)
        stripes.full_for.add(handle.inode)
        await one.fs.write(handle, 0, b"x" * IN_STRIPES_BYTES)
        with pytest.raises(NoSpaceError):
            await one.fs.fsync(handle)
        await one.fs.setattr(handle.inode, size_bytes=0)
        await one.fs.write(handle, 0, b"small")
        await one.fs.fsync(handle)
        assert bytes(await one.fs.read(handle, 0, 10)) == b"small"
