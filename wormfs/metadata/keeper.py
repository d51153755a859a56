"""Keeping log and state whole while disks fail: commits, syncs, snapshots, re-replication.

Owns which SQLite file is live. Whatever happens to it, callers go on: it is copied from its still
open connection, or rebuilt from snapshot and log, on the first healthy metadata disk. When no disk
takes it there is no state: every use of it is an UnavailableError, the log goes on, and a care round
makes the state again once there is room.
"""

import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import trio

from wormfs.core.errors import UnavailableError, WormError
from wormfs.metadata import state_files
from wormfs.metadata.embedded_log import EmbeddedLog
from wormfs.metadata.log_port import EventLog
from wormfs.metadata.snapshots import Taken, take
from wormfs.metadata.sqlite_state import SqliteState

COMMIT_INTERVAL_S = 1.0
"""With etcd each commit holds a master's commands back until what is on its way is there."""
SYNC_INTERVAL_S = 0.5
CARE_INTERVAL_S = 1.0
SNAPSHOT_LOG_BYTES = 64 << 20
"""A snapshot is taken when the log since the last is longer than this and than the state."""
CHECKPOINT_WAL_BYTES = 8 << 20
RESERVE_SEGMENTS = 3
"""Room kept on the state's disk, in log segments: for one more of them and the write-ahead log."""
T = TypeVar("T")
_NO_MEMBERS = "no disk holds the metadata log: bring a metadata disk back, and start the node again"
logger = logging.getLogger(__name__)


class StateKeeper:
    """The live state and the care for its disks. Without room for a state at the start it begins without."""

    def __init__(self, log: EmbeddedLog, disks: Sequence[Path]) -> None:
        self._log = log
        self.source: EventLog = log  # what the state follows: with etcd, the master's log above its own copy
        self._disks = list(disks)
        self._failed: set[Path] = set()
        self._snapshotting = False
        self._no_rebuild_before_s = 0.0  # the last attempt failed just now
        self.short_of_space = ""  # why no command that needs space is taken; empty: it is
        self.on_loss: Callable[[str], None] | None = None  # told why there is no state any more
        self._state: SqliteState | None = None
        self._last: SqliteState | None = None  # the newest there was; what it has in memory can be read
        self._problem = ""  # why there is no state
        self.disk = log.member_disks()[0]
        try:
            self._install(*state_files.open_state(log, disks))
        except UnavailableError as error:
            self._lost(error.message)

    @property
    def state(self) -> SqliteState:
        """The live state, at the log's end. Raises UnavailableError while there is none."""
        if self._state is None:
            raise UnavailableError(self._problem)
        return self._state

    @property
    def is_lost(self) -> bool:
        """Whether there is no state now."""
        return self._state is None

    @property
    def identity(self) -> SqliteState:
        """The state, or the one there was last: only for its head and policy, which it has in memory.

        Raises UnavailableError when there was none since the start.
        """
        return self._last if self._last is not None else self.state

    def _install(self, state: SqliteState, disk: Path) -> None:
        if self._problem:
            logger.warning("there is a metadata state again, on %s", disk)
        self._state = self._last = state
        self._problem = ""
        self.disk = disk
        self._identity = (0, 0)
        with suppress(OSError):  # gone already: the next round sees it
            found = state_files.state_path(disk).stat()
            self._identity = (found.st_dev, found.st_ino)

    def close(self) -> None:
        """Commit and close the state, sync and close the node's log."""
        state, self._state = self._state, None
        self._problem = "the metadata is closed"
        if state is not None:
            try:
                if self._is_settled(state):
                    state.commit()
            except sqlite3.Error as error:
                logger.warning("metadata state not committed, it will be rebuilt: %s", error)
            state.close()
        self._log.close()

    @property
    def log(self) -> EmbeddedLog:
        """This node's copies of log and snapshots."""
        return self._log

    def member_disks(self) -> list[Path]:
        """Disk folders that hold whole copies of log and snapshots now."""
        return self._log.member_disks()

    @property
    def copies_wanted(self) -> int:
        """How many there should be."""
        return self._log.copies_wanted

    # --- the live file ------------------------------------------------------------------------

    def put_right(self, error: sqlite3.Error, again: Callable[[], T]) -> T:
        """SQLite failed under what had changed nothing yet: do it again on a sound state.

        Raises UnavailableError when there is none, and what `again` raises.
        """
        self.rebuild_state(str(error))
        try:
            return again()
        except sqlite3.Error as failed:
            raise UnavailableError(f"the metadata state on {self.disk} fails: {failed}; check it") from failed

    def _is_settled(self, state: SqliteState) -> bool:
        """Whether nothing the state holds can be taken back: what is committed gets into snapshots."""
        return self.source.settled_sequence >= state.applied

    def commit(self) -> None:
        """Commit a settled state; one that cannot be committed is rebuilt. Raises UnavailableError.

        SQLite may have rolled all back that was not committed: such a state must not be read.
        """
        try:
            self.state.commit()
        except sqlite3.Error as error:
            self.rebuild_state(str(error))

    def rebuild_state(self, reason: str) -> None:
        """Throw the state away and build it from snapshot and log.

        Raises UnavailableError when no disk takes it: then there is none until a care round has made it.
        """
        logger.warning("metadata state on %s is rebuilt: %s", self.disk, reason)
        state, self._state = self._state, None
        if state is not None:
            state.close()
        try:
            self._build()
        except Exception as error:  # whatever it is: there is no state now
            self._lost(str(error))
            raise

    def _lost(self, problem: str) -> None:
        if problem != self._problem:
            logger.error("there is no metadata state now: %s", problem)
        self._problem = problem
        if self.on_loss is not None:
            self.on_loss(problem)

    def _build(self) -> None:
        members = self._log.member_disks()
        if not members:
            raise UnavailableError(_NO_MEMBERS)
        begun_s = time.monotonic()
        try:
            # The disk that just failed comes last.
            disks = sorted(members, key=lambda disk: disk == self.disk)
            self._install(*state_files.rebuild(self._log, disks, self.source))
        finally:
            now_s = time.monotonic()
            self._no_rebuild_before_s = now_s + 4 * (now_s - begun_s)

    def _make_again(self) -> None:
        """Make the state that is lost, if there is room now."""
        if time.monotonic() < self._no_rebuild_before_s:
            return
        snapshot = self._log.snapshot
        needed = self._log.segment_bytes + (snapshot.length_bytes if snapshot is not None else 0)
        if not any(_free_bytes(disk) >= needed for disk in self._log.member_disks()):
            return
        try:
            self._build()
        except WormError as error:
            self._lost(error.message)

    def reset_state(self) -> None:
        """Take back what was applied and is not in the log; `source` is the node's own log (again).

        Raises DataLossError. What cannot be made now is made by a care round.
        """
        if self._state is None:
            return
        problem = f"it holds {self._state.applied} entries, the log {self._log.last_sequence}"
        try:
            self._state.rollback()
            if self._state.applied <= self._log.last_sequence:
                state_files.replay(self._state, self._log)
                return
        except sqlite3.Error as error:
            problem = str(error)
        with suppress(UnavailableError):
            self.rebuild_state(problem)

    def move_state(self, reason: str) -> None:
        """The live file was deleted, or its disk given up: go on with a copy on another disk.

        A copy is of what was committed: a state that is ahead of that is rebuilt there instead.
        Raises UnavailableError.
        """
        logger.warning("metadata state leaves %s: %s", self.disk, reason)
        problem = "it cannot be copied before all it holds is settled"
        if self._is_settled(self.state):
            if self._moved_to(self._log.used_disks()):
                return
            problem = "it could not be copied"
        if not self._log.member_disks():
            raise UnavailableError(_NO_MEMBERS)  # the open connection holds all there is
        self.rebuild_state(problem)

    def _moved_to(self, disks: Sequence[Path]) -> bool:
        """Whether the settled state is somewhere else now: copied to one of these disks, or rebuilt."""
        before = self.state
        self.commit()
        if self._state is not before:
            return True
        moved = state_files.move_live(before, disks)
        if moved is not None:
            before.close()
            self._install(*moved)
        return moved is not None

    def check_state(self) -> None:
        """Move the state if its file is no longer where it was made."""
        try:
            found = state_files.state_path(self.disk).stat()
            if (found.st_dev, found.st_ino) == self._identity:
                return
            reason = "its file was replaced"
        except OSError as error:
            reason = str(error)
        if self._log.used_disks():
            self.move_state(reason)

    async def mind_space(self) -> None:
        """Leave a disk before it is full, or stop taking what would fill it.

        A full disk under SQLite costs the whole state, which is then rebuilt from the log: nothing is
        lost, but it takes long. Raises UnavailableError.
        """
        needed = RESERVE_SEGMENTS * self._log.segment_bytes
        free = {disk: _free_bytes(disk) for disk in self._log.used_disks()}
        if free.get(self.disk, needed) >= needed:
            self.short_of_space = ""
            return
        roomy = [disk for disk in self._log.member_disks() if free[disk] >= 2 * needed]
        if not roomy:
            if not self.short_of_space:
                logger.error("the disk of the metadata, %s, is nearly full: no new metadata", self.disk)
            self.short_of_space = f"the disk of the metadata, {self.disk}, is nearly full: free some space"
            return
        left = self.disk
        async with self.source.settled():
            moved = self.disk == left and self._moved_to(roomy) and self.disk != left
        if moved:
            logger.warning("metadata state left %s, which is nearly full", left)
            shutil.rmtree(state_files.state_path(left).parent, ignore_errors=True)

    # --- disks --------------------------------------------------------------------------------

    def disk_failed(self, path: Path) -> None:
        """Use a disk no more."""
        self._failed.add(path)
        self._log.drop([path], "its disk failed")
        if self.disk == path and self._state is not None and self._log.used_disks():
            with suppress(UnavailableError):  # there is no state then, and a care round makes it
                self.move_state("its disk failed")

    def disk_usable(self, path: Path) -> None:
        """A disk may be used (again)."""
        self._failed.discard(path)
        if path not in self._disks:
            self._disks.append(path)

    def _spares(self) -> list[Path]:
        """Disks that may take a copy, those with room first: a full one must not be in the way."""
        used = self._log.used_disks()
        if len(used) >= self._log.copies_wanted:
            return []
        spares = [
            disk for disk in self._disks if disk not in used and disk not in self._failed and disk.is_dir()
        ]
        return sorted(spares, key=lambda disk: not self._has_room(disk))

    def _has_room(self, disk: Path) -> bool:
        """Whether a copy fits on the disk."""
        snapshot = self._log.snapshot
        needed = RESERVE_SEGMENTS * self._log.segment_bytes
        with suppress(OSError):
            return _free_bytes(disk) >= needed + (2 * snapshot.length_bytes if snapshot is not None else 0)
        return False

    def replicate_now(self) -> None:
        """Bring the number of copies up to what is wanted, as far as there are disks. Blocks."""
        joining = self._begin_joins()
        if joining:
            self.commit()
            self._stored(take(state_files.state_path(self.disk), self._folders(), self._log_end), joining)

    def _begin_joins(self) -> list[Path]:
        """Disks that take every append from now on; they count once a snapshot is on them."""
        if self._state is None or self._snapshotting:
            return []  # without a state no snapshot can be had, and what lies on a spare disk may be needed
        joining: list[Path] = []
        for disk in self._spares():
            if len(self._log.used_disks()) < self._log.copies_wanted and self._log.begin_join(disk):
                joining.append(disk)
        return joining

    def _folders(self) -> list[Path]:
        return [disk / "metadata" / "snapshots" for disk in self._log.used_disks()]

    def _log_end(self) -> int:
        """Asked in a thread too, behind the copy: entries come, and none goes."""
        return self._log.last_sequence

    def _stored(self, taken: Taken, joining: Sequence[Path]) -> None:
        for folder, problem in taken.failed.items():
            self._log.drop([folder.parent.parent], problem)
        for disk in joining:
            self._log.finish_join(disk)
        self._log.snapshot_stored(taken.info)

    async def snapshot(self, joining: Sequence[Path] = ()) -> None:
        """Store a snapshot on every member, count joining ones in, trim the log.

        Raises UnavailableError, DiskError, NoSpaceError, DataLossError (see `take`), sqlite3.Error.
        """
        if self._snapshotting:
            self._log.drop(joining, "another snapshot is being taken")  # begun before they joined
            return
        self._snapshotting = True
        try:
            try:
                async with self.source.settled():
                    self._log.begin_segment()
                    self.commit()
                database = state_files.state_path(self.disk)
                taken = await trio.to_thread.run_sync(take, database, self._folders(), self._log_end)
            except (sqlite3.Error, OSError, WormError):
                self._log.drop(joining, "no snapshot could be stored")
                raise
            self._stored(taken, joining)
        finally:
            self._snapshotting = False

    # --- background ---------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Run every duty until cancelled; a duty that fails is logged and tried again."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._every, COMMIT_INTERVAL_S, self._commit)
            nursery.start_soon(self._every, SYNC_INTERVAL_S, self._sync)
            nursery.start_soon(self._every, CARE_INTERVAL_S, self.care)
            task_status.started()

    async def _every(self, interval_s: float, duty: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await duty()
            except (OSError, sqlite3.Error, WormError) as error:
                logger.warning("metadata upkeep: %s", error)
            await trio.sleep(interval_s)

    async def _commit(self) -> None:
        if self._state is not None:
            async with self.source.settled():
                if self._state is not None:
                    self.commit()
        await trio.lowlevel.checkpoint()

    async def _sync(self) -> None:
        await self._log.wait_durable(self._log.last_sequence)

    async def care(self) -> None:
        """One round: lost copies and files, missing copies, snapshots, the write-ahead log's length."""
        self._log.check_members()
        if self._state is None:
            self._make_again()
        if self._state is None:
            return
        joining = self._begin_joins()
        if not self._log.used_disks():
            return  # the open connection keeps the state until a disk is back
        try:
            self.check_state()
            await self.mind_space()
        except (WormError, OSError, sqlite3.Error):
            self._log.drop(joining, "the metadata state is in trouble")  # they join in a later round
            raise
        if joining:
            await self.snapshot(joining)
        elif self._log.log_bytes > SNAPSHOT_LOG_BYTES and self._log.log_bytes > self._state_bytes():
            await self.snapshot()
        await self._checkpoint()

    def _state_bytes(self) -> int:
        return state_files.state_path(self.disk).stat().st_size

    async def _checkpoint(self) -> None:
        """Move the write-ahead log into the database: the bulk in a thread, the rest here."""
        path = state_files.state_path(self.disk)
        wal = path.with_name(path.name + "-wal")
        if not wal.exists() or wal.stat().st_size < CHECKPOINT_WAL_BYTES:
            return
        async with self.source.settled():
            self.commit()
        await trio.to_thread.run_sync(_checkpoint_apart, path)
        async with self.source.settled():
            self.commit()
        # What came meanwhile is little; with nothing left over, the next write begins the file anew.
        # A reader (a snapshot) in the way: not now, without waiting for it on this thread.
        self.state.connection.execute("PRAGMA busy_timeout=0")
        self.state.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.state.connection.execute("PRAGMA busy_timeout=5000")


def _free_bytes(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def _checkpoint_apart(path: Path) -> None:
    connection = sqlite3.connect(f"file:{path}?mode=rw", uri=True, isolation_level=None)
    try:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    finally:
        connection.close()
