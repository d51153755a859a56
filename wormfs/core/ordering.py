"""Which log entries a new master may order anew: what the one before had ordered, and nobody has yet.

A master may answer a session early: before the log's quorum has the entry. The session keeps such
entries and hands them to the next master. That one may take an entry only as if it had been in the
log already: directly behind the entry it was ordered behind, with nothing in between that could have
been decided otherwise had it been there.

The *tail* of a state is the place of the last entry that matters to this, in the numbering of the
mastership that ordered it first.
"""

from collections.abc import Sequence
from typing import NamedTuple

from wormfs.core import events as ev


class Place(NamedTuple):
    """Where an entry was ordered first."""

    epoch: int
    sequence: int


INDEPENDENT = (
    ev.MasterElected,
    ev.NodeRegistered,
    ev.DiskRegistered,
    ev.SessionOpened,
    ev.SessionClosed,
    ev.PolicySet,
    ev.ChunksCollected,
)
"""What a new master may log before it serves: no command of another session depends on it, nor it on one."""


EARLY_MAX_ENTRIES = 1024
"""So many entries may be on their way while a session is answered early, each making one inode at most."""
SKIPPED_INODES = 1 << 16  # also what a log that syncs every 0.5 s may lose in a power cut
SKIPPED_STRIPES = 1 << 16


UPKEEP = (ev.OrphanFreed, ev.ChunksCollected)
"""What the master logs by itself and a session may keep among its own entries: it tells nobody anything."""


def skip_told(next_inode: int) -> ev.NumbersSkipped:
    """What a master logs before it serves: the one before may have told of inodes that the log lost.

    Their numbers must not come to name other files: programs still have them open. `next_inode`: the
    number that would be given out next, once all that was kept is ordered anew.
    """
    return ev.NumbersSkipped(next_inode - 1 + SKIPPED_INODES)


def is_upkeep(events: Sequence[ev.Event]) -> bool:
    """Whether an entry of these events may lie among those that a session keeps."""
    return all(isinstance(event, UPKEEP) for event in events)


def is_independent(events: Sequence[ev.Event]) -> bool:
    """Whether an entry of these events leaves the tail of an earlier mastership where it is."""
    return all(isinstance(event, INDEPENDENT) for event in events)


def next_tail(tail: Place, place: Place, events: Sequence[ev.Event]) -> Place:
    """The tail after an entry first ordered at `place`."""
    return tail if place.epoch != tail.epoch and is_independent(events) else place


def is_included(tail: Place, place: Place) -> bool:
    """Whether the entry of `place` is surely in the log."""
    return place.epoch == tail.epoch and place.sequence <= tail.sequence


def may_follow(tail: Place, place: Place) -> bool:
    """Whether an entry kept from `place` may be ordered now."""
    return place == (tail.epoch, tail.sequence + 1)
