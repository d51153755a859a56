"""The inodes a client has open or dirty, and the leases that say how far each may be trusted.

Caching rests on leases. Whatever the master answers may be trusted while the session's lease
lasts and no recall said otherwise; `Entry.cache_s` hands that trust on to the kernel. A recall is
taken note of the moment it arrives (`on_recall`), before any later reply is seen.
"""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress

import trio

from wormfs.client.buffers import BytesPool
from wormfs.client.entries import Entry, KernelCache
from wormfs.client.file_reader import FileReader
from wormfs.client.file_writer import MAP_TRIES, FileWriter
from wormfs.client.inode_state import InodeState
from wormfs.client.known_directories import KnownDirectories
from wormfs.client.options import ClientOptions
from wormfs.client.peers import PeerTable
from wormfs.client.session import Session
from wormfs.client.stripe_cache import StripeCache
from wormfs.client.stripe_reader import StripeReader
from wormfs.client.stripe_writer import StripeWriter
from wormfs.core.errors import DataLossError, StaleError, UnavailableError, WormError
from wormfs.core.limits import FILE_MAP_PAGE_DEFAULT
from wormfs.rpc import methods
from wormfs.rpc.stream_client import CallReply
from wormfs.rpc.v1 import filesystem_pb2, metadata_pb2, types_pb2

log = logging.getLogger(__name__)

REMEMBERED_CHANGES = 100_000
LOST = "changes that a failed master had answered are lost; the log says how many"
LOST_MAX = 10_000
MAP_UNTRUSTED_TRIES = 3
FLUSH_AGAIN_S = 0.05
"""Before bytes whose write lease was lost on the way are committed again."""


def _same_stripes(state: InodeState, reply: metadata_pb2.FileMapReply) -> bool:
    """Whether the map here says what a reply's page does, in a file of stripes alone."""
    if reply.extents or state.extents or not state.has_map(reply.first_index):
        return False
    if reply.attributes.size_bytes != state.attributes.size_bytes or len(state.stripes) != len(reply.stripes):
        return False
    return all(state.stripes.get(stripe.index) == stripe for stripe in reply.stripes)


class LeasedStates:
    """States of inodes by number, kept true to their leases; the session's owner (SessionOwner)."""

    def __init__(
        self,
        addresses: Sequence[str],
        nursery: trio.Nursery,
        label: str,
        options: ClientOptions,
        kernel: KernelCache,
    ) -> None:
        self._nursery = nursery
        self._options = options
        self._kernel = kernel
        self._states: dict[int, InodeState] = {}
        self._page_changes: OrderedDict[int, int] = OrderedDict()
        self._closed: list[int] = []
        self._closing_now = metadata_pb2.CloseFilesRequest()
        self._closes = 0
        self._closing = trio.Event()
        self._writes = 0
        self._directories = KnownDirectories(trio.current_time, names=kernel.one_change_at_a_time)
        self._lost = False  # changes answered were lost, and no sync of all files has told yet
        self._lost_of: set[int] = set()  # inodes of such changes, until an fsync of each has told
        self._told_of: set[int] | None = None  # when it is not known of which: those that were told since
        self._resizes: dict[int, list[trio.Event]] = {}  # changes of size under way, by inode
        # A write lease granted while a recall of the one before was unanswered ends with that recall:
        self._giving_up: dict[int, trio.Event] = {}  # recalls of inodes that had no state
        self._recalls_ended = 0
        self._recall_ends: OrderedDict[int, int] = OrderedDict()  # inode -> count at its last end
        self.peers = PeerTable(addresses, nursery, options)
        self.session = Session(self.peers, nursery, self, label, options)
        pool = BytesPool(options.cache_bytes)
        cache = StripeCache(pool, options.cache_bytes, options.block_cache_bytes)
        self._reader = FileReader(StripeReader(self.peers, pool, options), cache, pool, nursery, options)
        self._stripe_writer = StripeWriter(self.peers, self.session, pool, options)
        self._writer = FileWriter(
            self._stripe_writer, self._reader, self.session, pool, nursery, options, self._fetch_map
        )

    def _entry(self, attributes: types_pb2.Attributes, pushes_seen: int, *directories: int) -> Entry:
        """What a reply says of an inode, and of its name in these directories."""
        cache_s = self.session.cacheable_s(pushes_seen, attributes.inode, *directories)
        state = self._states.get(attributes.inode)
        if state is None:
            return Entry(attributes, cache_s)
        if attributes.change >= state.attributes.change:
            state.adopt_attributes(attributes)
        return Entry(state.local_attributes(), cache_s)

    def _trusted(self, state: InodeState) -> bool:
        return state.fresh and self.session.lease_left_s() > 0

    def _adopt_map(self, state: InodeState, reply: CallReply[metadata_pb2.FileMapReply]) -> None:
        """Take a reply's attributes and map page, unless something newer is here."""
        message = reply.message
        if message.attributes.change < state.attributes.change:
            return
        if _same_stripes(state, message):
            pass  # so reads under way may go on
        elif message.attributes.change > state.attributes.change or not self._trusted(state):
            if not state.has_dirty:
                self._reader.drop(state.inode)
            state.drop_map()
        state.adopt_attributes(message.attributes)
        if not _same_stripes(state, message):
            state.adopt_map(message)
        state.fresh = self.session.cacheable_s(reply.pushes_seen, state.inode) > 0
        state.attributes_stale = False

    async def _ensure_map(self, state: InodeState, index: int) -> None:
        """Have trusted attributes and the map page of a stripe index at hand."""
        for attempt in range(MAP_TRIES):
            trusted = self._trusted(state)
            if state.has_map(index) and (trusted or attempt >= MAP_UNTRUSTED_TRIES):
                return
            if not trusted and not state.has_dirty:
                self._reader.drop(state.inode)
            await self._fetch_map(state, index)
            # Recalls that keep overtaking the replies: what was read last was true when it was answered.
        if not state.has_map(index):
            raise UnavailableError(f"inode {state.inode}: its map changes faster than it can be read")

    async def _fetch_map(self, state: InodeState, index: int) -> None:
        request = metadata_pb2.GetFileMapRequest(
            inode=state.inode,
            first_index=index // FILE_MAP_PAGE_DEFAULT * FILE_MAP_PAGE_DEFAULT,
            count=FILE_MAP_PAGE_DEFAULT,
        )
        reply = await self.session.query(methods.METADATA_GET_FILE_MAP, request)
        self._adopt_map(state, reply)

    async def _ensure_write_lease(self, state: InodeState) -> None:
        """Hold the write lease; DataLossError when unsaved bytes lost their file to another writer.

        The lock is held.
        """
        for _ in range(8):
            if state.lapsed_change:
                # Their commits show what became of them; only then can it be told who changed the file.
                await self._writer.stored(state)
            lapsed_change = state.lapsed_change
            if state.write_lease and self._trusted(state):
                return
            reply = await self._acquire_write_lease(state.inode)
            change = reply.message.attributes.change
            if state.has_dirty and state.lapsed_change and change != state.lapsed_change:
                if state.lapsed_change != lapsed_change:
                    continue  # the leases were lost just now: what is on its way is waited for first
                if state.unanswered:
                    with suppress(StaleError):  # the lease was lost again
                        await self._settle_unanswered(state)
                    continue
                error = DataLossError(
                    f"inode {state.inode}: the session was lost while data was unsaved, and the file has "
                    "changed since; the unsaved bytes are dropped"
                )
                self._writer.discard(state, error)
                state.lost = error  # whoever asked may be no program, but a recall
                raise error
            self._adopt_map(state, reply)
            if reply.message.write_lease and self.session.lease_left_s() > 0:
                # Even if it is being recalled again: that ends only when we let go of the lock.
                state.write_lease = state.fresh = True
                state.lapsed_change = 0
            elif reply.message.write_lease:
                await self.session.have_leases()
        raise UnavailableError(f"inode {state.inode}: the write lease lapses as fast as it is granted")

    async def _acquire_write_lease(self, inode: int) -> CallReply[metadata_pb2.FileMapReply]:
        request = metadata_pb2.AcquireWriteLeaseRequest(inode=inode)
        request.caller.SetInParent()
        return await self.session.query(methods.METADATA_ACQUIRE_WRITE_LEASE, request)

    async def _flush(self, state: InodeState) -> None:
        """Commit what is dirty; the lock is held."""
        deadline_s = trio.current_time() + self._options.deadline_s
        while state.has_dirty:
            try:
                await self._ensure_write_lease(state)
                for index in list(state.dirty):
                    await self._ensure_map(state, index)
                await self._writer.flush(state)
            except StaleError:  # the lease was lost on the way: had again, the file may still be as it was
                if trio.current_time() > deadline_s:
                    raise
                self._doubt(state)
                await trio.sleep(FLUSH_AGAIN_S)
            else:
                return

    def _doubt(self, state: InodeState) -> None:
        """The write lease was lost: what is unsaved is committed only if the file is still as it was."""
        state.write_lease = False
        if state.has_dirty and not state.lapsed_change:
            state.lapsed_change = state.attributes.change

    async def before_commit(
        self, request: metadata_pb2.CommitWriteRequest
    ) -> CallReply[filesystem_pb2.AttrReply] | None:
        """As SessionOwner: under a lease that is not sure any more, see first whether the file changed."""
        state = self._states.get(request.inode)
        if state is None or not state.lapsed_change:
            return None
        if request.stripes and not request.stripes[0].stripe_id:
            return None  # that is the question below
        while True:
            reply = await self._acquire_write_lease(request.inode)
            if reply.message.attributes.change == state.lapsed_change and reply.message.write_lease:
                return None
            if not state.unanswered:
                break
            await self._settle_unanswered(state)
        # Changed by this very commit, if that had been done before and its answer was lost?
        done = await self.session.commit_done(request.inode, request.caller.operation)
        if done is None:
            raise StaleError(
                f"inode {request.inode} was written without its write lease, and has changed since"
            )
        # Of several that were done the last one counts, in whatever order they are told.
        newest = done.message.attributes
        newest.change = max(newest.change, state.lapsed_change)
        state.fresh = False  # others may have written over it since
        return done

    async def _settle_unanswered(self, state: InodeState) -> None:
        """Learn which commits without an answer were done: what they changed, no other session did.

        Not done, or not remembered by the master any more, is the same here: nothing is taken for ours.
        """
        for operation in list(state.unanswered):
            done = await self.session.commit_done(state.inode, operation)
            if done is not None and state.lapsed_change > 0:
                state.lapsed_change = max(state.lapsed_change, done.message.attributes.change)
            self._writer.settled(state, operation)

    def _let_go_if_unused(self, state: InodeState) -> None:
        if state.open_count == 0 and not state.recalls and self._states.get(state.inode) is state:
            self._let_go(state)

    def _let_go(self, state: InodeState) -> None:
        inode = state.inode
        if self._trusted(state):
            self._page_changes[inode] = state.attributes.change
            self._page_changes.move_to_end(inode)
            if len(self._page_changes) > REMEMBERED_CHANGES:
                self._page_changes.popitem(last=False)
        else:
            self._page_changes.pop(inode, None)
        self._stripe_writer.done_with(inode)
        self._writer.let_go(state)
        self._reader.drop(inode)
        del self._states[inode]

    def forget(self, inodes: Sequence[int]) -> None:
        """The kernel dropped these inodes. Their read leases lapse by themselves."""
        for inode in inodes:
            self._page_changes.pop(inode, None)

    # --- what the session asks ---

    def open_inodes(self) -> list[int]:
        """As SessionOwner. What was closed before is told by that, and by nothing else any more."""
        self._closed.clear()
        del self._closing_now.inodes[:]
        return [inode for inode, state in self._states.items() for _ in range(state.open_count)]

    def write_leases(self) -> list[int]:
        """As SessionOwner."""
        return [
            inode
            for inode, state in self._states.items()
            if state.write_lease or (state.lapsed_change and state.has_dirty)
        ]

    def on_recall(self, recall: metadata_pb2.Recall) -> None:
        """As SessionOwner: from here on nothing recalled is trusted."""
        self._directories.drop(recall.inode)
        if recall.data:
            self._page_changes.pop(recall.inode, None)
        state = self._states.get(recall.inode)
        if state is not None:
            state.mark_stale()
            state.recalls += recall.write_lease
            if recall.data or recall.write_lease:
                state.fresh = False
            if recall.data:
                state.map_recalled()
        elif recall.write_lease:
            self._giving_up.setdefault(recall.inode, trio.Event())

    async def finish_recall(self, recall: metadata_pb2.Recall) -> None:
        """As SessionOwner: write back, drain reads of the old map, take pages and names from the kernel."""
        state = self._states.get(recall.inode)
        if state is not None and recall.write_lease:
            await self._give_up_write_lease(state)
        if state is not None and recall.data:
            if not state.has_dirty:
                self._reader.drop(state.inode)
            state.drop_map()
            await state.wait_readers_before(state.map_version)
        for name in recall.names:
            await self._kernel.invalidate_entry(recall.inode, name)
        if recall.data or recall.attributes:
            await self._kernel.invalidate_inode(recall.inode, recall.data)

    async def _give_up_write_lease(self, state: InodeState) -> None:
        """Commit under the lease's last moments. Until the master knows, none may be asked for anew."""
        async with state.lock:
            if not (state.write_lease and state.append_rest.expected):
                await self._end_write_lease(state)
                return
            if state.giving_up is None:
                state.giving_up = trio.Event()  # only the rest of that append gets the lock from here on
        await state.append_rest.wait_ended()
        async with state.lock:
            await self._end_write_lease(state)

    async def _end_write_lease(self, state: InodeState) -> None:
        """The lock is held."""
        state.append_rest.end()
        try:
            if state.lapsed_change and state.has_dirty:  # claimed, and not used yet
                await self._ensure_write_lease(state)
            if state.write_lease:
                await self._writer.flush(state)
        except WormError as error:
            log.error("inode %d: recalled with bytes that cannot be saved now: %s", state.inode, error)
            self._doubt(state)
        state.write_lease = False
        state.fresh = False
        if state.giving_up is None:
            state.giving_up = trio.Event()

    def recall_ended(self, recall: metadata_pb2.Recall) -> None:
        """As SessionOwner."""
        inode = recall.inode
        if recall.data and inode in self._states:
            self._states[inode].map_recall_ended()
        if not recall.write_lease:
            return
        self._recalls_ended += 1
        self._recall_ends[inode] = self._recalls_ended
        self._recall_ends.move_to_end(inode)
        if len(self._recall_ends) > REMEMBERED_CHANGES:
            self._recall_ends.popitem(last=False)
        event = self._giving_up.pop(inode, None)
        if event is not None:
            event.set()
        state = self._states.get(inode)
        if state is not None:
            state.recalls = max(0, state.recalls - 1)
            state.lease_given_up()
            self._let_go_if_unused(state)

    def on_lapse(self) -> None:
        """As SessionOwner: no lease can be trusted; pages of open files must be read again."""
        self._distrust(frozenset())

    def on_replaced(self) -> None:
        """As SessionOwner."""
        self._distrust(frozenset())
        self._page_changes.clear()
        for state in self._states.values():
            state.attributes.change = 0
            state.drop_map()

    def on_lost(self, inodes: frozenset[int] | None) -> None:
        """As SessionOwner."""
        self._lost = True
        if inodes is None or len(self._lost_of) + len(inodes) > LOST_MAX:
            self._told_of = set()
            self._lost_of.clear()
        else:
            self._lost_of |= inodes
        self._page_changes.clear()
        for state in self._states.values():
            state.lost = DataLossError(f"inode {state.inode}: {LOST}")
        self._distrust(frozenset())
        for state in self._states.values():
            # The numbers told belong to what is lost, and others may get them: believe any that comes.
            state.attributes.change = 0
            state.drop_map()
            if state.lapsed_change:
                state.lapsed_change = -1  # no file is surely as it was: unsaved bytes are given up, and told

    def on_resumed(self, write_leases: frozenset[int]) -> None:
        """As SessionOwner."""
        self._distrust(write_leases)

    def _distrust(self, kept_write_leases: frozenset[int]) -> None:
        """Ask again before serving anything cached, pages of open files included."""
        self._directories.clear()
        for state in self._states.values():
            if state.inode not in kept_write_leases:
                self._doubt(state)
            state.fresh = False
            state.mark_stale()
            self._nursery.start_soon(self._kernel.invalidate_inode, state.inode, True)
