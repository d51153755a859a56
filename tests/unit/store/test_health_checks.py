"""A disk that works is not given up because others' work keeps its threads."""

from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest
import trio

from tests.unit.store.samples import CLUSTER, content_of, get, open_disk, put
from wormfs.core.types import ChunkKey
from wormfs.store import chunk_listing
from wormfs.store.buffer_pool import BufferPool
from wormfs.store.chunk_listing import ChunkPage
from wormfs.store.chunk_store import ChunkStore, StoreOptions
from wormfs.store.disk import Disk

KEY, LENGTH_BYTES = ChunkKey(1, 1, 0), 1000
LISTINGS = 3


def held(
    list_page: Callable[..., ChunkPage], began: Callable[[], None], end: Event
) -> Callable[..., ChunkPage]:
    """`list_page`, but each call takes until `end` is set."""

    def listing(disk: Disk, after: bytes, limit: int, verify: bool, pool: BufferPool) -> ChunkPage:
        trio.from_thread.run_sync(began)
        assert end.wait(10)
        return list_page(disk, after, limit, verify, pool)

    return listing


@pytest.mark.timeout(30)
async def test_long_listings_do_not_take_a_disk_offline(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verified page of a big disk takes longer than a disk may take to answer a check."""
    begun, end = trio.Event(), Event()
    monkeypatch.setattr(chunk_listing, "list_page", held(chunk_listing.list_page, begun.set, end))
    options = StoreOptions(health_interval_s=3600, disk_timeout_s=1.5)
    store = ChunkStore([open_disk(tmp_path / "disk")], cluster_id=CLUSTER, options=options)
    pages: list[ChunkPage] = []

    async def list_chunks() -> None:
        pages.append(await store.list(1, b"", 10_000, True))

    await nursery.start(store.run)
    await put(store, KEY, LENGTH_BYTES)
    try:
        async with trio.open_nursery() as listings:
            for _ in range(LISTINGS):
                listings.start_soon(list_chunks)
            with trio.fail_after(5):
                await begun.wait()
            await store.check_disks()
            assert pages == []  # all are under way
            status = store.disks()[0]
            end.set()
    finally:
        end.set()
    assert (status.online, status.problem) == (True, "")
    assert [[each.key for each in page.chunks] for page in pages] == [[KEY]] * LISTINGS
    assert await get(store, KEY) == content_of(KEY, LENGTH_BYTES)
    nursery.cancel_scope.cancel()
    store.close()
