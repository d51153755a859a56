"""Many small pieces: a commit fits the log in etcd, and a stripe of too many pieces is stored whole."""

import os
from pathlib import Path

import pytest

from tests.unit.client.chunk_stand_in import STRIPE_BYTES, Stripes, add_disks
from tests.unit.client.masters import masters
from wormfs.client import file_writer
from wormfs.client.filesystem import FileSystem, Handle
from wormfs.client.pieces import PIECES_MAX, DirtyStripe
from wormfs.core.limits import INLINE_MAX_BYTES, ROOT_INODE
from wormfs.metadata.embedded_log import EmbeddedLog
from wormfs.metadata.etcd_log import EARLY_MAX_BYTES

pytestmark = pytest.mark.timeout(30)
STEP_BYTES = 3
"""Pieces of one byte lie so far from each other: they do not touch."""


async def new_file(fs: FileSystem) -> Handle:
    return (await fs.create(ROOT_INODE, b"f", 0o100644, 0, 0, os.O_RDWR))[1]


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the log's entries from here on, in bytes."""
    lengths: list[int] = []
    append = EmbeddedLog.append

    def noted(log: EmbeddedLog, sequence: int, payload: bytes, session: int = 0) -> None:
        lengths.append(len(payload))
        append(log, sequence, payload, session)

    monkeypatch.setattr(EmbeddedLog, "append", noted)
    return lengths


@pytest.mark.parametrize("length", [4096, INLINE_MAX_BYTES])
async def test_what_a_mount_commits_at_once_fits_the_log_in_etcd(
    tmp_path: Path, entries: list[int], length: int
) -> None:
    """Scattered writes of more than 1 MiB, synced at once: more than one entry of that log may hold."""
    async with masters(tmp_path) as made, made.mount("one") as one:
        handle = await new_file(one.fs)
        per_stripe = INLINE_MAX_BYTES // length
        for number in range((1 << 20) // length + 3):
            index, inside = divmod(number, per_stripe)
            await one.fs.write(handle, index * STRIPE_BYTES + inside * 2 * length, b"x" * length)
        entries.clear()
        await one.fs.fsync(handle)
        assert sum(entries) > 1 << 20
        assert max(entries) <= EARLY_MAX_BYTES


async def test_what_frames_a_piece_counts_as_its_bytes_do(
    tmp_path: Path, entries: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of pieces of one byte an entry holds little else."""
    limit = 4096
    monkeypatch.setattr(file_writer, "EXTENTS_PER_COMMIT_BYTES", limit)
    async with masters(tmp_path) as made, made.mount("one") as one:
        handle = await new_file(one.fs)
        for number in range(PIECES_MAX):
            await one.fs.write(handle, number * STEP_BYTES, b"x")
        entries.clear()
        await one.fs.fsync(handle)
        assert len(handle.state.extents[0]) == PIECES_MAX
        assert sum(entries) > limit
        assert max(entries) <= limit


def test_a_stripe_of_many_pieces_wants_a_buffer() -> None:
    dirty = DirtyStripe()
    for number in range(PIECES_MAX):
        assert not dirty.wants_buffer(1)
        dirty.write(number * STEP_BYTES, b"x")
    assert dirty.wants_buffer(1)
    dirty.give_buffer(bytearray(STRIPE_BYTES))
    assert not dirty.wants_buffer(1)
    assert list(dirty.ranges[-1:]) == [((PIECES_MAX - 1) * STEP_BYTES, (PIECES_MAX - 1) * STEP_BYTES + 1)]


@pytest.mark.parametrize("synced", [0, PIECES_MAX // 2], ids=["dirty", "dirty and committed"])
async def test_a_stripe_of_too_many_pieces_is_stored_whole(tmp_path: Path, synced: int) -> None:
    count = PIECES_MAX + 10
    stripes = Stripes()
    async with masters(tmp_path) as made, made.mount("one") as one, made.mount("two") as two:
        add_disks(made)
        stripes.serve(one.fs, two.fs)
        handle = await new_file(one.fs)
        wanted = bytearray((count - 1) * STEP_BYTES + 1)
        for number in range(count):
            if synced and number == synced:
                await one.fs.fsync(handle)
                assert (len(handle.state.extents[0]), stripes.puts) == (synced, 0)
            value = 1 + number % 255
            wanted[number * STEP_BYTES] = value
            await one.fs.write(handle, number * STEP_BYTES, bytes([value]))
        assert (handle.state.dirty[0].buffer is None) == bool(synced)
        await one.fs.fsync(handle)
        assert stripes.puts == 1
        assert not handle.state.extents.get(0)
        seen = await two.fs.open(handle.inode, os.O_RDONLY)
        assert bytes(await two.fs.read(seen, 0, STRIPE_BYTES)) == wanted
