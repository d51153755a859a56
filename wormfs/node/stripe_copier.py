"""Writes a stripe's bytes anew: any k chunks in, k'+m chunks out, under a new stripe id.

Works on the master, for repair. Memory: about twice the stripe for each call under way. Coding
runs in threads, for the master's own thread answers everybody's requests.
"""

from collections.abc import Collection, Sequence

import trio

from wormfs.codec.checksums import block_checksums, verify_blocks
from wormfs.codec.erasure import get_codec
from wormfs.core.errors import ChunkSizeError, TooFewChunksError, UnavailableError, WormError
from wormfs.core.records import Stripe
from wormfs.core.repair import readable_chunks
from wormfs.core.stripes import chunk_length_bytes
from wormfs.core.types import ChunkKey
from wormfs.node.chunk_service import id_from
from wormfs.node.links import NodeLinks
from wormfs.rpc.methods import CHUNKS_GET_CHUNK, CHUNKS_PUT_CHUNK
from wormfs.rpc.v1 import chunk_pb2, types_pb2

READ_TIMEOUT_S = 10.0
PUT_TIMEOUT_S = 20.0


class PutFailedError(UnavailableError):
    """Chunks could not be written; `disks`: where."""

    def __init__(self, message: str, disks: Sequence[int]) -> None:
        super().__init__(message)
        self.disks = tuple(disks)


class StripeCopier:
    """Reads and writes whole stripes through the nodes' links."""

    def __init__(self, links: NodeLinks, cluster_id: str) -> None:
        self._links = links
        self._cluster_id = cluster_id

    async def read(
        self, inode: int, stripe: Stripe, offline: Collection[int], damaged: Collection[int]
    ) -> bytearray:
        """The stripe's bytes, zero padded to k chunks. TooFewChunksError when fewer than k can be read."""
        length = stripe.chunk_length_bytes
        out = bytearray(stripe.k * length)
        view = memoryview(out)
        have: dict[int, memoryview] = {}
        problems: dict[int, str] = {}
        waiting = readable_chunks(stripe, offline, damaged)
        while len(have) < stripe.k:
            batch = waiting[: stripe.k - len(have)]
            del waiting[: len(batch)]
            if not batch:
                causes = "; ".join(f"chunk {index}: {why}" for index, why in sorted(problems.items()))
                raise TooFewChunksError(
                    f"stripe {stripe.stripe_id} of inode {inode}: {len(have)} of the {stripe.k} chunks "
                    f"needed can be read ({causes or 'the others are on disks that are offline'})"
                )
            async with trio.open_nursery() as nursery:
                for index in batch:
                    place = view[index * length : (index + 1) * length]
                    if index >= stripe.k:
                        place = memoryview(bytearray(length))
                    nursery.start_soon(self._get, inode, stripe, index, place, have, problems)
        missing = [index for index in range(stripe.k) if index not in have]
        if missing:
            codec = get_codec(stripe.codec, stripe.k, stripe.m)
            places = [view[index * length : (index + 1) * length] for index in missing]
            await trio.to_thread.run_sync(codec.decode, have, missing, places)
        return out

    async def _get(
        self,
        inode: int,
        stripe: Stripe,
        index: int,
        out: memoryview,
        have: dict[int, memoryview],
        problems: dict[int, str],
    ) -> None:
        disk = stripe.disks[index]
        request = chunk_pb2.GetChunkRequest(
            disk=disk, chunk=id_from(ChunkKey(inode, stripe.stripe_id, index)), length_bytes=len(out)
        )
        try:
            answer = await self._links.of_disk(disk).call(
                CHUNKS_GET_CHUNK, request, timeout_s=READ_TIMEOUT_S, into=[out]
            )
            if answer.data_bytes != len(out):
                raise ChunkSizeError(f"{answer.data_bytes} of {len(out)} bytes")
            verify_blocks(out, answer.message.checksums)
        except WormError as error:
            problems[index] = error.message
        else:
            have[index] = out

    async def write(
        self, inode: int, old: Stripe, new: types_pb2.Stripe, data: bytearray, stripe_size_bytes: int
    ) -> None:
        """Encode the first `old.length_bytes` of `data` and put every chunk where `new` says.

        Durable on return. Raises PutFailedError, naming the disks.
        """
        length = chunk_length_bytes(old.length_bytes, new.k)
        padding = new.k * length - len(data)
        if padding > 0:
            data = data + bytes(padding)
        # Beyond the stripe's length there is only padding, zeros, in either width.
        view = memoryview(data)
        chunks = [view[j * length : (j + 1) * length] for j in range(new.k)]
        chunks += [memoryview(bytearray(length)) for _ in range(new.m)]
        codec = get_codec(new.codec, new.k, new.m)
        await trio.to_thread.run_sync(codec.encode, chunks[: new.k], chunks[new.k :])
        failed: dict[int, str] = {}
        async with trio.open_nursery() as nursery:
            for index, chunk in enumerate(chunks):
                request = chunk_pb2.PutChunkRequest(
                    cluster_id=self._cluster_id,
                    disk=new.disks[index],
                    chunk=id_from(ChunkKey(inode, new.stripe_id, index)),
                    k=new.k,
                    m=new.m,
                    codec=new.codec,
                    stripe_index=old.index,
                    stripe_size_bytes=stripe_size_bytes,
                    stripe_length_bytes=old.length_bytes,
                )
                nursery.start_soon(self._put, request, chunk, failed)
        if failed:
            causes = "; ".join(f"disk {disk}: {why}" for disk, why in sorted(failed.items()))
            raise PutFailedError(f"stripe {new.stripe_id} of inode {inode}: {causes}", list(failed))

    async def _put(
        self, request: chunk_pb2.PutChunkRequest, chunk: memoryview, failed: dict[int, str]
    ) -> None:
        request.checksums = await trio.to_thread.run_sync(block_checksums, chunk)
        try:
            await self._links.of_disk(request.disk).call(
                CHUNKS_PUT_CHUNK, request, timeout_s=PUT_TIMEOUT_S, data=[chunk]
            )
        except WormError as error:
            failed[request.disk] = error.message
