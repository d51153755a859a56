"""Damaged chunk files read through the store's reader: the bytes written, or a WormError."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.sampling import rounds
from wormfs.codec.checksums import block_checksums
from wormfs.codec.chunk_format import ChunkHeader, pack_header
from wormfs.core.errors import ChunkError, InvalidError
from wormfs.core.types import ChunkKey
from wormfs.store import layout
from wormfs.store.buffer_pool import BufferPool
from wormfs.store.chunk_reader import PATIENCE_S, open_and_read, read_open, read_soon
from wormfs.store.disk import Disk

CLUSTER = "d" * 36
LENGTHS = (64, 16_384, 20_032, 300_032)
POOL = BufferPool()


def image_of(key: ChunkKey, length: int) -> tuple[bytes, bytes]:
    data = random.Random(length).randbytes(length)
    header = ChunkHeader(
        CLUSTER,
        key.file,
        key.stripe_id,
        0,
        4 << 20,
        key.index,
        4,
        2,
        1,
        4 * length,
        length,
        block_checksums(data),
    )
    return pack_header(header) + data, data


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    disk = Disk.open(tmp_path_factory.mktemp("damage"))
    disk.assign(cluster_id=CLUSTER, node=1, number=1)
    yield disk
    disk.close()


@pytest.mark.long
@settings(
    max_examples=rounds(50, 1000), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    length=st.sampled_from(LENGTHS),
    flips=st.lists(st.tuples(st.integers(0, 310_000), st.integers(1, 255)), max_size=40),
    cut=st.one_of(st.none(), st.integers(0, 310_000)),
    ranges=st.lists(st.tuples(st.integers(0, 310_000), st.integers(0, 310_000)), min_size=1, max_size=4),
)
def test_reads_are_right_or_refused(
    disk: Disk,
    length: int,
    flips: list[tuple[int, int]],
    cut: int | None,
    ranges: list[tuple[int, int]],
) -> None:
    key = ChunkKey(5, length, 1)
    image, data = image_of(key, length)
    changed = bytearray(image)
    for position, value in flips:
        changed[position % len(changed)] ^= value
    if cut is not None:
        del changed[cut % len(changed) :]
    path = Path(disk.chunks_path, layout.chunk_path(key))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(changed)
    for offset, count in ranges:
        try:
            chunk, answer = open_and_read(disk, key, offset, count, POOL)
        except (ChunkError, InvalidError):
            continue
        for _ in range(2):
            start, end = answer.offset_bytes, answer.offset_bytes + len(answer.data)
            assert bytes(answer.data) == data[start:end]
            assert start <= offset
            assert end >= min(length, offset + count if count else length)
            answer.release()
            soon = read_soon(chunk, offset, count, POOL, PATIENCE_S)
            answer = soon or read_open(disk, chunk, offset, count, POOL)
        answer.release()
    assert disk.online
    assert POOL.used_bytes == 0
