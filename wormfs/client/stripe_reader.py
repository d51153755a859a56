"""Reading one stripe: data chunks first, parity when a chunk is missing, damaged or slow.

Chunks are equal-length and the code works byte by byte, so a range of a lost chunk is rebuilt
from the same range of any k others.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from wormfs.client.buffers import BytesPool
from wormfs.client.options import ClientOptions
from wormfs.client.peers import PeerTable
from wormfs.codec.checksums import verify_blocks
from wormfs.codec.erasure import get_codec
from wormfs.core.errors import ChunkSizeError, TooFewChunksError, WormError
from wormfs.core.limits import CHECKSUM_BLOCK_BYTES
from wormfs.rpc.methods import CHUNKS_GET_CHUNK
from wormfs.rpc.v1 import chunk_pb2, types_pb2

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Gather:
    """Chunk ranges being fetched for one read; `have` maps chunk index to its bytes."""

    needed: int  # distinct chunks after which everything can be had
    have: dict[int, memoryview] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    changed: trio.Event = field(default_factory=trio.Event)

    def notify(self) -> None:
        """Wake the reader that waits for progress."""
        self.changed.set()
        self.changed = trio.Event()


class StripeReader:
    """Fetches, checks and if need be rebuilds the bytes of stripes."""

    def __init__(self, peers: PeerTable, pool: BytesPool, options: ClientOptions) -> None:
        self._peers = peers
        self._pool = pool
        self._options = options

    async def read_full(self, inode: int, stripe: types_pb2.Stripe, out: memoryview) -> None:
        """Fill `out` (k * chunk_length bytes) with the stripe's data chunks.

        Raises TooFewChunksError when fewer than k chunks can be had in time.
        """
        length = stripe.chunk_length_bytes
        used = -(-stripe.length_bytes // length)  # chunks past these are padding only
        views = {j: out[j * length : (j + 1) * length] for j in range(stripe.k)}
        await self._read_chunks(inode, stripe, 0, length, {j: views[j] for j in range(used)})
        out[used * length : stripe.k * length] = bytes((stripe.k - used) * length)

    async def read_range(
        self, inode: int, stripe: types_pb2.Stripe, chunk: int, start: int, end: int
    ) -> bytearray:
        """Return bytes [start, end) of one data chunk; both at checksum block borders or the chunk's end."""
        out = bytearray(end - start)
        disk, hedge_s = stripe.disks[chunk], self._options.hedge_s
        if self._peers.is_connected(disk):  # the usual case: one call, without a nursery or a scope
            try:
                await fetch_chunk(self._peers, hedge_s, inode, stripe, chunk, start, memoryview(out))
            except WormError as error:
                log.debug("stripe %d chunk %d: %s", stripe.stripe_id, chunk, error.message)
            else:
                return out
        await self._read_chunks(inode, stripe, start, end - start, {chunk: memoryview(out)})
        return out

    async def _read_chunks(
        self, inode: int, stripe: types_pb2.Stripe, start: int, length: int, wanted: dict[int, memoryview]
    ) -> None:
        gather = _Gather(stripe.k)
        scratch: list[bytearray] = []
        try:
            async with trio.open_nursery() as nursery:
                fetch = _Fetcher(self, inode, stripe, start, length, gather, nursery)
                await self._drive(stripe, wanted, fetch, scratch)
                nursery.cancel_scope.cancel()
            # Raised out here: a nursery would wrap it in a group that no caller looks for.
            missing = [j for j in wanted if j not in gather.have]
            if missing and len(gather.have) < gather.needed:
                raise TooFewChunksError(self._explain(stripe, gather))
            if missing:
                self._rebuild(stripe, gather, missing, wanted)
        finally:
            gather.have.clear()
            for buffer in scratch:
                self._pool.release(buffer)

    async def _drive(
        self,
        stripe: types_pb2.Stripe,
        wanted: dict[int, memoryview],
        fetch: "_Fetcher",
        scratch: list[bytearray],
    ) -> None:
        """Start fetches until every wanted chunk, or any k chunks, are there, or no more can be had."""
        gather = fetch.gather
        doubtful = {j for j in wanted if self._peers.likely_down(stripe.disks[j])}
        sound = [j for j in wanted if j not in doubtful]
        for j in sound:
            fetch.start(j, wanted[j])
        spare = [j for j in range(stripe.k + stripe.m) if j not in wanted]
        spare.sort(key=lambda j: self._peers.likely_down(stripe.disks[j]))
        queue = [*spare, *sorted(doubtful)]

        def start_next() -> bool:
            if not queue:
                return False
            j = queue.pop(0)
            if j in wanted:
                fetch.start(j, wanted[j])
            else:
                buffer = self._pool.acquire(fetch.length)
                scratch.append(buffer)
                fetch.start(j, memoryview(buffer))
            return True

        hedge_at_s = trio.current_time() + self._options.hedge_s
        while not all(j in gather.have for j in wanted) and len(gather.have) < gather.needed:
            impaired = bool(doubtful or gather.problems)
            if impaired or trio.current_time() >= hedge_at_s:
                while len(gather.have) + fetch.in_flight < gather.needed and start_next():
                    pass
            if fetch.in_flight == 0:
                return
            changed = gather.changed
            if impaired or not queue:
                hedge_at_s = max(hedge_at_s, trio.current_time() + self._options.hedge_s)
            with trio.move_on_at(hedge_at_s) as scope:
                await changed.wait()
            if scope.cancelled_caught:  # slow, not failed: ask one more than is in flight
                fetch.mark_slow()
                while fetch.fresh_in_flight + len(gather.have) < gather.needed and start_next():
                    pass
                hedge_at_s = trio.current_time() + self._options.hedge_s

    def _explain(self, stripe: types_pb2.Stripe, gather: _Gather) -> str:
        causes = "; ".join(f"chunk {j}: {why}" for j, why in sorted(gather.problems.items()))
        return (
            f"stripe {stripe.stripe_id}: {len(gather.have)} of the {stripe.k} chunks needed can be read "
            f"({causes}); bring the nodes or disks back"
        )

    def _rebuild(
        self, stripe: types_pb2.Stripe, gather: _Gather, missing: Sequence[int], wanted: dict[int, memoryview]
    ) -> None:
        codec = get_codec(stripe.codec, stripe.k, stripe.m)
        codec.decode(gather.have, missing, [wanted[j] for j in missing])


class _Fetcher:
    """Starts chunk fetches of one read and keeps count of them."""

    def __init__(
        self,
        reader: StripeReader,
        inode: int,
        stripe: types_pb2.Stripe,
        start: int,
        length: int,
        gather: _Gather,
        nursery: trio.Nursery,
    ) -> None:
        self._reader = reader
        self._inode = inode
        self._stripe = stripe
        self._start = start
        self.length = length
        self.gather = gather
        self._nursery = nursery
        self._running: set[int] = set()
        self._slow: set[int] = set()

    @property
    def in_flight(self) -> int:
        """Fetches not ended yet."""
        return len(self._running)

    @property
    def fresh_in_flight(self) -> int:
        """Fetches not ended and not known to be slow."""
        return len(self._running - self._slow)

    def mark_slow(self) -> None:
        """Count on none of those that are in flight now."""
        self._slow |= self._running

    def start(self, chunk: int, out: memoryview) -> None:
        """Begin fetching a chunk's range into `out`."""
        self._running.add(chunk)
        self._nursery.start_soon(self._fetch, chunk, out)

    async def _fetch(self, chunk: int, out: memoryview) -> None:
        try:
            timeout_s = self._reader._options.chunk_read_s
            await fetch_chunk(
                self._reader._peers, timeout_s, self._inode, self._stripe, chunk, self._start, out
            )
            self.gather.have[chunk] = out
        except WormError as error:
            self.gather.problems[chunk] = error.message
            log.debug("stripe %d chunk %d: %s", self._stripe.stripe_id, chunk, error.message)
        finally:
            self._running.discard(chunk)
            self.gather.notify()


async def fetch_chunk(
    peers: PeerTable,
    timeout_s: float,
    inode: int,
    stripe: types_pb2.Stripe,
    chunk: int,
    start: int,
    out: memoryview,
) -> None:
    """Read [start, start + len(out)) of a chunk into `out` and check it; `start` at a block border."""
    disk = stripe.disks[chunk]
    request = chunk_pb2.GetChunkRequest(
        disk=disk,
        chunk=chunk_pb2.ChunkId(file=inode, stripe_id=stripe.stripe_id, index=chunk),
        offset_bytes=start,
        length_bytes=len(out),
    )
    peer = peers.peer_of_disk(disk)
    answer = await peer.call(CHUNKS_GET_CHUNK, request, timeout_s=timeout_s, into=[out])
    if answer.data_bytes != len(out) or answer.message.offset_bytes != start:
        raise ChunkSizeError(
            f"stripe {stripe.stripe_id} chunk {chunk}: asked for {len(out)} bytes at {start}, "
            f"got {answer.data_bytes} at {answer.message.offset_bytes}"
        )
    verify_blocks(out, answer.message.checksums)


def block_range(start: int, end: int, chunk_length: int) -> tuple[int, int]:
    """Widen [start, end) of a chunk to checksum block borders."""
    low = start // CHECKSUM_BLOCK_BYTES * CHECKSUM_BLOCK_BYTES
    high = -(-end // CHECKSUM_BLOCK_BYTES) * CHECKSUM_BLOCK_BYTES
    return low, min(high, chunk_length)
