"""The one tree of WormFS errors, and the one table from each to errno and exit code.

Every error's message is one line: what was wrong, where, and what to do about it.
The rpc layer maps the same classes to gRPC status codes and to `ErrorReply.code`,
which is the class's name.
"""

import errno
from typing import ClassVar


class WormError(Exception):
    """Any failure WormFS reports. `errno` is what a file system call answers with."""

    errno: ClassVar[int] = errno.EIO
    exit_code: ClassVar[int] = 1

    @property
    def message(self) -> str:
        """The one line for people."""
        return str(self.args[0]) if self.args else type(self).__name__


class NotFoundError(WormError):
    """No such file, directory, chunk, node or disk."""

    errno = errno.ENOENT


class ExistsError(WormError):
    """The name is taken."""

    errno = errno.EEXIST


class NotDirectoryError(WormError):
    """A directory was needed."""

    errno = errno.ENOTDIR


class IsADirectoryWormError(WormError):
    """Anything but a directory was needed."""

    errno = errno.EISDIR


class NotEmptyError(WormError):
    """The directory has entries."""

    errno = errno.ENOTEMPTY


class NameTooLongError(WormError):
    """A name over 255 bytes, or a symlink target over 4,095."""

    errno = errno.ENAMETOOLONG


class InvalidError(WormError):
    """An argument that no state of the cluster could make right."""

    errno = errno.EINVAL
    exit_code = 2


class NotPermittedError(WormError):
    """The operation is not allowed on such an inode."""

    errno = errno.EPERM


class TooManyLinksError(WormError):
    """The inode has as many links as it may."""

    errno = errno.EMLINK


class NoXattrError(WormError):
    """No such extended attribute."""

    errno = errno.ENODATA


class TooLargeError(WormError):
    """A file past the largest size, or a value past its limit."""

    errno = errno.EFBIG


class RangeError(WormError):
    """An extended attribute's name or value past its limit."""

    errno = errno.ERANGE


class StaleError(WormError):
    """The inode or handle is gone for good."""

    errno = errno.ESTALE


class BadHandleError(WormError):
    """The handle is not open, or not open for this."""

    errno = errno.EBADF


class NoSpaceError(WormError):
    """Too little free space on enough disks."""

    errno = errno.ENOSPC


class ReadOnlyError(WormError):
    """Nothing may be changed now."""

    errno = errno.EROFS


class UnavailableError(WormError):
    """A node, disk or the master cannot be reached; the same call may succeed later."""

    exit_code = 3


class DeadlineError(UnavailableError):
    """No answer within the call's deadline."""

    errno = errno.EIO


class UncertainError(UnavailableError):
    """The request was sent and no answer came: it was done, was not, or may yet be."""


class NotMasterError(UnavailableError):
    """The node asked is not the master; ask for the cluster map."""


class SessionExpiredError(UnavailableError):
    """The session is unknown or fenced; its leases and allocated stripes are gone."""


class DataLossError(WormError):
    """Bytes that cannot be rebuilt: never answered with zeros or old data."""


class NewerProgramError(DataLossError):
    """A newer program wrote this, and this one cannot read it: upgrade WormFS."""


class TooFewChunksError(DataLossError):
    """Fewer than k chunks of a stripe can be had."""


class ChunkError(WormError):
    """Something is wrong with one chunk; the others of its stripe may serve."""


class ChunkCorruptError(ChunkError):
    """A checksum does not match."""


class ChunkSizeError(ChunkError):
    """A chunk is shorter or longer than its header or stripe says."""


class WrongChunkError(ChunkError):
    """A sound chunk of another stripe, file, index or cluster."""


class DiskError(WormError):
    """A disk failed and was taken offline."""


class WrongClusterError(WormError):
    """A node, disk or chunk of another cluster."""

    errno = errno.EINVAL


class ProtocolError(WormError):
    """The peer sent what the protocol does not allow."""


class ConfigError(WormError):
    """A configuration that cannot be used; names file and line."""

    errno = errno.EINVAL
    exit_code = 2


def _tree(root: type[WormError]) -> dict[str, type[WormError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


ERRORS_BY_NAME: dict[str, type[WormError]] = _tree(WormError)
