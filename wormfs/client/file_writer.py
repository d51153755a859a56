"""Writing a file's bytes: gather them by stripe, store full stripes behind the writer, commit.

What each await may meet: the caller holds `state.lock` through `write` and `flush`, so dirty
bytes only grow or move to `storing` under it. Storing tasks run without the lock; they touch
only their own `Storing`, and the map when they commit.
"""

import logging
import time
from collections.abc import Awaitable, Callable

import trio

from wormfs.client.buffers import BytesPool
from wormfs.client.file_reader import FileReader
from wormfs.client.inode_state import InodeState, Storing
from wormfs.client.options import ClientOptions
from wormfs.client.pieces import PIECES_MAX, Buffer, DirtyStripe, Piece
from wormfs.client.session import Session
from wormfs.client.stripe_writer import STRIPE_SLACK_BYTES, StripeWriter
from wormfs.core.errors import TooFewChunksError, UnavailableError, WormError
from wormfs.core.limits import INLINE_MAX_BYTES
from wormfs.core.stripes import split_range
from wormfs.rpc.methods import METADATA_COMMIT_WRITE
from wormfs.rpc.v1 import metadata_pb2, types_pb2

log = logging.getLogger(__name__)

EXTENTS_PER_COMMIT_BYTES = 1 << 19  # with one more piece, well below what one entry of etcd's log takes
EXTENT_OVERHEAD_BYTES = 32  # of its offset and lengths, at most
MAP_TRIES = 16


class FileWriter:
    """Takes writes into memory and brings them to the cluster."""

    def __init__(
        self,
        stripes: StripeWriter,
        reader: FileReader,
        session: Session,
        pool: BytesPool,
        nursery: trio.Nursery,
        options: ClientOptions,
        fetch_map: Callable[[InodeState, int], Awaitable[None]],
    ) -> None:
        self._fetch_map = fetch_map
        self._stripes = stripes
        self._reader = reader
        self._session = session
        self._pool = pool
        self._nursery = nursery
        self._options = options
        self._slots = trio.Semaphore(options.stores_in_flight)
        self._held: dict[int, InodeState] = {}  # inodes with dirty bytes, oldest first

    # --- taking bytes -------------------------------------------------------------------------

    async def write(self, state: InodeState, offset_bytes: int, data: Buffer) -> None:
        """Take bytes; the lock and the write lease are held. Waits while too much is unsent.

        Raises the error of an earlier store that could not be brought to the disks.
        """
        failed = next((each.error for each in state.storing.values() if each.error is not None), None)
        if failed is not None:
            raise type(failed)(failed.message) from failed
        size = state.stripe_size_bytes
        view = memoryview(data)
        position = 0
        state.mtime_ns = time.time_ns()
        self._held.setdefault(state.inode, state)
        for part in split_range(offset_bytes, len(view), size):
            piece = view[position : position + part.length_bytes]
            position += part.length_bytes
            dirty = state.dirty.get(part.index)
            if dirty is None:
                dirty = state.dirty[part.index] = DirtyStripe()
            if dirty.wants_buffer(part.length_bytes):
                dirty.give_buffer(self._pool.acquire(size + STRIPE_SLACK_BYTES))
            dirty.write(part.start_bytes, piece)
            state.size_bytes = max(state.size_bytes, offset_bytes + position)
            state.version += 1
            if dirty.covers(0, size):
                await self._seal(state, part.index)

    def dirty_bytes(self) -> int:
        """Memory that partly written stripes take, over all inodes."""
        return sum(dirty.held_bytes for state in self._held.values() for dirty in state.dirty.values())

    def oldest_dirty(self, but: InodeState) -> InodeState | None:
        """The inode that has been dirty the longest, another one if there is one."""
        for state in self._held.values():
            if state is not but:
                return state
        return but if but.inode in self._held else None

    def let_go(self, state: InodeState) -> None:
        """The inode is closed and clean."""
        self._held.pop(state.inode, None)

    def truncated(self, state: InodeState, size_bytes: int) -> bool:
        """Forget uncommitted bytes past a new, smaller size; whether there were. Nothing is being stored."""
        size = state.stripe_size_bytes
        self._take_back_failed(state)
        cut = any(index * size + dirty.end_bytes > size_bytes for index, dirty in state.dirty.items())
        for index in list(state.dirty):
            dirty = state.dirty[index]
            dirty.cut(max(0, size_bytes - index * size))
            if not dirty.end_bytes:
                self._forget_dirty(state, index)
        state.version += 1
        self._clean(state)
        return cut

    def _forget_dirty(self, state: InodeState, index: int) -> None:
        dirty = state.dirty.pop(index)
        if dirty.buffer is not None:
            self._pool.release(dirty.buffer)

    # --- stripes ------------------------------------------------------------------------------

    async def _seal(self, state: InodeState, index: int) -> Storing:
        """Close a dirty stripe to further writes and start storing it."""
        earlier = state.storing.get(index)
        if earlier is not None:  # its commit must come before ours, and its bytes are our base
            await earlier.ended.wait()
            if earlier.error is not None:
                raise type(earlier.error)(earlier.error.message) from earlier.error
        await self._slots.acquire()
        storing = Storing(state.dirty.pop(index), mtime_ns=state.mtime_ns)
        state.storing[index] = storing
        self._nursery.start_soon(self._store_and_commit, state, index, storing)
        return storing

    async def _store_and_commit(self, state: InodeState, index: int, storing: Storing) -> None:
        try:
            try:
                storing.stripe = await self._store_in_session(state, index, storing.dirty)
            finally:
                self._slots.release()
            await self._commit(state, [storing.stripe], [], storing.mtime_ns)
        except WormError as error:
            storing.error = error
            log.error("inode %d stripe %d could not be written: %s", state.inode, index, error.message)
        else:
            self._reader.drop(state.inode, index)
            del state.storing[index]
            state.committed_stripe(storing.stripe)
            if storing.dirty.buffer is not None:
                self._pool.release(storing.dirty.buffer)
            self._clean(state)
        finally:
            storing.ended.set()

    async def _store_in_session(self, state: InodeState, index: int, dirty: DirtyStripe) -> types_pb2.Stripe:
        """Store it, anew when the session that it was placed by ended meanwhile: its stripes are garbage."""
        while True:
            session_id = self._session.session_id
            stripe = await self._store(state, index, dirty)
            if self._session.session_id == session_id:
                return stripe

    async def _store(self, state: InodeState, index: int, dirty: DirtyStripe) -> types_pb2.Stripe:
        """Make the stripe's new content durable: the dirty bytes over what was there."""
        size = state.stripe_size_bytes
        if not dirty.covers(0, size):
            await self._have_map(state, index)
        length = max(dirty.end_bytes, state.base_end_bytes(index))
        if dirty.buffer is not None and dirty.covers(0, length):
            return await self._stripes.store(state.inode, index, size, dirty.buffer, length)
        buffer = self._pool.acquire(size + STRIPE_SLACK_BYTES)
        await self._fill_base(state, index, buffer)
        dirty.overlay_into(memoryview(buffer), 0)
        stripe = await self._stripes.store(state.inode, index, size, buffer, length)
        self._pool.release(buffer)
        return stripe

    async def _fill_base(self, state: InodeState, index: int, buffer: bytearray) -> None:
        """What is committed, for what is dirty to be laid over."""
        attempts = self._session.attempts
        before = state.stripes.get(index)
        try:
            await self._reader.fill_base(state, index, buffer)
        except TooFewChunksError:
            await self._fetch_map(state, index)  # waits for the master
            await self._have_map(state, index)
            # Else a server was restarted, its chunks with it; or an unanswered commit of ours took its place.
            if self._session.attempts == attempts and state.stripes.get(index) == before:
                raise
            await self._reader.fill_base(state, index, buffer)

    async def _have_map(self, state: InodeState, index: int) -> None:
        """Have the map page of a stripe index: an open or read elsewhere in the file may have dropped it.

        What is not in the map reads as a hole, and would be written as one. No await must follow before
        the map is looked at.
        """
        for _ in range(MAP_TRIES):
            if state.has_map(index):
                return
            await self._fetch_map(state, index)
        raise UnavailableError(f"inode {state.inode}: its map changes faster than it can be read")

    async def stored(self, state: InodeState) -> None:
        """Wait until no stripe is on its way any more: each is committed, or failed."""
        for storing in list(state.storing.values()):
            await storing.ended.wait()

    # --- commits ------------------------------------------------------------------------------

    async def flush(self, state: InodeState) -> None:
        """Commit everything dirty; the lock is held. Raises the first error; failed bytes stay dirty."""
        self._take_back_failed(state)
        pieces: list[tuple[int, Piece]] = []
        for index in sorted(state.dirty):
            dirty = state.dirty[index]
            inline = dirty.buffer is None and index not in state.storing
            if inline:
                await self._have_map(state, index)
                count = len(state.extents.get(index, ())) + len(dirty.pieces)
                inline = count <= PIECES_MAX and state.merged_inline_bytes(index, dirty) <= INLINE_MAX_BYTES
            if inline:
                pieces.extend((index, piece) for piece in dirty.pieces)
            else:
                await self._seal(state, index)
        if pieces:
            await self._commit_pieces(state, pieces)
        waited = list(state.storing.values())
        for storing in waited:
            await storing.ended.wait()
        for storing in waited:
            if storing.error is not None:
                raise type(storing.error)(storing.error.message) from storing.error
        self._clean(state)

    def _clean(self, state: InodeState) -> None:
        """Once nothing is uncommitted: the master's attributes are the truth, and nothing is held."""
        if state.has_dirty:
            return
        state.mtime_ns = 0
        state.lapsed_change = 0
        self.settled(state, *state.unanswered)
        self._held.pop(state.inode, None)

    def settled(self, state: InodeState, *operations: int) -> None:
        """What became of these commits is known, or does not matter: all bytes were committed since."""
        for operation in operations:
            state.unanswered.pop(operation, None)
            self._session.answered(operation)

    def _take_back_failed(self, state: InodeState) -> None:
        """Make stripes whose store failed dirty again, under what was written since."""
        for index, storing in list(state.storing.items()):
            if storing.error is None:
                continue
            del state.storing[index]
            newer = state.dirty.get(index)
            dirty = storing.dirty
            if newer is not None:
                if dirty.buffer is None:
                    dirty.give_buffer(self._pool.acquire(state.stripe_size_bytes + STRIPE_SLACK_BYTES))
                for start, data in newer.spans():
                    dirty.write(start, data)
                if newer.buffer is not None:
                    self._pool.release(newer.buffer)
            state.dirty[index] = dirty
            state.version += 1

    async def _commit_pieces(self, state: InodeState, pieces: list[tuple[int, Piece]]) -> None:
        while pieces:
            batch: list[tuple[int, Piece]] = []
            batch_bytes = 0
            while pieces and batch_bytes < EXTENTS_PER_COMMIT_BYTES:
                batch.append(pieces.pop(0))
                batch_bytes += len(batch[-1][1].data) + EXTENT_OVERHEAD_BYTES
            size = state.stripe_size_bytes
            extents = [
                types_pb2.Extent(offset_bytes=index * size + piece.start_bytes, data=piece.data)
                for index, piece in batch
            ]
            await self._commit(state, [], extents, state.mtime_ns)
            for index, piece in batch:
                state.committed_piece(index, piece)
                self._reader.drop(state.inode, index)
                self._written(state, index, piece)

    def _written(self, state: InodeState, index: int, piece: Piece) -> None:
        """Take a committed piece out of the dirty ones."""
        dirty = state.dirty[index]
        dirty.pieces.remove(piece)
        if not dirty.pieces:
            del state.dirty[index]

    async def _commit(
        self,
        state: InodeState,
        stripes: list[types_pb2.Stripe],
        extents: list[types_pb2.Extent],
        mtime_ns: int,
    ) -> None:
        size = state.stripe_size_bytes
        end = max(
            [stripe.index * size + stripe.length_bytes for stripe in stripes]
            + [extent.offset_bytes + len(extent.data) for extent in extents]
        )
        request = metadata_pb2.CommitWriteRequest(
            inode=state.inode, stripes=stripes, extents=extents, size_bytes=end, mtime_ns=mtime_ns
        )
        request.caller.SetInParent()
        try:
            reply = await self._session.command(METADATA_COMMIT_WRITE, request)
        except (UnavailableError, trio.Cancelled):
            state.unanswered[request.caller.operation] = None
            raise
        attributes = reply.message.attributes
        if attributes.change > state.attributes.change:  # the answer to a later commit may have come first
            state.adopt_attributes(attributes)
        if state.lapsed_change:  # the change was ours: the leases were lost while it was under way
            state.lapsed_change = max(state.lapsed_change, attributes.change)

    def discard(self, state: InodeState, why: WormError) -> None:
        """Give up what could not be written, when its last handle is gone. Said in the log.

        The lock is held, and nothing is on its way: it would be committed over what is written from now on.
        """
        if not state.has_dirty:
            return
        log.error(
            "inode %d was closed with %d stripes that could not be written: %s",
            state.inode,
            len(state.dirty) + len(state.storing),
            why.message,
        )
        for index in list(state.dirty):
            self._forget_dirty(state, index)
        for index in [each for each, storing in state.storing.items() if storing.error is not None]:
            del state.storing[index]
        state.version += 1
        self._clean(state)
        state.adopt_attributes(state.attributes)
