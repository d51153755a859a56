"""Which entries of a mastership that ended may be ordered anew."""

import pytest

from wormfs.core import events as ev
from wormfs.core.ordering import (
    EARLY_MAX_ENTRIES,
    Place,
    is_included,
    is_independent,
    is_upkeep,
    may_follow,
    next_tail,
    skip_told,
)

CHANGE = (ev.OrphanFreed(7),)
ELECTED = (ev.MasterElected(2, 1),)


def test_the_tail_is_the_last_entry_of_the_mastership() -> None:
    assert next_tail(Place(1, 10), Place(1, 11), CHANGE) == (1, 11)
    assert next_tail(Place(1, 10), Place(1, 11), (ev.SessionOpened(3, "m"),)) == (1, 11)


def test_a_new_master_leaves_the_tail_until_it_serves() -> None:
    assert next_tail(Place(1, 10), Place(2, 11), ELECTED) == (1, 10)
    assert next_tail(Place(1, 10), Place(2, 12), (ev.SessionOpened(3, "m"),)) == (1, 10)
    assert next_tail(Place(1, 10), Place(2, 13), CHANGE) == (2, 13)
    assert next_tail(Place(1, 10), Place(2, 13), (*ELECTED, *CHANGE)) == (2, 13)


def test_only_the_next_entry_of_the_tails_mastership_may_follow() -> None:
    assert may_follow(Place(1, 10), Place(1, 11))
    assert not may_follow(Place(1, 10), Place(1, 12))  # one before it is missing
    assert not may_follow(Place(1, 10), Place(1, 10))
    assert not may_follow(Place(2, 10), Place(1, 11))  # a later master has served without it


def test_what_lies_before_the_tail_is_in_the_log() -> None:
    assert is_included(Place(1, 10), Place(1, 10))
    assert is_included(Place(1, 10), Place(1, 3))
    assert not is_included(Place(1, 10), Place(1, 11))
    assert not is_included(Place(2, 10), Place(1, 3))  # it may have been lost: other signs must tell


def test_only_what_nobody_is_told_of_is_upkeep() -> None:
    assert is_upkeep((ev.OrphanFreed(7), ev.ChunksCollected(1, (2,))))
    assert not is_upkeep((ev.OrphanFreed(7), ev.EntryLinked(7, 1, b"n")))
    assert not is_upkeep((ev.NumbersSkipped(7),))


def test_what_a_master_told_early_is_skipped_whole() -> None:
    told = range(100, 100 + EARLY_MAX_ENTRIES)  # by one that lost them all
    assert skip_told(next_inode=100).last_inode >= told[-1]


@pytest.mark.parametrize(
    "event",
    [
        ev.OrphanFreed(7),
        ev.EntryLinked(7, 1, b"n"),
        ev.StripesAbandoned((1,)),
        ev.FileTruncated(7, 0, 0),
        ev.NumbersSkipped(7),
    ],
)
def test_a_change_of_files_is_not_independent(event: ev.Event) -> None:
    assert not is_independent((event,))
