"""What each request of the Metadata service tells its session, and which leases it is about."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from wormfs.rpc import methods as m

Told = Callable[[Any, Any], Iterable[int]]


@dataclass(frozen=True, slots=True)
class Rule:
    """How a method is served. `told`: the inodes a reply tells the session about.

    `asked`: those the session learns about even from a NotFoundError. `exclusive`: the inode whose
    write lease the request takes, 0 for none.
    """

    told: Told
    changes: bool = True
    asked: Callable[[Any], Iterable[int]] | None = None
    exclusive: Callable[[Any], int] | None = None
    opens: bool = False
    needs_lease: bool = False
    names: bool = False  # it changes names: the reply tells what became of their directories
    cached: bool = True  # the session may cache what it is told


def _told_inode(request: Any, _: Any) -> Iterable[int]:
    return (request.inode,)


def _told_lookup(request: Any, reply: Any) -> Iterable[int]:
    return (request.parent, reply.attributes.inode)


def _told_listing(request: Any, reply: Any) -> Iterable[int]:
    if not request.want_attributes:
        return (request.inode,)
    return (request.inode, *[entry.attributes.inode for entry in reply.entries])


def _told_rename(request: Any, _: Any) -> Iterable[int]:
    return (request.parent, request.new_parent)


def _told_parent(request: Any, _: Any) -> Iterable[int]:
    return (request.parent,)


def _asked_parent(request: Any) -> Iterable[int]:
    return (request.parent,)


def _inode_if_write(request: Any) -> int:
    return int(request.inode) if request.write else 0


_QUERY = Rule(_told_inode, changes=False)
_UNCACHED = Rule(_told_inode, changes=False, cached=False)
CHANGE = Rule(_told_inode)
MAKE_NODE = Rule(_told_lookup, opens=True, names=True)
TAKE_LEASE = Rule(_told_inode, exclusive=lambda request: int(request.inode))
RULES: tuple[tuple[m.Method[Any, Any], Rule], ...] = (
    (m.METADATA_LOOKUP, Rule(_told_lookup, changes=False, asked=_asked_parent)),
    (m.METADATA_GET_ATTR, _QUERY),
    (m.METADATA_READ_DIR, Rule(_told_listing, changes=False)),
    (m.METADATA_READ_LINK, _QUERY),
    (m.METADATA_GET_XATTR, _UNCACHED),
    (m.METADATA_LIST_XATTRS, _UNCACHED),
    (m.METADATA_GET_FILE_MAP, _QUERY),
    (m.METADATA_SET_ATTR, CHANGE),
    (m.METADATA_SET_XATTR, CHANGE),
    (m.METADATA_REMOVE_XATTR, CHANGE),
    (m.METADATA_LINK, Rule(lambda request, _: (request.inode, request.parent))),
    (m.METADATA_RENAME, Rule(_told_rename, names=True)),
    (m.METADATA_UNLINK, Rule(_told_parent, asked=_asked_parent, names=True)),
    (m.METADATA_REMOVE_DIR, Rule(_told_parent, asked=_asked_parent, names=True)),
    (m.METADATA_OPEN_FILE, Rule(_told_inode, exclusive=_inode_if_write, opens=True)),
    (m.METADATA_ACQUIRE_WRITE_LEASE, TAKE_LEASE),
    (m.METADATA_COMMIT_WRITE, Rule(_told_inode, needs_lease=True)),
)
