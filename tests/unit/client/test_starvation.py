"""Who reads a file again and again lets another mount write to it: recalls come to an end."""

import os
from pathlib import Path

import pytest
import trio

from tests.unit.client.masters import Mount, masters
from wormfs.client.entries import Handle
from wormfs.core.limits import ROOT_INODE

pytestmark = pytest.mark.timeout(30)
INVALIDATE_S = 0.004
"""What the kernel takes to drop pages; in between the reader asks for more."""
RECALLS_MAX = 20


async def look(reader: Mount, how: str, handle: Handle) -> None:
    if how == "open":
        opened = await reader.fs.open(handle.inode, os.O_RDONLY)
        assert bytes(await reader.fs.read(opened, 0, 5)) in (b"hello", b"HELLO")
        await reader.fs.release(opened)
    elif how == "read":
        assert bytes(await reader.fs.read(handle, 0, 5)) in (b"hello", b"HELLO")
        await trio.lowlevel.checkpoint()
    elif how == "stat":
        await reader.fs.getattr(handle.inode)
    else:
        await reader.fs.listxattrs(handle.inode)


@pytest.mark.parametrize("how", ["open", "read", "stat", "listxattr"])
async def test_a_writer_gets_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one, made.mount("two") as two:

        async def invalidate(inode: int, data: bool) -> None:
            await trio.sleep(INVALIDATE_S)

        monkeypatch.setattr(two.kernel, "invalidate_inode", invalidate)
        entry, handle = await one.fs.create(ROOT_INODE, b"f", 0o644, 0, 0, os.O_WRONLY)
        await one.fs.write(handle, 0, b"hello")
        await one.fs.release(handle)
        held = await two.fs.open(entry.attributes.inode, os.O_RDONLY)
        looked = trio.Event()

        async def keep_looking() -> None:
            while True:
                await look(two, how, held)
                looked.set()

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(keep_looking)
            await looked.wait()
            before = made.service.leases._next_recall
            with trio.fail_after(5):
                writer = await one.fs.open(entry.attributes.inode, os.O_WRONLY)
                await one.fs.write(writer, 0, b"HELLO")
                await one.fs.flush(writer)
            assert made.service.leases._next_recall - before < RECALLS_MAX
            nursery.cancel_scope.cancel()
