"""Putting the metadata of a backup onto a node's disks, as one that goes on from there.

A backup is a snapshot file (snapshots.py). What happened behind its event is unknown, but has left
chunks on disks and numbers in people's programs. So the state that is restored differs from the backup's:
- inode, stripe and session ids go on NUMBERS_STEP higher: none that was given out is given out again;
- the epoch goes on EPOCH_STEP higher: entries made from now on are told from those given up;
- sessions are ended, and what was allocated to them is *forgotten*, not made garbage: a stripe that was
  allocated then may have become part of a file since, and garbage is deleted;
- it says from which event it came back, and up to which stripe id chunks are of the time before.
All that counts as one more event, so that no replica of the backup's last event is taken for this state.
"""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from wormfs.core.errors import DataLossError, DiskError, ExistsError
from wormfs.core.ordering import Place
from wormfs.core.records import Counts, Restored
from wormfs.metadata import checks
from wormfs.metadata.embedded_log import SEGMENT_BYTES, EmbeddedLog
from wormfs.metadata.members import fsync_folder
from wormfs.metadata.snapshots import HEADER_BYTES, SnapshotInfo, extract, read_header, take
from wormfs.metadata.sqlite_state import SqliteState

NUMBERS_STEP = 1 << 40
"""More than any cluster gives out between a backup and its loss: 5,000 a second for seven years."""
EPOCH_STEP = 1 << 32
STAGE_NAME = ".restoring"
"""A disk's folder in which the metadata is put together, before one rename puts it in place."""


class Backup(NamedTuple):
    """What a backup holds."""

    sequence: int
    epoch: int
    cluster_id: str
    cluster_name: str
    file_bytes: int
    checksum: str
    counts: Counts
    disk_uuids: frozenset[str]  # of the disks it knows


def read_backup_header(path: Path) -> SnapshotInfo:
    """What the file says of itself, its length compared. Raises DataLossError, DiskError."""
    try:
        info = read_header(path)
        file_bytes = path.stat().st_size
    except OSError as error:
        raise DiskError(f"{path}: the backup cannot be read: {error.strerror}") from error
    wanted = HEADER_BYTES + info.length_bytes
    if file_bytes < wanted:
        raise DataLossError(f"{path}: the backup is cut short: {file_bytes} of {wanted} bytes")
    return info


def check_backup(path: Path) -> Backup:
    """Read a backup whole: its checksum, its version, its state's structure. Needs its size in $TMPDIR.

    Raises DataLossError (damaged, cut short, of a newer program, of no cluster), DiskError.
    """
    read_backup_header(path)
    with tempfile.TemporaryDirectory(prefix="wormfs-backup-") as folder:
        state = _open_copy(path, Path(folder) / "state.db")
        try:
            state.begin()
            problems = list(checks.check_namespace(state))
            found = _backup_of(path, state)
        except sqlite3.Error as error:
            raise DataLossError(f"{path}: the backup's database is damaged: {error}") from error
        finally:
            state.close()
    if problems:
        raise DataLossError(f"{path}: the metadata in it has {len(problems)} problems, first: {problems[0]}")
    return found


def _backup_of(path: Path, state: SqliteState) -> Backup:
    info = read_backup_header(path)
    return Backup(
        info.sequence,
        info.epoch,
        state.cluster_id,
        state.cluster_name,
        HEADER_BYTES + info.length_bytes,
        info.checksum.hex(),
        state.counts(),
        frozenset(disk.uuid for disk in state.disks()),
    )


def _open_copy(path: Path, database: Path) -> SqliteState:
    """The backup's state, in a file of its own. Raises DataLossError, DiskError."""
    try:
        info = extract(path, database)
        state = SqliteState.at(database)
    except OSError as error:
        raise DiskError(f"{path}: the backup cannot be unpacked: {error}") from error
    except sqlite3.Error as error:
        raise DataLossError(f"{path}: the backup's database is damaged: {error}") from error
    if not state.cluster_id or state.applied != info.sequence:
        state.close()
        raise DataLossError(f"{path}: not the metadata of a cluster at event {info.sequence}")
    return state


def begin_again(state: SqliteState) -> None:
    """Turn a backup's state into one to go on from; see the module. Not committed."""
    before = state.applied
    state.begin()
    for session in state.sessions():
        for allocation in state.allocations_of(session.session_id):
            state.delete_allocation(allocation.stripe_id)
        state.delete_session(session.session_id)
    stripe_id = state.next_stripe_id + NUMBERS_STEP
    state.use_stripe_id(stripe_id)
    state.use_inode(state.next_inode + NUMBERS_STEP)
    state.use_session_id(state.next_session_id + NUMBERS_STEP)
    state.set_restored(Restored(before, stripe_id))
    state.set_epoch(state.epoch + EPOCH_STEP, 0)
    # A session that kept entries of before must not hand them over: nothing follows this tail.
    state.set_applied(before + 1, state.epoch, Place(state.epoch, before + 1))


def refuse_metadata(disks: Sequence[Path]) -> None:
    """Raise ExistsError when one of these disk folders holds anything of a metadata engine."""
    for disk in disks:
        if any(not path.is_dir() for path in (disk / "metadata").rglob("*")):
            raise ExistsError(
                f"{disk}/metadata holds metadata already, and a restore would lose it: start the node with "
                "it; or, if it is of no use, move that folder away"
            )


def install(
    path: Path, disks: Sequence[Path], *, copies: int, segment_bytes: int = SEGMENT_BYTES
) -> tuple[Backup, list[Path]]:
    """Put the backup's metadata on `copies` of these disk folders; the backup, and which they are.

    Nothing of it is in place before all of it is durable: a crash leaves a folder that the next try
    removes. Raises ExistsError (see refuse_metadata), DataLossError, DiskError.
    """
    refuse_metadata(disks)
    read_backup_header(path)
    stages = [disk / STAGE_NAME for disk in disks]
    try:
        for stage in stages:
            shutil.rmtree(stage, ignore_errors=True)
            stage.mkdir()
        backup, members = _stage(path, stages, copies, segment_bytes)
        for stage in members:
            _put_in_place(stage)
    except OSError as error:
        raise DiskError(f"the metadata cannot be put on the disks: {error}") from error
    finally:
        for stage in stages:
            shutil.rmtree(stage, ignore_errors=True)
    return backup, [stage.parent for stage in members]


def _stage(path: Path, stages: list[Path], copies: int, segment_bytes: int) -> tuple[Backup, list[Path]]:
    # A log id of its own: disks of the lost metadata that come back are told from these, and refused.
    log = EmbeddedLog.open(stages, copies=copies, segment_bytes=segment_bytes)
    log_id, members = log.log_id, log.member_disks()
    log.close()
    database = members[0] / "restored.db"
    state = _open_copy(path, database)
    try:
        backup = _backup_of(path, state)
        begin_again(state)
        state.set_log_id(log_id)
        state.commit()
        sequence = state.applied
        taken = take(database, [stage / "metadata" / "snapshots" for stage in members])
    except sqlite3.Error as error:
        raise DataLossError(f"{path}: the backup's database is damaged: {error}") from error
    finally:
        state.close()
    for problem in taken.failed.values():
        raise DiskError(f"the metadata cannot be put on the disks: {problem}")
    log = EmbeddedLog.open(stages, copies=copies, create=False, segment_bytes=segment_bytes)
    found = log.last_sequence
    log.close()
    if found != sequence:
        raise DataLossError(f"{path}: restored up to event {found}, not {sequence}")
    return backup, members


def _put_in_place(stage: Path) -> None:
    """What lies staged becomes the disk's metadata; what was there are empty folders."""
    folder = stage.parent / "metadata"
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
    fsync_folder(stage)
    os.rename(stage / "metadata", folder)
    fsync_folder(stage.parent)
