"""What a client knows of one inode it has open or dirty: map, extents, uncommitted bytes.

Invariants, kept by everyone who changes a state:
- `map_version` grows whenever stripes or extents change or are dropped: a base read that began
  under an older version must not be cached.
- `version` grows with `map_version` and with every local write: a read that began under an older
  one is done again, since bytes may have moved from dirty to the map meanwhile.
- `dirty` and `storing` are filled only while `write_lease` is held.
- a stripe index is in `storing` from the moment its bytes are sealed until they are committed.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import trio

from wormfs.client.append_rest import AppendRest
from wormfs.client.pieces import DirtyStripe, Piece, lay_spans, overlay, total_bytes
from wormfs.core.errors import WormError
from wormfs.core.limits import FILE_MAP_PAGE_DEFAULT
from wormfs.rpc.v1 import metadata_pb2, types_pb2


@dataclass(slots=True)
class Storing:
    """One sealed stripe on its way to the disks and into the metadata."""

    dirty: DirtyStripe
    ended: trio.Event = field(default_factory=trio.Event)  # committed, or failed
    stripe: types_pb2.Stripe | None = None  # set once durable
    mtime_ns: int = 0
    error: WormError | None = None


class InodeState:
    """See the module's invariants."""

    __slots__ = (
        "append_rest",
        "attributes",
        "attributes_stale",
        "dirty",
        "extents",
        "failed_s",
        "failure",
        "fresh",
        "giving_up",
        "inode",
        "lapsed_change",
        "lock",
        "lost",
        "map_recall_over",
        "map_recalls",
        "map_version",
        "marks",
        "mtime_ns",
        "open_count",
        "pages",
        "readers",
        "readers_gone",
        "recalls",
        "size_bytes",
        "storing",
        "stripes",
        "unanswered",
        "version",
        "write_lease",
    )

    def __init__(self, attributes: types_pb2.Attributes) -> None:
        self.inode = attributes.inode
        self.attributes = attributes
        self.fresh = False  # attributes and map are covered by a lease
        self.attributes_stale = False  # an own command changed them in a way no reply told
        self.marks = 0  # how often they were marked so
        self.size_bytes = attributes.size_bytes  # with what is dirty here
        self.mtime_ns = 0  # of the last local write; 0: nothing uncommitted
        self.stripes: dict[int, types_pb2.Stripe] = {}
        self.extents: dict[int, list[Piece]] = {}
        self.pages: set[int] = set()  # map pages present, FILE_MAP_PAGE_DEFAULT stripes each
        self.write_lease = False
        self.lost: WormError | None = None  # why bytes or changes are lost, until fsync or close has told
        self.dirty: dict[int, DirtyStripe] = {}
        self.storing: dict[int, Storing] = {}
        self.version = 0
        self.map_version = 0
        self.lock = trio.Lock()
        self.recalls = 0  # of the write lease, whose end the master was not told yet
        self.giving_up: trio.Event | None = (
            None  # the write lease is given back, the master does not know yet
        )
        self.append_rest = AppendRest()
        self.open_count = 0
        self.failure: WormError | None = None  # of the last flush
        self.failed_s = 0.0
        self.readers: defaultdict[int, int] = defaultdict(int)  # reads under way by map_version
        self.readers_gone: trio.Event | None = None  # made by who waits for it
        self.map_recalls = 0  # of content, that the master was not told the end of yet
        self.map_recall_over: trio.Event | None = None
        self.unanswered: dict[int, None] = {}  # operations: commits that may have been done, and no later one
        self.lapsed_change = 0  # != 0: the session was lost while dirty, the file stood at this change

    @property
    def stripe_size_bytes(self) -> int:
        """File bytes one stripe covers."""
        return self.attributes.stripe_size_bytes

    @property
    def has_dirty(self) -> bool:
        """Whether bytes wait to be committed."""
        return bool(self.dirty or self.storing)

    def mark_stale(self) -> None:
        """The attributes are to be asked for again, and not by a question that is under way."""
        self.attributes_stale = True
        self.marks += 1

    # --- attributes and map ----------------------------------------------------------------

    def adopt_attributes(self, attributes: types_pb2.Attributes) -> None:
        """Take what the master said; local uncommitted writes stay on top."""
        self.attributes = attributes
        dirty_end = 0
        size = attributes.stripe_size_bytes
        for index, stripe in self.dirty.items():
            dirty_end = max(dirty_end, index * size + stripe.end_bytes)
        for index, storing in self.storing.items():
            dirty_end = max(dirty_end, index * size + storing.dirty.end_bytes)
        self.size_bytes = max(attributes.size_bytes, dirty_end)

    def local_attributes(self) -> types_pb2.Attributes:
        """Attributes with what is uncommitted here."""
        if not self.mtime_ns:
            return self.attributes
        mine = types_pb2.Attributes()
        mine.CopyFrom(self.attributes)
        mine.size_bytes = self.size_bytes
        mine.mtime_ns = mine.ctime_ns = max(self.mtime_ns, mine.mtime_ns)
        return mine

    def adopt_map(self, reply: metadata_pb2.FileMapReply) -> None:
        """Take one page of the map (starting at a page border)."""
        first, end = reply.first_index, reply.first_index + reply.count
        for index in [each for each in self.stripes if first <= each < end]:
            del self.stripes[index]
        for index in [each for each in self.extents if first <= each < end]:
            del self.extents[index]
        for stripe in reply.stripes:
            self.stripes[stripe.index] = stripe
        size = self.stripe_size_bytes
        for extent in reply.extents:
            index, start = divmod(extent.offset_bytes, size)
            self.extents.setdefault(index, []).append(Piece(start, extent.data))
        for index in range(first // FILE_MAP_PAGE_DEFAULT, -(-end // FILE_MAP_PAGE_DEFAULT)):
            self.pages.add(index)
        self.map_version += 1
        self.version += 1

    def has_map(self, index: int) -> bool:
        """Whether the map page of a stripe index is here."""
        return index // FILE_MAP_PAGE_DEFAULT in self.pages

    def drop_map(self) -> None:
        """Forget the map: someone else changed the file, or may have."""
        self.stripes.clear()
        self.extents.clear()
        self.pages.clear()
        self.map_version += 1
        self.version += 1

    # --- commits ---------------------------------------------------------------------------

    def committed_stripe(self, stripe: types_pb2.Stripe) -> None:
        """The map after this client committed a stripe: it replaces the range's extents too."""
        self.stripes[stripe.index] = stripe
        self.extents.pop(stripe.index, None)
        self.map_version += 1
        self.version += 1

    def committed_piece(self, index: int, piece: Piece) -> None:
        """The map after this client committed an extent."""
        self.extents[index] = overlay(self.extents.get(index, ()), piece)
        self.map_version += 1
        self.version += 1

    def merged_inline_bytes(self, index: int, dirty: DirtyStripe) -> int:
        """Extent bytes the range would hold if the dirty pieces were committed as extents."""
        pieces = self.extents.get(index, [])
        for piece in dirty.pieces:
            pieces = overlay(pieces, piece)
        return total_bytes(pieces)

    def base_end_bytes(self, index: int) -> int:
        """One past the last committed byte within a stripe's range."""
        stripe = self.stripes.get(index)
        pieces = self.extents.get(index)
        return max(stripe.valid_bytes if stripe else 0, pieces[-1].end_bytes if pieces else 0)

    def lay_extents(self, index: int, out: memoryview, out_start_bytes: int) -> None:
        """Copy the range's extents over `out`, a window of the stripe."""
        pieces = self.extents.get(index)
        if pieces:
            lay_spans(((p.start_bytes, memoryview(p.data)) for p in pieces), out, out_start_bytes)

    async def lock_for_writing(self, handle: object = None, offset_bytes: int = 0) -> None:
        """Take `lock`, once no write lease is on its way back: one asked for now would be lost with it.

        Not so for the rest of an append (through `handle`, at the kernel's offset) the lease waits for.
        """
        while True:
            await self.lock.acquire()
            if self.giving_up is None:
                return
            if handle is not None and self.append_rest.is_rest(handle, offset_bytes):
                return
            self.lock.release()
            await self.giving_up.wait()

    def lease_given_up(self) -> None:
        """The master took the write lease back."""
        if self.giving_up is not None:
            self.giving_up.set()
            self.giving_up = None

    # --- reads under way ---------------------------------------------------------------------

    def enter_read(self) -> int:
        """A read begins; give the answer to leave_read."""
        self.readers[self.map_version] += 1
        return self.map_version

    def leave_read(self, entered: int) -> None:
        """A read ended."""
        left = self.readers[entered] - 1
        if left:
            self.readers[entered] = left
        else:
            del self.readers[entered]
            if self.readers_gone is not None:
                self.readers_gone.set()
                self.readers_gone = None

    def map_recalled(self) -> None:
        """The content is recalled, perhaps not for the first time."""
        self.map_recalls += 1
        if self.map_recall_over is None:
            self.map_recall_over = trio.Event()

    def map_recall_ended(self) -> None:
        """One of those recalls is over."""
        self.map_recalls = max(0, self.map_recalls - 1)
        if not self.map_recalls and self.map_recall_over is not None:
            self.map_recall_over.set()
            self.map_recall_over = None

    async def wait_map_recalls(self, limit_s: float) -> None:
        """Let who recalls have its turn before the map is asked for again; not for longer than this."""
        if self.map_recall_over is not None:
            with trio.move_on_after(limit_s):
                await self.map_recall_over.wait()

    async def wait_readers_before(self, map_version: int) -> None:
        """Wait until every read that began under an older map has ended."""
        while any(entered < map_version for entered in self.readers):
            if self.readers_gone is None:
                self.readers_gone = trio.Event()
            await self.readers_gone.wait()
