"""Chunks and disks that the store's tests share."""

import random
from pathlib import Path

from wormfs.codec.checksums import block_checksums
from wormfs.codec.chunk_format import ChunkHeader
from wormfs.core.types import ChunkKey
from wormfs.store.chunk_store import ChunkStore
from wormfs.store.disk import Disk

CLUSTER = "0b0e9a52-4a6e-4d51-9f0a-3f7d4c1c2b3a"


def content_of(key: ChunkKey, length: int) -> bytes:
    """The data this key always has in these tests."""
    return random.Random(f"{key}{length}").randbytes(length)


def header_of(key: ChunkKey, data: bytes, cluster_id: str = CLUSTER) -> ChunkHeader:
    return ChunkHeader(
        cluster_id=cluster_id,
        file=key.file,
        stripe_id=key.stripe_id,
        stripe_index=0,
        stripe_size_bytes=4 << 20,
        chunk_index=key.index,
        k=4,
        m=2,
        codec=2,
        stripe_length_bytes=4 * len(data),
        chunk_length_bytes=len(data),
        checksums=block_checksums(data),
    )


def open_disk(path: Path, number: int = 1, *, reserve_bytes: int | None = None) -> Disk:
    disk = Disk.open(path, cluster_id=CLUSTER, reserve_bytes=reserve_bytes)
    disk.assign(cluster_id=CLUSTER, node=1, number=number)
    return disk


async def put(store: ChunkStore, key: ChunkKey, length: int, disk: int = 1) -> bytes:
    """Store the key's data and return it."""
    data = content_of(key, length)
    buffer = store.pool.acquire(length)
    try:
        buffer.data[:] = data
        await store.put(disk, header_of(key, data), buffer)
    finally:
        buffer.release()
    return data


async def get(store: ChunkStore, key: ChunkKey, offset: int = 0, length: int = 0, disk: int = 1) -> bytes:
    """Read a range and give the buffer back."""
    answer = await store.get(disk, key, offset, length)
    data = bytes(answer.data)
    answer.release()
    return data


def chunk_files(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "chunks").rglob("*") if path.is_file())
