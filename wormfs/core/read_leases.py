"""Read leases of one session, which lapse by themselves.

What a session caches of an inode it does not hold open is in its kernel, with timeouts that end
`lease_s` after the grant at the latest: then nothing is left to recall. Of an inode it holds open
it caches content too, without a timeout: that lease lasts until the inode is closed, and a lease's
length longer, for the kernel's sake.

Grants are kept in a few sets by age, so that granting a listing's thousand inodes is one set update
and forgetting them another. A lease is dropped at the first `age` of its set past its time, so it
lasts up to `BUCKETS`-th of `lease_s` and one call of `age` longer, never shorter.
"""

from collections import deque
from collections.abc import Collection, Iterable

BUCKETS = 4


class ReadLeases:
    """See the module. Times are in seconds of the caller's monotonic clock."""

    __slots__ = ("_fresh", "_held", "_sealed", "_sealed_s")

    def __init__(self) -> None:
        self._fresh: set[int] = set()
        self._sealed: deque[tuple[float, set[int]]] = deque()  # (all granted before, inodes), oldest first
        self._sealed_s = 0.0
        self._held: set[int] = set()  # open ones: they do not lapse

    def __contains__(self, inode: int) -> bool:
        return (
            inode in self._fresh or inode in self._held or any(inode in inodes for _, inodes in self._sealed)
        )

    def __len__(self) -> int:
        """An upper bound: an inode granted at several times may count as often."""
        return len(self._fresh) + len(self._held) + sum(len(inodes) for _, inodes in self._sealed)

    def grant(self, inodes: Iterable[int], opens: Collection[int]) -> None:
        """Grant them now; those in `opens` until they are closed."""
        if opens:
            inodes = tuple(inodes)
            self._held.update(inode for inode in inodes if inode in opens)
        self._fresh.update(inodes)

    def opened(self, inode: int) -> None:
        """What is held of the inode lasts until it is closed."""
        if inode in self:
            self._held.add(inode)

    def closed(self, inode: int) -> None:
        """It begins to age."""
        if inode in self._held:
            self._held.discard(inode)
            self._fresh.add(inode)

    def end(self, inode: int) -> None:
        """Nothing is cached any more."""
        self._fresh.discard(inode)
        self._held.discard(inode)
        for _, inodes in self._sealed:
            inodes.discard(inode)

    def age(self, now_s: float, lease_s: float) -> None:
        """Drop what has lapsed; to be called several times in `lease_s`."""
        if self._fresh and now_s - self._sealed_s >= lease_s / BUCKETS:
            self._sealed.append((now_s, self._fresh))
            self._sealed_s = now_s
            self._fresh = set()
        while self._sealed and self._sealed[0][0] + lease_s <= now_s:
            self._sealed.popleft()
