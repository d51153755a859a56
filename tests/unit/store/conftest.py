"""A running store on one disk."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.unit.store.samples import CLUSTER, open_disk
from wormfs.store.chunk_store import ChunkStore, StoreOptions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "disk-1"


@pytest.fixture
async def store(folder: Path, nursery: trio.Nursery) -> AsyncIterator[ChunkStore]:
    store = ChunkStore([open_disk(folder)], cluster_id=CLUSTER, options=StoreOptions(health_interval_s=3600))
    await nursery.start(store.run)
    yield store
    nursery.cancel_scope.cancel()
    store.close()
