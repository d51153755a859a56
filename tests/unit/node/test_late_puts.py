"""Chunks that a deposed master's repair puts after its successor has collected their stripe.

A put names no mastership. What stands in for that: the stripe's id, which is never given out again.
"""

from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.unit.node.one_node import CHUNK_BYTES, OneNode, one_node
from wormfs.codec.checksums import block_checksums
from wormfs.core.types import ChunkKey
from wormfs.node.chunk_service import ChunkService, id_from
from wormfs.node.drain import Drain
from wormfs.node.repair import SESSION_LABEL, Repair
from wormfs.node.stripe_copier import PutFailedError
from wormfs.rpc import methods as m
from wormfs.rpc.registry import HeapBuffer, Registry, RequestContext
from wormfs.rpc.v1 import chunk_pb2, metadata_pb2, types_pb2

pytestmark = pytest.mark.timeout(30)
DISKS = [1, 2, 3]
CONTENT = Random(3).randbytes(2 * CHUNK_BYTES)


async def collected_stripe(world: OneNode, inode: int) -> types_pb2.Stripe:
    """One that the repair of a master before had allocated, and that nobody will hear of any more."""
    request = metadata_pb2.AllocateStripesRequest(inode=inode, count=1)
    request.caller.session_id = world.machine.open_session(SESSION_LABEL)
    place = types_pb2.Stripe(codec=types_pb2.CODEC_ZFEC, k=2, m=1, disks=DISKS)
    reply: Any = world.machine.allocate(request, [place]).reply
    Repair.close_old_sessions(world.machine)
    assert world.machine.garbage_disks() == DISKS
    for disk in DISKS:  # as the collector does
        chunks = [ChunkKey(each.file, each.stripe_id, each.index) for each in world.machine.garbage(disk)]
        delete = chunk_pb2.DeleteChunksRequest(disk=disk, chunks=[id_from(key) for key in chunks])
        await world.links.of_disk(disk).call(m.CHUNKS_DELETE_CHUNKS, delete, timeout_s=5)
        world.machine.chunks_collected(disk, [key.stripe_id for key in chunks])
    stripe: types_pb2.Stripe = reply.stripes[0]
    return stripe


async def test_a_node_refuses_chunks_of_a_stripe_it_was_told_to_delete(tmp_path: Path) -> None:
    async with one_node(tmp_path) as world:
        inode = await world.write_file(CONTENT, DISKS)
        late = await collected_stripe(world, inode)
        (old,) = world.stripes(inode)
        with pytest.raises(PutFailedError, match="given up"):
            await world.copier.write(inode, old, late, bytearray(CONTENT), 1 << 20)
        assert await world.fsck() == []


async def test_what_a_node_takes_that_was_restarted_since_is_named_and_collected_by_fsck(
    tmp_path: Path,
) -> None:
    """It no longer knows what it deleted."""
    async with one_node(tmp_path) as world:
        inode = await world.write_file(CONTENT, DISKS)
        late = await collected_stripe(world, inode)
        registry = Registry()
        ChunkService(lambda: world.store, world.store.pool, Drain()).register(registry)
        data = CONTENT[:CHUNK_BYTES]
        put = chunk_pb2.PutChunkRequest(
            cluster_id=world.machine.cluster_id,
            disk=DISKS[0],
            chunk=id_from(ChunkKey(inode, late.stripe_id, 0)),
            k=2,
            m=1,
            codec=types_pb2.CODEC_ZFEC,
            stripe_size_bytes=1 << 20,
            stripe_length_bytes=len(CONTENT),
            checksums=block_checksums(data),
        )
        handler = registry.by_number[m.CHUNKS_PUT_CHUNK.number].handler
        await handler(RequestContext(None, "stream", "a deposed master"), put, HeapBuffer(bytearray(data)))
        assert await world.fsck() == ["leftover-chunk"]
        assert await world.fsck(collect_unknown=True) == ["collected"]
        assert await world.fsck() == []
        assert await world.read(inode) == CONTENT
