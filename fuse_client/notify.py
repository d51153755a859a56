"""Notifications to the kernel, written straight to the FUSE device.

Format: struct fuse_out_header with unique 0 and the code in `error`, then the notification
(linux/fuse.h). pyfuse3's own calls are not used: they need libfuse's session, which must not be
freed while a call is stuck in the kernel, and they know no FUSE_NOTIFY_INC_EPOCH.
"""

import contextlib
import errno
import os
import struct

_INVAL_INODE = 2
_INVAL_ENTRY = 3
_INC_EPOCH = 8  # Linux 6.16: every cached name is looked up again; takes no lock

_HEADER = struct.Struct("=IiQ")  # length, code, unique
_INODE = struct.Struct("=Qqq")  # inode, offset, length; length 0 to the end, offset -1 attributes only
_ENTRY = struct.Struct("=QII")  # parent, name length, flags

# The kernel does not know the inode or name (ENOENT, ENOTDIR), or the mount is gone: nothing is cached.
_NOTHING_CACHED = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.ENOTCONN, errno.ENODEV, errno.EPERM, errno.EBADF)
)


class KernelNotifier:
    """Writes notifications; every method may block for as long as the kernel needs its locks."""

    def __init__(self, fuse_descriptor: int) -> None:
        self._descriptor = os.dup(fuse_descriptor)
        self._has_epoch = True

    def close(self) -> None:
        """No notification may be under way."""
        os.close(self._descriptor)

    def invalidate_inode(self, inode: int, *, data: bool) -> bool:
        """Drop an inode's attributes, and its pages if `data`; False when the kernel does not know it.

        Blocks while a page of it is being read or, written by mmap, has to be written back.
        """
        return self._send(_INVAL_INODE, _INODE.pack(inode, 0 if data else -1, 0))

    def invalidate_entry(self, parent: int, name: bytes) -> bool:
        """Drop a name; False when the kernel does not know it. Blocks while the directory is locked."""
        return self._send(_INVAL_ENTRY, _ENTRY.pack(parent, len(name), 0) + name + b"\0")

    def invalidate_all_entries(self) -> bool:
        """Have every name looked up again; never blocks. False where the kernel cannot do it."""
        if self._has_epoch:
            try:
                self._send(_INC_EPOCH, b"")
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._has_epoch = False
        return self._has_epoch

    def _send(self, code: int, body: bytes) -> bool:
        try:
            os.write(self._descriptor, _HEADER.pack(_HEADER.size + len(body), code, 0) + body)
        except OSError as error:
            if error.errno in _NOTHING_CACHED:
                return False
            raise
        return True


def find_fuse_descriptor() -> int:
    """This process's descriptor of /dev/fuse; pyfuse3 hides it. Raises OSError when there is none."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own descriptor is closed by now
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                return int(name)
    raise OSError(errno.ENODEV, "no FUSE device is open")
