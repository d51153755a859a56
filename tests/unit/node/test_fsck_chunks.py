"""Fsck over the chunks of a real node, and what a node says of chunks that it is asked for in vain."""

from pathlib import Path
from random import Random

import pytest

from tests.unit.node.one_node import CHUNK_BYTES, OneNode, one_node
from wormfs.core.errors import NotFoundError
from wormfs.core.types import ChunkKey
from wormfs.node.chunk_service import id_from
from wormfs.rpc import methods as m
from wormfs.rpc.v1 import chunk_pb2

pytestmark = pytest.mark.timeout(30)
CONTENT = Random(3).randbytes(2 * 2 * CHUNK_BYTES)  # two stripes of 2+1


async def ask(world: OneNode, disk: int, key: ChunkKey) -> None:
    request = chunk_pb2.GetChunkRequest(disk=disk, chunk=id_from(key))
    await world.links.of_node(1).call(m.CHUNKS_GET_CHUNK, request, timeout_s=5)


def put_stray(world: OneNode, name: str) -> None:
    stray = Path(world.disks[0].chunks_path, "000", name)
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_bytes(b"")


async def test_a_chunk_that_was_read_and_then_lost_is_missing(tmp_path: Path) -> None:
    """The node's kept descriptor still reads what is on the disk no more."""
    async with one_node(tmp_path) as world:
        inode = await world.write_file(CONTENT, [1, 2, 3])
        assert await world.read(inode) == CONTENT
        assert await world.fsck() == []
        assert await world.read(inode) == CONTENT
        stripe = world.stripes(inode)[0]
        lost = ChunkKey(inode, stripe.stripe_id, 0)
        world.store.chunk_path(1, lost).unlink()
        assert await world.fsck() == ["missing-chunk"]
        assert set(world.damaged) == {(1, lost)}


@pytest.mark.parametrize(
    "name",
    ["ffffffffffffffff/0000000000000001.00", "0000000000000001/ffffffffffffffff.00"],
    ids=["inode", "stripe"],
)
async def test_a_name_that_no_number_has_does_not_end_it(tmp_path: Path, name: str) -> None:
    """What comes behind the name is checked, too."""
    async with one_node(tmp_path) as world:
        inode = await world.write_file(CONTENT, [1, 2, 3])
        put_stray(world, name)
        lost = ChunkKey(inode, world.stripes(inode)[1].stripe_id, 2)
        world.store.chunk_path(3, lost).unlink()
        assert await world.fsck() == ["damaged-chunk", "missing-chunk"]
        assert set(world.damaged) == {(3, lost)}


async def test_a_node_reports_chunks_that_its_own_disks_lack(tmp_path: Path) -> None:
    """Who asks by an old map for a disk that is another node's now is only told so."""
    key = ChunkKey(2, 1, 0)
    async with one_node(tmp_path) as world:
        with pytest.raises(NotFoundError):
            await ask(world, 99, key)
        assert world.damaged == []
        with pytest.raises(NotFoundError):
            await ask(world, 4, key)
        assert world.damaged == [(4, key)]
