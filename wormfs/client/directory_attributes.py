"""Attributes of directories as our own changes in them left them.

The kernel drops a directory's attributes at each change in it and asks for them before the next one;
with what the change's reply told, that costs no question to the master.

Invariants: what is kept is covered by the lease it was told under, until its time is over or it is
recalled; and no change of ours in that directory was answered since. So only a change that was alone
in its directory from request to reply may leave anything here.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from wormfs.client.entries import Entry
from wormfs.rpc.v1 import types_pb2

KEPT_MAX = 1024


class DirectoryAttributes:
    """See the module. Times are in seconds of `clock_s`."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._kept: OrderedDict[int, tuple[types_pb2.Attributes, float]] = OrderedDict()  # and until when
        self._changing: dict[int, list[int]] = {}  # directory -> changes under way, changes since it was idle

    def get(self, inode: int) -> Entry | None:
        """The directory's attributes, and for how long they may be cached; None when they are not known."""
        found = self._kept.get(inode)
        if found is None:
            return None
        left_s = found[1] - self._clock_s()
        if left_s <= 0:
            del self._kept[inode]
            return None
        return Entry(found[0], left_s)

    @contextmanager
    def change(self, inode: int) -> Iterator[Callable[[types_pb2.Attributes, float], None]]:
        """A change in this directory; its body calls what it gets with what was told, and trust in s."""
        counts = self._changing.setdefault(inode, [0, 0])
        counts[0] += 1
        counts[1] += 1
        told: list[tuple[types_pb2.Attributes, float]] = []
        try:
            yield lambda attributes, trusted_s: told.append((attributes, trusted_s))
        finally:
            counts[0] -= 1
            if not counts[0]:
                del self._changing[inode]
            self._kept.pop(inode, None)
            if told and told[0][1] > 0 and counts[1] == 1:
                self._kept[inode] = (told[0][0], self._clock_s() + told[0][1])
                if len(self._kept) > KEPT_MAX:
                    self._kept.popitem(last=False)

    def drop(self, inode: int) -> None:
        """They were recalled, or changed in a way no reply told."""
        self._kept.pop(inode, None)

    def clear(self) -> None:
        """No lease can be trusted, or any of them may have changed."""
        self._kept.clear()
