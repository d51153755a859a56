"""Dirty bytes of one stripe: what was written and is not committed yet.

Few bytes are kept as sorted, disjoint pieces; past `INLINE_MAX_BYTES` they move into a buffer
of the stripe's whole length, so that a sequential writer costs one copy for each byte.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from wormfs.core.content import MERGE_MAX_BYTES
from wormfs.core.limits import INLINE_MAX_BYTES

Buffer = bytes | bytearray | memoryview
PIECES_MAX = 1_000
"""Of a stripe, dirty and committed: with more of them it is written whole, however small they are."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes at an offset within a stripe."""

    start_bytes: int
    data: bytes

    @property
    def end_bytes(self) -> int:
        """One past the last byte, in the stripe."""
        return self.start_bytes + len(self.data)


def overlay(pieces: Sequence[Piece], new: Piece) -> list[Piece]:
    """Lay `new` over sorted, disjoint `pieces`; the result is sorted and disjoint."""
    if pieces and pieces[-1].end_bytes == new.start_bytes:  # the sequential writer: as the master joins them
        last = pieces[-1]
        if len(last.data) + len(new.data) <= MERGE_MAX_BYTES:
            return [*pieces[:-1], Piece(last.start_bytes, last.data + new.data)]
    merged: list[Piece] = []
    for old in pieces:
        if old.end_bytes <= new.start_bytes or old.start_bytes >= new.end_bytes:
            merged.append(old)
            continue
        if old.start_bytes < new.start_bytes:
            merged.append(Piece(old.start_bytes, old.data[: new.start_bytes - old.start_bytes]))
        if old.end_bytes > new.end_bytes:
            merged.append(Piece(new.end_bytes, old.data[new.end_bytes - old.start_bytes :]))
    merged.append(new)
    merged.sort(key=lambda piece: piece.start_bytes)
    return merged


def total_bytes(pieces: Sequence[Piece]) -> int:
    """Bytes in all pieces."""
    return sum(len(piece.data) for piece in pieces)


def cut_at(pieces: Sequence[Piece], length_bytes: int) -> list[Piece]:
    """Drop what lies at or past `length_bytes`."""
    kept = []
    for piece in pieces:
        if piece.end_bytes <= length_bytes:
            kept.append(piece)
        elif piece.start_bytes < length_bytes:
            kept.append(Piece(piece.start_bytes, piece.data[: length_bytes - piece.start_bytes]))
    return kept


def merge_range(ranges: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    """Add [start, end) to sorted, disjoint, non-touching ranges."""
    if ranges and start == ranges[-1][1]:  # the sequential writer
        return [*ranges[:-1], (ranges[-1][0], end)]
    kept = []
    for low, high in ranges:
        if high < start or low > end:
            kept.append((low, high))
        else:
            start, end = min(low, start), max(high, end)
    kept.append((start, end))
    kept.sort()
    return kept


@dataclass(slots=True)
class DirtyStripe:
    """Uncommitted bytes of one stripe; `buffer` is set once there are many."""

    pieces: list[Piece] = field(default_factory=list)
    buffer: bytearray | None = None
    ranges: list[tuple[int, int]] = field(default_factory=list)  # of `buffer`

    @property
    def end_bytes(self) -> int:
        """One past the last dirty byte, in the stripe."""
        if self.buffer is not None:
            return self.ranges[-1][1] if self.ranges else 0
        return self.pieces[-1].end_bytes if self.pieces else 0

    @property
    def held_bytes(self) -> int:
        """Memory this takes."""
        return len(self.buffer) if self.buffer is not None else total_bytes(self.pieces)

    def wants_buffer(self, length_bytes: int) -> bool:
        """Whether writing that many bytes more calls for a buffer."""
        if self.buffer is not None:
            return False
        return total_bytes(self.pieces) + length_bytes > INLINE_MAX_BYTES or len(self.pieces) >= PIECES_MAX

    def give_buffer(self, buffer: bytearray) -> None:
        """Move the pieces into `buffer` (of at least the stripe's length)."""
        self.buffer = buffer
        for piece in self.pieces:
            buffer[piece.start_bytes : piece.end_bytes] = piece.data
            self.ranges = merge_range(self.ranges, piece.start_bytes, piece.end_bytes)
        self.pieces = []

    def write(self, start_bytes: int, data: Buffer) -> None:
        """Lay `data` over what is here."""
        if self.buffer is None:
            self.pieces = overlay(self.pieces, Piece(start_bytes, bytes(data)))
            return
        end = start_bytes + len(data)
        self.buffer[start_bytes:end] = data
        self.ranges = merge_range(self.ranges, start_bytes, end)

    def cut(self, length_bytes: int) -> None:
        """Forget what lies at or past `length_bytes`."""
        self.pieces = cut_at(self.pieces, length_bytes)
        self.ranges = [(low, min(high, length_bytes)) for low, high in self.ranges if low < length_bytes]

    def covers(self, start_bytes: int, end_bytes: int) -> bool:
        """Whether every byte of [start, end) is dirty."""
        if self.buffer is not None:
            return any(low <= start_bytes and end_bytes <= high for low, high in self.ranges)
        for piece in self.pieces:
            if piece.start_bytes <= start_bytes < piece.end_bytes:
                start_bytes = piece.end_bytes
        return start_bytes >= end_bytes

    def spans(self) -> Iterator[tuple[int, memoryview]]:
        """Every dirty span as (start, bytes), in order."""
        if self.buffer is None:
            for piece in self.pieces:
                yield piece.start_bytes, memoryview(piece.data)
        else:
            view = memoryview(self.buffer)
            for low, high in self.ranges:
                yield low, view[low:high]

    def overlay_into(self, out: memoryview, out_start_bytes: int) -> None:
        """Copy what is dirty into `out`, which stands for the stripe from `out_start_bytes` on."""
        lay_spans(self.spans(), out, out_start_bytes)


def lay_spans(spans: Iterator[tuple[int, memoryview]], out: memoryview, out_start_bytes: int) -> None:
    """Copy spans (start in the stripe, bytes) into the window of a stripe that `out` is."""
    out_end = out_start_bytes + len(out)
    for start, data in spans:
        low, high = max(start, out_start_bytes), min(start + len(data), out_end)
        if low < high:
            out[low - out_start_bytes : high - out_start_bytes] = data[low - start : high - start]
