"""The fake disk under a replica: real files on tmpfs, faked where power and space matter.

Files are written by the real code. What is faked is above them, at the calls of
wormfs.metadata.members that touch a log segment and at SQLite's commit: a sync notes how much of a
segment survives a loss of power, and a full disk takes nothing that needs new space. The live
SQLite file is a cache; a loss of power may keep, cut, spoil or lose it.
"""

import errno
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any

from wormfs.metadata import keeper
from wormfs.metadata.members import Member, SegmentFile
from wormfs.metadata.sqlite_state import SqliteState
from wormfs.metadata.state_files import state_path
from wormfs.sim.seams import replaced

SECTOR_BYTES = 512
ROOMY_BYTES = 1 << 40


class SimDisk:
    """One disk folder of one node."""

    def __init__(self, folder: Path, random: Random) -> None:
        self.folder = folder
        self.is_full = False
        self.was_full = False  # in this life of its process
        self._random = random
        self._durable_bytes: dict[Path, int] = {}  # of segments synced in this life, from their beginning
        self._fresh: set[Path] = set()  # segments made in this life whose folder entry may be lost
        folder.mkdir(parents=True)

    def fill(self) -> None:
        """Take nothing more."""
        self.is_full = self.was_full = True

    def free(self) -> None:
        """Have room again."""
        self.is_full = False

    def synced(self, segment: SegmentFile) -> None:
        """A segment was synced just now."""
        self._durable_bytes[segment.path] = segment.used_bytes
        self._fresh.discard(segment.path)

    def made(self, path: Path) -> None:
        """A segment was made just now."""
        self._durable_bytes[path] = 0
        self._fresh.add(path)

    def begin_life(self) -> None:
        """A process opens what lies here: its recovery syncs all it keeps."""
        self.was_full = self.is_full
        self._durable_bytes.clear()
        self._fresh.clear()

    def image(self) -> Path:
        """Copy all files as a killed process leaves them; answers the folder of the copy."""
        copy = self.folder.with_name(self.folder.name + ".image")
        shutil.copytree(self.folder, copy)
        return copy

    def become(self, image: Path) -> None:
        """Hold what an image holds."""
        shutil.rmtree(self.folder)
        image.rename(self.folder)

    def lose_power(self, image: Path) -> str:
        """Let an image hold what may be left after a loss of power; answers what was done, for people."""
        done = []
        for path in sorted((image / "metadata" / "log").glob("*.log")):
            done.append(self._tear(path, self.folder / path.relative_to(image)))
        done.append(self._spoil_state(state_path(image)))
        return " ".join(done)

    def _tear(self, path: Path, original: Path) -> str:
        """Lose some of what was written behind the last sync."""
        if original in self._fresh and self._random.random() < 0.5:
            path.unlink()
            return "gone"
        data = bytearray(path.read_bytes())
        durable_bytes = min(self._durable_bytes.get(original, len(data)), len(data))
        fate = self._random.choice(("kept", "cut", "torn"))
        data = bytearray(path.read_bytes())
        if fate == "cut":
            data[durable_bytes:] = bytes(len(data) - durable_bytes)
        elif fate == "torn":
            for start in range(durable_bytes, len(data), SECTOR_BYTES):
                if self._random.random() < 0.5:
                    length = min(SECTOR_BYTES, len(data) - start)
                    data[start : start + length] = bytes(length)
        path.write_bytes(data)
        return fate

    def _spoil_state(self, path: Path) -> str:
        """The SQLite file promises nothing after a loss of power but to be found out."""
        if not path.exists():
            return "no-state"
        fate = self._random.choice(("state-kept", "state-gone", "state-cut", "log-gone"))
        if fate == "state-gone":
            shutil.rmtree(path.parent)
        elif fate == "state-cut":
            with path.open("rb+") as file:
                file.truncate(path.stat().st_size // 2)
        elif fate == "log-gone":
            path.with_name(path.name + "-wal").unlink(missing_ok=True)
        return fate


def _no_space(path: Path) -> OSError:
    return OSError(errno.ENOSPC, "No space left on device", path.name)


@contextmanager
def faked_disks(disks: list[SimDisk]) -> Iterator[None]:
    """Let the metadata's files lie on these disks; the list may grow."""

    def holding(path: Path) -> SimDisk | None:
        return next((disk for disk in disks if path.is_relative_to(disk.folder)), None)

    def refuse_if_full(path: Path) -> None:
        disk = holding(path)
        if disk is not None and disk.is_full:
            raise _no_space(path)

    sync, open_segment = SegmentFile.sync, Member.open_segment
    write_membership, commit = Member.write_membership, SqliteState.commit

    def sync_noted(segment: SegmentFile) -> None:
        sync(segment)
        disk = holding(segment.path)
        if disk is not None:
            disk.synced(segment)

    def open_with_space(member: Member, first_sequence: int, length_bytes: int) -> None:
        refuse_if_full(member.disk)
        open_segment(member, first_sequence, length_bytes)
        disk = holding(member.disk)
        if disk is not None and member.segment is not None:
            disk.made(member.segment.path)

    def write_with_space(member: Member, generation: int, members: dict[str, str]) -> None:
        refuse_if_full(member.disk)
        write_membership(member, generation, members)

    def commit_with_space(state: SqliteState) -> None:
        path = Path(state.connection.execute("PRAGMA database_list").fetchone()[2])
        disk = holding(path)
        if disk is not None and disk.is_full and state.connection.in_transaction:
            state.flush()
            state.connection.execute("ROLLBACK")  # as SQLite does by itself
            raise sqlite3.OperationalError("database or disk is full")
        commit(state)

    def free_bytes(path: Path) -> int:
        disk = holding(path)
        return 0 if disk is not None and disk.is_full else ROOMY_BYTES

    fakes: tuple[tuple[Any, str, Any], ...] = (
        (SegmentFile, "sync", sync_noted),
        (Member, "open_segment", open_with_space),
        (Member, "write_membership", write_with_space),
        (SqliteState, "commit", commit_with_space),
        (keeper, "_free_bytes", free_bytes),
    )
    with ExitStack() as stack:
        for owner, name, value in fakes:
            stack.enter_context(replaced(owner, name, value))
        yield
