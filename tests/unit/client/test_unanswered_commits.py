"""Commits that got no answer within their deadline: what was done of them is no other session's change."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.unit.client.chunk_stand_in import IN_STRIPES_BYTES, STRIPE_BYTES, Stripes, add_disks
from tests.unit.client.masters import Masters, Mount, masters
from tests.unit.client.test_failover import change_by_another
from wormfs.client import session
from wormfs.client.filesystem import Handle
from wormfs.core.errors import DataLossError, UnavailableError
from wormfs.core.limits import ROOT_INODE
from wormfs.rpc.methods import METADATA_COMMIT_WRITE

pytestmark = pytest.mark.timeout(60)
DEADLINE_S = 1.5


@asynccontextmanager
async def mounted(made: Masters, stripes: Stripes) -> AsyncIterator[Mount]:
    """A client that waits for answers for DEADLINE_S; its stripes are kept."""
    add_disks(made)
    async with made.mount("one", deadline_s=DEADLINE_S) as one:
        stripes.serve(one.fs)
        yield one


async def new_file(mount: Mount) -> Handle:
    return (await mount.fs.create(ROOT_INODE, b"f", 0o100644, 0, 0, os.O_RDWR | os.O_APPEND))[1]


async def fail_to_save(mount: Mount, handle: Handle) -> None:
    """An fsync that is not answered within its deadline."""
    with pytest.raises(UnavailableError):
        await mount.fs.fsync(handle)


async def unanswered(made: Masters, mount: Mount, data: bytes) -> Handle:
    """A new file of these bytes: they are committed, and it is not told."""
    await made.lead(0, lose_answers_of=METADATA_COMMIT_WRITE)
    add_disks(made)
    handle = await new_file(mount)
    await mount.fs.write(handle, 0, data)
    await fail_to_save(mount, handle)
    return handle


async def content(made: Masters, stripes: Stripes, length: int) -> bytes:
    async with made.mount("reader") as reader:
        stripes.serve(reader.fs)
        entry = await reader.fs.lookup(ROOT_INODE, b"f")
        handle = await reader.fs.open(entry.attributes.inode, os.O_RDONLY)
        found = bytes(await reader.fs.read(handle, 0, length + 1))
        assert len(found) == entry.attributes.size_bytes
        return found


async def change_masters(made: Masters, mount: Mount) -> None:
    """The next master comes after the leases have run out."""
    await made.depose()
    await mount.lapsed()
    await made.lead(1)
    add_disks(made)


@pytest.mark.parametrize(
    "length",
    [
        pytest.param(3, id="small"),
        pytest.param(IN_STRIPES_BYTES, id="part", marks=pytest.mark.unsampled),
        pytest.param(STRIPE_BYTES, id="full", marks=pytest.mark.unsampled),
    ],
)
@pytest.mark.parametrize("done", [True, False], ids=["done", "not-done"])
async def test_bytes_behind_an_unanswered_commit_are_saved(tmp_path: Path, length: int, done: bool) -> None:
    stripes = Stripes()
    async with masters(tmp_path) as made, mounted(made, stripes) as one:
        handle = await new_file(one)
        await one.fs.write(handle, 0, b"a")
        if done:
            await made.lead(0, lose_answers_of=METADATA_COMMIT_WRITE)
            add_disks(made)
        else:
            await one.fs.fsync(handle)
            made.cut_off(0)
        wanted = b"a" + b"b" * (length - 1)
        await one.fs.write(handle, 1, wanted[1:])
        await fail_to_save(one, handle)
        with trio.fail_after(DEADLINE_S / 2):  # without the master, which does not answer
            assert bytes(await one.fs.read(handle, 0, length)) == wanted
        if not done:
            made.mend(0)
        await change_masters(made, one)
        if not handle.state.storing:  # else writes fail until an fsync could save it
            await one.fs.write(handle, length, b"behind it")
            wanted += b"behind it"
        await one.fs.fsync(handle)
        assert not handle.state.has_dirty
        assert not handle.state.unanswered
        assert await content(made, stripes, len(wanted)) == wanted


@pytest.mark.unsampled
async def test_commits_of_many_stripes_without_answers_are_ones_own(tmp_path: Path) -> None:
    """Several at once, done in any order, and small bytes behind them."""
    stripes = Stripes()
    async with masters(tmp_path) as made, mounted(made, stripes) as one:
        wanted = b"".join(bytes([97 + number]) * STRIPE_BYTES for number in range(3)) + b"end"
        handle = await unanswered(made, one, wanted)
        await change_masters(made, one)
        await one.fs.fsync(handle)
        assert await content(made, stripes, len(wanted)) == wanted


@pytest.mark.unsampled
async def test_a_file_changed_since_an_unanswered_commit_is_not_written_over(tmp_path: Path) -> None:
    stripes = Stripes()
    async with masters(tmp_path) as made, mounted(made, stripes) as one:
        handle = await unanswered(made, one, b"mine.")
        await one.fs.write(handle, 5, b"lost")
        await made.depose()
        change_by_another(tmp_path, handle.inode)
        await one.lapsed()
        await made.lead(1)
        with pytest.raises(DataLossError, match="changed since"):
            await one.fs.fsync(handle)
        await one.fs.fsync(handle)
        assert await content(made, stripes, 5) == b"other"


@pytest.mark.unsampled
async def test_bytes_are_given_up_when_the_reply_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows then who changed the file. A master need not remember all that came behind."""
    monkeypatch.setattr(session, "KEPT_BACK_MAX", 0)
    stripes = Stripes()
    async with masters(tmp_path) as made, mounted(made, stripes) as one:
        handle = await unanswered(made, one, b"mine.")
        for name in (b"d", b"e"):
            await one.fs.make_node(ROOT_INODE, name, 0o40755, 0, 0)
        await change_masters(made, one)
        with pytest.raises(DataLossError, match="changed since"):
            await one.fs.fsync(handle)
        await one.fs.fsync(handle)
        assert await content(made, stripes, 5) == b"mine."


@pytest.mark.unsampled
async def test_a_cancelled_fsync_is_as_one_without_an_answer(tmp_path: Path) -> None:
    stripes = Stripes()
    async with masters(tmp_path) as made, mounted(made, stripes) as one, trio.open_nursery() as nursery:
        await made.lead(0, lose_answers_of=METADATA_COMMIT_WRITE)
        handle = await new_file(one)
        await one.fs.write(handle, 0, b"one")
        nursery.start_soon(one.fs.fsync, handle)
        await made.lost.wait()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await one.fs.write(handle, 3, b"two")
            await change_masters(made, one)
            await one.fs.fsync(handle)
            assert await content(made, stripes, 6) == b"onetwo"


async def test_what_a_session_waits_for_no_more_is_forgotten_by_the_master(tmp_path: Path) -> None:
    """Once a later commit was answered it does not matter what became of one before."""
    stripes = Stripes()
    async with masters(tmp_path) as made, mounted(made, stripes) as one:
        handle = await unanswered(made, one, b"one")
        (operation,) = handle.state.unanswered
        made.answer_all()
        await one.fs.write(handle, 3, b"two")
        await one.fs.fsync(handle)
        assert not getattr(handle.state, "unanswered", 0)
        await one.fs.make_node(ROOT_INODE, b"d", 0o40755, 0, 0)
        state = made.service._machine._keeper.state
        assert state.acknowledged(one.fs.session.session_id) >= operation
        assert await content(made, stripes, 6) == b"onetwo"


REWRITTEN = b"a" * 9 + b"b" * IN_STRIPES_BYTES


async def rewrite_end(mount: Mount, handle: Handle) -> None:
    """Write most of a stripe anew, and so much of it that it is stored over what was there."""
    handle.flags &= ~os.O_APPEND
    await mount.fs.write(handle, 9, b"b" * IN_STRIPES_BYTES)


@pytest.mark.unsampled
async def test_what_an_unanswered_commit_replaced_is_not_asked_for(tmp_path: Path) -> None:
    """Its chunks are collected: a recall has the bytes written over those of the commit itself."""
    stripes = Stripes()
    async with masters(tmp_path) as made, mounted(made, stripes) as one, made.mount("two") as two:
        stripes.serve(two.fs)
        handle = await new_file(one)
        await one.fs.write(handle, 0, b"a" * IN_STRIPES_BYTES)
        await one.fs.fsync(handle)
        replaced = handle.state.stripes[0].stripe_id
        await made.lead(0, lose_answers_of=METADATA_COMMIT_WRITE)
        add_disks(made)
        await rewrite_end(one, handle)
        await fail_to_save(one, handle)
        made.answer_all()
        stripes.collect(replaced)
        seen = await two.fs.open(handle.inode, os.O_RDWR)
        assert not handle.state.has_dirty
        assert bytes(await two.fs.read(seen, 0, STRIPE_BYTES)) == REWRITTEN


async def test_a_map_that_is_gone_while_a_server_restarts_is_no_hole(tmp_path: Path) -> None:
    stripes = Stripes()
    async with masters(tmp_path) as made, mounted(made, stripes) as one:
        handle = await new_file(one)
        await one.fs.write(handle, 0, b"a" * IN_STRIPES_BYTES)
        await one.fs.fsync(handle)
        writer: Any = one.fs._writer
        fetch_map = writer._fetch_map

        async def overtaken(state: Any, index: int) -> None:
            """What it was told is older than the answer to a commit, and not taken."""
            state.drop_map()
            one.fs.session._attempt += 1
            stripes.down = False
            writer._fetch_map = fetch_map

        writer._fetch_map = overtaken
        stripes.down = True
        await rewrite_end(one, handle)
        await one.fs.fsync(handle)
        assert await content(made, stripes, STRIPE_BYTES) == REWRITTEN
