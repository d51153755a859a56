"""Rules for a file's content: stripes, the extents over them, truncation.

Invariants kept: extents of a file never overlap, never cross a stripe border and lie below its
size; a stripe's `valid_bytes` never reach past the size; `allocated_bytes` is the sum of both.
A byte is read from the extent over it, else from its stripe if below `valid_bytes`, else it is 0.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence

from wormfs.core.errors import InvalidError, TooLargeError
from wormfs.core.events import FileTruncated, FileWritten
from wormfs.core.limits import FILE_SIZE_MAX_BYTES, INLINE_MAX_BYTES
from wormfs.core.records import Extent, Inode, Span, Stripe
from wormfs.core.state import At, ContentChange, StateView
from wormfs.core.stripes import chunk_length_bytes

MERGE_MAX_BYTES = 4096
"""Touching extents are joined up to this length, so that byte-wise appends stay few rows."""


class _RangeEdit:
    """Extents of one stripe's range while new ones are laid over them."""

    def __init__(self, view: StateView, inode: int, spans: Sequence[Span]) -> None:
        self._view = view
        self._inode = inode
        self.old = {span.offset_bytes: span.length_bytes for span in spans}  # rows that stay
        self.new: dict[int, bytes] = {}
        self.removed: list[Span] = []
        self._offsets = sorted(self.old)  # of both: there may be tens of thousands

    def _take(self, offset: int) -> bytes:
        """Take an extent out, with its bytes."""
        del self._offsets[bisect_left(self._offsets, offset)]
        data = self.new.pop(offset, None)
        if data is None:
            data = self._view.extent_data(self._inode, offset)
            self.removed.append(Span(offset, self.old.pop(offset)))
        return data

    def _put(self, offset: int, data: bytes) -> None:
        insort(self._offsets, offset)
        self.new[offset] = data

    def _near(self, offset: int, end: int) -> list[int]:
        """Where extents begin that may overlap or touch [offset, end)."""
        first = bisect_left(self._offsets, offset)
        return self._offsets[max(0, first - 1) : bisect_right(self._offsets, end)]

    def lay(self, offset: int, data: bytes) -> None:
        """Lay bytes over whatever is there, joining small touching extents."""
        end = offset + len(data)
        left = right = -1
        for at in self._near(offset, end):
            length = self._length(at)
            if at < end and at + length > offset:
                if offset <= at and at + length <= end and at in self.old:
                    del self._offsets[bisect_left(self._offsets, at)]
                    self.removed.append(Span(at, self.old.pop(at)))
                    continue
                piece = self._take(at)
                if at < offset:
                    self._put(at, piece[: offset - at])
                    left = at
                if at + length > end:
                    self._put(end, piece[end - at :])
                    right = end
            elif at + length == offset:
                left = at
            elif at == end:
                right = at
        if left >= 0 and end - left <= MERGE_MAX_BYTES:
            data = self._take(left) + data
            offset = left
        if right >= 0 and len(data) + self._length(right) <= MERGE_MAX_BYTES:
            data += self._take(right)
        self._put(offset, data)

    def _length(self, offset: int) -> int:
        return len(self.new[offset]) if offset in self.new else self.old[offset]

    @property
    def total_bytes(self) -> int:
        """Bytes of all extents in the range."""
        return sum(self.old.values()) + sum(map(len, self.new.values()))


def plan_write(view: StateView, before: Inode, event: FileWritten, at: At) -> ContentChange:
    """Work out what a FileWritten does. InvalidError when a range would hold too many inline bytes."""
    size = before.stripe_size_bytes
    allocated = before.allocated_bytes
    freed: list[Stripe] = []
    removed: list[Span] = []
    wiped: set[int] = set()
    for stripe in event.stripes:
        replaced = view.stripe(before.inode, stripe.index)
        if replaced is not None:
            freed.append(replaced)
            allocated -= replaced.valid_bytes
        start = stripe.index * size
        removed += view.extent_spans(before.inode, start, start + size)
        wiped.add(stripe.index)
        allocated += stripe.valid_bytes
    edits: dict[int, _RangeEdit] = {}
    for extent in event.extents:
        index = extent.offset_bytes // size
        edit = edits.get(index)
        if edit is None:
            empty = not before.allocated_bytes or index in wiped  # a new file's first write looks for none
            spans = () if empty else view.extent_spans(before.inode, index * size, (index + 1) * size)
            edit = edits[index] = _RangeEdit(view, before.inode, spans)
        edit.lay(extent.offset_bytes, extent.data)
    put: list[Extent] = []
    for index, edit in edits.items():
        if edit.total_bytes > INLINE_MAX_BYTES:
            raise InvalidError(
                f"inode {before.inode}: more than {INLINE_MAX_BYTES} inline bytes over stripe {index}"
            )
        removed += edit.removed
        put += [Extent(offset, data) for offset, data in sorted(edit.new.items())]
    allocated += sum(len(extent.data) for extent in put) - sum(span.length_bytes for span in removed)
    # ctime follows the writer's own clock, so that what its mount showed before the commit stays true.
    after = before._replace(
        size_bytes=event.size_bytes,
        allocated_bytes=allocated,
        mtime_ns=event.mtime_ns,
        ctime_ns=max(before.ctime_ns, event.mtime_ns),
        change=at.sequence,
    )
    return ContentChange(after, tuple(freed), event.stripes, tuple(removed), tuple(put))


def plan_truncate(view: StateView, before: Inode, event: FileTruncated, at: At) -> ContentChange:
    """Work out what a FileTruncated does: free whole stripes, lower valid_bytes, cut extents."""
    size = event.size_bytes
    freed: list[Stripe] = []
    stripes: list[Stripe] = []
    removed: list[Span] = []
    extents: list[Extent] = []
    allocated = before.allocated_bytes
    if size < before.size_bytes:
        index, inside = divmod(size, before.stripe_size_bytes)
        freed += view.stripes_from(before.inode, index + (inside > 0))
        allocated -= sum(stripe.valid_bytes for stripe in freed)
        cut = view.stripe(before.inode, index) if inside else None
        if cut is not None and cut.valid_bytes > inside:
            stripes.append(cut._replace(valid_bytes=inside))
            allocated -= cut.valid_bytes - inside
        removed += view.extent_spans_from(before.inode, size)
        for span in view.extent_spans(before.inode, index * before.stripe_size_bytes, size):
            if span.end_bytes > size:
                removed.append(span)
                data = view.extent_data(before.inode, span.offset_bytes)
                extents.append(Extent(span.offset_bytes, data[: size - span.offset_bytes]))
        allocated -= sum(span.length_bytes for span in removed)
        allocated += sum(len(extent.data) for extent in extents)
    after = before._replace(
        size_bytes=size,
        allocated_bytes=allocated,
        mtime_ns=event.mtime_ns,
        ctime_ns=at.time_ns,
        change=at.sequence,
    )
    return ContentChange(after, tuple(freed), tuple(stripes), tuple(removed), tuple(extents))


def check_extents(before: Inode, extents: Sequence[Extent]) -> int:
    """Check extents a client sends; answers where the last of them ends (0: none).

    Raises InvalidError (empty, or over a stripe border), TooLargeError (past the largest file).
    """
    end = 0
    size = before.stripe_size_bytes
    for offset, data in extents:
        last = offset + len(data)
        if not data:
            raise InvalidError(f"inode {before.inode}: an empty extent at {offset}")
        if last > FILE_SIZE_MAX_BYTES:
            raise TooLargeError(f"inode {before.inode}: no file may reach past {FILE_SIZE_MAX_BYTES} bytes")
        if offset // size != (last - 1) // size:
            raise InvalidError(f"inode {before.inode}: the extent at {offset} crosses a stripe border")
        end = max(end, last)
    return end


def complete_stripe(
    view: StateView, before: Inode, session_id: int, index: int, stripe_id: int, length: int, valid: int
) -> Stripe:
    """A committed stripe's full record, from its allocation and the lengths the client gives.

    Raises InvalidError when it was not allocated to this session and inode, or its lengths cannot be.
    """
    allocation = view.allocation(stripe_id)
    if allocation is None or allocation.session_id != session_id or allocation.inode != before.inode:
        raise InvalidError(
            f"stripe {stripe_id} is not allocated to session {session_id} for inode {before.inode}"
        )
    size = before.stripe_size_bytes
    if not 0 < length <= size or not 0 < valid <= length:
        raise InvalidError(f"stripe {stripe_id}: {valid} of {length} bytes do not fit a stripe of {size}")
    if index * size + valid > FILE_SIZE_MAX_BYTES:
        raise TooLargeError(f"inode {before.inode}: no file may reach past {FILE_SIZE_MAX_BYTES} bytes")
    return Stripe(
        index,
        stripe_id,
        allocation.codec,
        allocation.k,
        allocation.m,
        chunk_length_bytes(length, allocation.k),
        length,
        valid,
        allocation.disks,
    )
