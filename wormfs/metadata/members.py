"""Members: the disks that hold a copy of the log and of the snapshots, and their folders.

Under a disk's folder:
  metadata/members.json   who holds copies now, with a generation number; fsynced, replaced by rename
  metadata/log/           segments (segment.py)
  metadata/snapshots/     {sequence:020d}.snapshot (snapshots.py)
  metadata/state/         the live SQLite file, on one member only (state_files.py)
A member id is made anew each time a disk joins, so a copy that was dropped and comes back is told
from a current one: the newest generation's list names the ids that count.
"""

import hashlib
import json
import logging
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from wormfs.core.errors import DataLossError, NewerProgramError, WrongClusterError
from wormfs.metadata.segment import SEGMENT_HEADER_BYTES, segment_header

FORMAT = 1
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Membership:
    """What a member's members.json says."""

    log_id: str
    generation: int
    member: str
    members: dict[str, str]  # member id -> disk folder when it joined, for people


def fsync_folder(path: Path) -> None:
    """Make a folder's entries durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path: Path, data: bytes) -> None:
    """Make or replace a file atomically and durably: temp, fsync, rename, folder fsync."""
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_folder(path.parent)


def _checksum(content: dict[str, object]) -> str:
    """Over what members.json says, in whatever order and layout it says it."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_membership(disk: Path) -> Membership | None:
    """A disk's members.json; None when there is none that can be read.

    Raises NewerProgramError when a newer program wrote it.
    """
    try:
        found = json.loads((disk / "metadata" / "members.json").read_bytes())
        if found.pop("checksum", "") != _checksum(found):
            raise ValueError("its checksum does not match: it is damaged")  # noqa: TRY301
        membership = Membership(
            str(found["log_id"]), int(found["generation"]), str(found["member"]), dict(found["members"])
        )
        version = int(found["format"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("metadata on %s cannot be used: members.json: %s", disk, error)
        return None
    if version > FORMAT:
        raise NewerProgramError(
            f"{disk}: metadata format {version} is newer than this program: upgrade WormFS"
        )
    return membership


def current_members(disks: list[Path]) -> tuple[dict[str, Path], Membership | None]:
    """The member ids that count and are here, with their disks; and the newest membership found.

    Raises WrongClusterError when the disks hold two different logs, DataLossError when each of two went on
    without the other.
    """
    found = {disk: membership for disk in disks if (membership := read_membership(disk)) is not None}
    if not found:
        return {}, None
    ids = {membership.log_id for membership in found.values()}
    if len(ids) > 1:
        where = ", ".join(f"{disk} ({membership.log_id})" for disk, membership in found.items())
        raise WrongClusterError(f"disks hold metadata of different clusters: {where}; remove one of them")
    newest = max(found.values(), key=lambda membership: membership.generation)
    for disk, other in found.items():
        if (
            other.generation == newest.generation
            and other.member not in newest.members
            and newest.member not in other.members
        ):
            raise DataLossError(
                f"{disk} holds metadata that went on without the other disks, as they did without it: move "
                "the folder `metadata` of what is not wanted away, and start the node again"
            )
    here = {
        membership.member: disk for disk, membership in found.items() if membership.member in newest.members
    }
    return here, newest


def segment_path(disk: Path, first_sequence: int) -> Path:
    """A segment's file."""
    return disk / "metadata" / "log" / f"{first_sequence:020d}.log"


def segments(disk: Path) -> list[int]:
    """First sequences of the segments on a disk, in order."""
    return _numbers(disk / "metadata" / "log", ".log")


def snapshot_path(disk: Path, sequence: int) -> Path:
    """A snapshot's file."""
    return disk / "metadata" / "snapshots" / f"{sequence:020d}.snapshot"


def snapshots(disk: Path) -> list[int]:
    """Sequences of the snapshots on a disk, in order."""
    return _numbers(disk / "metadata" / "snapshots", ".snapshot")


def _numbers(folder: Path, suffix: str) -> list[int]:
    with suppress(FileNotFoundError):
        return sorted(
            int(name.removesuffix(suffix))
            for name in os.listdir(folder)
            if name.endswith(suffix) and name.removesuffix(suffix).isdecimal()
        )
    return []


@dataclass(slots=True)
class SegmentFile:
    """An open segment of one member."""

    path: Path
    fd: int
    used_bytes: int = SEGMENT_HEADER_BYTES
    sealed: bool = False  # no more appends: cut the space allocated ahead when syncing
    fresh: bool = True  # its folder entry is not durable yet

    def sync(self) -> None:
        """Make it durable. Runs in a thread; OSError when the disk fails."""
        if self.sealed:
            os.ftruncate(self.fd, self.used_bytes)
        if self.fresh or self.sealed:
            os.fsync(self.fd)
            if self.fresh:
                with suppress(FileNotFoundError):  # trimmed or deleted: found by Member.problem
                    fsync_folder(self.path.parent)
            self.fresh = False
        else:
            os.fdatasync(self.fd)


@dataclass(slots=True)
class Member:
    """A disk that holds a copy, with its open segments."""

    id: str
    disk: Path
    log_id: str
    joined: bool = True  # False: gets every append, its snapshot is still on the way
    segment: SegmentFile | None = None
    unsynced: list[SegmentFile] = field(default_factory=list)  # sealed ones

    @property
    def folder(self) -> Path:
        """Where everything of the member is."""
        return self.disk / "metadata"

    def prepare(self, *, wipe: bool) -> None:
        """Make the folders; the disk's own folder must exist. `wipe`: what is there is stale."""
        self.folder.mkdir(exist_ok=True)
        if wipe:
            (self.folder / "members.json").unlink(missing_ok=True)
            for name in ("log", "snapshots"):
                with suppress(FileNotFoundError):
                    shutil.rmtree(self.folder / name)
        for name in ("log", "snapshots"):
            (self.folder / name).mkdir(exist_ok=True)
        fsync_folder(self.folder)
        fsync_folder(self.disk)

    def open_segment(self, first_sequence: int, length_bytes: int) -> None:
        """Seal the current segment and begin another, with space allocated ahead.

        Allocated ahead, an append cannot fail for lack of space, and fdatasync is a fifth cheaper.
        """
        path = segment_path(self.disk, first_sequence)
        if self.segment is not None and self.segment.path == path:
            return  # begun when no other disk could: sealed, its sync would cut what comes behind
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(fd, 0, length_bytes)
            os.pwrite(fd, segment_header(first_sequence, bytes.fromhex(self.log_id)), 0)
        except OSError:
            os.close(fd)
            with suppress(OSError):
                path.unlink()
            raise
        if self.segment is not None:
            self.segment.sealed = True
            self.unsynced.append(self.segment)
        self.segment = SegmentFile(path, fd)

    def append(self, data: bytes) -> bool:
        """Write at the end; whether all of it was taken. The end moves only by `advance`."""
        segment = self.segment
        return segment is not None and os.pwrite(segment.fd, data, segment.used_bytes) == len(data)

    def advance(self, length_bytes: int) -> None:
        """The bytes just appended count."""
        if self.segment is not None:
            self.segment.used_bytes += length_bytes

    def open_files(self) -> list[SegmentFile]:
        """Every open segment, oldest first."""
        return [*self.unsynced, self.segment] if self.segment is not None else [*self.unsynced]

    def problem(self) -> str:
        """Why the copy cannot be counted on any more; empty when it can. A few stat(2) calls."""
        try:
            (self.folder / "snapshots").stat()
            if self.joined:
                (self.folder / "members.json").stat()
            if self.segment is None:
                return "it has no open segment"
            by_path = self.segment.path.stat()
            by_fd = os.fstat(self.segment.fd)
        except OSError as error:
            return str(error)
        if by_fd.st_nlink == 0 or (by_path.st_dev, by_path.st_ino) != (by_fd.st_dev, by_fd.st_ino):
            return f"{self.segment.path} was replaced while running"
        return ""

    def write_membership(self, generation: int, members: dict[str, str]) -> None:
        """Replace members.json durably. OSError when the disk fails."""
        content: dict[str, object] = {
            "format": FORMAT,
            "log_id": self.log_id,
            "generation": generation,
            "member": self.id,
            "members": members,
        }
        content["checksum"] = _checksum(content)
        write_file(self.folder / "members.json", json.dumps(content, indent=1).encode())
