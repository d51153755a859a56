"""Commits of one file that are under way together, over a real master."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.unit.client.masters import Masters
from wormfs.client.filesystem import FileSystem
from wormfs.client.inode_state import InodeState
from wormfs.core.limits import ROOT_INODE
from wormfs.rpc.methods import METADATA_COMMIT_WRITE, Method
from wormfs.rpc.registry import DataBuffer, RequestContext
from wormfs.rpc.v1 import types_pb2

pytestmark = pytest.mark.timeout(30)
WAIT_S = 5.0


class Holding(Masters):
    """Does commits as they come; answers each when its event in `answers` (by size) is set."""

    def __init__(self, folder: Path, nursery: trio.Nursery) -> None:
        super().__init__(folder, nursery, 1)
        self.answers: dict[int, trio.Event] = {}
        self.done: dict[int, trio.Event] = {}

    def _noted(self, method: Method[Any, Any], handler: Any) -> Any:
        async def held_back(context: RequestContext, request: Any, data: DataBuffer | None) -> Any:
            reply = await handler(context, request, data)
            if request.size_bytes in self.answers:
                self.done[request.size_bytes].set()
                await self.answers[request.size_bytes].wait()
            return reply

        return held_back if method is METADATA_COMMIT_WRITE else super()._noted(method, handler)

    def hold(self, *sizes_bytes: int) -> None:
        """Hold the answers to commits of these sizes back."""
        for size in sizes_bytes:
            self.answers[size], self.done[size] = trio.Event(), trio.Event()


@asynccontextmanager
async def holding(folder: Path) -> AsyncIterator[Holding]:
    async with trio.open_nursery() as nursery:
        made = Holding(folder, nursery)
        await made.start()
        await made.lead(0)
        yield made
        nursery.cancel_scope.cancel()


async def commit(fs: FileSystem, state: InodeState, offset_bytes: int, data: bytes) -> None:
    """As the writer commits what it stored behind its caller; several at a time."""
    extent = types_pb2.Extent(offset_bytes=offset_bytes, data=data)
    await fs._writer._commit(state, [], [extent], 1)


@pytest.mark.parametrize("lapsed", [False, True], ids=["leased", "lapsed"])
async def test_the_newest_of_several_commits_counts_whatever_answer_comes_last(
    tmp_path: Path, lapsed: bool
) -> None:
    async with holding(tmp_path) as made, made.mount("one") as one, trio.open_nursery() as nursery:
        fs = one.fs
        _, handle = await fs.create(ROOT_INODE, b"f", 0o100644, 0, 0, os.O_RDWR)
        state = fs._states[handle.inode]
        assert state.write_lease
        await fs.write(handle, 0, b"unsaved.")
        made.hold(10, 12)
        ended = {10: trio.Event(), 12: trio.Event()}

        async def two_bytes(size_bytes: int) -> None:
            await commit(fs, state, size_bytes - 2, b"%d" % size_bytes)
            ended[size_bytes].set()

        with trio.fail_after(WAIT_S):
            for size_bytes in (10, 12):
                nursery.start_soon(two_bytes, size_bytes)
                await made.done[size_bytes].wait()
            if lapsed:
                fs.on_lapse()
                assert state.lapsed_change
            for size_bytes in (12, 10):
                made.answers[size_bytes].set()
                await ended[size_bytes].wait()
                assert (state.attributes.size_bytes, state.size_bytes) == (12, 12)
        newest = (await fs.getattr(handle.inode)).attributes.change
        assert state.attributes.change == newest
        assert state.lapsed_change == (newest if lapsed else 0)
        await fs.fsync(handle)  # what was written under a lease in doubt is not given up: only we changed it
        async with made.mount("reader") as reader:
            seen = await reader.fs.open(handle.inode, os.O_RDONLY)
            assert bytes(await reader.fs.read(seen, 0, 100)) == b"unsaved.1012"
