"""Rules for commands on files' content, stripe allocation, sessions and orphans."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from wormfs.core.content import check_extents, complete_stripe, plan_write
from wormfs.core.errors import InvalidError, SessionExpiredError, TooLargeError
from wormfs.core.events import (
    ChunksCollected,
    DiskForgotten,
    Event,
    FileTruncated,
    FileWritten,
    OrphanFreed,
    SessionClosed,
    SessionOpened,
    StripeReplaced,
    StripesAbandoned,
    StripesAllocated,
)
from wormfs.core.limits import ALLOCATE_MAX, FILE_SIZE_MAX_BYTES, STRIPE_WIDTH_MAX
from wormfs.core.namespace import check_content, decide_set_attr, existing_inode
from wormfs.core.records import Extent, Stripe
from wormfs.core.state import At, Decision, StateView, Touch

FREE_BATCH_ROWS = 1024
"""Stripes (and extents) that one step of freeing an orphan removes: a few milliseconds of work."""


class WrittenStripe(NamedTuple):
    """What a client tells of a stripe it wrote; the rest is in its allocation."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    stripe_id: int
    length_bytes: int
    valid_bytes: int


class Placement(NamedTuple):
    """Where a stripe to be written may go: the master's choice."""

    codec: int
    k: int
    m: int
    disks: tuple[int, ...]


def check_session(view: StateView, session_id: int) -> None:
    """SessionExpiredError unless the session lives."""
    if not view.has_session(session_id):
        raise SessionExpiredError(f"session {session_id} has expired; open a new one")


def decide_commit_write(
    view: StateView,
    at: At,
    *,
    session_id: int,
    inode: int,
    stripes: Sequence[WrittenStripe] = (),
    extents: Iterable[Extent] = (),
    size_bytes: int = 0,
    mtime_ns: int = 0,
) -> Decision:
    """Switch a file over to new stripes and extents, atomically. The size only ever grows."""
    row = existing_inode(view, inode)
    check_content(row)
    if stripes:
        check_session(view, session_id)
    size = max(row.size_bytes, size_bytes)
    if size > FILE_SIZE_MAX_BYTES:
        raise TooLargeError(f"inode {inode}: no file may reach past {FILE_SIZE_MAX_BYTES} bytes")
    complete = tuple(complete_stripe(view, row, session_id, *stripe) for stripe in stripes)
    if len({stripe.index for stripe in complete}) < len(complete) or len(
        {stripe.stripe_id for stripe in complete}
    ) < len(complete):
        raise InvalidError(f"inode {inode}: a stripe is named twice in one write")
    laid = tuple(extents)
    end = check_extents(row, laid)
    for stripe in complete:
        end = max(end, stripe.index * row.stripe_size_bytes + stripe.valid_bytes)
    if end > size:
        raise InvalidError(f"inode {inode}: data up to {end} in a file of {size} bytes")
    event = FileWritten(inode, complete, laid, size, mtime_ns or at.time_ns)
    change = plan_write(view, row, event, at)
    return Decision((event,), change.inode, (Touch(inode, (), True, True),), change=change)


def decide_truncate(view: StateView, at: At, *, inode: int) -> Decision:
    """Open with O_TRUNC: cut to nothing, whatever the size was."""
    return decide_set_attr(view, at, inode=inode, size_bytes=0)


def decide_allocate(
    view: StateView,
    *,
    session_id: int,
    inode: int,
    placements: Sequence[Placement],
    abandoned: Sequence[int] = (),
) -> Decision:
    """Give a session new stripe ids with the placements chosen, and take given-up ones back."""
    check_session(view, session_id)
    check_content(existing_inode(view, inode))
    if not 1 <= len(placements) <= ALLOCATE_MAX:
        raise InvalidError(f"{len(placements)} stripes asked for; 1 to {ALLOCATE_MAX} at a time")
    stripe_id = view.next_stripe_id
    stripes = []
    for codec, k, m, disks in placements:
        if k < 1 or m < 0 or not len(disks) == len(set(disks)) == k + m <= STRIPE_WIDTH_MAX:
            raise InvalidError(f"a placement of {k}+{m} chunks on disks {disks}")
        stripes.append(Stripe(0, stripe_id, codec, k, m, 0, 0, 0, tuple(disks)))
        stripe_id += 1
    events: tuple[Event, ...] = (StripesAllocated(session_id, inode, tuple(stripes)),)
    given_up = decide_abandon(view, session_id=session_id, stripe_ids=abandoned)
    return Decision(given_up.events + events)


def decide_replace_stripe(
    view: StateView, *, inode: int, holder: int, index: int, old_stripe_id: int, new_stripe_id: int
) -> Decision:
    """Repair: put a stripe that holds the same bytes in the place of another, if that is still there.

    No events: it is not (any more), and the new one is to be abandoned. Size, times, extents and
    `change` stay, for the content does; what a truncation cut off meanwhile stays cut off.
    Raises InvalidError when the new stripe is not allocated to `holder` for this inode.
    """
    row = view.inode(inode)
    old = view.stripe(inode, index)
    if row is None or old is None or old.stripe_id != old_stripe_id:
        return Decision(())
    stripe = complete_stripe(view, row, holder, index, new_stripe_id, old.length_bytes, old.valid_bytes)
    event = StripeReplaced(inode, (stripe,), old_stripe_id)
    return Decision((event,), touched=(Touch(inode, (), attributes=False, data=True),))


def decide_forget_disk(disk: int, node: int) -> Decision:
    """A lost disk leaves the cluster (and `node`, when it was its last)."""
    return Decision((DiskForgotten(disk, node),))


def decide_abandon(view: StateView, *, session_id: int, stripe_ids: Sequence[int]) -> Decision:
    """Make allocated stripes garbage; those the session does not hold (any more) are passed over."""
    held = []
    for stripe_id in dict.fromkeys(stripe_ids):
        allocation = view.allocation(stripe_id)
        if allocation is not None and allocation.session_id == session_id:
            held.append(stripe_id)
    return Decision((StripesAbandoned(tuple(held)),) if held else ())


def decide_free_orphan(view: StateView, inode: int) -> Decision:
    """One bounded step of freeing an orphan: cut a piece off a long file, or remove the inode.

    The last step's event is OrphanFreed. No events: it is not an orphan.
    """
    row = view.inode(inode)
    if row is None or row.nlink:
        return Decision(())
    cut = view.tail_offset(inode, FREE_BATCH_ROWS)
    if cut:
        return Decision((FileTruncated(inode, cut, row.mtime_ns),))
    return Decision((OrphanFreed(inode),))


def decide_open_session(view: StateView, label: str) -> Decision:
    """A new session."""
    return Decision((SessionOpened(view.next_session_id, label),))


def decide_close_session(view: StateView, session_id: int) -> Decision:
    """End a session; closing one that ended already changes nothing."""
    return Decision((SessionClosed(session_id),) if view.has_session(session_id) else ())


def decide_collected(disk: int, stripe_ids: Sequence[int]) -> Decision:
    """A disk deleted garbage chunks."""
    return Decision((ChunksCollected(disk, tuple(stripe_ids)),) if stripe_ids else ())
