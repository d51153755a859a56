"""One storage directory: its identity, its space, whether it works. Synchronous; called in threads."""

import ctypes
import errno
import fcntl
import json
import logging
import os
import uuid as uuids
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from wormfs.core.errors import DiskError, NoSpaceError, UnavailableError, WormError, WrongClusterError
from wormfs.store import layout

logger = logging.getLogger(__name__)

_RESERVE_MAX_BYTES: Final = 1 << 30
_RESERVE_FRACTION: Final = 100  # one part in
_PROBE_NAME: Final = "probe"
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_OUR_LIMITS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR})

_libc = ctypes.CDLL(None, use_errno=True)
_NEW_IDENTITY_NAME = f".{layout.IDENTITY_NAME}.new"


def fsync_folder(path: str | Path) -> None:
    """Make the entries of a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file_system(path: str | Path) -> None:
    """Make all of the file system that holds `path` durable (syncfs)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class DiskStatus:
    """A disk as seen now."""

    number: int
    uuid: str
    path: str
    online: bool
    total_bytes: int
    free_bytes: int
    problem: str


class Disk:
    """One storage directory, locked for this process. Made by open().

    `online` is False after a failure; then `problem` says why, and nothing reads or writes
    there. A folder that vanished (unmounted, moved) may return; a disk that erred stays
    offline until the node starts again.
    """

    def __init__(self, path: Path, identity: dict[str, Any], lock: int, reserve_bytes: int | None) -> None:
        self.path = path
        self.chunks_path = f"{path}/{layout.CHUNKS_NAME}"
        self.temporary_path = f"{path}/{layout.TEMPORARY_NAME}"
        self.online = True
        self.problem = ""
        self.may_return = False
        self.direct = False  # O_DIRECT works here
        self.total_bytes = 0
        self.free_bytes = 0
        self._reserve_bytes = reserve_bytes
        self._lock = lock
        self._identity_stat = (0, 0)
        self._take_identity(identity)

    def __repr__(self) -> str:
        return f"<Disk {self.number} {self.path} {'online' if self.online else self.problem}>"

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        cluster_id: str = "",
        reserve_bytes: int | None = None,
        new_where_mounted: bool = False,
    ) -> "Disk":
        """Open the disk at `path`, made a disk of ours (number 0) when it is an empty or no folder.

        `cluster_id` "" accepts any cluster. `reserve_bytes` stay free for the metadata; by default
        1 % of the disk, at most 1 GiB. With `new_where_mounted` only a mount point becomes a new disk:
        else the empty folder under a disk that is not mounted would be one. Removes temp files of an
        earlier process.

        Raises WrongClusterError, or DiskError (unreadable, not mounted, in use by another process).
        """
        path = path.absolute()
        lock = -1
        try:
            if new_where_mounted:
                _refuse_unmounted(path)
            if not path.is_dir():
                path.mkdir(parents=True)
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DiskError(f"{path}: in use by another process; stop it first") from None
            identity = _read_identity(path)
            if identity is None:
                _refuse_orphaned_chunks(path)
                _refuse_foreign_files(path)
                identity = {"uuid": str(uuids.uuid4()), "cluster_id": "", "node": 0, "number": 0}
                _write_identity(path, identity)
            disk = cls(path, identity, lock, reserve_bytes)
            disk.check_cluster(cluster_id)
            disk._prepare()
        except BaseException as error:
            if lock >= 0:
                os.close(lock)
            if isinstance(error, OSError):
                raise DiskError(f"{path}: cannot be used as a disk: {error.strerror}") from error
            raise
        return disk

    def close(self) -> None:
        """Let go of the folder: another process may open it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def check_cluster(self, cluster_id: str) -> None:
        """Raise WrongClusterError when the disk belongs to another cluster than `cluster_id`."""
        if cluster_id and self.cluster_id and cluster_id != self.cluster_id:
            raise WrongClusterError(
                f"{self.path}: disk of cluster {self.cluster_id}, not of {cluster_id};"
                " take it back to its cluster, or empty the folder to use it here"
            )

    def assign(self, *, cluster_id: str, node: int, number: int) -> None:
        """Record durably which cluster, node and disk number this is.

        Raises WrongClusterError, or DiskError when it has another number or cannot be written.
        """
        self.check_cluster(cluster_id)
        if self.number not in (0, number):
            raise DiskError(f"{self.path}: disk {self.number} cannot become disk {number}")
        identity = {"uuid": self.uuid, "cluster_id": cluster_id, "node": node, "number": number}
        try:
            if identity != _read_identity(self.path):
                _write_identity(self.path, identity)
        except OSError as error:
            raise self.failure(error, "recording the disk's number") from error
        self._take_identity(identity)

    def status(self) -> DiskStatus:
        """Return the disk as last seen."""
        return DiskStatus(
            self.number,
            self.uuid,
            str(self.path),
            self.online,
            self.total_bytes,
            self.usable_bytes if self.online else 0,
            self.problem,
        )

    @property
    def usable_bytes(self) -> int:
        """Free bytes that chunks may take."""
        return max(0, self.free_bytes - self.reserve_bytes)

    @property
    def reserve_bytes(self) -> int:
        """Bytes kept free of chunks."""
        if self._reserve_bytes is not None:
            return self._reserve_bytes
        return min(_RESERVE_MAX_BYTES, self.total_bytes // _RESERVE_FRACTION)

    def take_space(self, length_bytes: int) -> None:
        """Count `length_bytes` as used. Raises NoSpaceError when the reserve would be touched."""
        if self.usable_bytes < length_bytes:
            self._measure_space()  # the count is a guess between health checks; ask before refusing
            if self.usable_bytes < length_bytes:
                raise NoSpaceError(f"{self.path}: {self.usable_bytes} bytes free, {length_bytes} needed")
        self.free_bytes -= length_bytes

    def require_online(self) -> None:
        """Raise DiskError when the disk is offline."""
        if not self.online:
            raise DiskError(f"disk {self.number} ({self.path}) is offline: {self.problem}")

    def fail(self, problem: str, *, may_return: bool = False) -> None:
        """Take the disk offline; the first problem is kept."""
        if self.online:
            self.online = False
            self.problem = problem
            self.may_return = may_return
            logger.warning("disk %d (%s) taken offline: %s", self.number, self.path, problem)

    def failure(self, error: OSError, doing: str) -> WormError:
        """Judge an OSError: return what to raise; a disk that erred is taken offline."""
        code = error.errno or errno.EIO
        text = f"{self.path}: {doing}: {error.strerror or error}"
        if code in _FULL:
            return NoSpaceError(text)
        if code in _OUR_LIMITS:
            return UnavailableError(text)
        self.fail(f"{doing}: {error.strerror or error}", may_return=code in _GONE)
        return DiskError(text)

    def is_there(self) -> bool:
        """Tell whether the identity file is in place: False when the folder was deleted or unmounted."""
        try:
            os.stat(f"{self.path}/{layout.IDENTITY_NAME}")
        except OSError:
            return False
        return True

    def check(self, *, probe: bool) -> None:
        """Look whether this is still our disk and how much space it has; with `probe`, write and sync.

        A failure takes the disk offline; a folder that is back brings it online again. Never raises.
        """
        if not self.online and not self.may_return:
            return
        try:
            self._check_identity()
            if not self.online:
                self._relock()
                self._prepare()
                self.online, self.problem = True, ""
                logger.warning("disk %d (%s) is back", self.number, self.path)
            self._measure_space()
            if probe:
                self._probe()
        except OSError as error:
            if error.errno not in _FULL:
                self.failure(error, "health check")
        except WormError as error:
            self.fail(error.message, may_return=True)

    def _check_identity(self) -> None:
        seen = os.stat(self.path / layout.IDENTITY_NAME)
        if (seen.st_ino, seen.st_mtime_ns) != self._identity_stat:
            identity = _read_identity(self.path)
            if identity is None or identity["uuid"] != self.uuid:
                raise DiskError("another disk's identity is in the folder")
            self._identity_stat = (seen.st_ino, seen.st_mtime_ns)

    def _take_identity(self, identity: dict[str, Any]) -> None:
        self.uuid: str = identity["uuid"]
        self.cluster_id: str = identity["cluster_id"]
        self.node: int = identity["node"]
        self.number: int = identity["number"]

    def _prepare(self) -> None:
        os.makedirs(self.chunks_path, mode=0o700, exist_ok=True)
        os.makedirs(self.temporary_path, mode=0o700, exist_ok=True)
        for name in os.listdir(self.temporary_path):
            os.unlink(f"{self.temporary_path}/{name}")
        self.direct = _takes_direct(f"{self.temporary_path}/{_PROBE_NAME}")
        # What a killed process renamed or deleted may still be in the kernel's memory only; from
        # here on, "it is there" and "it is not there" may be taken as durable.
        sync_file_system(self.path)
        self._measure_space()

    def _relock(self) -> None:
        self.close()
        lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise DiskError("the folder is in use by another process") from None
        self._lock = lock

    def _measure_space(self) -> None:
        seen = os.statvfs(self.path)
        self.total_bytes = seen.f_blocks * seen.f_frsize
        self.free_bytes = seen.f_bavail * seen.f_frsize

    def _probe(self) -> None:
        path = f"{self.temporary_path}/{_PROBE_NAME}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, b"probe")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
            os.unlink(path)


def _takes_direct(path: str) -> bool:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.close(descriptor)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    finally:
        os.unlink(path)
    return True


def _read_identity(path: Path) -> dict[str, Any] | None:
    source = path / layout.IDENTITY_NAME
    try:
        found = json.loads(source.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    if not _is_identity(found):
        raise DiskError(f"{source}: not a disk's identity; restore it, or empty the folder")
    return {name: found[name] for name in ("uuid", "cluster_id", "node", "number")}


def _is_identity(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and isinstance(found.get("uuid"), str)
        and len(found["uuid"]) == 36
        and isinstance(found.get("cluster_id"), str)
        and all(type(found.get(name)) is int and found[name] >= 0 for name in ("node", "number"))
    )


def _refuse_unmounted(path: Path) -> None:
    """A folder that is no disk of ours yet must be a mount point."""
    if not path.is_mount() and not (path / layout.IDENTITY_NAME).exists():
        raise DiskError(
            f"{path}: nothing is mounted there; mount the disk and restart the node"
            " (`mounted_disks: false` makes plain folders new disks)"
        )


def _refuse_orphaned_chunks(path: Path) -> None:
    chunks = path / layout.CHUNKS_NAME
    if chunks.is_dir() and any(chunks.iterdir()):
        raise DiskError(f"{path}: holds chunks but no {layout.IDENTITY_NAME}; restore that file")


def _refuse_foreign_files(path: Path) -> None:
    """A folder with somebody else's files is most likely a mistyped path."""
    ours = {layout.CHUNKS_NAME, layout.TEMPORARY_NAME, "metadata", _NEW_IDENTITY_NAME, "lost+found"}
    foreign = sorted(set(os.listdir(path)) - ours)
    if foreign:
        raise DiskError(f"{path}: holds other files, such as {foreign[0]}; a new disk is an empty folder")


def _write_identity(path: Path, identity: dict[str, Any]) -> None:
    target = path / layout.IDENTITY_NAME
    temporary = path / _NEW_IDENTITY_NAME
    with temporary.open("w") as file:
        json.dump(identity, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(target)
    fsync_folder(path)
