"""From the cluster's attributes to the kernel's, and the rules for set-id bits.

The kernel may keep an entry for as long as the client says: while its lease lasts, unless recalled.
"""

import stat
from typing import TYPE_CHECKING

from pyfuse3 import EntryAttributes, StatvfsData

from wormfs.core.limits import NAME_MAX_BYTES
from wormfs.rpc.v1.filesystem_pb2 import StatFsReply
from wormfs.rpc.v1.types_pb2 import Attributes

if TYPE_CHECKING:
    from wormfs.client.filesystem import Entry

IO_SIZE_BYTES = 1 << 20
"""st_blksize: what cp and cat use for their buffers; the largest request of the kernel."""
_BLOCK_BYTES = 4096
_ST_BLOCK_BYTES = 512


def to_kernel(entry: "Entry") -> EntryAttributes:
    """The entry as pyfuse3 wants it."""
    source = entry.attributes
    made = EntryAttributes()
    made.st_ino = source.inode
    made.st_mode = source.mode
    made.st_nlink = source.nlink
    made.st_uid = source.uid
    made.st_gid = source.gid
    made.st_rdev = source.rdev
    made.st_size = source.size_bytes
    made.st_blksize = IO_SIZE_BYTES
    made.st_blocks = -(-source.allocated_bytes // _ST_BLOCK_BYTES)
    made.st_atime_ns = source.atime_ns
    made.st_mtime_ns = source.mtime_ns
    made.st_ctime_ns = source.ctime_ns
    made.attr_timeout = made.entry_timeout = entry.cache_s
    return made


def to_statvfs(reply: StatFsReply) -> StatvfsData:
    """Space and inodes as statvfs(2) has them."""
    made = StatvfsData()
    made.f_bsize = made.f_frsize = _BLOCK_BYTES
    made.f_blocks = reply.total_bytes // _BLOCK_BYTES
    made.f_bfree = made.f_bavail = reply.free_bytes // _BLOCK_BYTES
    made.f_files = reply.inode_count + reply.free_inodes
    made.f_ffree = made.f_favail = reply.free_inodes
    made.f_namemax = NAME_MAX_BYTES
    return made


def mode_without_set_id(attributes: Attributes) -> int | None:
    """The permission bits after a write or chown took the set-id bits; None when there are none to take.

    As Linux does (should_remove_suid): set-uid always, set-gid where the group may execute, and
    only on regular files. libfuse turns FUSE_CAP_HANDLE_KILLPRIV on, so that this is our duty.
    """
    mode = attributes.mode
    if not stat.S_ISREG(mode):
        return None
    taken = mode & stat.S_ISUID
    if mode & stat.S_ISGID and mode & stat.S_IXGRP:
        taken |= stat.S_ISGID
    return stat.S_IMODE(mode & ~taken) if taken else None
