"""Chunk store figures as JSON rows {name: [value, unit]}; higher is better.

usage: python -m benches.store [--dir DIR] [--disks N] [--chunks N]
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import trio

from wormfs.codec.checksums import block_checksums
from wormfs.codec.chunk_format import ChunkHeader
from wormfs.core.types import ChunkKey, Codec
from wormfs.store.buffer_pool import BufferPool
from wormfs.store.chunk_store import ChunkStore
from wormfs.store.disk import Disk

Rows = dict[str, list[float | str]]
CLUSTER = str(uuid.UUID(int=7))


def header_for(key: ChunkKey, length_bytes: int, checksums: bytes) -> ChunkHeader:
    return ChunkHeader(
        cluster_id=CLUSTER,
        file=key.file,
        stripe_id=key.stripe_id,
        stripe_index=key.stripe_id,
        stripe_size_bytes=4 * length_bytes,
        chunk_index=key.index,
        k=4,
        m=2,
        codec=Codec.ISAL_CAUCHY,
        stripe_length_bytes=4 * length_bytes,
        chunk_length_bytes=length_bytes,
        checksums=checksums,
    )


class Workload:
    """Puts and gets on every disk, from `lanes` tasks each."""

    def __init__(self, store: ChunkStore, disks: int, chunks: int, length_bytes: int, lanes: int) -> None:
        self.store = store
        self.disks = disks
        self.chunks = chunks  # for each disk
        self.length_bytes = length_bytes
        self.lanes = lanes
        self.content = os.urandom(length_bytes)
        self.checksums = block_checksums(self.content)

    def key(self, number: int) -> ChunkKey:
        return ChunkKey(1000 + self.length_bytes + number // 64, number, 0)

    async def put(self, disk: int, number: int) -> None:
        buffer = self.store.pool.acquire(self.length_bytes)
        try:
            buffer.data[:] = self.content  # stands for receiving from the network
            await self.store.put(
                disk, header_for(self.key(number), self.length_bytes, self.checksums), buffer
            )
        finally:
            buffer.release()

    async def get(self, disk: int, number: int, length_bytes: int = 0) -> None:
        answer = await self.store.get(disk, self.key(number), 0, length_bytes)
        answer.release()

    async def delete(self, disk: int, number: int) -> None:
        if number % 64 == 0:
            keys = [self.key(n) for n in range(number, min(number + 64, self.chunks))]
            if await self.store.delete(disk, keys):
                raise SystemExit("delete failed")

    async def run(self, step: Callable[[int, int], Awaitable[None]]) -> float:
        """Seconds that `step` takes for every chunk of every disk."""

        async def lane(disk: int, first: int) -> None:
            for number in range(first, self.chunks, self.lanes):
                await step(disk, number)

        start = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for disk in range(1, self.disks + 1):
                for first in range(self.lanes):
                    nursery.start_soon(lane, disk, first)
        return time.perf_counter() - start


def drop_caches() -> None:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        print("not root: cold reads are warm", file=sys.stderr)


async def measure(directory: Path, disk_count: int, chunks: int) -> Rows:
    rows: Rows = {}
    disks = []
    for number in range(1, disk_count + 1):
        disk = Disk.open(directory / f"disk-{number}")
        disk.assign(cluster_id=CLUSTER, node=1, number=number)
        disks.append(disk)
    store = ChunkStore(disks, cluster_id=CLUSTER, pool=BufferPool(idle_max_bytes=256 << 20))
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        for label, length, lanes in (("1m", 1 << 20, 4), ("64k", 64 << 10, 8), ("4k", 4096, 8)):
            load = Workload(store, disk_count, chunks, length, lanes)
            total = disk_count * chunks
            await load.run(load.put)  # warms memory; the same keys are put again below
            seconds = await load.run(load.put)
            rows[f"store_put_{label}"] = [round(total * length / seconds / 1e6, 1), "MB/s"]
            rows[f"store_put_{label}_rate"] = [round(total / seconds, 1), "op/s"]
            store.forget_all()
            await trio.to_thread.run_sync(drop_caches)
            seconds = await load.run(load.get)
            rows[f"store_get_{label}_cold"] = [round(total * length / seconds / 1e6, 1), "MB/s"]
            seconds = await load.run(partial(load.get, length_bytes=4096))
            seconds = await load.run(partial(load.get, length_bytes=4096))
            rows[f"store_get_{label}_4k_hot"] = [round(total / seconds, 1), "op/s"]
            seconds = await load.run(load.delete)
            rows[f"store_delete_{label}"] = [round(total / seconds, 1), "op/s"]
        nursery.cancel_scope.cancel()
    store.close()
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="where to make a scratch folder")
    parser.add_argument("--disks", type=int, default=6)
    parser.add_argument("--chunks", type=int, default=100, help="for each disk")
    arguments = parser.parse_args(argv)
    directory = Path(tempfile.mkdtemp(prefix="store-bench-", dir=arguments.dir))
    try:
        rows = trio.run(measure, directory, arguments.disks, arguments.chunks)
    finally:
        shutil.rmtree(directory)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
