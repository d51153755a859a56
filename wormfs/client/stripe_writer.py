"""Writing one stripe: placements ahead, encode, k+m chunks side by side, anew elsewhere on failure.

A stripe is committed only once every one of its chunks is durable. When a disk fails during the
write, the whole stripe gets a new id and new placements without that disk (narrower if need be:
the data is still in memory), so no committed stripe is ever short of a chunk from birth.
"""

import logging
from collections import defaultdict
from dataclasses import dataclass, field

import trio

from wormfs.client.buffers import BytesPool
from wormfs.client.options import ClientOptions
from wormfs.client.peers import PeerTable
from wormfs.client.session import Session
from wormfs.codec.checksums import block_checksums
from wormfs.codec.erasure import get_codec
from wormfs.core.errors import NoSpaceError, SessionExpiredError, UnavailableError, WormError
from wormfs.core.limits import CHUNK_ALIGNMENT_BYTES, STRIPE_WIDTH_MAX
from wormfs.core.stripes import chunk_length_bytes
from wormfs.rpc.methods import CHUNKS_PUT_CHUNK, METADATA_ALLOCATE_STRIPES
from wormfs.rpc.v1 import chunk_pb2, metadata_pb2, types_pb2

log = logging.getLogger(__name__)

STRIPE_SLACK_BYTES = CHUNK_ALIGNMENT_BYTES * STRIPE_WIDTH_MAX
"""Room behind a stripe's bytes in a buffer: k chunks, each rounded up, are a little longer."""
ALLOCATE_AHEAD_MAX = 16


@dataclass(slots=True)
class _Ahead:
    """Placements allocated for one inode and not used yet."""

    session_id: int = 0
    batch: int = 1
    stripes: list[types_pb2.Stripe] = field(default_factory=list)


@dataclass(slots=True)
class _Failures:
    waiting: set[int]  # chunks whose put has not ended
    scope: trio.CancelScope | None = None
    disks: list[int] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    no_space: bool = False


class StripeWriter:
    """Makes stripes durable on the cluster; the caller commits them to the metadata."""

    def __init__(self, peers: PeerTable, session: Session, pool: BytesPool, options: ClientOptions) -> None:
        self._peers = peers
        self._session = session
        self._pool = pool
        self._options = options
        self._ahead: defaultdict[int, _Ahead] = defaultdict(_Ahead)
        self._abandoned: list[int] = []
        self._allocating: defaultdict[int, trio.Lock] = defaultdict(trio.Lock)

    def done_with(self, inode: int) -> None:
        """Give back the placements that were allocated for an inode and not used."""
        ahead = self._ahead.pop(inode, None)
        self._allocating.pop(inode, None)
        if ahead is not None:
            self._abandoned.extend(stripe.stripe_id for stripe in ahead.stripes)

    async def store(
        self, inode: int, index: int, stripe_size_bytes: int, buffer: bytearray, length_bytes: int
    ) -> types_pb2.Stripe:
        """Encode the first `length_bytes` of `buffer` and put every chunk; return the record to commit.

        `buffer` has STRIPE_SLACK_BYTES of room behind the stripe and is not touched by others meanwhile.
        Raises NoSpaceError, or UnavailableError when no placement could be written within the deadline.
        """
        deadline_s = trio.current_time() + self._options.deadline_s
        suspects: set[int] = set()
        pause_s = 0.0
        while True:
            with trio.move_on_at(deadline_s) as scope:
                stripe = await self._placement(inode, suspects)
            if scope.cancelled_caught:
                raise UnavailableError(f"a stripe of inode {inode} got no placement from the master in time")
            stripe.index = index
            stripe.length_bytes = stripe.valid_bytes = length_bytes
            stripe.chunk_length_bytes = chunk_length_bytes(length_bytes, stripe.k)
            failures = await self._put_all(inode, stripe, stripe_size_bytes, buffer)
            if not failures.disks:
                return stripe
            self._abandoned.append(stripe.stripe_id)
            suspects.update(failures.disks)
            log.warning(
                "stripe %d of inode %d is placed anew: %s",
                stripe.stripe_id,
                inode,
                "; ".join(failures.messages),
            )
            if trio.current_time() > deadline_s:
                kind = NoSpaceError if failures.no_space else UnavailableError
                raise kind(f"a stripe of inode {inode} cannot be written: {failures.messages[0]}")
            await trio.sleep(pause_s)  # the second try is at once: elsewhere
            pause_s = min(2 * pause_s or 0.05, 1.0)

    async def _placement(self, inode: int, suspects: set[int]) -> types_pb2.Stripe:
        async with self._allocating[inode]:
            ahead = self._ahead[inode]
            if ahead.session_id != self._session.session_id:
                ahead.stripes.clear()  # they were the old session's and are garbage now
                ahead.session_id = self._session.session_id
            while ahead.stripes:
                stripe = ahead.stripes.pop(0)
                down = [disk for disk in stripe.disks if disk in suspects or self._peers.likely_down(disk)]
                if not down:
                    return stripe
                self._abandoned.append(stripe.stripe_id)
                suspects.update(down)
            return await self._allocate(inode, ahead, suspects)

    async def _allocate(self, inode: int, ahead: _Ahead, suspects: set[int]) -> types_pb2.Stripe:
        abandoned, self._abandoned = self._abandoned[:1000], self._abandoned[1000:]
        request = metadata_pb2.AllocateStripesRequest(
            inode=inode,
            count=1 if suspects else ahead.batch,
            suspect_disks=sorted(suspects),
            abandoned=abandoned,
        )
        request.caller.SetInParent()
        try:
            reply = await self._session.command(METADATA_ALLOCATE_STRIPES, request)
        except SessionExpiredError:
            raise
        except WormError:
            self._abandoned.extend(abandoned)
            raise
        ahead.session_id = self._session.session_id
        ahead.batch = min(ahead.batch * 2, ALLOCATE_AHEAD_MAX)
        stripes = list(reply.message.stripes)
        if any(not self._peers.knows_disk(disk) for stripe in stripes for disk in stripe.disks):
            await self._peers.refresh()
        ahead.stripes.extend(stripes[1:])
        return stripes[0]

    async def _put_all(
        self, inode: int, stripe: types_pb2.Stripe, stripe_size_bytes: int, buffer: bytearray
    ) -> _Failures:
        length = stripe.chunk_length_bytes
        data_end = stripe.k * length
        buffer[stripe.length_bytes : data_end] = bytes(data_end - stripe.length_bytes)
        view = memoryview(buffer)
        parity_buffer = self._pool.acquire(stripe.m * length)
        parity = memoryview(parity_buffer)
        chunks = [view[j * length : (j + 1) * length] for j in range(stripe.k)]
        chunks += [parity[j * length : (j + 1) * length] for j in range(stripe.m)]
        get_codec(stripe.codec, stripe.k, stripe.m).encode(chunks[: stripe.k], chunks[stripe.k :])
        failures = _Failures(waiting=set(range(len(chunks))))
        async with trio.open_nursery() as nursery:
            failures.scope = nursery.cancel_scope
            for index, chunk in enumerate(chunks):
                nursery.start_soon(self._put, inode, stripe, stripe_size_bytes, index, chunk, failures)
        for index in failures.waiting:
            disk = stripe.disks[index]
            self._peers.peer_of_disk(disk).mark_suspect()
            failures.disks.append(disk)
            failures.messages.append(f"disk {disk}: {self._options.straggler_s:g} s behind the other disks")
        chunks.clear()
        parity.release()
        view.release()
        self._pool.release(parity_buffer)
        return failures

    async def _put(
        self,
        inode: int,
        stripe: types_pb2.Stripe,
        stripe_size_bytes: int,
        index: int,
        chunk: memoryview,
        failures: _Failures,
    ) -> None:
        disk = stripe.disks[index]
        request = chunk_pb2.PutChunkRequest(
            cluster_id=self._session.cluster_id,
            disk=disk,
            chunk=chunk_pb2.ChunkId(file=inode, stripe_id=stripe.stripe_id, index=index),
            k=stripe.k,
            m=stripe.m,
            codec=stripe.codec,
            stripe_index=stripe.index,
            stripe_size_bytes=stripe_size_bytes,
            stripe_length_bytes=stripe.length_bytes,
            checksums=block_checksums(chunk),
        )
        try:
            peer = self._peers.peer_of_disk(disk)
            await peer.call(CHUNKS_PUT_CHUNK, request, timeout_s=self._options.chunk_write_s, data=[chunk])
        except WormError as error:
            failures.waiting.discard(index)
            failures.disks.append(disk)
            failures.messages.append(f"disk {disk}: {error.message}")
            failures.no_space = failures.no_space or isinstance(error, NoSpaceError)
        else:
            failures.waiting.discard(index)
            durable = stripe.k + stripe.m - len(failures.waiting) - len(failures.disks)
            if durable == stripe.k + 1 and failures.scope is not None:
                failures.scope.deadline = trio.current_time() + self._options.straggler_s
