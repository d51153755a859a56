"""What the kernel holds of ours: inodes it knows, files and directories it has open, directory locks."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

from wormfs.core.errors import BadHandleError
from wormfs.core.limits import ROOT_INODE

if TYPE_CHECKING:
    from wormfs.client.filesystem import Entry, Handle

_Open = TypeVar("_Open")


class LookupCounts:
    """How often each inode was given to the kernel and not forgotten. The root is always known."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def __contains__(self, inode: int) -> bool:
        return inode == ROOT_INODE or inode in self._counts

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, inode: int) -> None:
        """One more answer named this inode. Call it before the answer goes out."""
        self._counts[inode] = self._counts.get(inode, 0) + 1

    def subtract(self, forgotten: Sequence[tuple[int, int]]) -> list[int]:
        """Take off (inode, count) pairs; the inodes the kernel no longer knows."""
        gone = []
        for inode, count in forgotten:
            left = self._counts.get(inode, 0) - count
            if left > 0:
                self._counts[inode] = left
            elif self._counts.pop(inode, None) is not None:
                gone.append(inode)
        return gone


class OpenTable(Generic[_Open]):
    """Open files or directories by the number the kernel has for them. Numbers are never used twice."""

    def __init__(self) -> None:
        self._open: dict[int, _Open] = {}
        self._next = 1

    def __iter__(self) -> Iterator[_Open]:
        return iter(self._open.values())

    def __len__(self) -> int:
        return len(self._open)

    def add(self, opened: _Open) -> int:
        """Number it."""
        number = self._next
        self._next += 1
        self._open[number] = opened
        return number

    def get(self, number: int) -> _Open:
        """Raises BadHandleError when it is not open."""
        try:
            return self._open[number]
        except KeyError:
            raise BadHandleError(f"handle {number} is not open") from None

    def remove(self, number: int) -> _Open:
        """It is closed. Raises BadHandleError when it was not open."""
        opened = self.get(number)
        del self._open[number]
        return opened


STALE_MAX = 10_000
"""Changes noted of a page; with more of them it is fetched anew."""


@dataclass(slots=True)
class OpenFile:
    """One open file. `take_set_id`: the next write takes the set-id bits, for its writer is not root."""

    handle: "Handle"
    take_set_id: bool


@dataclass(slots=True)
class Listing:
    """One open directory: a cursor by name, and the page at hand.

    Offset i + 1 stands behind `names[i]` for as long as the directory is open, whatever is added or
    removed meanwhile. Going back appends, it never renumbers; only starting over forgets offsets.
    """

    inode: int
    names: list[bytes] = field(default_factory=list)
    offset: int = 0  # where the listing stands
    cursor: bytes = b""  # the name given last; the page's rest follows it
    page: "Sequence[tuple[bytes, Entry]]" = ()
    position: int = 0  # in the page: the first entry not given yet
    ends: bool = False  # nothing follows the page
    loaded_s: float = 0.0  # when the page was fetched, on trio's clock
    fetching: bool = False  # the page is on its way
    stale_inodes: set[int] = field(default_factory=set)  # changed or recalled since it was asked for
    stale_names: set[bytes] = field(default_factory=set)

    def seek(self, offset: int) -> None:
        """Stand at an offset given earlier; 0 is the start. The page is kept when nothing moves."""
        if offset == self.offset and offset:
            return
        if offset == 0:
            self.names.clear()
        self.offset = min(offset, len(self.names))
        self.cursor = self.names[self.offset - 1] if self.offset else b""
        self.forget_page()

    def forget_page(self) -> None:
        """Have what follows the cursor fetched anew."""
        self.load((), ends=False, now_s=0.0)
        self.stale_inodes.clear()
        self.stale_names.clear()

    def note(self, inodes: Iterable[int], names: Iterable[bytes] = ()) -> None:
        """These inodes and names were changed or recalled: what the page at hand tells of them is old."""
        if self.used_up and not self.fetching:
            return  # the next page comes later
        self.stale_inodes.update(inodes)
        self.stale_names.update(names)
        if len(self.stale_inodes) + len(self.stale_names) > STALE_MAX and not self.fetching:
            self.forget_page()

    def is_stale(self, name: bytes, entry: "Entry") -> bool:
        """Whether that is so of an entry of the page."""
        return entry.attributes.inode in self.stale_inodes or name in self.stale_names

    def load(self, page: "Sequence[tuple[bytes, Entry]]", *, ends: bool, now_s: float) -> None:
        """Take the page that follows the cursor, just fetched."""
        self.page = page
        self.position = 0
        self.ends = ends
        self.loaded_s = now_s

    @property
    def used_up(self) -> bool:
        """Whether the page at hand has no entry left."""
        return self.position >= len(self.page)

    def next_offset(self) -> int:
        """The offset behind the entry to give next."""
        return len(self.names) + 1

    def advance(self, name: bytes) -> None:
        """The entry at `position` was given."""
        self.names.append(name)
        self.offset = len(self.names)
        self.cursor = name
        self.position += 1

    def cache_s(self, name: bytes, entry: "Entry", now_s: float) -> float:
        """How long the kernel may keep an entry of the page: not at all when it was recalled since."""
        if self.is_stale(name, entry):
            return 0.0
        return max(0.0, entry.cache_s - (now_s - self.loaded_s))


class HeldInodes:
    """Inodes of which the kernel holds something locked for a request that we have not answered yet.

    That is a directory during requests that name its entries, or pages of a file while they are
    read or written. An invalidation of what is locked waits for the answer.
    """

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._waiters: dict[int, trio.Event] = {}

    def __contains__(self, inode: int) -> bool:
        return inode in self._counts

    def hold(self, *inodes: int) -> "_Hold":
        """Hold them for the length of a `with` block."""
        return _Hold(self._counts, self._waiters, inodes)

    async def wait_held(self, inode: int) -> None:
        """Wait until a request holds the inode."""
        if inode in self._counts:
            return
        event = self._waiters.setdefault(inode, trio.Event())
        try:
            await event.wait()
        finally:
            if event.statistics().tasks_waiting == 0 and self._waiters.get(inode) is event:
                del self._waiters[inode]


class _Hold:
    __slots__ = ("_counts", "_inodes", "_waiters")

    def __init__(
        self, counts: dict[int, int], waiters: dict[int, trio.Event], inodes: tuple[int, ...]
    ) -> None:
        self._counts = counts
        self._waiters = waiters
        self._inodes = inodes

    def __enter__(self) -> None:
        for inode in self._inodes:
            self._counts[inode] = self._counts.get(inode, 0) + 1
            if inode in self._waiters:
                self._waiters.pop(inode).set()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for inode in self._inodes:
            left = self._counts[inode] - 1
            if left:
                self._counts[inode] = left
            else:
                del self._counts[inode]
