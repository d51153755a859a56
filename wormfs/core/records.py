"""Rows of the metadata state as the rules see them.

Named tuples, not dataclasses: they are made by the thousand straight from database rows.
Field order is the column order of wormfs/metadata/schema.py.
"""

import stat
from typing import NamedTuple


class Inode(NamedTuple):
    """One inode. Times are nanoseconds since 1970 UTC."""

    inode: int
    parent: int  # of a directory: the directory that holds it (its '..'); else 0
    mode: int  # type and permission bits, as st_mode
    nlink: int  # 0: an orphan
    uid: int
    gid: int
    rdev: int
    size_bytes: int
    allocated_bytes: int  # valid bytes of its stripes + bytes of its extents
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    change: int  # sequence of the last log entry that changed it
    stripe_size_bytes: int
    target: bytes  # of a symlink; else empty

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return self.mode & 0o170000 == stat.S_IFDIR

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return self.mode & 0o170000 == stat.S_IFREG


class Stripe(NamedTuple):
    """One stripe of a file; the fields mean what proto/wormfs/v1/types.proto says."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    stripe_id: int
    codec: int
    k: int
    m: int
    chunk_length_bytes: int
    length_bytes: int
    valid_bytes: int
    disks: tuple[int, ...]  # disk number of chunk i


class FileStripe(NamedTuple):
    """A stripe and the inode whose data it holds."""

    inode: int
    stripe: Stripe


class Extent(NamedTuple):
    """File bytes held inside the metadata, laid over stripes and holes."""

    offset_bytes: int
    data: bytes


class Span(NamedTuple):
    """Where an extent lies, without its bytes."""

    offset_bytes: int
    length_bytes: int

    @property
    def end_bytes(self) -> int:
        """One past its last byte."""
        return self.offset_bytes + self.length_bytes


class Allocation(NamedTuple):
    """A stripe id given to a session for an inode, not committed yet."""

    stripe_id: int
    session_id: int
    inode: int
    codec: int
    k: int
    m: int
    disks: tuple[int, ...]


class GarbageChunk(NamedTuple):
    """A chunk on a disk that no file needs any more."""

    file: int
    stripe_id: int
    index: int  # type: ignore[assignment]  # hides tuple.index


class Session(NamedTuple):
    """A registered mount, gateway or tool."""

    session_id: int
    label: str
    acknowledged: int  # operations up to this one were answered; their replies are forgotten


class NodeRecord(NamedTuple):
    """A node as it last registered."""

    number: int
    name: str
    addresses: tuple[str, ...]
    grpc_address: str
    machine_id: str


class DiskRecord(NamedTuple):
    """A disk as it last registered."""

    number: int
    uuid: str
    node: int
    path: str


class Restored(NamedTuple):
    """The backup that the metadata was restored from last; zeros: it never was."""

    sequence: int  # the last event in the backup
    stripe_id: int  # chunks of stripes up to this one were written before the restore


class Counts(NamedTuple):
    """How much the state holds; kept up to date by every event."""

    inodes: int
    stripes: int
    extents: int
    inline_bytes: int
    garbage_chunks: int
    sessions: int
    orphans: int
    allocations: int
