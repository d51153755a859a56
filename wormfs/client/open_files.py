"""Open files: reading, writing, flushing and closing them."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from wormfs.client.entries import Handle, locked_for_writing
from wormfs.client.file_reader import LOCKED_TRIES, OPTIMISTIC_TRIES
from wormfs.client.inode_state import InodeState
from wormfs.client.leased_states import LOST, LOST_MAX, LeasedStates
from wormfs.client.pieces import Buffer
from wormfs.core.errors import (
    BadHandleError,
    DataLossError,
    TooFewChunksError,
    TooLargeError,
    UnavailableError,
    WormError,
)
from wormfs.core.limits import FILE_SIZE_MAX_BYTES
from wormfs.core.stripes import StripeRange, split_range
from wormfs.rpc import methods
from wormfs.rpc.stream_client import CallReply
from wormfs.rpc.v1 import metadata_pb2

log = logging.getLogger(__name__)

DIRTY_CHECK_EVERY_WRITES = 32
CLOSE_LINGER_S = 0.01
"""Closed files are told together after this long; who wants one of them meanwhile has it recalled."""
RECALLED_WAIT_S = 0.1
"""So long a new read waits for the end of a recall: the kernel may not answer it before the read ends."""
READ_TRIES = 4
"""A read of stripes that others, repair among them, keep replacing starts anew so often."""


def _tell_lost(state: InodeState) -> None:
    """Raise, once, why something written or changed is lost."""
    error, state.lost = state.lost, None
    if error is not None:
        raise type(error)(error.message)


class OpenFiles(LeasedStates):
    """What is done through handles. The bytes themselves move in FileReader and FileWriter."""

    def _opened(self, reply: CallReply[metadata_pb2.FileMapReply], flags: int, recalls_ended: int) -> Handle:
        """Make a handle; `recalls_ended` is the count when the request was sent."""
        attributes = reply.message.attributes
        inode = attributes.inode
        state = self._states.get(inode)
        keep_cache = state is not None or self._page_changes.get(inode) == attributes.change
        if state is None:
            state = self._states[inode] = InodeState(attributes)
            state.giving_up = self._giving_up.get(inode)
        state.open_count += 1
        self._adopt_map(state, reply)
        recalled = (
            state.recalls or state.giving_up is not None or self._recall_ends.get(inode, 0) > recalls_ended
        )
        if reply.message.write_lease and state.fresh and not recalled:
            state.write_lease = True
        return Handle(state, flags, keep_cache=keep_cache)

    @contextmanager
    def _resizing(self, inode: int) -> Iterator[None]:
        """While the master is asked to change a file's size: nobody is recalled on this mount.

        Opens that end meanwhile may have been told of the map before, and wait (`_resized`).
        """
        ended = trio.Event()
        self._resizes.setdefault(inode, []).append(ended)
        try:
            yield
        finally:
            self._resizes[inode].remove(ended)
            if not self._resizes[inode]:
                del self._resizes[inode]
            state = self._states.get(inode)
            if state is not None:
                state.fresh = False
                state.drop_map()
                self._reader.drop(inode)
            ended.set()

    async def _resized(self, handle: Handle) -> Handle:
        """A new handle, once no size is being changed any more that was when it was made."""
        try:
            for ended in list(self._resizes.get(handle.inode, ())):
                await ended.wait()
        except BaseException:
            await self.release(handle)
            raise
        return handle

    async def release(self, handle: Handle) -> None:
        """Close a handle. With the last one, what could not be written is given up (and logged)."""
        if not handle.open:
            return
        handle.open = False
        state = handle.state
        state.append_rest.end(handle)
        try:
            await self._close(state)
        except trio.Cancelled:
            self._nursery.start_soon(self._close, state)  # it is closed, whoever waits for it
            raise

    async def _close(self, state: InodeState) -> None:
        if state.open_count == 1 and state.has_dirty:
            async with locked_for_writing(state):
                try:
                    await self._flush(state)
                except WormError as error:
                    await self._writer.stored(state)
                    if state.open_count == 1:
                        self._writer.discard(state, error)
                        state.fresh = False  # so pages of what was given up are not kept
        state.open_count -= 1
        self._closed.append(state.inode)
        self._closing.set()
        self._let_go_if_unused(state)

    async def _tell_closed(self) -> None:
        """Report closed files to the master, many at a time, in the background."""
        while True:
            await self._closing.wait()
            await trio.sleep(CLOSE_LINGER_S)
            self._closing = trio.Event()
            self._closes += 1
            request = self._closing_now = metadata_pb2.CloseFilesRequest(
                session_id=self.session.session_id, inodes=self._closed, number=self._closes
            )
            self._closed = []
            while request.session_id == self.session.session_id:
                try:
                    await self.session.query(methods.METADATA_CLOSE_FILES, request)
                    break
                except UnavailableError as error:  # after a deadline; under its number it may be asked again
                    log.warning(
                        "%d closed files are not reported yet: %s", len(request.inodes), error.message
                    )
                except WormError as error:
                    log.warning("%d closed files were not reported: %s", len(request.inodes), error.message)
                    break
            if request.session_id != self.session.session_id:  # the new one was told that they are open
                self._closed[:0] = request.inodes
                self._closing.set()
            self._closing_now = metadata_pb2.CloseFilesRequest()

    # --- reading ---------------------------------------------------------------------------------

    async def read(self, handle: Handle, offset_bytes: int, length_bytes: int) -> Buffer:
        """Return up to `length_bytes`; fewer only at the end of the file.

        The answer may be a view that is valid only until the caller's next await: copy it to keep
        it. Raises DataLossError (EIO) when the bytes cannot be rebuilt.
        """
        if not handle.open or handle.flags & os.O_ACCMODE == os.O_WRONLY:
            raise BadHandleError(f"inode {handle.inode} is not open for reading")
        state = handle.state
        await state.wait_map_recalls(RECALLED_WAIT_S)
        await self._ensure_map(state, offset_bytes // state.stripe_size_bytes)
        length_bytes = min(length_bytes, max(0, state.size_bytes - offset_bytes))
        if length_bytes == 0:
            return b""
        sequential = handle.pattern.note(offset_bytes, length_bytes)
        parts = list(split_range(offset_bytes, length_bytes, state.stripe_size_bytes))
        for attempt in range(READ_TRIES):
            entered = state.enter_read()
            try:
                out = await self._read_parts(state, parts, handle, OPTIMISTIC_TRIES, sequential)
                if out is None:  # writers keep getting ahead of us: hold them off
                    # Not as a reader that a recall waits for: who has the lock may wait for that recall.
                    state.leave_read(entered)
                    try:
                        await state.lock.acquire()
                    finally:
                        entered = state.enter_read()
                    try:
                        out = await self._read_parts(state, parts, handle, LOCKED_TRIES, sequential)
                    finally:
                        state.lock.release()
                if out is None:
                    raise UnavailableError(
                        f"inode {state.inode}: its stripes are replaced faster than they can be read"
                    )
                left_bytes = max(0, state.size_bytes - offset_bytes)
                if len(out) > left_bytes:  # it was cut off meanwhile: what is behind reads as zeros now
                    out = out[:left_bytes]
            except TooFewChunksError as error:
                # Another client may have replaced the stripes and their chunks are collected.
                if attempt == READ_TRIES - 1 or not await self._map_moved(state, entered):
                    raise DataLossError(f"inode {state.inode}: {error.message}") from error
            else:
                return out
            finally:
                state.leave_read(entered)
        raise AssertionError("unreachable")

    async def _read_parts(
        self, state: InodeState, parts: list[StripeRange], handle: Handle, tries: int, sequential: bool
    ) -> Buffer | None:
        """All of a read, None when it was overtaken too often."""
        out = bytearray()
        for part in parts:
            answer = await self._reader.read_part(
                state, part, handle.pattern, self._ensure_map, sequential=sequential, tries=tries
            )
            if answer is None or len(parts) == 1:
                return answer
            out += answer
        return out

    async def _map_moved(self, state: InodeState, entered: int) -> bool:
        """Fetch the map anew; whether it is worth reading again."""
        attempts = self.session.attempts
        if state.map_version != entered:
            return True
        disks = {disk for stripe in state.stripes.values() for disk in stripe.disks}
        unknown = {disk for disk in disks if not self.peers.knows_disk(disk)}
        if unknown:
            await self.peers.refresh()
            if any(map(self.peers.knows_disk, unknown)):  # they joined a moment ago
                return True
        before = {index: stripe.stripe_id for index, stripe in state.stripes.items()}
        state.fresh = False
        await self._ensure_map(state, 0)
        moved = before != {index: stripe.stripe_id for index, stripe in state.stripes.items()}
        # Or a server was restarted, its chunks with it, and the master was waited for just now.
        return moved or self.session.attempts != attempts

    # --- writing ---------------------------------------------------------------------------------

    async def write(self, handle: Handle, offset_bytes: int, data: Buffer) -> int:
        """Take bytes; they are committed by flush, fsync, or when a stripe is full."""
        if not handle.open or not handle.writable:
            raise BadHandleError(f"inode {handle.inode} is not open for writing")
        if offset_bytes + len(data) > FILE_SIZE_MAX_BYTES:
            raise TooLargeError(f"inode {handle.inode}: a write past the largest file size")
        if len(data) == 0:
            return 0
        if handle.flags & os.O_APPEND:
            await self._append(handle, offset_bytes, data)
        else:
            async with locked_for_writing(handle.state):
                await self._ready_to_take(handle.state, offset_bytes, data)
                await self._take(handle, offset_bytes, data)
        self._writes += 1
        if self._writes % DIRTY_CHECK_EVERY_WRITES == 0:
            await self._limit_dirty(handle.state)
        return len(data)

    async def _append(self, handle: Handle, kernel_offset_bytes: int, data: Buffer) -> None:
        """Take bytes for the file's end, which the kernel may believe to be elsewhere."""
        state = handle.state
        async with locked_for_writing(state, handle, kernel_offset_bytes):
            try:
                end_bytes = await self._ready_to_take(state, -1, data)
                await self._take(handle, end_bytes, data)
                if end_bytes != kernel_offset_bytes:
                    # The kernel put the bytes elsewhere in its pages. Told before the answer, for it throws
                    # away attributes asked for before an invalidation: a read would end at the old size.
                    await self._kernel.invalidate_written(state.inode)
            except BaseException:
                state.append_rest.end(handle)
                raise
            state.append_rest.taken(handle, kernel_offset_bytes, len(data))

    async def _ready_to_take(self, state: InodeState, offset_bytes: int, data: Buffer) -> int:
        """Have the write lease, and the map where bytes go (-1: to the end); answers where.

        The lock is held. Nothing is awaited behind the last look at the lease: bytes taken without it
        would be laid over what others wrote.
        """
        while True:
            await self._ensure_write_lease(state)
            start = state.size_bytes if offset_bytes < 0 else offset_bytes
            for at in (start, start + len(data) - 1):
                await self._ensure_map(state, at // state.stripe_size_bytes)
            moved = offset_bytes < 0 and state.size_bytes != start
            if state.write_lease and self._trusted(state) and not moved:
                return start

    async def _take(self, handle: Handle, offset_bytes: int, data: Buffer) -> None:
        """Take bytes; the lock and the write lease are held."""
        state = handle.state
        await self._writer.write(state, offset_bytes, data)
        if handle.flags & (os.O_SYNC | os.O_DSYNC):
            await self._flush(state)
            await self._sync()

    async def _limit_dirty(self, writing: InodeState) -> None:
        if self._writer.dirty_bytes() <= self._options.dirty_bytes:
            return
        oldest = self._writer.oldest_dirty(writing)
        if oldest is not None and oldest.giving_up is None:  # else it is about to be written back anyway
            try:
                async with locked_for_writing(oldest):
                    await self._flush(oldest)
            except WormError as error:
                if oldest is writing:
                    raise
                # Its own writers are told by their next fsync or close.
                log.warning("inode %d: not written back: %s", oldest.inode, error.message)
                async with locked_for_writing(writing):
                    await self._flush(writing)

    async def flush(self, handle: Handle) -> None:
        """Commit what was written: every other mount sees it afterwards."""
        state = handle.state
        state.append_rest.end(handle)
        failure = state.failure
        lately = trio.current_time() - state.failed_s < self._options.suspect_s
        if failure is not None and state.has_dirty and lately:
            # A process that closes its files after an error would wait a deadline for each of them.
            raise type(failure)(failure.message) from failure
        await self._commit_dirty(state)
        _tell_lost(state)

    async def _commit_dirty(self, state: InodeState) -> None:
        if not state.has_dirty:
            return
        async with locked_for_writing(state):
            try:
                await self._flush(state)
            except WormError as error:
                state.failure, state.failed_s = error, trio.current_time()
                if error is state.lost:
                    state.lost = None  # told now
                raise
            state.failure = None

    async def fsync(self, handle: Handle, data_only: bool = False) -> None:
        """Make what was written durable; an error means it is not, and the bytes are kept to try again."""
        handle.state.append_rest.end(handle)
        await self._commit_dirty(handle.state)
        await self._sync()
        changes = self._take_lost_changes(handle.inode)
        _tell_lost(handle.state)
        if changes:
            raise DataLossError(f"inode {handle.inode}: {LOST}")

    async def fsync_directory(self, inode: int) -> None:
        """Make every change of names answered so far, and what was written, durable.

        DataLossError: changes in this directory are lost; told once.
        """
        await self._flush_all()
        await self._sync()
        if self._take_lost_changes(inode):
            raise DataLossError(f"inode {inode}: {LOST}")

    def _made_after_losses(self, inode: int) -> None:
        """Nothing of it was lost: it is new."""
        if self._told_of is not None:
            self._told_of.add(inode)

    def _take_lost_changes(self, inode: int) -> bool:
        """Whether changes of an inode are lost, or may be, and it was not told yet."""
        lost = inode in self._lost_of
        self._lost_of.discard(inode)
        if self._told_of is not None and inode not in self._told_of:
            lost = True
            self._told_of.add(inode)
            if len(self._told_of) > LOST_MAX:
                self._told_of = None
        return lost

    async def sync(self) -> None:
        """Make everything written and answered so far durable."""
        await self._flush_all()
        await self._sync()
        if self._lost:
            self._lost = False
            raise DataLossError(LOST)

    async def _flush_all(self) -> None:
        failed: WormError | None = None
        for state in list(self._states.values()):
            if state.has_dirty:
                try:
                    async with locked_for_writing(state):
                        await self._flush(state)
                except WormError as error:  # the others are written nevertheless
                    failed = failed or error
        if failed is not None:
            raise failed

    async def _sync(self) -> None:
        request = metadata_pb2.SyncRequest(session_id=self.session.session_id)
        await self.session.query(methods.METADATA_SYNC, request)
