"""What is known of directories without asking: their attributes, and which names they do not have.

The kernel drops a directory's attributes at each change in it and asks for them before the next one;
it also looks a name up before it makes or moves something there. Both questions need no master:

- *attributes* come with the replies to our own changes;
- *names*: of a directory that we made, or listed as a whole, we know every name it may have, as long
  as we put in what we add ourselves.

Invariants: what is kept is covered by the lease it was told under, until its time is over or it is
recalled. No change of ours in that directory was answered since the attributes were told, so only a
change that was alone in its directory from request to reply may leave any. The names kept are those
that may exist, never fewer: one is put in before its request leaves, and taken out only by a removal
that was alone.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from wormfs.client.entries import Entry
from wormfs.rpc.v1 import types_pb2

KEPT_MAX = 1024
"""Directories of each kind."""
NAMES_MAX_BYTES = 32 << 20
"""Of all directories together, as Python keeps them."""
_NAME_BYTES = 100  # a bytes object, and its place in a set that is never less than a quarter full
_SMALL_NAMES = 64


@dataclass(slots=True)
class _Names:
    until_s: float
    names: set[bytes] = field(default_factory=set)
    bytes: int = 0
    most: int = 0  # names there were since `names` was made: a set never shrinks


class KnownDirectories:
    """See the module. Times are in seconds of `clock_s`."""

    def __init__(self, clock_s: Callable[[], float], *, names: bool) -> None:
        """`names`: whether they are kept; only where changes in a directory come one after the other."""
        self._clock_s = clock_s
        self._keeps_names = names
        self._attributes: OrderedDict[int, tuple[types_pb2.Attributes, float]] = OrderedDict()  # until when
        self._names: OrderedDict[int, _Names] = OrderedDict()
        self._name_bytes = 0
        self._busy: dict[int, list[int]] = {}  # directory -> requests under way, requests since it was idle

    # --- asking -------------------------------------------------------------------------------

    def attributes(self, inode: int) -> Entry | None:
        """The directory's attributes, and for how long they may be cached; None when they are not known."""
        found = self._attributes.get(inode)
        if found is None:
            return None
        left_s = found[1] - self._clock_s()
        if left_s <= 0:
            del self._attributes[inode]
            return None
        return Entry(found[0], left_s)

    def lacks(self, inode: int, name: bytes) -> bool:
        """Whether the directory surely has no such name now."""
        known = self._names.get(inode)
        if known is None or name in known.names:
            return False
        if known.until_s <= self._clock_s():
            self._drop_names(inode)
            return False
        return True

    # --- learning -----------------------------------------------------------------------------

    def change(self, inode: int, *, adds: bytes = b"", removes: bytes = b"") -> "Change":
        """A block around a change in the directory, which may add a name or remove one."""
        return Change(self, inode, adds, removes)

    def listing(self, inode: int) -> "Listing":
        """A block around a request that lists all of the directory."""
        return Listing(self, inode)

    def made(self, inode: int, trusted_s: float) -> None:
        """We made the directory: it has no names."""
        if inode not in self._busy:
            self._keep_names(inode, (), trusted_s)

    def drop(self, inode: int) -> None:
        """Its lease was recalled."""
        self.drop_attributes(inode)
        self._drop_names(inode)

    def drop_attributes(self, inode: int) -> None:
        """A change elsewhere was a change of its attributes as well."""
        self._attributes.pop(inode, None)
        counts = self._busy.get(inode)
        if counts is not None:
            counts[1] += 1  # nobody there is alone

    def drop_all_attributes(self) -> None:
        """Those of any directory may have changed."""
        self._attributes.clear()
        for counts in self._busy.values():
            counts[1] += 1

    def clear(self) -> None:
        """No lease can be trusted."""
        self.drop_all_attributes()
        self._names.clear()
        self._name_bytes = 0

    # --- what Change and Listing do -----------------------------------------------------------

    def _enter(self, inode: int) -> None:
        counts = self._busy.setdefault(inode, [0, 0])
        counts[0] += 1
        counts[1] += 1

    def _leave(self, inode: int) -> bool:
        """Whether it was alone all the time."""
        counts = self._busy[inode]
        counts[0] -= 1
        if not counts[0]:
            del self._busy[inode]
        return counts[1] == 1

    def _keep_attributes(self, attributes: types_pb2.Attributes, trusted_s: float) -> None:
        self._attributes[attributes.inode] = (attributes, self._clock_s() + trusted_s)
        self._attributes.move_to_end(attributes.inode)
        if len(self._attributes) > KEPT_MAX:
            self._attributes.popitem(last=False)

    def _keep_names(self, inode: int, names: Iterable[bytes], trusted_s: float) -> None:
        self._drop_names(inode)
        if trusted_s > 0 and self._keeps_names:
            known = self._names[inode] = _Names(self._clock_s() + trusted_s, set(names))
            known.most = len(known.names)
            known.bytes = sum(len(name) + _NAME_BYTES for name in known.names)
            self._name_bytes += known.bytes
            self._limit_names()

    def _prolong_names(self, inode: int, trusted_s: float) -> None:
        known = self._names.get(inode)
        now_s = self._clock_s()
        if known is not None and trusted_s > 0 and known.until_s > now_s:
            known.until_s = now_s + trusted_s
            self._names.move_to_end(inode)

    def _add_name(self, inode: int, name: bytes) -> None:
        known = self._names.get(inode)
        if known is not None and name not in known.names:
            known.names.add(name)
            known.most = max(known.most, len(known.names))
            self._count(known, len(name) + _NAME_BYTES)
            self._limit_names()

    def _remove_name(self, inode: int, name: bytes) -> None:
        known = self._names.get(inode)
        if known is not None and name in known.names:
            known.names.remove(name)
            self._count(known, -len(name) - _NAME_BYTES)
            if known.most > max(_SMALL_NAMES, 4 * len(known.names)):
                known.names = set(known.names)
                known.most = len(known.names)

    def _drop_names(self, inode: int) -> None:
        known = self._names.pop(inode, None)
        if known is not None:
            self._name_bytes -= known.bytes

    def _count(self, known: _Names, size_bytes: int) -> None:
        known.bytes += size_bytes
        self._name_bytes += size_bytes

    def _limit_names(self) -> None:
        """Drop those that were not used for long: some that are over, all that are too many."""
        oldest = next(iter(self._names.values()))
        while (
            len(self._names) > KEPT_MAX
            or self._name_bytes > NAMES_MAX_BYTES
            or oldest.until_s <= self._clock_s()
        ):
            self._name_bytes -= self._names.popitem(last=False)[1].bytes
            if not self._names:
                return
            oldest = next(iter(self._names.values()))


class Change:
    """A change under way. `told` what its reply says, it leaves that behind; else nothing."""

    __slots__ = ("_adds", "_attributes", "_directories", "_inode", "_removes", "_told", "_trusted_s")

    def __init__(self, directories: KnownDirectories, inode: int, adds: bytes, removes: bytes) -> None:
        self._directories = directories
        self._inode = inode
        self._adds = adds
        self._removes = removes
        self._told = False
        self._attributes: types_pb2.Attributes | None = None
        self._trusted_s = 0.0

    def told(self, trusted_s: float, attributes: types_pb2.Attributes | None = None) -> None:
        """It was done. What the reply says, the directory's attributes too, may be trusted so long."""
        self._told = True
        self._trusted_s = trusted_s
        self._attributes = attributes

    def __enter__(self) -> "Change":
        self._directories._enter(self._inode)
        if self._adds:
            self._directories._add_name(self._inode, self._adds)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        directories, inode = self._directories, self._inode
        alone = directories._leave(inode)
        directories._attributes.pop(inode, None)
        if not self._told:
            return
        if alone and self._attributes is not None and self._trusted_s > 0:
            directories._keep_attributes(self._attributes, self._trusted_s)
        if alone and self._removes:
            directories._remove_name(inode, self._removes)
        directories._prolong_names(inode, self._trusted_s)


class Listing:
    """A listing under way. `told` that it is whole, it leaves the names behind."""

    __slots__ = ("_directories", "_inode", "_names", "_trusted_s")

    def __init__(self, directories: KnownDirectories, inode: int) -> None:
        self._directories = directories
        self._inode = inode
        self._names: Sequence[bytes] = ()
        self._trusted_s = 0.0

    def told(self, names: Sequence[bytes], trusted_s: float) -> None:
        """These are all names there are."""
        self._names = names
        self._trusted_s = trusted_s

    def __enter__(self) -> "Listing":
        self._directories._enter(self._inode)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._directories._leave(self._inode) and self._trusted_s > 0:
            self._directories._keep_names(self._inode, self._names, self._trusted_s)
