"""What a session keeps for the next master."""

from wormfs.client.kept_entries import KeptEntries
from wormfs.rpc.v1 import event_pb2


def kept(first: int, count: int) -> KeptEntries:
    made = KeptEntries()
    made.keep(first - 1, first, [b"%d" % number for number in range(first, first + count)])
    return made


def test_entries_are_kept_in_order_and_dropped_when_settled() -> None:
    made = kept(5, 3)
    assert made.keep(4, 8, [b"8"])
    assert made.all() == [b"5", b"6", b"7", b"8"]
    made.settle(6)
    assert made.all() == [b"7", b"8"]
    made.settle(3)
    assert made.all() == [b"7", b"8"]
    made.settle(8)
    assert made.all() == []
    assert len(made) == 0


def test_what_is_settled_may_be_missing() -> None:
    made = kept(5, 3)
    assert made.keep(9, 10, [b"10"])
    assert made.all() == [b"10"]


def test_a_gap_of_what_is_not_settled_is_told() -> None:
    made = kept(5, 3)
    assert not made.keep(8, 10, [b"10"])
    assert not KeptEntries().keep(8, 10, [b"10"])
    made = kept(5, 3)
    made.clear()
    assert made.keep(1, 2, [b"another mastership's"])


def test_what_changes_inodes_is_told_or_that_it_cannot_be() -> None:
    made = KeptEntries()
    entry = event_pb2.LogEntry(sequence=1)
    entry.events.add().entry_renamed.MergeFrom(
        event_pb2.EntryRenamed(parent=2, new_parent=3, inode=4, replaced_inode=5)
    )
    entry.events.add().inode_made.MergeFrom(event_pb2.InodeMade(inode=6, parent=7))
    assert made.keep(0, 1, [entry.SerializeToString()])
    assert made.inodes() == frozenset(range(2, 8))
    newer = event_pb2.LogEntry(sequence=2)
    newer.events.add().MergeFromString(b"\xfa\x07\x00")
    assert made.keep(0, 2, [newer.SerializeToString()])
    assert made.inodes() is None
    made.clear()
    assert made.inodes() == frozenset()
    assert made.keep(0, 1, [b"\xff"])
    assert made.inodes() is None


def test_entries_pushed_twice_are_kept_once() -> None:
    """A resumed connection is told anew of all that is unsettled."""
    made = kept(5, 3)
    assert made.keep(4, 6, [b"6", b"7", b"8"])
    assert made.all() == [b"5", b"6", b"7", b"8"]


def test_a_settled_sequence_beyond_the_last_leaves_room_for_what_comes() -> None:
    made = kept(5, 2)
    made.settle(20)
    assert made.keep(20, 21, [b"21"])
    assert made.all() == [b"21"]
