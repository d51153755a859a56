"""What is known of directories after our own changes in them, and listings."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from wormfs.client import known_directories
from wormfs.client.known_directories import KEPT_MAX, Change, KnownDirectories
from wormfs.rpc.v1 import types_pb2


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def attributes(change: int) -> types_pb2.Attributes:
    return types_pb2.Attributes(inode=7, change=change)


def changed(kept: KnownDirectories, change: int, trusted_s: float = 4.0) -> None:
    with kept.change(7) as made:
        made.told(trusted_s, attributes(change))


def known(kept: KnownDirectories) -> int | None:
    entry = kept.attributes(7)
    return None if entry is None else entry.attributes.change


def test_a_reply_is_kept_as_long_as_it_is_trusted() -> None:
    clock = Clock()
    kept = KnownDirectories(clock, names=True)
    assert known(kept) is None
    changed(kept, 10)
    clock.now_s += 3
    entry = kept.attributes(7)
    assert entry is not None
    assert (entry.attributes.change, entry.cache_s) == (10, 1.0)
    clock.now_s += 1
    assert known(kept) is None


def test_what_cannot_be_trusted_is_not_kept() -> None:
    kept = KnownDirectories(Clock(), names=True)
    changed(kept, 10)
    changed(kept, 11, trusted_s=0.0)
    assert known(kept) is None


def test_a_change_no_reply_told_drops_what_was_known() -> None:
    kept = KnownDirectories(Clock(), names=True)
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
    kept = KnownDirectories(Clock(), names=True)
    with kept.change(7) as first:
        changed(kept, 11)
        assert known(kept) is None
        first.told(4.0, attributes(10))
    assert known(kept) is None
    changed(kept, 12)
    assert known(kept) == 12


def test_a_change_that_failed_leaves_nothing() -> None:
    kept = KnownDirectories(Clock(), names=True)
    changed(kept, 10)
    with pytest.raises(KeyError), kept.change(7):
        raise KeyError
    assert known(kept) is None


def test_a_change_elsewhere_that_was_one_here_drops_what_is_told_late() -> None:
    """Directory 7 was moved behind the change in it, and its mover's task came first."""
    kept = KnownDirectories(Clock(), names=True)
    with kept.change(7) as made:
        kept.drop_attributes(7)
        made.told(4.0, attributes(10))
    assert known(kept) is None
    with kept.change(7) as made:
        kept.drop_all_attributes()
        made.told(4.0, attributes(11))
    assert known(kept) is None


def test_the_number_kept_is_bounded() -> None:
    kept = KnownDirectories(Clock(), names=True)
    for inode in range(1, KEPT_MAX + 2):
        with kept.change(inode) as made:
            made.told(4.0, types_pb2.Attributes(inode=inode))
    assert kept.attributes(1) is None
    assert kept.attributes(2) is not None
    assert kept.attributes(KEPT_MAX + 1) is not None


# --- names


def made(kept: KnownDirectories, inode: int = 7, trusted_s: float = 4.0) -> None:
    kept.made(inode, trusted_s)
    assert kept.lacks(inode, b"new") == (trusted_s > 0)


def add(kept: KnownDirectories, name: bytes, trusted_s: float = 4.0) -> None:
    with kept.change(7, adds=name) as change:
        change.told(trusted_s)


def test_what_we_made_has_the_names_we_made() -> None:
    kept = KnownDirectories(Clock(), names=True)
    assert not kept.lacks(7, b"a")
    made(kept)
    assert kept.lacks(7, b"a")
    add(kept, b"a")
    assert not kept.lacks(7, b"a")
    assert kept.lacks(7, b"b")
    assert not kept.lacks(8, b"b")
    with kept.change(7, removes=b"a") as change:
        assert not kept.lacks(7, b"a")
        change.told(4.0)
    assert kept.lacks(7, b"a")


def test_a_name_may_exist_from_its_request_on_whatever_becomes_of_it() -> None:
    kept = KnownDirectories(Clock(), names=True)
    made(kept)
    with kept.change(7, adds=b"a"):
        assert not kept.lacks(7, b"a")
    assert not kept.lacks(7, b"a")
    with pytest.raises(KeyError), kept.change(7, removes=b"a"):
        raise KeyError
    assert not kept.lacks(7, b"a")
    with kept.change(7, removes=b"a"):
        pass  # done, but nothing was told: a retry's reply
    assert not kept.lacks(7, b"a")


def test_a_removal_beside_another_change_takes_nothing_out() -> None:
    """Whether the name was made before or after is not known."""
    kept = KnownDirectories(Clock(), names=True)
    made(kept)
    add(kept, b"a")
    with kept.change(7, adds=b"a") as making:
        with kept.change(7, removes=b"a") as removing:
            removing.told(4.0)
        making.told(4.0)
    assert not kept.lacks(7, b"a")


def test_names_are_trusted_as_long_as_the_last_answer_says() -> None:
    clock = Clock()
    kept = KnownDirectories(clock, names=True)
    made(kept, trusted_s=0.0)
    made(kept)
    clock.now_s += 3
    add(kept, b"a")
    clock.now_s += 3
    assert kept.lacks(7, b"b")
    add(kept, b"b", trusted_s=0.0)  # overtaken by a recall of something else: no longer, but no shorter
    assert kept.lacks(7, b"c")
    clock.now_s += 1
    assert not kept.lacks(7, b"c")
    add(kept, b"c")  # others may have changed it since
    assert not kept.lacks(7, b"d")


def test_a_listing_tells_all_names() -> None:
    kept = KnownDirectories(Clock(), names=True)
    with kept.listing(7) as listing:
        listing.told([b"a", b"b"], 4.0)
    assert [kept.lacks(7, name) for name in (b"a", b"b", b"c")] == [False, False, True]
    with kept.listing(7) as listing:
        listing.told([b"c"], 4.0)
    assert [kept.lacks(7, name) for name in (b"a", b"b", b"c")] == [True, True, False]
    with kept.listing(7):
        pass  # a page of many
    assert kept.lacks(7, b"a")


def test_a_listing_beside_a_change_or_a_recall_tells_nothing() -> None:
    kept = KnownDirectories(Clock(), names=True)
    with kept.listing(7) as listing:
        add(kept, b"a")
        listing.told([], 4.0)
    assert not kept.lacks(7, b"b")
    with kept.change(7, adds=b"a"), kept.listing(7) as listing:
        listing.told([], 4.0)
    assert not kept.lacks(7, b"b")
    with kept.listing(7) as listing:
        kept.drop(7)
        listing.told([], 4.0)
    assert not kept.lacks(7, b"b")


@pytest.mark.parametrize("how", ["drop", "clear"])
def test_what_is_recalled_is_not_known(how: str) -> None:
    kept = KnownDirectories(Clock(), names=True)
    made(kept)
    with kept.change(7, adds=b"a") as change:
        if how == "drop":
            kept.drop(7)
        else:
            kept.clear()
        change.told(4.0)
    assert not kept.lacks(7, b"b")


def test_a_directory_that_is_changed_already_is_not_known_as_empty() -> None:
    kept = KnownDirectories(Clock(), names=True)
    with kept.change(7, adds=b"a"):
        kept.made(7, 4.0)
    assert not kept.lacks(7, b"a")


def test_the_names_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_directories, "NAMES_MAX_BYTES", 3 * 101)
    kept = KnownDirectories(Clock(), names=True)
    made(kept, 8)
    made(kept, 7)
    for name in (b"a", b"b", b"c", b"a"):
        add(kept, name)
        assert kept.lacks(7, b"new")
    with kept.change(7, removes=b"c") as change:
        change.told(4.0)
    add(kept, b"d")
    assert kept.lacks(7, b"new")
    add(kept, b"e")
    assert not kept.lacks(7, b"new")
    for inode in range(100, 100 + KEPT_MAX):
        kept.made(inode, 4.0)
    assert not kept.lacks(8, b"new")
    assert kept.lacks(100, b"new")
    made(kept, 7)
    assert not kept.lacks(100, b"new")
    assert kept.lacks(101, b"new")


class AnyOrder(RuleBasedStateMachine):
    """One directory under changes of ours whose answers come in any order, and changes of others.

    The master does each change at some moment between its request and its answer, or never.
    """

    names = st.sampled_from([b"a", b"b", b"c"])

    def __init__(self) -> None:
        super().__init__()
        self.kept = KnownDirectories(Clock(), names=True)
        self.there: set[bytes] = set()
        self.begun: list[tuple[Change, bytes, bytes]] = []
        self.done: list[tuple[Change, bool]] = []
        self.kept.made(7, 4.0)

    @rule(name=names, removes=st.booleans())
    def begin(self, name: bytes, removes: bool) -> None:
        adds, removed = (b"", name) if removes else (name, b"")
        change = self.kept.change(7, adds=adds, removes=removed)
        change.__enter__()
        self.begun.append((change, adds, removed))

    @precondition(lambda self: self.begun)
    @rule(data=st.data())
    def perform(self, data: st.DataObject) -> None:
        change, adds, removes = self.begun.pop(data.draw(st.integers(0, len(self.begun) - 1)))
        before = set(self.there)
        self.there = (self.there | {adds}) - {removes, b""}
        self.done.append((change, before != self.there))

    @precondition(lambda self: self.done)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        change, changed = self.done.pop(data.draw(st.integers(0, len(self.done) - 1)))
        if changed:
            change.told(4.0)
        change.__exit__(None, None, None)

    @precondition(lambda self: self.begun)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        change, _, _ = self.begun.pop(data.draw(st.integers(0, len(self.begun) - 1)))
        change.__exit__(None, None, None)

    @rule(name=names)
    def change_by_another(self, name: bytes) -> None:
        self.there ^= {name}
        self.kept.drop(7)

    @rule()
    def list_all(self) -> None:
        with self.kept.listing(7) as listing:
            listing.told(sorted(self.there), 4.0)

    @invariant()
    def never_lacks_what_is_there(self) -> None:
        for name in self.there:
            assert not self.kept.lacks(7, name)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=200, deadline=None)
