"""Reading a file's bytes: stripes or holes, extents over them, uncommitted bytes on top."""

from collections.abc import Awaitable, Callable

import trio

from wormfs.client.buffers import BytesPool
from wormfs.client.inode_state import InodeState
from wormfs.client.options import ClientOptions
from wormfs.client.stripe_cache import CachedStripe, StripeCache
from wormfs.client.stripe_reader import StripeReader, block_range
from wormfs.client.stripe_writer import STRIPE_SLACK_BYTES
from wormfs.core.errors import WormError
from wormfs.core.limits import CHECKSUM_BLOCK_BYTES
from wormfs.core.stripes import StripeRange
from wormfs.rpc.v1 import types_pb2

SEQUENTIAL_REACH_BYTES = 4 << 20
"""The kernel sends readahead out of order; offsets this near the expected one count as sequential."""
SEQUENTIAL_READS = 3
"""After a jump, small reads are sequential from the third on: random ones come near each other by chance."""
WHOLE_STRIPE_READ_BYTES = 96 * 1024
"""A read at least this long fetches the whole stripe."""
OPTIMISTIC_TRIES = 4
LOCKED_TRIES = 16

EnsureMap = Callable[[InodeState, int], Awaitable[None]]


class ReadPattern:
    """How one handle reads: sequential readers get readahead."""

    __slots__ = ("_near_reads", "next_offset_bytes", "run_bytes")

    def __init__(self) -> None:
        self.next_offset_bytes = 0
        self.run_bytes = 0
        self._near_reads = SEQUENTIAL_READS  # who begins at the start probably goes on

    def note(self, offset_bytes: int, length_bytes: int) -> bool:
        """Record a read; return whether it continues a sequential run."""
        near = abs(offset_bytes - self.next_offset_bytes) <= SEQUENTIAL_REACH_BYTES
        self.run_bytes = self.run_bytes + length_bytes if near else 0
        self._near_reads = self._near_reads + 1 if near else 0
        self.next_offset_bytes = max(offset_bytes + length_bytes, self.next_offset_bytes if near else 0)
        return near and (length_bytes >= WHOLE_STRIPE_READ_BYTES or self._near_reads >= SEQUENTIAL_READS)


class FileReader:
    """Reads ranges of files whose state and map are at hand."""

    def __init__(
        self,
        stripes: StripeReader,
        cache: StripeCache,
        pool: BytesPool,
        nursery: trio.Nursery,
        options: ClientOptions,
    ) -> None:
        self._stripes = stripes
        self._cache = cache
        self._pool = pool
        self._nursery = nursery
        self._options = options

    def drop(self, inode: int, index: int | None = None) -> None:
        """Forget cached content of an inode, or of one stripe of it."""
        if index is None:
            self._cache.drop_inode(inode)
        else:
            self._cache.drop(inode, index)

    async def read_part(
        self,
        state: InodeState,
        part: StripeRange,
        pattern: ReadPattern,
        ensure_map: EnsureMap,
        *,
        sequential: bool,
        tries: int,
    ) -> bytes | bytearray | memoryview | None:
        """Return the bytes of one stripe's part of a read; None when the file changed under all `tries`.

        `ensure_map` brings the map page of a stripe index: a recall may take it away at any await, and
        a stripe that is not in the map reads as a hole. So no answer counts that was made while the
        map changed.

        A memoryview in the answer is valid until the caller's next await.
        Raises TooFewChunksError (EIO) when they cannot be had, UnavailableError when the map changes
        faster than it can be read.
        """
        for _ in range(tries):
            await ensure_map(state, part.index)
            version = state.version
            answer = await self._read_once(state, part, pattern, sequential)
            if state.version == version:
                return answer
        return None

    async def _read_once(
        self, state: InodeState, part: StripeRange, pattern: ReadPattern, sequential: bool
    ) -> bytes | bytearray | memoryview:
        start, end = part.start_bytes, part.end_bytes
        storing = state.storing.get(part.index)
        layers = [storing.dirty] if storing is not None else []
        if part.index in state.dirty:
            layers.append(state.dirty[part.index])
        whole = layers and layers[-1].covers(start, end)
        base: bytes | bytearray | memoryview
        if whole:
            base = bytes(part.length_bytes)
            layers = layers[-1:]
        else:
            base = await self._base(state, part, pattern, sequential)
        if not layers:
            return base
        out = bytearray(base)
        for layer in layers:
            layer.overlay_into(memoryview(out), start)
        return out

    async def _base(
        self, state: InodeState, part: StripeRange, pattern: ReadPattern, sequential: bool
    ) -> bytes | bytearray | memoryview:
        """Committed content of the part."""
        stripe = state.stripes.get(part.index)
        if stripe is None or stripe.valid_bytes <= part.start_bytes:
            if part.index not in state.extents:
                return bytes(part.length_bytes)
            out = bytearray(part.length_bytes)
            state.lay_extents(part.index, memoryview(out), part.start_bytes)
            return out
        entry = self._cache.get(state.inode, part.index, state.map_version)
        small = stripe.length_bytes <= WHOLE_STRIPE_READ_BYTES
        if entry is None and not (sequential or small or part.length_bytes >= WHOLE_STRIPE_READ_BYTES):
            return await self._read_blocks(state, stripe, part)
        view = await self._whole(state, part.index)
        if sequential and pattern.run_bytes > state.stripe_size_bytes // 4:
            self._read_ahead(state, part.index)
        return view[part.start_bytes : part.end_bytes]

    async def _read_blocks(self, state: InodeState, stripe: types_pb2.Stripe, part: StripeRange) -> bytearray:
        """Serve a small random read from checksum blocks, without fetching the stripe."""
        out = bytearray(part.length_bytes)
        view = memoryview(out)
        length = stripe.chunk_length_bytes
        position, end = part.start_bytes, min(part.end_bytes, stripe.valid_bytes)
        while position < end:
            chunk, within = divmod(position, length)
            until = min(length, within + end - position)
            low, high = block_range(within, until, length)
            data = self._cached_blocks(stripe.stripe_id, chunk, low, high)
            if data is None:
                data = await self._stripes.read_range(state.inode, stripe, chunk, low, high)
                self._keep_blocks(stripe.stripe_id, chunk, low, data)
            at = position - part.start_bytes
            view[at : at + until - within] = memoryview(data)[within - low : until - low]
            position += until - within
        state.lay_extents(part.index, view, part.start_bytes)
        return out

    def _cached_blocks(self, stripe_id: int, chunk: int, low: int, high: int) -> bytes | bytearray | None:
        """All checksum blocks of a chunk's range, or None when one is not in the cache."""
        blocks = range(low // CHECKSUM_BLOCK_BYTES, -(-high // CHECKSUM_BLOCK_BYTES))
        if len(blocks) == 1:
            return self._cache.get_block(stripe_id, chunk, blocks[0])
        found = [self._cache.get_block(stripe_id, chunk, block) for block in blocks]
        return None if None in found else b"".join(filter(None, found))

    def _keep_blocks(self, stripe_id: int, chunk: int, low: int, data: bytearray) -> None:
        first = low // CHECKSUM_BLOCK_BYTES
        if len(data) <= CHECKSUM_BLOCK_BYTES:
            self._cache.put_block(stripe_id, chunk, first, data)
            return
        for start in range(0, len(data), CHECKSUM_BLOCK_BYTES):
            block = data[start : start + CHECKSUM_BLOCK_BYTES]
            self._cache.put_block(stripe_id, chunk, first + start // CHECKSUM_BLOCK_BYTES, block)

    async def _whole(self, state: InodeState, index: int) -> memoryview:
        """Return the stripe's content (a view that is valid until the next await)."""
        while True:
            entry = self._cache.get(state.inode, index, state.map_version)
            if entry is None:
                entry = self._cache.begin(state.inode, index, state.map_version)
                await self._fetch(state, index, entry)
            elif not entry.ready.is_set():
                await entry.ready.wait()
            if entry.buffer is not None:
                return memoryview(entry.buffer)
            if entry.error is not None:
                raise type(entry.error)(entry.error.message) from entry.error

    async def _fetch(self, state: InodeState, index: int, entry: CachedStripe) -> None:
        key = (state.inode, index)
        try:
            buffer = self._pool.acquire(state.stripe_size_bytes + STRIPE_SLACK_BYTES)
            await self.fill_base(state, index, buffer)
        except WormError as error:
            self._cache.fail(key, entry, error)
        except BaseException:
            self._cache.fail(key, entry, None)
            raise
        else:
            self._cache.fill(key, entry, buffer)

    async def fill_base(self, state: InodeState, index: int, buffer: bytearray) -> None:
        """Fill a stripe-long buffer with committed content: chunks, zeros behind, extents over."""
        stripe = state.stripes.get(index)
        pieces = list(state.extents.get(index, ()))
        view = memoryview(buffer)
        valid = 0
        if stripe is not None:
            await self._stripes.read_full(state.inode, stripe, view[: stripe.k * stripe.chunk_length_bytes])
            valid = stripe.valid_bytes
        view[valid:] = bytes(len(view) - valid)
        for piece in pieces:
            view[piece.start_bytes : piece.end_bytes] = piece.data

    def _read_ahead(self, state: InodeState, index: int) -> None:
        last = (state.size_bytes - 1) // state.stripe_size_bytes
        for ahead in range(index + 1, min(index + self._options.readahead_stripes, last) + 1):
            if not state.has_map(ahead):
                break
            if ahead in state.stripes and self._cache.get(state.inode, ahead, state.map_version) is None:
                entry = self._cache.begin(state.inode, ahead, state.map_version)
                self._nursery.start_soon(self._fetch_ahead, state, ahead, entry)

    async def _fetch_ahead(self, state: InodeState, index: int, entry: CachedStripe) -> None:
        entered = state.enter_read()
        try:
            await self._fetch(state, index, entry)
        finally:
            state.leave_read(entered)
