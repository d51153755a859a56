"""The digest of a replica's state at a chosen sequence, while the replica goes on.

A copy of the state is made first, at whatever sequence it has; the copy is then brought forward by
the log. So replicas under load can be compared at one sequence: the highest that any copy has.
"""

import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import takewhile
from pathlib import Path

import trio

from wormfs.core.errors import DataLossError, InvalidError, StaleError, UnavailableError
from wormfs.metadata import checks
from wormfs.metadata.log_port import LogRecord
from wormfs.metadata.replica import Replica
from wormfs.metadata.sqlite_state import SqliteState
from wormfs.metadata.state_files import apply_record, state_path

_POLL_S = 0.05
PATIENCE_S = 30.0
"""For the entries up to the sequence wanted: another replica has them."""


class StateCopies:
    """At most one copy at a time; the one before goes when another is asked for."""

    def __init__(self, replica: Callable[[], Replica]) -> None:
        self._replica = replica
        self._busy = trio.Lock()
        self._id = 0
        self._path = Path()
        self._sequence = 0

    async def take(self) -> tuple[int, int]:
        """Copy the state; answers the copy's id and its sequence. Raises UnavailableError."""
        async with self._busy:
            keeper = self._replica().keeper
            async with keeper.source.settled():
                keeper.commit()
            folder = copy_folder(keeper.disk)
            try:
                self._sequence = await trio.to_thread.run_sync(_copy, state_path(keeper.disk), folder)
            except (OSError, sqlite3.Error) as error:
                raise UnavailableError(f"{folder}: the state cannot be copied: {error}") from error
            self._path = folder
            self._id += 1
            return self._id, self._sequence

    async def digest(self, copy_id: int, at_sequence: int) -> str:
        """Bring the copy to `at_sequence`, digest and remove it. Waits for the replica to have the entries.

        Raises StaleError for a copy that is gone, InvalidError for a sequence before it, UnavailableError.
        """
        async with self._busy:
            if copy_id != self._id or not self._path.name:
                raise StaleError("that copy of the state is gone; another verification has begun")
            if at_sequence < self._sequence:
                raise InvalidError(f"the copy has entry {self._sequence} already, not {at_sequence}")
            await self._wait_for(at_sequence)
            log = self._replica().log
            try:
                records = list(takewhile(lambda each: each.sequence <= at_sequence, log.read(self._sequence)))
            except DataLossError as error:
                raise StaleError(f"the log behind the copy was trimmed meanwhile: {error.message}") from error
            path, self._path = self._path, Path()
            try:
                return await trio.to_thread.run_sync(_digest, path, records)
            except (OSError, sqlite3.Error) as error:
                raise UnavailableError(f"{path}: the copy of the state cannot be read: {error}") from error

    async def _wait_for(self, sequence: int) -> None:
        with trio.move_on_after(PATIENCE_S):
            while self._replica().sequence < sequence:  # noqa: ASYNC110 - it may be another log by then
                await trio.sleep(_POLL_S)
            return
        raise UnavailableError(
            f"this replica is at entry {self._replica().sequence}, others at {sequence}; "
            "`wormfs status` shows whether it follows"
        )


def copy_folder(disk: Path) -> Path:
    """Where the copy lies."""
    return disk / "metadata" / "copy"


def _copy(database: Path, folder: Path) -> int:
    """Copy the committed state; its sequence. Blocks."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with (
        closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as source,
        closing(sqlite3.connect(folder / "state.db")) as target,
    ):
        target.execute("PRAGMA synchronous=OFF")
        source.backup(target)
        found = target.execute("SELECT value FROM head WHERE key = 'applied'").fetchone()
        return int(found[0]) if found else 0


def _digest(folder: Path, records: Sequence[LogRecord]) -> str:
    """Apply the records to the copy, and digest it. Blocks."""
    try:
        state = SqliteState.at(folder / "state.db")
        try:
            state.begin()
            for record in records:
                apply_record(state, record)
            return checks.digest(state)
        finally:
            state.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
