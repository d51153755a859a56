"""A namespace as simple as it can be: what each operation must answer. Knows nothing of WormFS's code.

Directories are few and known; names lie in them. Operations and their results:

  create(parent, name, is_dir, exclusive, mode) -> (inode, made)
  link(inode, parent, name) -> (links,)         unlink(parent, name), rmdir(parent, name) -> ()
  rename(parent, name, new_parent, new_name, flags) -> ()    flags: 0, 1 no replace, 2 exchange
  setattr(inode, mode) -> (mode, links)         getattr(inode) -> (mode, links)
  lookup(parent, name) -> (inode, mode, links)  list(parent) -> ((name, inode), ...)

An error is ("error", kind). A create nobody heard the answer of makes an inode without a number;
the first operation that shows it gives it one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from wormfs.sim.history import Operation

NO_REPLACE, EXCHANGE = 1, 2
Result = tuple[object, ...]
NO_SPACE: Result = ("error", "NoSpaceError")
"""May be the answer to anything, and nothing was done then: a node's disk was full."""


GONE: Result = ("error", "StaleError")


class Inode(NamedTuple):
    """A file or an empty directory; an inode without links can still be asked for."""

    is_dir: bool
    mode: int
    links: int


Key = int | str  # an inode's number, or a stand-in while nobody knows it


class Names(NamedTuple):
    """One state. Never changed in place."""

    entries: dict[tuple[int, bytes], Key]
    inodes: dict[Key, Inode]

    def key(self) -> tuple[object, ...]:
        """Equal for equal states, and hashable."""
        return frozenset(self.entries.items()), frozenset(self.inodes.items())


def initial(directories: tuple[int, ...]) -> Names:
    """Empty directories under these numbers, which are never renamed or removed."""
    return Names({}, {})._replace(inodes={number: Inode(True, 0o755, 0) for number in directories})


def _error(kind: str) -> Result:
    return ("error", kind)


def _links(inode: Inode) -> int:
    """Of directories we do not count: 0."""
    return 0 if inode.is_dir else inode.links


def _put(state: Names, key: Key, inode: Inode) -> Names:
    return state._replace(inodes={**state.inodes, key: inode})


def _name(state: Names, place: tuple[int, bytes], key: Key | None) -> Names:
    entries = dict(state.entries)
    if key is None:
        del entries[place]
    else:
        entries[place] = key
    return state._replace(entries=entries)


def _known(state: Names, key: Key, number: object) -> Names | None:
    """The state in which `key` turned out to be inode `number`; None when it cannot be."""
    if key == number:
        return state
    if isinstance(key, int) or not isinstance(number, int) or number in state.inodes:
        return None
    inodes = {number if each == key else each: inode for each, inode in state.inodes.items()}
    entries = {place: number if each == key else each for place, each in state.entries.items()}
    return Names(entries, inodes)


Step = Callable[..., tuple[Names | None, Result]]


def _create(
    state: Names,
    told: Result,
    stand_in: str,
    parent: int,
    name: bytes,
    is_dir: bool,
    exclusive: bool,
    mode: int,
) -> tuple[Names | None, Result]:
    found = state.entries.get((parent, name))
    if found is not None:
        if exclusive or is_dir:
            return state, _error("ExistsError")
        if state.inodes[found].is_dir:
            return state, _error("IsADirectoryWormError")
        number = told[0] if told else found
        return (_known(state, found, number) if told else state), (number, False)
    number = told[0] if told and told[0] != "error" else stand_in
    if number in state.inodes or not isinstance(number, int | str):
        return None, ()  # an inode's number is given once
    made = _name(_put(state, number, Inode(is_dir, mode, 1)), (parent, name), number)
    return made, (number, True)


def _link(
    state: Names, _: Result, __: str, inode: int, parent: int, name: bytes
) -> tuple[Names | None, Result]:
    row = state.inodes[inode]
    if (parent, name) in state.entries:
        return state, _error("ExistsError")
    if row.is_dir:
        return state, _error("NotPermittedError")
    if not row.links:
        return state, _error("NotFoundError")
    more = row._replace(links=row.links + 1)
    return _name(_put(state, inode, more), (parent, name), inode), (more.links,)


def _unlink(state: Names, _: Result, __: str, parent: int, name: bytes) -> tuple[Names | None, Result]:
    found = state.entries.get((parent, name))
    if found is None:
        return state, _error("NotFoundError")
    row = state.inodes[found]
    if row.is_dir:
        return state, _error("IsADirectoryWormError")
    return _name(_put(state, found, row._replace(links=row.links - 1)), (parent, name), None), ()


def _rmdir(state: Names, _: Result, __: str, parent: int, name: bytes) -> tuple[Names | None, Result]:
    found = state.entries.get((parent, name))
    if found is None:
        return state, _error("NotFoundError")
    row = state.inodes[found]
    if not row.is_dir:
        return state, _error("NotDirectoryError")
    return _name(_put(state, found, row._replace(links=0)), (parent, name), None), ()


def _rename(
    state: Names, _: Result, __: str, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int
) -> tuple[Names | None, Result]:
    old, new = (parent, name), (new_parent, new_name)
    moved, over = state.entries.get(old), state.entries.get(new)
    if moved is None:
        return state, _error("NotFoundError")
    if over is not None and flags == NO_REPLACE:
        return state, _error("ExistsError")
    if over is None and flags == EXCHANGE:
        return state, _error("NotFoundError")
    if moved == over:
        return state, ()
    if over is not None and flags == EXCHANGE:
        return _name(_name(state, old, over), new, moved), ()
    if over is not None:
        row, lost = state.inodes[moved], state.inodes[over]
        if row.is_dir != lost.is_dir:
            return state, _error("NotDirectoryError" if row.is_dir else "IsADirectoryWormError")
        state = _put(state, over, lost._replace(links=lost.links - 1))
    return _name(_name(state, old, None), new, moved), ()


def _setattr(state: Names, _: Result, __: str, inode: int, mode: int) -> tuple[Names | None, Result]:
    row = state.inodes[inode]._replace(mode=mode)
    return _put(state, inode, row), (mode, _links(row))


def _getattr(state: Names, _: Result, __: str, inode: int) -> tuple[Names | None, Result]:
    row = state.inodes[inode]
    return state, (row.mode, _links(row))


def _lookup(state: Names, told: Result, __: str, parent: int, name: bytes) -> tuple[Names | None, Result]:
    found = state.entries.get((parent, name))
    if found is None:
        return state, _error("NotFoundError")
    row = state.inodes[found]
    if not told or told[0] == "error":
        return state, (found, row.mode, _links(row))
    return _known(state, found, told[0]), (told[0], row.mode, _links(row))


def _list(state: Names, told: Result, __: str, parent: int) -> tuple[Names | None, Result]:
    here = sorted((name, key) for (holder, name), key in state.entries.items() if holder == parent)
    after: Names | None = state
    numbers: dict[Any, Any] = dict(told) if told and told[0] != "error" else {}  # type: ignore[arg-type]
    for name, key in here:
        if after is not None:
            after = _known(after, key, numbers.get(name, key))
    return after, tuple((name, numbers.get(name, key)) for name, key in here)


_STEPS: dict[str, Step] = {
    "create": _create,
    "link": _link,
    "unlink": _unlink,
    "rmdir": _rmdir,
    "rename": _rename,
    "setattr": _setattr,
    "getattr": _getattr,
    "lookup": _lookup,
    "list": _list,
}


def step(state: Names, operation: Operation, told: Result, stand_in: str) -> Names | None:
    """The state after an operation that was answered so (`told` empty: nobody heard the answer).

    None: it cannot have been answered so in this state.
    """
    if told == NO_SPACE:
        return state
    if operation.kind in ("link", "setattr", "getattr"):
        row = state.inodes.get(operation.arguments[0])  # type: ignore[call-overload]
        if told == GONE:  # without links it is freed some time; or its number was lost with its client
            return state if row is None or not row.links else None
        if row is None:
            return None  # its number was told by an operation that is not done yet
    after, result = _STEPS[operation.kind](state, told, stand_in, *operation.arguments)
    if after is None or (told and result != told):
        return None
    if not told and result and result[0] == "error":
        return state
    return after
