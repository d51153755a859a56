"""What the embedded log does before it serves: find the current copies, mend them from each other.

Order of trust: the newest generation names the members; of those, each record is taken from any
copy that holds it whole; the longest gapless run wins; a gap below what was once durable is
data loss and stops the start; anything else behind the end is a torn tail and is cut.
"""

import logging
import os
from pathlib import Path
from typing import NamedTuple

from wormfs.core.errors import DataLossError
from wormfs.metadata import members as files
from wormfs.metadata.members import Membership
from wormfs.metadata.segment import merge
from wormfs.metadata.snapshots import SnapshotInfo, copy_snapshot, verify

logger = logging.getLogger(__name__)


class Recovered(NamedTuple):
    """The log as found and mended: equal on every disk of `members`, durable, with no open segment."""

    membership: Membership
    members: dict[str, Path]  # those that are sound; the others of the list are lost
    snapshot: SnapshotInfo | None
    last_sequence: int


def recover(disks: list[Path]) -> Recovered | None:
    """Find and mend the log on these disk folders; None when there is none.

    Raises DataLossError (nothing is changed then), WrongClusterError.
    """
    here, membership = files.current_members(disks)
    if membership is None:
        return None
    bases = _snapshots(here)
    newest = max(bases.values(), key=lambda info: info.sequence, default=None)
    base = newest.sequence if newest is not None else 0
    log_id = bytes.fromhex(membership.log_id)
    segments, last = _survey(here, log_id, base)
    sound: dict[str, Path] = {}
    for member, disk in here.items():
        try:
            _mend_snapshot(disk, newest, here, bases)
            _mend_segments(disk, segments, here, log_id)
        except OSError as error:
            logger.warning("metadata copy on %s dropped: %s", disk, error)
        else:
            sound[member] = disk
    if not sound:
        raise DataLossError(f"no disk takes the mended metadata log: {', '.join(map(str, here.values()))}")
    return Recovered(membership, sound, newest, last)


def _snapshots(here: dict[str, Path]) -> dict[Path, SnapshotInfo]:
    """The newest sound snapshot of each disk that has one."""
    found: dict[Path, SnapshotInfo] = {}
    for disk in here.values():
        for sequence in reversed(files.snapshots(disk)):
            path = files.snapshot_path(disk, sequence)
            try:
                found[disk] = verify(path)
                break
            except (OSError, DataLossError) as error:
                logger.warning("metadata snapshot not used: %s", error)
    return found


def _copies(here: dict[str, Path], first: int) -> list[bytes]:
    """The copies of a segment that can be read."""
    copies = []
    for disk in here.values():
        try:
            copies.append(files.segment_path(disk, first).read_bytes())
        except FileNotFoundError:
            continue
        except OSError as error:
            logger.warning("metadata log on %s: %s", disk, error)
    return copies


def _survey(here: dict[str, Path], log_id: bytes, base: int) -> tuple[list[int], int]:
    """First sequences of the segments needed behind `base`, and the last sequence of the log.

    Reads one segment at a time, and changes nothing.
    """
    firsts = sorted({first for disk in here.values() for first in files.segments(disk)})
    needed = [first for at, first in enumerate(firsts) if at + 1 == len(firsts) or firsts[at + 1] > base + 1]
    last = base
    promised = base
    beyond = 0
    kept: list[int] = []
    for first in needed:
        merged = merge(_copies(here, first), first, log_id)
        promised = max(promised, merged.durable_sequence)
        if first > last + 1 or beyond:
            beyond = max(beyond, merged.beyond, merged.last_sequence if merged.last_sequence >= first else 0)
            continue
        beyond = merged.beyond
        if merged.last_sequence >= first:
            last = max(last, merged.last_sequence)
            kept.append(first)
    if last < promised:
        raise DataLossError(
            f"the metadata log ends at {last}, but {promised} entries were durable: its copies on "
            f"{', '.join(map(str, here.values()))} are damaged; bring back another metadata disk"
        )
    if beyond:
        logger.warning("metadata log cut at %d: a torn tail (up to %d) was never durable", last, beyond)
    return kept, last


def _mend_snapshot(
    disk: Path, newest: SnapshotInfo | None, here: dict[str, Path], bases: dict[Path, SnapshotInfo]
) -> None:
    (disk / "metadata" / "snapshots").mkdir(exist_ok=True)
    if newest is not None and bases.get(disk) != newest:
        source = next(other for other in here.values() if bases.get(other) == newest)
        copy_snapshot(
            files.snapshot_path(source, newest.sequence), files.snapshot_path(disk, newest.sequence)
        )
    for name in os.listdir(disk / "metadata" / "snapshots"):
        if newest is None or name != files.snapshot_path(disk, newest.sequence).name:
            (disk / "metadata" / "snapshots" / name).unlink()


def _mend_segments(disk: Path, segments: list[int], here: dict[str, Path], log_id: bytes) -> None:
    """Make a disk's segments what the copies hold together. Copies mended before are read again."""
    folder = disk / "metadata" / "log"
    folder.mkdir(exist_ok=True)
    for first in segments:
        path = files.segment_path(disk, first)
        data = merge(_copies(here, first), first, log_id).data
        found = path.read_bytes() if path.exists() else b""
        if found[: len(data)] != data:
            logger.warning("metadata log copy mended: %s", path)
            files.write_file(path, data)
            continue
        with path.open("rb+") as file:
            file.truncate(len(data))
            os.fsync(file.fileno())
    wanted = {files.segment_path(disk, first).name for first in segments}
    for name in os.listdir(folder):
        if name not in wanted:
            (folder / name).unlink()
    files.fsync_folder(folder)
