"""The live SQLite file: where it is, whether it can be used, and building it anew.

It lies in metadata/state/state.db of one member disk and is a cache: a file that is lost, corrupt,
of another history or ahead of the log is thrown away and rebuilt from the newest snapshot and the
log behind it.
"""

import logging
import shutil
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path

from wormfs.core.apply import apply
from wormfs.core.errors import DataLossError, UnavailableError
from wormfs.core.ordering import Place, next_tail
from wormfs.core.state import At
from wormfs.metadata import members as files
from wormfs.metadata.convert import event_record
from wormfs.metadata.embedded_log import EmbeddedLog
from wormfs.metadata.log_port import EventLog, LogRecord
from wormfs.metadata.snapshots import extract
from wormfs.metadata.sqlite_state import SqliteState
from wormfs.rpc.v1 import event_pb2

REPLAY_BATCH = 10_000
logger = logging.getLogger(__name__)


def state_path(disk: Path) -> Path:
    """The live database of a disk."""
    return disk / "metadata" / "state" / "state.db"


def apply_entry(state: SqliteState, entry: event_pb2.LogEntry) -> None:
    """Apply a log entry whole. DataLossError when it cannot follow the state."""
    if entry.sequence != state.applied + 1:
        raise DataLossError(f"entry {entry.sequence} cannot follow {state.applied}")
    # One that is ordered anew changes what it did when it was answered, change numbers included.
    at = At(place_of(entry).sequence, entry.time_ns)
    state.begin()
    events = [event_record(message) for message in entry.events]
    for event in events:
        apply(state, event, at)
    if entry.HasField("operation"):
        done = entry.operation
        state.put_reply(done.session_id, done.operation, done.acknowledged, done.reply)
    state.set_applied(entry.sequence, entry.epoch, next_tail(state.tail, place_of(entry), events))


def place_of(entry: event_pb2.LogEntry) -> Place:
    """Where an entry was ordered first."""
    if entry.HasField("origin"):
        return Place(entry.origin.epoch, entry.origin.sequence)
    return Place(entry.epoch, entry.sequence)


def apply_record(state: SqliteState, record: LogRecord) -> None:
    """Apply a log record. DataLossError when it cannot follow the state, or a newer program wrote it."""
    apply_entry(state, event_pb2.LogEntry.FromString(record.payload))


def apply_all(state: SqliteState, log: EventLog) -> None:
    """Apply what the log has behind the state, without committing it."""
    for record in log.read(state.applied):
        apply_record(state, record)


def replay(state: SqliteState, log: EmbeddedLog) -> None:
    """Apply what the log has behind the state, and commit."""
    for record in log.read(state.applied):
        apply_record(state, record)
        if record.sequence % REPLAY_BATCH == 0:
            state.commit()
    state.commit()


def open_state(log: EmbeddedLog, disks: Iterable[Path]) -> tuple[SqliteState, Path]:
    """The state at the log's end, on a member disk: the file found there, or a rebuilt one.

    State files on other disks are removed. Raises UnavailableError when no member disk takes one.
    """
    members = log.member_disks()
    opened: tuple[SqliteState, Path] | None = None
    for disk in members:
        state = None if opened else _reopen(log, state_path(disk))
        if state is not None:
            opened = (state, disk)
    if opened is None:
        opened = rebuild(log, members)
    for disk in disks:
        if disk != opened[1]:
            shutil.rmtree(state_path(disk).parent, ignore_errors=True)
    return opened


def _reopen(log: EmbeddedLog, path: Path) -> SqliteState | None:
    """The database found, brought up to the log's end; None when it is of no use."""
    if not path.exists():
        return None
    state: SqliteState | None = None
    try:
        state = SqliteState.at(path)
        problem = _problem(log, state)
        if not problem:
            replay(state, log)
            return state
    except (sqlite3.Error, OSError, DataLossError, ValueError, KeyError) as error:
        problem = str(error)
    if state is not None:
        state.close()
    logger.warning("metadata state %s is rebuilt: %s", path, problem)
    return None


def _problem(log: EmbeddedLog, state: SqliteState) -> str:
    found = state.connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        return f"corrupt: {found}"
    if state.log_id != log.log_id:
        return "it belongs to another log"
    if state.applied > log.last_sequence:
        return f"it is ahead of the log: {state.applied} of {log.last_sequence}"
    if state.applied and epoch_at(log, state.applied) != state.applied_epoch:
        return f"its entry {state.applied} is not the log's"
    return ""


def epoch_at(log: EmbeddedLog, sequence: int) -> int:
    """The epoch of a logged entry; 0 when it is no longer in the log."""
    if log.snapshot is not None and log.snapshot.sequence == sequence:
        return log.snapshot.epoch
    with suppress(DataLossError, StopIteration):
        record = next(log.read(sequence - 1))
        return event_pb2.LogEntry.FromString(record.payload).epoch
    return 0


def _fresh_folder(disk: Path) -> Path:
    """An empty state folder; answers the database's path in it."""
    path = state_path(disk)
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir()
    return path


def rebuild(
    log: EmbeddedLog, disks: Sequence[Path], source: EventLog | None = None
) -> tuple[SqliteState, Path]:
    """Build the state from snapshot and log, on the first of these disks that takes it.

    `source`: the log that the state follows, if it may be ahead of the node's own; what only it has is
    applied, not committed. Raises UnavailableError when no disk takes it, DataLossError.
    """
    problem = "no disk"
    for disk in disks:
        try:
            state = _rebuild_on(log, disk, source)
        except (OSError, sqlite3.Error) as error:
            logger.debug("disk %s takes no metadata state: %s", disk, error)
            problem = f"{disk}: {error}"
            continue
        return state, disk
    raise UnavailableError(
        f"no disk takes the metadata state ({problem}): free some space, or bring a metadata disk back"
    )


def _rebuild_on(log: EmbeddedLog, disk: Path, source: EventLog | None) -> SqliteState:
    path = _fresh_folder(disk)
    state: SqliteState | None = None
    try:
        if log.snapshot is not None:
            _extract_any(log, path)
        state = SqliteState.at(path)
        state.begin()
        state.set_log_id(log.log_id)
        replay(state, log)
        if source is not None and source is not log:
            apply_all(state, source)
    except BaseException:
        if state is not None:
            state.close()
        shutil.rmtree(path.parent, ignore_errors=True)  # a part of a state is of no use, and takes space
        raise
    return state


def _extract_any(log: EmbeddedLog, path: Path) -> None:
    error: Exception | None = None
    for source in log.member_disks():
        if log.snapshot is not None:
            try:
                extract(files.snapshot_path(source, log.snapshot.sequence), path)
            except (OSError, DataLossError) as caught:
                error = caught
                continue
            return
    if isinstance(error, OSError):
        raise error  # it may be the target's: a full disk spoils no snapshot
    raise DataLossError(f"no sound snapshot is left: {error}")


def move_live(state: SqliteState, disks: Sequence[Path]) -> tuple[SqliteState, Path] | None:
    """Copy a committed state whose file may be deleted, from its open connection; None when it cannot be."""
    for disk in disks:
        try:
            path = _fresh_folder(disk)
            with closing(sqlite3.connect(path)) as target:
                target.execute("PRAGMA synchronous=OFF")
                state.connection.backup(target)
            moved = SqliteState.at(path)
        except (OSError, sqlite3.Error) as error:
            logger.warning("metadata state not moved to %s: %s", disk, error)
            continue
        if moved.applied == state.applied:
            return moved, disk
        moved.close()
    return None
