"""Extents laid over others: right however they lie, and few are looked at however many there are."""

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from random import Random
from typing import Any, TypeVar

import pytest

from wormfs.core.content import MERGE_MAX_BYTES, _RangeEdit
from wormfs.core.records import Span

pytestmark = pytest.mark.timeout(60)
Value = TypeVar("Value")
HOLE = -1


class View:
    """The one part of the state that an edit asks: extents by their offsets."""

    def __init__(self, extents: dict[int, bytes]) -> None:
        self.extents = extents

    def extent_data(self, inode: int, offset_bytes: int) -> bytes:
        return self.extents[offset_bytes]


class LooksAtAll(_RangeEdit):
    """The naive reference: every extent may be near."""

    def _near(self, offset: int, end: int) -> list[int]:
        return sorted([*self.old, *self.new])


class Counted(dict[int, Value]):
    """Counts the rows that are looked at."""

    looks = 0

    def __getitem__(self, key: int) -> Value:
        self.looks += 1
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[int]:
        self.looks += len(self)
        return super().__iter__()

    def keys(self) -> KeysView[int]:  # type: ignore[override]
        self.looks += len(self)
        return super().keys()

    def values(self) -> ValuesView[Value]:  # type: ignore[override]
        self.looks += len(self)
        return super().values()

    def items(self) -> ItemsView[int, Value]:  # type: ignore[override]
        self.looks += len(self)
        return super().items()


def edit_of(extents: dict[int, bytes], kind: type[_RangeEdit] = _RangeEdit) -> _RangeEdit:
    view: Any = View(extents)
    return kind(view, 1, [Span(offset, len(data)) for offset, data in extents.items()])


def some_extents(random: Random) -> dict[int, bytes]:
    """Disjoint ones, some of which touch; a few are longer than what is joined."""
    extents: dict[int, bytes] = {}
    at = 0
    for _ in range(random.randrange(12)):
        at += random.choice((0, 0, 1, 5, 3000))
        extents[at] = random.randbytes(random.choice((1, 3, 10, 2000, MERGE_MAX_BYTES + 900)))
        at += len(extents[at])
    return extents


def cells(edit: _RangeEdit, stored: dict[int, bytes], length: int) -> list[int]:
    """Every byte of the range, from the extents that there are now; fails when two are over one byte."""
    found = [HOLE] * length
    for offset, data in [*((offset, stored[offset]) for offset in edit.old), *edit.new.items()]:
        assert set(found[offset : offset + len(data)]) == {HOLE}
        found[offset : offset + len(data)] = data
    return found


def test_random_edits_are_what_a_look_at_every_extent_makes_of_them() -> None:
    for seed in range(300):
        random = Random(seed)
        stored = some_extents(random)
        edit, naive = edit_of(stored), edit_of(stored, LooksAtAll)
        reach = max((offset + len(data) for offset, data in stored.items()), default=0) + 20
        wanted = cells(edit, stored, reach + 3000)
        for _ in range(random.randrange(1, 15)):
            offset, data = random.randrange(reach), random.randbytes(random.choice((1, 2, 7, 100, 3000)))
            wanted[offset : offset + len(data)] = data
            edit.lay(offset, data)
            naive.lay(offset, data)
            assert (edit.old, edit.new) == (naive.old, naive.new), seed
            assert sorted(edit.removed) == sorted(naive.removed), seed
            assert edit.total_bytes == naive.total_bytes, seed
        assert cells(edit, stored, reach + 3000) == wanted, seed
        assert edit.total_bytes == sum(cell != HOLE for cell in wanted), seed
        kept = [Span(offset, length) for offset, length in edit.old.items()]
        assert sorted([*edit.removed, *kept]) == [Span(at, len(data)) for at, data in stored.items()], seed


@pytest.mark.parametrize("order", ["in order", "mixed"])
def test_a_byte_laid_among_thousands_of_extents_looks_at_its_neighbours_alone(order: str) -> None:
    """The master does nothing else meanwhile."""
    count, step = 4000, 64
    stored = {number * step: b"o" for number in range(count)}
    edit = edit_of(stored)
    old, new = Counted(edit.old), Counted(edit.new)
    edit.old, edit.new = old, new
    offsets = [number * step + 7 for number in range(count)]
    if order == "mixed":
        Random(1).shuffle(offsets)
    for offset in offsets:
        edit.lay(offset, b"n")
    assert old.looks + new.looks < 20 * count
    assert (len(edit.old), len(edit.new), edit.total_bytes) == (count, count, 2 * count)
