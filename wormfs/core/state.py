"""The port between the namespace rules and whatever holds the state (SQLite in wormfs/metadata)."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from wormfs.core.events import Event
from wormfs.core.records import Allocation, DiskRecord, Extent, Inode, NodeRecord, Span, Stripe
from wormfs.core.types import Policy


class At(NamedTuple):
    """Where in the log an entry stands: decisions and their apply must be given the same."""

    sequence: int
    time_ns: int


class Touch(NamedTuple):
    """What other sessions may have cached of `inode` and must drop."""

    inode: int
    names: tuple[bytes, ...] = ()  # entries of directory `inode` that changed
    attributes: bool = True
    data: bool = False


class StateView(Protocol):
    """What `decide` may ask. Everything applied so far is seen."""

    @property
    def policy(self) -> Policy:
        """The policy for new files."""

    @property
    def next_inode(self) -> int:
        """The number the next inode gets; never one that was used."""

    @property
    def next_stripe_id(self) -> int:
        """The id the next allocated stripe gets; never one that was used."""

    @property
    def next_session_id(self) -> int:
        """The id the next session gets; never one that was used."""

    def inode(self, inode: int) -> Inode | None:
        """The inode's row, None when it does not exist (any more)."""

    def entry(self, parent: int, name: bytes) -> int | None:
        """The inode behind a name."""

    def has_entries(self, parent: int) -> bool:
        """Whether a directory has any entry."""

    def xattr(self, inode: int, name: bytes) -> bytes | None:
        """An extended attribute's value."""

    def stripe(self, inode: int, index: int) -> Stripe | None:
        """The stripe at an index; None is a hole."""

    def stripes_from(self, inode: int, first_index: int) -> Iterator[Stripe]:
        """Stripes at `first_index` and beyond, in order."""

    def extent_spans(self, inode: int, start_bytes: int, end_bytes: int) -> list[Span]:
        """Extents that begin in [start, end), in order."""

    def extent_spans_from(self, inode: int, start_bytes: int) -> Iterator[Span]:
        """Extents that begin at `start_bytes` or beyond, in order."""

    def extent_data(self, inode: int, offset_bytes: int) -> bytes:
        """The bytes of the extent that begins there."""

    def tail_offset(self, inode: int, rows: int) -> int:
        """The lowest file offset from which on at most `rows` stripes and `rows` extents begin."""

    def allocation(self, stripe_id: int) -> Allocation | None:
        """An allocated, uncommitted stripe."""

    def has_session(self, session_id: int) -> bool:
        """Whether the session lives."""


class State(StateView, Protocol):
    """What `apply` may change."""

    def put_inode(self, inode: Inode) -> None:
        """Make or replace."""

    def delete_inode(self, inode: int) -> None:
        """Remove the row."""

    def put_entry(self, parent: int, name: bytes, inode: int) -> None:
        """Make or replace."""

    def delete_entry(self, parent: int, name: bytes) -> None:
        """Remove the name."""

    def put_xattr(self, inode: int, name: bytes, value: bytes) -> None:
        """Make or replace."""

    def delete_xattr(self, inode: int, name: bytes) -> None:
        """Remove one."""

    def delete_xattrs(self, inode: int) -> None:
        """Remove all of an inode."""

    def put_stripe(self, inode: int, stripe: Stripe) -> None:
        """Make or replace the stripe at its index."""

    def delete_stripes(self, inode: int, indexes: Iterable[int]) -> None:
        """Remove stripes that exist."""

    def put_extent(self, inode: int, offset_bytes: int, data: bytes) -> None:
        """Make; none begins there."""

    def delete_extents(self, inode: int, spans: Iterable[Span]) -> None:
        """Remove extents that exist."""

    def add_orphan(self, inode: int) -> None:
        """Remember an inode out of the namespace."""

    def delete_orphan(self, inode: int) -> None:
        """Forget one."""

    def put_allocation(self, allocation: Allocation) -> None:
        """Remember an allocated stripe."""

    def delete_allocation(self, stripe_id: int) -> None:
        """Forget one, committed or abandoned."""

    def allocations_of(self, session_id: int) -> list[Allocation]:
        """A session's uncommitted stripes, by id."""

    def add_garbage(self, file: int, stripe_id: int, disks: tuple[int, ...]) -> None:
        """Every chunk of a stripe is garbage now."""

    def delete_garbage(self, disk: int, stripe_ids: Iterable[int]) -> None:
        """Chunks were deleted from a disk; unknown ones are ignored."""

    def put_session(self, session_id: int, label: str) -> None:
        """Make a session."""

    def delete_session(self, session_id: int) -> None:
        """Remove a session and its remembered replies."""

    def put_node(self, node: NodeRecord) -> None:
        """Make or replace."""

    def put_disk(self, disk: DiskRecord) -> None:
        """Make or replace."""

    def delete_disk(self, disk: int) -> None:
        """Remove a disk's row and all of its garbage."""

    def delete_node(self, node: int) -> None:
        """Remove a node's row."""

    def set_cluster(self, cluster_id: str, name: str) -> None:
        """Set the cluster's identity."""

    def set_policy(self, policy: Policy) -> None:
        """Set the policy for new files."""

    def set_epoch(self, epoch: int, node: int) -> None:
        """Set the mastership."""

    def use_inode(self, inode: int) -> None:
        """Never give out this inode number or a lower one again."""

    def use_stripe_id(self, stripe_id: int) -> None:
        """Never give out this stripe id or a lower one again."""

    def use_session_id(self, session_id: int) -> None:
        """Never give out this session id or a lower one again."""


class ContentChange(NamedTuple):
    """What one content event does to one file, worked out against the state before it."""

    inode: Inode  # after it
    freed: tuple[Stripe, ...]  # leave the file; their chunks become garbage
    stripes: tuple[Stripe, ...]  # stand in the file after it
    removed: tuple[Span, ...]  # extents that go
    extents: tuple[Extent, ...]  # extents that come; none overlaps one that stays


class Decision(NamedTuple):
    """A command's outcome before it is in the log. No events: nothing to log."""

    events: tuple[Event, ...]
    inode: Inode | None = None  # the attributes to answer with, as they are after the events
    touched: tuple[Touch, ...] = ()
    created: bool = False
    change: ContentChange | None = None  # spares apply the work when there is one content event
