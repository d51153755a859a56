"""Fsck over the chunks of a real node, and what a node says of chunks that it is asked for in vain."""

from pathlib import Path
from random import Random

import pytest

from tests.unit.node.one_node import CHUNK_BYTES, OneNode, one_node
from wormfs.codec.chunk_format import HEADER_BYTES
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


def flip(path: Path, offset_bytes: int) -> None:
    """Damage one byte; behind the first 4 KiB it is data."""
    with path.open("r+b") as file:
        file.seek(offset_bytes)
        (value,) = file.read(1)
        file.seek(offset_bytes)
        file.write(bytes([value ^ 1]))


def chunk(world: OneNode, inode: int, stripe: int, index: int) -> Path:
    """A chunk's file; the files lie on disks 1, 2, 3."""
    key = ChunkKey(inode, world.stripes(inode)[stripe].stripe_id, index)
    return world.store.chunk_path(index + 1, key)


async def test_a_file_with_more_damaged_chunks_than_parity_is_lost(tmp_path: Path) -> None:
    """Damaged anywhere in their data: only a look at all of it shows it."""
    async with one_node(tmp_path) as world:
        inode = await world.write_file(CONTENT, [1, 2, 3])
        for index in (0, 2):
            flip(chunk(world, inode, 1, index), HEADER_BYTES + CHUNK_BYTES - 1)
        assert await world.fsck() == []
        problems = await world.problems(verify_data=True)
        assert [each.kind for each in problems] == ["damaged-chunk", "damaged-chunk", "lost-file"]
        assert problems[-1].problem.startswith(f"/file (inode {inode}): 1 of its stripes")


async def test_damaged_and_missing_chunks_count_together(tmp_path: Path) -> None:
    async with one_node(tmp_path) as world:
        inode = await world.write_file(CONTENT, [1, 2, 3])
        flip(chunk(world, inode, 0, 0), HEADER_BYTES)
        chunk(world, inode, 0, 1).unlink()
        assert await world.fsck(verify_data=True) == ["damaged-chunk", "missing-chunk", "lost-file"]


async def test_as_many_damaged_chunks_as_parity_lose_no_file(tmp_path: Path) -> None:
    async with one_node(tmp_path) as world:
        inode = await world.write_file(CONTENT, [1, 2, 3])
        flip(chunk(world, inode, 0, 0), HEADER_BYTES)
        flip(chunk(world, inode, 1, 1), HEADER_BYTES)
        assert await world.fsck(verify_data=True) == ["damaged-chunk", "damaged-chunk"]


async def test_chunks_whose_headers_were_mended_lose_no_file(tmp_path: Path) -> None:
    """They are told of, and can be read."""
    async with one_node(tmp_path) as world:
        inode = await world.write_file(CONTENT, [1, 2, 3])
        for index in range(3):
            flip(chunk(world, inode, 0, index), 100)
        assert await world.fsck(verify_data=True) == ["damaged-chunk"] * 3
        assert await world.read(inode) == CONTENT


async def test_chunks_with_headers_past_mending_lose_their_file(tmp_path: Path) -> None:
    """Shown by any listing."""
    async with one_node(tmp_path) as world:
        inode = await world.write_file(CONTENT, [1, 2, 3])
        for index in range(2):
            with chunk(world, inode, 0, index).open("r+b") as file:
                file.write(Random(index).randbytes(HEADER_BYTES))
        assert await world.fsck() == ["damaged-chunk", "damaged-chunk", "lost-file"]


@pytest.mark.parametrize("offset_bytes", [0, HEADER_BYTES], ids=["header", "data"])
async def test_a_damaged_chunk_of_no_file_is_named_and_collected(tmp_path: Path, offset_bytes: int) -> None:
    """Nothing else would ever take it away, and fsck never be clean again."""
    async with one_node(tmp_path) as world:
        inode = await world.write_file(CONTENT, [1, 2, 3])
        stripe = world.stripes(inode)[0]
        assert world.machine.next_stripe_id > stripe.stripe_id
        stray = world.store.chunk_path(4, ChunkKey(inode, stripe.stripe_id, 0))
        stray.parent.mkdir(parents=True)
        content = bytearray(chunk(world, inode, 0, 0).read_bytes())
        content[offset_bytes : offset_bytes + HEADER_BYTES] = Random(1).randbytes(HEADER_BYTES)
        stray.write_bytes(content)
        assert await world.fsck(verify_data=True) == ["damaged-chunk", "leftover-chunk"]
        assert await world.fsck(verify_data=True, collect_unknown=True) == ["damaged-chunk", "collected"]
        assert await world.fsck(verify_data=True) == []
        assert await world.read(inode) == CONTENT


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
