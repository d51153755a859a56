"""Directories' attributes after our own changes in them."""

import pytest

from wormfs.client.directory_attributes import KEPT_MAX, DirectoryAttributes
from wormfs.rpc.v1 import types_pb2


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def attributes(change: int) -> types_pb2.Attributes:
    return types_pb2.Attributes(inode=7, change=change)


def changed(kept: DirectoryAttributes, change: int, trusted_s: float = 4.0) -> None:
    with kept.change(7) as told:
        told(attributes(change), trusted_s)


def known(kept: DirectoryAttributes) -> int | None:
    entry = kept.get(7)
    return None if entry is None else entry.attributes.change


def test_a_reply_is_kept_as_long_as_it_is_trusted() -> None:
    clock = Clock()
    kept = DirectoryAttributes(clock)
    assert known(kept) is None
    changed(kept, 10)
    clock.now_s += 3
    entry = kept.get(7)
    assert entry is not None
    assert (entry.attributes.change, entry.cache_s) == (10, 1.0)
    clock.now_s += 1
    assert known(kept) is None


def test_what_cannot_be_trusted_is_not_kept() -> None:
    kept = DirectoryAttributes(Clock())
    changed(kept, 10)
    changed(kept, 11, trusted_s=0.0)
    assert known(kept) is None


def test_a_change_no_reply_told_drops_what_was_known() -> None:
    kept = DirectoryAttributes(Clock())
    changed(kept, 10)
    with kept.change(7):
        assert known(kept) == 10  # it has not been answered yet
    assert known(kept) is None
    changed(kept, 11)
    kept.drop(7)
    assert known(kept) is None
    changed(kept, 12)
    kept.clear()
    assert known(kept) is None


def test_changes_side_by_side_leave_nothing() -> None:
    """Their answers may be handled in another order than the master gave them."""
    kept = DirectoryAttributes(Clock())
    with kept.change(7) as first:
        changed(kept, 11)
        assert known(kept) is None
        first(attributes(10), 4.0)
    assert known(kept) is None
    changed(kept, 12)
    assert known(kept) == 12


def test_a_change_that_failed_leaves_nothing() -> None:
    kept = DirectoryAttributes(Clock())
    changed(kept, 10)
    with pytest.raises(KeyError), kept.change(7):
        raise KeyError
    assert known(kept) is None


def test_the_number_kept_is_bounded() -> None:
    kept = DirectoryAttributes(Clock())
    for inode in range(1, KEPT_MAX + 2):
        with kept.change(inode) as told:
            told(types_pb2.Attributes(inode=inode), 4.0)
    assert kept.get(1) is None
    assert kept.get(2) is not None
    assert kept.get(KEPT_MAX + 1) is not None
