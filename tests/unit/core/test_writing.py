import random
from collections.abc import Sequence
from typing import Any

import pytest

from tests.unit.core.memory_state import STRIPE_BYTES, World
from wormfs.core import errors as er
from wormfs.core.apply import apply
from wormfs.core.events import ChunksCollected, EntryLinked, StripesAbandoned
from wormfs.core.limits import FILE_SIZE_MAX_BYTES, INLINE_MAX_BYTES
from wormfs.core.namespace import decide_remove_dir, decide_set_attr, decide_unlink
from wormfs.core.records import Extent, Stripe
from wormfs.core.writing import (
    FREE_BATCH_ROWS,
    Placement,
    WrittenStripe,
    decide_abandon,
    decide_allocate,
    decide_close_session,
    decide_collected,
    decide_commit_write,
    decide_free_orphan,
    decide_open_session,
)

PLACEMENT = Placement(1, 4, 2, (1, 2, 3, 4, 5, 6))


class FileWorld(World):
    """One file, one session, and the file's right content beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.inode = self.file().inode
        self.session = self.state.next_session_id
        self.take(decide_open_session(self.state, "test"))

    def allocate(self, count: int = 1) -> list[int]:
        first = self.state.next_stripe_id
        self.take(
            decide_allocate(
                self.state, session_id=self.session, inode=self.inode, placements=[PLACEMENT] * count
            )
        )
        return list(range(first, first + count))

    def write(
        self, stripes: Sequence[WrittenStripe] = (), extents: Sequence[Extent] = (), size: int = 0
    ) -> None:
        decision = decide_commit_write(
            self.state,
            self.next(),
            session_id=self.session,
            inode=self.inode,
            stripes=stripes,
            extents=extents,
            size_bytes=size,
            mtime_ns=77,
        )
        self.take(decision)

    def truncate(self, size: int) -> None:
        self.take(decide_set_attr(self.state, self.next(), inode=self.inode, size_bytes=size))

    def extents(self) -> list[Extent]:
        return self.state.extents(self.inode, 0, FILE_SIZE_MAX_BYTES)

    def stripes(self) -> list[Stripe]:
        return list(self.state.stripes_from(self.inode, 0))

    def garbage(self, disk: int = 1) -> list[int]:
        return [chunk.stripe_id for chunk in self.state.garbage(disk, 0, 1_000)]


@pytest.fixture
def world() -> FileWorld:
    return FileWorld()


def test_a_commit_sets_size_mtime_and_allocated_bytes(world: FileWorld) -> None:
    world.write(extents=[Extent(10, b"abc")], size=13)
    row = world.row(world.inode)
    assert (row.size_bytes, row.allocated_bytes, row.mtime_ns) == (13, 3, 77)
    assert row.ctime_ns == 1_020  # the file's making is later than the writer's clock
    assert row.change == world.at.sequence
    world.write(size=5)
    assert world.row(world.inode).size_bytes == 13


def test_a_commit_without_mtime_takes_the_masters_clock(world: FileWorld) -> None:
    decision = decide_commit_write(world.state, world.next(), session_id=0, inode=world.inode, size_bytes=9)
    world.take(decision)
    row = world.row(world.inode)
    assert row.mtime_ns == row.ctime_ns == world.at.time_ns


def test_newer_extents_lie_over_older_ones(world: FileWorld) -> None:
    world.write(extents=[Extent(0, b"a" * 8000)], size=8000)
    world.write(extents=[Extent(5000, b"b" * 100)])
    assert world.extents() == [Extent(0, b"a" * 5000), Extent(5000, b"b" * 100 + b"a" * 2900)]
    world.write(extents=[Extent(4000, b"c" * 4000)])
    assert world.extents() == [Extent(0, b"a" * 4000), Extent(4000, b"c" * 4000)]
    world.write(extents=[Extent(0, b"d" * 8000)])
    assert world.extents() == [Extent(0, b"d" * 8000)]


def test_small_touching_extents_are_joined(world: FileWorld) -> None:
    world.write(extents=[Extent(0, b"a"), Extent(2, b"c")], size=3)
    world.write(extents=[Extent(1, b"b")])
    assert world.extents() == [Extent(0, b"abc")]
    world.write(extents=[Extent(3, b"x" * 4096)], size=4099)
    assert [len(extent.data) for extent in world.extents()] == [3, 4096]


def test_a_stripe_replaces_what_was_there_and_wipes_extents(world: FileWorld) -> None:
    first, second = world.allocate(2)
    world.write([WrittenStripe(1, first, 1000, 1000)], size=STRIPE_BYTES + 1000)
    world.write(extents=[Extent(STRIPE_BYTES - 1, b"keep"[:1]), Extent(STRIPE_BYTES, b"wipe")])
    world.write(
        [WrittenStripe(1, second, 2000, 1500)], [Extent(STRIPE_BYTES + 5, b"over")], STRIPE_BYTES + 1500
    )
    stripe = Stripe(1, second, 1, 4, 2, 512, 2000, 1500, (1, 2, 3, 4, 5, 6))
    assert world.stripes() == [stripe]
    assert world.extents() == [Extent(STRIPE_BYTES - 1, b"k"), Extent(STRIPE_BYTES + 5, b"over")]
    assert world.garbage() == [first]
    assert world.state.garbage(6, 0, 9)[0].index == 5
    assert world.row(world.inode).allocated_bytes == 1505
    assert world.state.counts().allocations == 0


def test_truncation_frees_stripes_and_cuts_the_last(world: FileWorld) -> None:
    ids = world.allocate(3)
    full = [WrittenStripe(index, ids[index], STRIPE_BYTES, STRIPE_BYTES) for index in range(3)]
    world.write(
        full, [Extent(STRIPE_BYTES + 90, b"x" * 20), Extent(2 * STRIPE_BYTES, b"y")], 3 * STRIPE_BYTES
    )
    world.truncate(STRIPE_BYTES + 100)
    assert [(stripe.index, stripe.valid_bytes) for stripe in world.stripes()] == [(0, STRIPE_BYTES), (1, 100)]
    assert world.extents() == [Extent(STRIPE_BYTES + 90, b"x" * 10)]
    assert world.garbage() == ids[2:]
    world.truncate(3 * STRIPE_BYTES)
    assert world.stripes()[1].valid_bytes == 100
    world.truncate(STRIPE_BYTES)
    assert world.garbage() == ids[1:]
    world.truncate(0)
    assert (world.stripes(), world.garbage(), world.row(world.inode).allocated_bytes) == ([], ids, 0)


@pytest.mark.parametrize(
    ("extents", "size", "error"),
    [
        ([Extent(0, b"")], 9, er.InvalidError),
        ([Extent(STRIPE_BYTES - 1, b"ab")], 2 * STRIPE_BYTES, er.InvalidError),
        ([Extent(0, b"abc")], 2, er.InvalidError),
        ([Extent(FILE_SIZE_MAX_BYTES, b"a")], 9, er.TooLargeError),
        ([], FILE_SIZE_MAX_BYTES + 1, er.TooLargeError),
        ([Extent(0, b"a" * INLINE_MAX_BYTES), Extent(INLINE_MAX_BYTES, b"b")], 1 << 20, er.InvalidError),
    ],
)
def test_impossible_extents_are_refused(
    world: FileWorld, extents: list[Extent], size: int, error: type[er.WormError]
) -> None:
    with pytest.raises(error):
        world.write(extents=extents, size=size)
    assert world.extents() == []


def test_only_own_allocated_stripes_can_be_committed(world: FileWorld) -> None:
    stripe_id, other_id = world.allocate(2)
    written = WrittenStripe(0, stripe_id, 10, 10)

    def fails(error: type[er.WormError], stripes: Sequence[WrittenStripe], **changed: int) -> None:
        arguments: dict[str, Any] = {
            "session_id": world.session,
            "inode": world.inode,
            "size_bytes": 1 << 30,
            **changed,
        }
        with pytest.raises(error):
            decide_commit_write(world.state, world.next(), stripes=stripes, **arguments)

    other = world.file(b"other").inode
    world.take(decide_open_session(world.state, "another"))
    fails(er.InvalidError, [written], inode=other)
    fails(er.InvalidError, [written], session_id=world.session + 1)
    fails(er.SessionExpiredError, [written], session_id=99)
    fails(er.InvalidError, [written._replace(stripe_id=999)])
    fails(er.InvalidError, [written._replace(valid_bytes=11)])
    fails(er.InvalidError, [written._replace(length_bytes=0, valid_bytes=0)])
    fails(er.InvalidError, [written._replace(length_bytes=STRIPE_BYTES + 1)])
    fails(er.InvalidError, [written, WrittenStripe(0, other_id, 10, 10)])
    fails(er.InvalidError, [written, written._replace(index=1)])
    fails(er.InvalidError, [written._replace(index=1 << 20)])
    fails(er.TooLargeError, [written._replace(index=1 << 40)])
    fails(er.IsADirectoryWormError, [], inode=1)
    fails(er.StaleError, [], inode=999)
    world.write([written], size=10)
    with pytest.raises(er.InvalidError):
        world.write([written], size=10)


def test_allocation_gives_new_ids_and_takes_back_abandoned_ones(world: FileWorld) -> None:
    first = world.allocate(2)
    decision = decide_allocate(
        world.state,
        session_id=world.session,
        inode=world.inode,
        placements=[PLACEMENT],
        abandoned=[first[0], first[0], 999],
    )
    world.take(decision)
    assert world.garbage() == first[:1]
    assert world.state.next_stripe_id == first[1] + 2
    assert decide_abandon(world.state, session_id=9, stripe_ids=first).events == ()


@pytest.mark.parametrize(
    "placements",
    [
        [],
        [PLACEMENT] * 65,
        [Placement(1, 4, 2, (1, 2, 3))],
        [Placement(1, 1, 1, (1, 1))],
        [Placement(1, 0, 2, (1, 2))],
    ],
)
def test_impossible_placements_are_refused(world: FileWorld, placements: list[Placement]) -> None:
    with pytest.raises(er.InvalidError):
        decide_allocate(world.state, session_id=world.session, inode=world.inode, placements=placements)
    with pytest.raises(er.SessionExpiredError):
        decide_allocate(world.state, session_id=99, inode=world.inode, placements=[PLACEMENT])


def test_a_closed_sessions_allocations_become_garbage(world: FileWorld) -> None:
    ids = world.allocate(2)
    world.state.put_reply(world.session, 1, 0, b"reply")
    world.take(decide_close_session(world.state, world.session))
    assert world.garbage() == ids
    assert not world.state.has_session(world.session)
    assert world.state.reply(world.session, 1) is None
    assert decide_close_session(world.state, world.session).events == ()


def test_collected_chunks_leave_the_garbage_of_their_disk_only(world: FileWorld) -> None:
    ids = world.allocate(3)
    world.take(decide_abandon(world.state, session_id=world.session, stripe_ids=ids))
    assert world.state.garbage_disks() == [1, 2, 3, 4, 5, 6]
    world.take(decide_collected(1, [*ids[:2], 999]))
    assert (world.garbage(1), world.garbage(2)) == (ids[2:], ids)
    assert world.state.counts().garbage_chunks == 16
    assert decide_collected(1, []).events == ()


def test_a_long_orphan_is_freed_in_steps(world: FileWorld) -> None:
    count = FREE_BATCH_ROWS + 10
    for index in range(count):
        world.state.put_stripe(world.inode, Stripe(index, 10_000 + index, 1, 1, 1, 64, 1, 1, (1, 2)))
    row = world.row(world.inode)
    world.state.put_inode(row._replace(size_bytes=count * STRIPE_BYTES, allocated_bytes=count))
    world.take(decide_unlink(world.state, world.next(), parent=1, name=b"file"))
    world.take(decide_free_orphan(world.state, world.inode))
    assert len(world.stripes()) == 10
    world.take(decide_free_orphan(world.state, world.inode))
    assert world.state.inode(world.inode) is None
    assert world.state.counts().stripes == 0


def test_an_orphaned_directory_is_freed(world: FileWorld) -> None:
    row = world.folder()
    world.take(decide_remove_dir(world.state, world.next(), parent=1, name=b"folder"))
    world.take(decide_free_orphan(world.state, row.inode))
    assert world.state.inode(row.inode) is None


def test_events_of_another_history_are_refused(world: FileWorld) -> None:
    for event in (EntryLinked(999, 1, b"x"), StripesAbandoned((999,))):
        with pytest.raises(er.DataLossError):
            apply(world.state, event, world.next())
    apply(world.state, ChunksCollected(1, (5,)), world.next())


@pytest.mark.parametrize("seed", range(8))
def test_random_writes_and_cuts_read_back(world: FileWorld, seed: int) -> None:
    """The map, read by its rule, equals a plain bytearray; stripes hold the bytes they were given."""
    chance = random.Random(seed)
    right = bytearray()
    stored: dict[int, bytes] = {}
    for step in range(120):
        kind = chance.randrange(5)
        if kind == 0:
            size = chance.randrange(3 * STRIPE_BYTES)
            right = right[:size].ljust(size, b"\0")
            world.truncate(size)
        elif kind == 1:
            index = chance.randrange(3)
            data = bytes([step + 1]) * chance.randrange(1, STRIPE_BYTES)
            (stripe_id,) = world.allocate()
            start = index * STRIPE_BYTES
            size = max(len(right), start + len(data))
            stored[stripe_id] = data
            right = right.ljust(size, b"\0")
            right[start : start + STRIPE_BYTES] = data.ljust(len(right[start : start + STRIPE_BYTES]), b"\0")
            world.write([WrittenStripe(index, stripe_id, len(data), len(data))], size=size)
        else:
            index, inside = chance.randrange(3), chance.randrange(40_000)
            data = bytes([step + 1]) * chance.randrange(1, 20_000)
            offset = index * STRIPE_BYTES + inside
            size = max(len(right), offset + len(data))
            right = right.ljust(size, b"\0")
            right[offset : offset + len(data)] = data
            world.write(extents=[Extent(offset, data)], size=size)
        found = bytearray(world.row(world.inode).size_bytes)
        for stripe in world.stripes():
            start = stripe.index * STRIPE_BYTES
            found[start : start + stripe.valid_bytes] = stored[stripe.stripe_id][: stripe.valid_bytes]
        for extent in world.extents():
            found[extent.offset_bytes : extent.offset_bytes + len(extent.data)] = extent.data
        assert found == right
