"""Namespace rules: pure functions from a view of the state and a command to events.

Errnos, and the order in which they are found, are Linux's (fs/namei.c). Times, link counts and
set-gid inheritance are what ext4 does. Who may do what is the kernel's business
(default_permissions): nothing here asks for the caller's identity.
"""

import stat

from wormfs.core.content import plan_truncate
from wormfs.core.errors import (
    ExistsError,
    InvalidError,
    IsADirectoryWormError,
    NameTooLongError,
    NotDirectoryError,
    NotEmptyError,
    NotFoundError,
    NotPermittedError,
    NoXattrError,
    RangeError,
    StaleError,
    TooLargeError,
    TooManyLinksError,
)
from wormfs.core.events import (
    AttributesSet,
    EntryLinked,
    EntryRemoved,
    EntryRenamed,
    Event,
    FileTruncated,
    InodeMade,
    XattrRemoved,
    XattrSet,
)
from wormfs.core.limits import (
    FILE_SIZE_MAX_BYTES,
    LINK_MAX,
    NAME_MAX_BYTES,
    ROOT_INODE,
    TARGET_MAX_BYTES,
    XATTR_NAME_MAX_BYTES,
    XATTR_VALUE_MAX_BYTES,
)
from wormfs.core.records import Inode
from wormfs.core.state import At, Decision, StateView, Touch

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
XATTR_CREATE = 1
XATTR_REPLACE = 2

_TYPES = frozenset(
    (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
)
_PERMISSIONS = 0o7777


def check_name(name: bytes) -> None:
    """Check an entry's name: 1 to 255 bytes, no '/' or NUL, not '.' or '..'.

    Raises NameTooLongError, NotFoundError (empty), InvalidError.
    """
    if len(name) > NAME_MAX_BYTES:
        raise NameTooLongError(f"a name of {len(name)} bytes; at most {NAME_MAX_BYTES}")
    if not name:
        raise NotFoundError("an empty name names nothing")
    if b"/" in name or b"\0" in name or name in (b".", b".."):
        raise InvalidError(f"{name!r} cannot name an entry")


def existing_inode(view: StateView, inode: int) -> Inode:
    """The inode's row; StaleError when it is gone."""
    row = view.inode(inode)
    if row is None:
        raise StaleError(f"inode {inode} does not exist any more")
    return row


def directory(view: StateView, inode: int) -> Inode:
    """The row of a directory in which entries may be looked up.

    Raises NotFoundError when it was removed (as Linux answers inside a removed directory),
    NotDirectoryError.
    """
    row = view.inode(inode)
    if row is None:
        raise NotFoundError(f"directory {inode} was removed")
    if not row.is_dir:
        raise NotDirectoryError(f"inode {inode} is not a directory")
    return row


def _child(view: StateView, parent: int, name: bytes) -> Inode:
    inode = view.entry(parent, name)
    row = None if inode is None else view.inode(inode)
    if row is None:
        raise NotFoundError(f"no entry {name!r} in directory {parent}")
    return row


def made_inode(event: InodeMade, at: At) -> Inode:
    """The row that an InodeMade brings into being."""
    is_dir = event.mode & 0o170000 == stat.S_IFDIR
    return Inode(
        event.inode,
        event.parent if is_dir else 0,
        event.mode,
        2 if is_dir else 1,
        event.uid,
        event.gid,
        event.rdev,
        len(event.target),
        0,
        at.time_ns,
        at.time_ns,
        at.time_ns,
        at.sequence,
        event.stripe_size_bytes,
        event.target,
    )


def root_inode(stripe_size_bytes: int, at: At) -> Inode:
    """The root directory as a new cluster has it."""
    event = InodeMade(ROOT_INODE, ROOT_INODE, b"", stat.S_IFDIR | 0o755, 0, 0, 0, b"", stripe_size_bytes)
    return made_inode(event, at)


def relinked(row: Inode, link_delta: int, at: At) -> Inode:
    """An inode that gained or lost names; a directory has one name, so losing it leaves no link."""
    nlink = 0 if row.is_dir and link_delta < 0 else row.nlink + link_delta
    return row._replace(nlink=nlink, ctime_ns=at.time_ns, change=at.sequence)


def entries_changed(row: Inode, subdirectory_delta: int, at: At) -> Inode:
    """A directory whose entries changed."""
    return row._replace(
        nlink=row.nlink + subdirectory_delta, mtime_ns=at.time_ns, ctime_ns=at.time_ns, change=at.sequence
    )


def attributes_set(row: Inode, event: AttributesSet, at: At) -> Inode:
    """An inode after AttributesSet."""
    return row._replace(
        mode=row.mode if event.mode is None else event.mode,
        uid=row.uid if event.uid is None else event.uid,
        gid=row.gid if event.gid is None else event.gid,
        atime_ns=row.atime_ns if event.atime_ns is None else event.atime_ns,
        mtime_ns=row.mtime_ns if event.mtime_ns is None else event.mtime_ns,
        ctime_ns=event.ctime_ns,
        change=at.sequence,
    )


def _existing_node(view: StateView, parent: int, name: bytes, found: int, *, may_open: bool) -> Decision:
    row = existing_inode(view, found)
    if may_open and row.is_file:
        return Decision((), row)
    if may_open and row.is_dir:
        raise IsADirectoryWormError(f"{name!r} in directory {parent} is a directory")
    raise ExistsError(f"{name!r} in directory {parent} exists")


def decide_make_node(
    view: StateView,
    at: At,
    *,
    parent: int,
    name: bytes,
    mode: int,
    uid: int,
    gid: int,
    rdev: int = 0,
    target: bytes = b"",
    exclusive: bool = True,
) -> Decision:
    """Make a file, directory, symlink or special file; without `exclusive` answer an existing file."""
    holder = directory(view, parent)
    check_name(name)
    kind = stat.S_IFMT(mode) or stat.S_IFREG
    if kind not in _TYPES:
        raise InvalidError(f"mode {mode:o} has no known file type")
    if kind == stat.S_IFLNK:
        _check_target(target)
    elif target:
        raise InvalidError("only a symlink has a target")
    found = view.entry(parent, name)
    if found is not None:
        may_open = not exclusive and kind == stat.S_IFREG
        return _existing_node(view, parent, name, found, may_open=may_open)
    if not holder.nlink:
        raise NotFoundError(f"directory {parent} was removed")
    bits = mode & _PERMISSIONS
    if holder.mode & stat.S_ISGID:
        gid = holder.gid
        if kind == stat.S_IFDIR:
            bits |= stat.S_ISGID
    if kind not in (stat.S_IFCHR, stat.S_IFBLK):
        rdev = 0
    stripe_size = view.policy.stripe_size_bytes
    event = InodeMade(view.next_inode, parent, name, kind | bits, uid, gid, rdev, target, stripe_size)
    return Decision((event,), made_inode(event, at), (Touch(parent, (name,)),), True)


def _check_target(target: bytes) -> None:
    if not target:
        raise NotFoundError("a symlink's target cannot be empty")
    if len(target) > TARGET_MAX_BYTES:
        raise NameTooLongError(f"a target of {len(target)} bytes; at most {TARGET_MAX_BYTES}")
    if b"\0" in target:
        raise InvalidError("a symlink's target cannot hold a NUL")


def decide_link(view: StateView, at: At, *, inode: int, parent: int, name: bytes) -> Decision:
    """Give an inode one more name."""
    row = existing_inode(view, inode)
    holder = directory(view, parent)
    check_name(name)
    if view.entry(parent, name) is not None:
        raise ExistsError(f"{name!r} in directory {parent} exists")
    if not holder.nlink:
        raise NotFoundError(f"directory {parent} was removed")
    if row.is_dir:
        raise NotPermittedError(f"inode {inode} is a directory: it has one name")
    if not row.nlink:
        raise NotFoundError(f"inode {inode} has no name left to link from")
    if row.nlink >= LINK_MAX:
        raise TooManyLinksError(f"inode {inode} has {LINK_MAX} links already")
    event = EntryLinked(inode, parent, name)
    return Decision((event,), relinked(row, 1, at), (Touch(parent, (name,)), Touch(inode)))


def decide_unlink(view: StateView, at: At, *, parent: int, name: bytes) -> Decision:
    """Remove a name of anything but a directory."""
    directory(view, parent)
    check_name(name)
    row = _child(view, parent, name)
    if row.is_dir:
        raise IsADirectoryWormError(f"{name!r} in directory {parent} is a directory")
    event = EntryRemoved(parent, name, row.inode)
    return Decision((event,), relinked(row, -1, at), (Touch(parent, (name,)), Touch(row.inode)))


def decide_remove_dir(view: StateView, at: At, *, parent: int, name: bytes) -> Decision:
    """Remove an empty directory."""
    directory(view, parent)
    check_name(name)
    row = _child(view, parent, name)
    if not row.is_dir:
        raise NotDirectoryError(f"{name!r} in directory {parent} is not a directory")
    if view.has_entries(row.inode):
        raise NotEmptyError(f"directory {name!r} in directory {parent} has entries")
    event = EntryRemoved(parent, name, row.inode)
    return Decision((event,), relinked(row, -1, at), (Touch(parent, (name,)), Touch(row.inode)))


def _is_within(view: StateView, inode: int, ancestor: int) -> bool:
    """Whether directory `inode` is `ancestor` or lies below it."""
    while inode != ancestor:
        row = view.inode(inode)
        if row is None or row.parent == inode:
            return False
        inode = row.parent
    return True


def decide_rename(
    view: StateView, at: At, *, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0
) -> Decision:
    """Move an entry, over an existing one unless NOREPLACE, or swap two with EXCHANGE."""
    exchange = bool(flags & RENAME_EXCHANGE)
    if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
        raise InvalidError(f"rename flags {flags}: NOREPLACE (1) or EXCHANGE (2), not both")
    directory(view, parent)
    holder = directory(view, new_parent)
    check_name(name)
    row = _child(view, parent, name)
    check_name(new_name)
    found = view.entry(new_parent, new_name)
    replaced = None if found is None else existing_inode(view, found)
    if replaced is not None and flags & RENAME_NOREPLACE:
        raise ExistsError(f"{new_name!r} in directory {new_parent} exists")
    if replaced is None and (exchange or not holder.nlink):
        raise NotFoundError(f"no entry {new_name!r} in directory {new_parent}")
    if parent != new_parent:
        if row.is_dir and _is_within(view, new_parent, row.inode):
            raise InvalidError(f"directory {row.inode} cannot move into itself")
        if replaced is not None and replaced.is_dir and _is_within(view, parent, replaced.inode):
            if exchange:
                raise InvalidError(f"directory {replaced.inode} cannot move into itself")
            raise NotEmptyError(f"directory {replaced.inode} holds the renamed entry")
    if replaced is not None:
        if replaced.inode == row.inode:
            return Decision((), row)
        if not exchange:
            _check_replaceable(view, row, replaced)
    event = EntryRenamed(
        parent, name, new_parent, new_name, row.inode, replaced.inode if replaced else 0, exchange
    )
    touched = [Touch(parent, (name,)), Touch(new_parent, (new_name,)), Touch(row.inode)]
    if parent == new_parent:
        touched[:2] = [Touch(parent, (name, new_name))]
    if replaced is not None:
        touched.append(Touch(replaced.inode))
    after = row._replace(parent=new_parent if row.is_dir else 0, ctime_ns=at.time_ns, change=at.sequence)
    return Decision((event,), after, tuple(touched))


def _check_replaceable(view: StateView, row: Inode, replaced: Inode) -> None:
    if row.is_dir and not replaced.is_dir:
        raise NotDirectoryError(f"directory {row.inode} cannot replace inode {replaced.inode}, which is none")
    if replaced.is_dir and not row.is_dir:
        raise IsADirectoryWormError(f"inode {row.inode} cannot replace directory {replaced.inode}")
    if replaced.is_dir and view.has_entries(replaced.inode):
        raise NotEmptyError(f"directory {replaced.inode} has entries")


def decide_set_attr(
    view: StateView,
    at: At,
    *,
    inode: int,
    mode: int | None = None,
    uid: int | None = None,
    gid: int | None = None,
    size_bytes: int | None = None,
    atime_ns: int | None = None,
    mtime_ns: int | None = None,
    ctime_ns: int | None = None,
) -> Decision:
    """Set what is given; a size cuts or extends, and sets mtime unless that is given too."""
    row = existing_inode(view, inode)
    events: list[Event] = []
    change = None
    if size_bytes is not None:
        check_size(row, size_bytes)
        cut = FileTruncated(inode, size_bytes, at.time_ns if mtime_ns is None else mtime_ns)
        events.append(cut)
        change = plan_truncate(view, row, cut, at)
        row = change.inode
    if any(value is not None for value in (mode, uid, gid, atime_ns, ctime_ns)) or (
        mtime_ns is not None and size_bytes is None
    ):
        if mode is not None:
            mode = stat.S_IFMT(row.mode) | mode & _PERMISSIONS
        changed = at.time_ns if ctime_ns is None else ctime_ns
        event = AttributesSet(inode, mode, uid, gid, atime_ns, mtime_ns, changed)
        events.append(event)
        row = attributes_set(row, event, at)
    if not events:
        return Decision((), row)
    touched = (Touch(inode, (), True, size_bytes is not None),)
    return Decision(tuple(events), row, touched, change=change)


def check_size(row: Inode, size_bytes: int) -> None:
    """Check that an inode may be cut or extended to a size."""
    check_content(row)
    if size_bytes > FILE_SIZE_MAX_BYTES:
        raise TooLargeError(f"inode {row.inode}: no file may reach past {FILE_SIZE_MAX_BYTES} bytes")


def check_content(row: Inode) -> None:
    """Check that an inode has content: IsADirectoryWormError, InvalidError for symlinks and specials."""
    if row.is_dir:
        raise IsADirectoryWormError(f"inode {row.inode} is a directory")
    if not row.is_file:
        raise InvalidError(f"inode {row.inode} is not a regular file")


def _check_xattr_name(name: bytes) -> None:
    if not name or len(name) > XATTR_NAME_MAX_BYTES or b"\0" in name:
        raise RangeError(f"an attribute name of {len(name)} bytes; 1 to {XATTR_NAME_MAX_BYTES}, no NUL")


def decide_set_xattr(
    view: StateView, at: At, *, inode: int, name: bytes, value: bytes, flags: int = 0
) -> Decision:
    """Set an extended attribute."""
    row = existing_inode(view, inode)
    _check_xattr_name(name)
    if len(value) > XATTR_VALUE_MAX_BYTES:
        raise RangeError(f"an attribute value of {len(value)} bytes; at most {XATTR_VALUE_MAX_BYTES}")
    if flags & ~(XATTR_CREATE | XATTR_REPLACE):
        raise InvalidError(f"xattr flags {flags}: CREATE (1) or REPLACE (2)")
    exists = view.xattr(inode, name) is not None
    if exists and flags & XATTR_CREATE:
        raise ExistsError(f"inode {inode} has an attribute {name!r}")
    if not exists and flags & XATTR_REPLACE:
        raise NoXattrError(f"inode {inode} has no attribute {name!r}")
    after = row._replace(ctime_ns=at.time_ns, change=at.sequence)
    return Decision((XattrSet(inode, name, value),), after, (Touch(inode),))


def decide_remove_xattr(view: StateView, at: At, *, inode: int, name: bytes) -> Decision:
    """Remove an extended attribute."""
    row = existing_inode(view, inode)
    _check_xattr_name(name)
    if view.xattr(inode, name) is None:
        raise NoXattrError(f"inode {inode} has no attribute {name!r}")
    after = row._replace(ctime_ns=at.time_ns, change=at.sequence)
    return Decision((XattrRemoved(inode, name),), after, (Touch(inode),))
