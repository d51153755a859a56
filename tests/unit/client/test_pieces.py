"""Dirty bytes of a stripe behave like a sparse byte array, as pieces and in a buffer alike."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from wormfs.client.pieces import DirtyStripe, Piece, cut_at, merge_range, overlay, total_bytes
from wormfs.core.limits import INLINE_MAX_BYTES

SIZE = 200
writes = st.lists(
    st.tuples(st.integers(0, SIZE - 1), st.binary(min_size=1, max_size=60)).map(
        lambda each: (each[0], each[1][: SIZE - each[0]])
    ),
    max_size=12,
)


def model(written: list[tuple[int, bytes]]) -> list[int | None]:
    cells: list[int | None] = [None] * SIZE
    for start, data in written:
        cells[start : start + len(data)] = data
    return cells


def cells_of(dirty: DirtyStripe) -> list[int | None]:
    cells: list[int | None] = [None] * SIZE
    for start, data in dirty.spans():
        cells[start : start + len(data)] = data
    return cells


@given(writes)
def test_pieces_hold_what_was_written_last(written: list[tuple[int, bytes]]) -> None:
    dirty = DirtyStripe()
    for start, data in written:
        dirty.write(start, data)
    assert cells_of(dirty) == model(written)
    ends = [piece.end_bytes for piece in dirty.pieces]
    starts = [piece.start_bytes for piece in dirty.pieces]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    assert total_bytes(dirty.pieces) == sum(cell is not None for cell in model(written))


@given(writes, st.integers(0, 12))
def test_moving_to_a_buffer_changes_nothing(written: list[tuple[int, bytes]], after: int) -> None:
    dirty = DirtyStripe()
    for count, (start, data) in enumerate(written):
        if count == after:
            dirty.give_buffer(bytearray(b"\xee" * SIZE))
        dirty.write(start, data)
    assert cells_of(dirty) == model(written)


@given(writes, st.integers(0, SIZE), st.booleans())
def test_cut_forgets_the_tail_only(written: list[tuple[int, bytes]], length: int, buffered: bool) -> None:
    dirty = DirtyStripe()
    if buffered:
        dirty.give_buffer(bytearray(SIZE))
    for start, data in written:
        dirty.write(start, data)
    dirty.cut(length)
    assert cells_of(dirty) == model(written)[:length] + [None] * (SIZE - length)


@given(writes, st.integers(0, SIZE - 1), st.integers(1, SIZE), st.booleans())
def test_covers_agrees_with_the_model(
    written: list[tuple[int, bytes]], start: int, length: int, buffered: bool
) -> None:
    dirty = DirtyStripe()
    if buffered:
        dirty.give_buffer(bytearray(SIZE))
    for at, data in written:
        dirty.write(at, data)
    end = min(SIZE, start + length)
    assert dirty.covers(start, end) == all(cell is not None for cell in model(written)[start:end])


@given(writes, st.integers(0, SIZE - 1), st.integers(0, SIZE))
def test_overlay_into_a_window(written: list[tuple[int, bytes]], start: int, length: int) -> None:
    dirty = DirtyStripe()
    for at, data in written:
        dirty.write(at, data)
    window = bytearray(b"." * min(length, SIZE - start))
    dirty.overlay_into(memoryview(window), start)
    expected = [ord(".") if cell is None else cell for cell in model(written)][start : start + len(window)]
    assert list(window) == expected


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=15))
def test_merged_ranges_are_sorted_disjoint_and_complete(added: list[tuple[int, int]]) -> None:
    ranges: list[tuple[int, int]] = []
    expected: set[int] = set()
    for start, length in added:
        ranges = merge_range(ranges, start, start + length)
        expected |= set(range(start, start + length))
    assert {cell for low, high in ranges for cell in range(low, high)} == expected
    assert all(high < low for (_, high), (low, _) in itertools.pairwise(ranges))


def test_an_overlay_splits_what_it_covers_the_middle_of() -> None:
    assert overlay([Piece(0, b"aaaaaa")], Piece(2, b"BB")) == [
        Piece(0, b"aa"),
        Piece(2, b"BB"),
        Piece(4, b"aa"),
    ]
    assert cut_at([Piece(0, b"abc"), Piece(5, b"xyz")], 6) == [Piece(0, b"abc"), Piece(5, b"x")]


def test_a_buffer_is_wanted_once_pieces_pass_the_inline_limit() -> None:
    dirty = DirtyStripe()
    dirty.write(0, b"x" * (INLINE_MAX_BYTES - 10))
    assert not dirty.wants_buffer(10)
    assert dirty.wants_buffer(11)
