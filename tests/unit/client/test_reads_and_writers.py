"""Reads while others write, cut off or give up what they read: no hang, and no bytes that never were."""

import os
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.unit.client.chunk_stand_in import IN_STRIPES_BYTES, Stripes, add_disks
from tests.unit.client.masters import Mount, masters
from wormfs.client import open_files
from wormfs.client.filesystem import FileSystem, Handle
from wormfs.core.errors import NoSpaceError
from wormfs.core.limits import ROOT_INODE

pytestmark = pytest.mark.timeout(30)
MODE = 0o100644
OLD = b"A" * 100_000


async def written(fs: FileSystem) -> Handle:
    """A file of OLD that is durable."""
    _, handle = await fs.create(ROOT_INODE, b"f", MODE, 0, 0, os.O_RDWR)
    await fs.write(handle, 0, OLD)
    await fs.fsync(handle)
    return handle


async def test_writers_of_two_mounts_do_not_wait_for_each_others_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The readers were overtaken too often, and wait for the lock that the writer of their mount has."""
    async with masters(tmp_path) as made, made.mount("one") as one, made.mount("two") as two:
        add_disks(made)
        Stripes().serve(one.fs, two.fs)
        handle = await written(one.fs)
        files = [(one, handle), (two, await two.fs.open(handle.inode, os.O_RDWR))]
        for mount, handle in reversed(files):
            await mount.fs.read(handle, 0, 10)  # takes the write lease from mount one: nobody has it now
        monkeypatch.setattr(open_files, "OPTIMISTIC_TRIES", 0)  # as if overtaken as often
        ended = []

        async def write(mount: Mount, handle: Handle) -> None:
            await mount.fs.write(handle, 0, b"B" * 10)
            ended.append(mount)

        made.cut_off(0)
        with trio.fail_after(8):  # not until the sessions are fenced
            async with trio.open_nursery() as nursery:
                for file in files:
                    nursery.start_soon(write, *file)
                await trio.testing.wait_all_tasks_blocked(0.01)
                for mount, handle in files:
                    nursery.start_soon(mount.fs.read, handle, 0, 10)
                await trio.testing.wait_all_tasks_blocked(0.01)
                made.mend(0)
        assert len(ended) == 2


async def test_a_read_that_is_under_way_at_a_truncation_answers_no_zeros(tmp_path: Path) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one, made.mount("two") as two:
        add_disks(made)
        stripes = Stripes()
        stripes.serve(one.fs, two.fs)
        handle = await written(one.fs)
        found = []

        async def read() -> None:
            found.append(bytes(await one.fs.read(handle, 0, len(OLD))))

        stripes.hold()
        with trio.fail_after(8):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await stripes.asked.wait()
                nursery.start_soon(partial(two.fs.setattr, handle.inode, size_bytes=0))
                while one.fs._trusted(handle.state):  # noqa: ASYNC110 - until the recall has come
                    await trio.sleep(0.01)
                stripes.go_on()
        assert found[0] in (b"", OLD)


async def test_pages_of_bytes_that_were_given_up_are_not_kept(tmp_path: Path) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one:
        add_disks(made)
        stripes = Stripes()
        stripes.serve(one.fs)
        handle = await written(one.fs)
        stripes.full_for.add(handle.inode)
        await one.fs.write(handle, 0, b"B" * IN_STRIPES_BYTES)  # the kernel has these pages
        with pytest.raises(NoSpaceError):
            await one.fs.flush(handle)
        one.kernel.invalidated = trio.Event()
        await one.fs.release(handle)
        again = await one.fs.open(handle.inode, os.O_RDONLY)
        assert one.kernel.invalidated.is_set() or not again.keep_cache
        assert bytes(await one.fs.read(again, 0, len(OLD))) == OLD


async def test_a_read_waits_for_a_server_that_is_restarted(tmp_path: Path) -> None:
    """The only server, of metadata and chunks; the metadata can be had a little later than the chunks."""
    async with masters(tmp_path) as made, made.mount("one") as one:
        add_disks(made)
        stripes = Stripes()
        stripes.serve(one.fs)
        handle = await written(one.fs)
        found = []

        async def read() -> None:
            found.append(bytes(await one.fs.read(handle, 0, len(OLD))))

        await made.depose()
        stripes.down = True
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await stripes.asked.wait()
                await trio.testing.wait_all_tasks_blocked(0.05)
                stripes.down = False
                await made.lead(0)
        assert found == [OLD]
