"""The embedded log engine: copies of the log on several disks of one node.

An entry is written (pwrite, into the page cache) to every copy before it counts: a killed process
loses nothing. `wait_durable` syncs all copies once for all who wait. A copy that errs is dropped:
the others first write a new members.json without it (fsynced), so that beside them it is never taken
for current again. Not thread safe: called from the trio thread; syncs run in threads.
"""

import errno
import logging
import os
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from wormfs.core.errors import DataLossError, InvalidError, NoSpaceError, UnavailableError
from wormfs.metadata import members as files
from wormfs.metadata.log_port import LogRecord
from wormfs.metadata.log_recovery import Recovered, recover
from wormfs.metadata.members import Member, SegmentFile
from wormfs.metadata.segment import SEGMENT_HEADER_BYTES, pack_record, scan
from wormfs.metadata.snapshots import SnapshotInfo

SEGMENT_BYTES = 16 << 20
logger = logging.getLogger(__name__)


class EmbeddedLog:
    """Implements wormfs.metadata.log_port.EventLog."""

    def __init__(self, log_id: str, *, copies: int, segment_bytes: int) -> None:
        self.log_id = log_id
        self.copies_wanted = copies
        self.snapshot: SnapshotInfo | None = None
        self.last_sequence = 0
        self.durable_sequence = 0
        self.log_bytes = 0  # appended or found since the last snapshot
        self._segment_bytes = segment_bytes
        self._generation = 0
        self._members: list[Member] = []  # joined and joining
        self._doomed: list[SegmentFile] = []  # of dropped members, closed when no sync uses them
        self._last_copies: dict[Path, str] = {}  # the last members' disks and ids, while none is left
        self._syncing: trio.Event | None = None
        self._appended = trio.Event()

    # --- open ---------------------------------------------------------------------------------

    @classmethod
    def open(
        cls, disks: Sequence[Path], *, copies: int, create: bool = True, segment_bytes: int = SEGMENT_BYTES
    ) -> "EmbeddedLog":
        """Recover the log on these disk folders, or make a new one on the first `copies` of them.

        Raises DataLossError (none found and not `create`, or damaged), WrongClusterError,
        UnavailableError (no disk can be written).
        """
        usable = [disk for disk in disks if disk.is_dir()]
        recovered = recover(usable)
        if recovered is None:
            if not create:
                raise DataLossError(f"no metadata under {', '.join(map(str, disks))}: are disks missing?")
            return cls._create(usable, copies, segment_bytes)
        log = cls(recovered.membership.log_id, copies=copies, segment_bytes=segment_bytes)
        log._resume(recovered)
        return log

    @classmethod
    def _create(cls, disks: Sequence[Path], copies: int, segment_bytes: int) -> "EmbeddedLog":
        log = cls(uuid.uuid4().hex, copies=copies, segment_bytes=segment_bytes)
        for disk in disks:
            if len(log._members) == copies:
                break
            try:
                log._members.append(log._new_member(disk, first_sequence=1))
            except OSError as error:
                logger.warning("disk %s takes no metadata: %s", disk, error)
        for member in log._members:
            member.joined = True
        log._write_memberships()
        log._need_members()
        return log

    def _resume(self, recovered: Recovered) -> None:
        self.snapshot = recovered.snapshot
        self.last_sequence = self.durable_sequence = recovered.last_sequence
        self._generation = recovered.membership.generation
        for member_id, disk in recovered.members.items():
            member = Member(member_id, disk, self.log_id)
            try:
                member.prepare(wipe=False)
                member.open_segment(self.last_sequence + 1, self._segment_bytes)
            except OSError as error:
                logger.warning("metadata copy on %s dropped: %s", disk, error)
                continue
            self._members.append(member)
        self._need_members()
        disk = self._members[0].disk
        self.log_bytes = sum(
            files.segment_path(disk, first).stat().st_size for first in files.segments(disk)[:-1]
        )
        if {member.id for member in self._members} != recovered.membership.members.keys():
            self._write_memberships()

    def _new_member(self, disk: Path, first_sequence: int) -> Member:
        member = Member(uuid.uuid4().hex, disk, self.log_id, joined=False)
        member.prepare(wipe=not self._is_last_copy(disk))
        member.open_segment(first_sequence, self._segment_bytes)
        return member

    def _is_last_copy(self, disk: Path) -> bool:
        """Whether what lies there is all there is: kept until a snapshot beside it is durable."""
        if disk not in self._last_copies:
            return False
        found = files.read_membership(disk)
        return found is not None and found.member == self._last_copies[disk]

    def close(self) -> None:
        """Sync and close every file."""
        failed: dict[str, OSError] = {}
        _sync_group([(member, member.open_files()) for member in self._members], failed)
        for member in self._members:
            self._doomed += member.open_files()
        self._members = []
        self._close_doomed()

    # --- members ------------------------------------------------------------------------------

    @property
    def segment_bytes(self) -> int:
        """The length of a segment, which is allocated ahead."""
        return self._segment_bytes

    def member_disks(self) -> list[Path]:
        """Disk folders that hold a whole copy, in order of joining."""
        return [member.disk for member in self._members if member.joined]

    def used_disks(self) -> list[Path]:
        """Disk folders of members, joined or joining."""
        return [member.disk for member in self._members]

    def _need_members(self) -> None:
        if not any(member.joined for member in self._members):
            raise UnavailableError("no disk holds the metadata log: bring a metadata disk back")

    def _write_memberships(self) -> None:
        """Tell every member who counts; members that cannot be told stop counting."""
        while True:
            joined = [member for member in self._members if member.joined]
            self._generation += 1
            listed = {member.id: str(member.disk) for member in joined}
            failed = {}
            for member in joined:
                try:
                    member.write_membership(self._generation, listed)
                except OSError as error:
                    failed[member.id] = error
            if not failed:
                return
            self._forget(
                [member for member in joined if member.id in failed], str(next(iter(failed.values())))
            )

    def _forget(self, dropped: Sequence[Member], reason: str) -> None:
        joined = [member for member in self._members if member.joined]
        if joined and all(member in dropped for member in joined):
            self._last_copies = {member.disk: member.id for member in joined}
        for member in dropped:
            logger.warning("metadata copy on %s dropped: %s", member.disk, reason)
            self._members.remove(member)
            self._doomed += member.open_files()
        if self._syncing is None:
            self._close_doomed()

    def _close_doomed(self) -> None:
        for segment in self._doomed:
            with suppress(OSError):
                os.close(segment.fd)
        self._doomed = []

    def drop(self, disks: Sequence[Path], reason: str) -> None:
        """Stop using the copies on these disks. Does nothing for disks without one."""
        dropped = [member for member in self._members if member.disk in disks]
        if dropped:
            self._forget(dropped, reason)
            self._write_memberships()

    def check_members(self) -> bool:
        """Drop members whose files vanished (deleted or replaced while running); True if any was."""
        broken = [(member, problem) for member in self._members if (problem := member.problem())]
        for member, problem in broken:
            self.drop([member.disk], problem)
        return bool(broken)

    def begin_join(self, disk: Path) -> bool:
        """Send every append from now on to one more disk, wiping what stale metadata it has.

        The caller then stores a snapshot of at least `last_sequence` there and calls finish_join.
        False when the disk cannot be used.
        """
        try:
            # A segment without records yet is shared as it is; else all begin a new one.
            if any(
                member.segment and member.segment.used_bytes > SEGMENT_HEADER_BYTES
                for member in self._members
            ):
                self._rotate(self.last_sequence + 1)
            self._members.append(self._new_member(disk, self.last_sequence + 1))
        except (OSError, NoSpaceError) as error:
            logger.warning("disk %s takes no metadata: %s", disk, error)
            return False
        return True

    def finish_join(self, disk: Path) -> None:
        """A snapshot is on the disk: count the copy in."""
        for member in [member for member in self._members if member.disk == disk and not member.joined]:
            try:
                for segment in member.open_files():
                    segment.sync()
            except OSError as error:
                self._forget([member], str(error))
                continue
            member.joined = True
            self._last_copies = {}
            self._write_memberships()

    def snapshot_stored(self, info: SnapshotInfo) -> None:
        """Every member holds this snapshot: older ones and the log up to it go."""
        self.snapshot = info
        self.durable_sequence = max(self.durable_sequence, info.sequence)
        self.log_bytes = 0
        for member in list(self._members):
            try:
                for sequence in files.snapshots(member.disk):
                    if sequence < info.sequence:
                        files.snapshot_path(member.disk, sequence).unlink()
            except OSError as error:
                self.drop([member.disk], str(error))
        self.trim(info.sequence)

    # --- the port -----------------------------------------------------------------------------

    @property
    def settled_sequence(self) -> int:
        """All of them: what was appended is in the kernel's hands."""
        return self.last_sequence

    def append(self, sequence: int, payload: bytes, session: int = 0) -> None:
        """Append the next entry to every copy."""
        self.append_all([LogRecord(sequence, payload)])

    def append_all(self, records: Sequence[LogRecord]) -> None:
        """Append the next entries, in one write to each copy unless a segment ends between them.

        Raises as append(); those before the segment's end may be there then.
        """
        run: list[bytes] = []
        run_bytes = 0
        for record in records:
            if record.sequence != self.last_sequence + len(run) + 1:
                raise InvalidError(f"entry {record.sequence} cannot follow {self.last_sequence + len(run)}")
            data = pack_record(record.sequence, self.durable_sequence, record.payload)
            if run and run_bytes + len(data) > self._room_bytes():
                self._write(run)
                run, run_bytes = [], 0
            if not run:
                self._need_members()
                # An entry longer than a segment has one to itself.
                if len(data) > self._room_bytes() < self._segment_bytes - SEGMENT_HEADER_BYTES:
                    self._rotate(record.sequence)
            run.append(data)
            run_bytes += len(data)
        if run:
            self._write(run)

    def _room_bytes(self) -> int:
        """What the open segments still take; negative behind an entry that was longer than one."""
        segment = self._members[0].segment
        return self._segment_bytes - segment.used_bytes if segment is not None else 0

    def _write(self, run: Sequence[bytes]) -> None:
        """Write packed records at the end of every copy, in the open segments."""
        data = b"".join(run)
        self._need_members()
        failed: list[Member] = []
        reason: OSError | None = None
        for member in self._members:
            try:
                if not member.append(data):
                    reason = OSError(errno.ENOSPC, f"{member.disk}: no space for the metadata log")
                    failed.append(member)
            except OSError as error:
                reason = error
                failed.append(member)
        if reason is not None:
            self._append_failed(failed, reason)
        for member in self._members:
            member.advance(len(data))
        self.last_sequence += len(run)
        self.log_bytes += len(data)
        if self._appended.statistics().tasks_waiting:
            self._appended.set()
            self._appended = trio.Event()

    def _append_failed(self, failed: list[Member], reason: OSError) -> None:
        if not any(member.joined for member in self._members if member not in failed):
            # Nothing counts: no end moved, the next append overwrites what was written.
            if reason.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpaceError(f"the metadata log: {reason}") from reason
            raise UnavailableError(f"the metadata log: {reason}") from reason
        self._forget(failed, str(reason))
        self._write_memberships()
        self._need_members()

    def _rotate(self, first_sequence: int) -> None:
        """Begin a new segment on every member; those that cannot are dropped, unless none can."""
        failed: list[Member] = []
        reason: OSError | None = None
        for member in self._members:
            try:
                member.open_segment(first_sequence, self._segment_bytes)
            except OSError as error:
                failed.append(member)
                reason = error
        if reason is not None:
            if not any(member.joined for member in self._members if member not in failed):
                raise NoSpaceError(f"no metadata disk takes a new log segment: {reason}") from reason
            self._forget(failed, str(reason))
            self._write_memberships()

    def begin_segment(self) -> None:
        """Begin a new segment now (before a snapshot), so that trimming frees the old ones whole."""
        first = self._members[0].segment if self._members else None
        if first is not None and first.used_bytes > SEGMENT_HEADER_BYTES:
            self._rotate(self.last_sequence + 1)

    def read(self, after: int) -> Iterator[LogRecord]:
        """Entries behind `after`, from the first copy that has them."""
        error: Exception | None = None
        for disk in self.member_disks():
            try:
                for record in self._read_copy(disk, after):
                    after = record.sequence
                    yield record
            except (OSError, DataLossError) as caught:
                error = caught
                continue
            return
        raise DataLossError(f"the metadata log behind {after} cannot be read: {error}")

    def _read_copy(self, disk: Path, after: int) -> Iterator[LogRecord]:
        firsts = files.segments(disk)
        for at, first in enumerate(firsts):
            if at + 1 < len(firsts) and firsts[at + 1] <= after + 1:
                continue
            for record in scan(files.segment_path(disk, first).read_bytes()):
                if record.sequence <= after:
                    continue
                if record.sequence > self.last_sequence:
                    return
                if record.payload is None or record.sequence != after + 1:
                    break
                after += 1
                yield LogRecord(after, record.payload)
        if after < self.last_sequence:
            raise DataLossError(f"{disk}: entry {after + 1} is damaged or trimmed")

    async def watch(self, after: int) -> AsyncGenerator[LogRecord, None]:
        """Entries behind `after` for ever, as they come."""
        while True:
            for record in self.read(after):
                after = record.sequence
                yield record
            if self.last_sequence <= after:
                await self._appended.wait()

    def trim(self, through: int) -> None:
        """Remove segments whose every entry is at or before `through`."""
        for member in list(self._members):
            firsts = files.segments(member.disk)
            try:
                for at, first in enumerate(firsts[:-1]):
                    if firsts[at + 1] <= through + 1:
                        files.segment_path(member.disk, first).unlink()
            except OSError as error:
                self.drop([member.disk], str(error))

    async def wait_durable(self, sequence: int) -> None:
        """Return when entries up to `sequence` are on stable storage; one sync serves all who wait."""
        if sequence > self.last_sequence:
            raise InvalidError(f"entry {sequence} is not in the log: it ends at {self.last_sequence}")
        while self.durable_sequence < sequence:
            if self._syncing is not None:
                await self._syncing.wait()
            else:
                await self._sync_once()

    async def admit(self) -> None:
        """Nothing to wait for."""

    async def confirm(self, *, hurry: bool = True) -> None:
        """Nothing to wait for: what was appended is in the kernel's hands."""

    def answers_early(self, session: int) -> bool:
        """Nothing is ever unsettled."""
        return True

    def unsettled(self, after: int) -> Sequence[LogRecord]:
        """None."""
        return ()

    @asynccontextmanager
    async def settled(self) -> AsyncIterator[None]:
        """Any moment is one."""
        yield

    async def _sync_once(self) -> None:
        while self._syncing is not None:
            await self._syncing.wait()
        self._need_members()
        self._syncing = trio.Event()
        try:
            target = self.last_sequence
            work = [(member, member.open_files()) for member in self._members]
            # Sealed by now: whole after this sync. One sealed meanwhile is synced the next time.
            sealed = [(member, list(member.unsynced)) for member in self._members]
            failed: dict[str, OSError] = {}
            by_device: dict[int, list[tuple[Member, list[SegmentFile]]]] = {}
            for member, open_files in work:
                device = os.fstat(open_files[-1].fd).st_dev
                by_device.setdefault(device, []).append((member, open_files))
            # One thread for each device: on one device syncs queue up anyway.
            async with trio.open_nursery() as nursery:
                for group in by_device.values():
                    nursery.start_soon(trio.to_thread.run_sync, _sync_group, group, failed)
            for member, whole in sealed:
                if member in self._members and member.id not in failed:
                    member.unsynced = [segment for segment in member.unsynced if segment not in whole]
                    self._doomed += whole
            broken = [member for member in self._members if member.id in failed]
            if broken:
                self._forget(broken, str(next(iter(failed.values()))))
                self._write_memberships()
            if any(member.joined for member, _ in work if member.id not in failed):
                self.durable_sequence = max(self.durable_sequence, target)
        finally:
            self._syncing.set()
            self._syncing = None
            self._close_doomed()


def _sync_group(group: list[tuple[Member, list[SegmentFile]]], failed: dict[str, OSError]) -> None:
    """Sync members' files one after the other; runs in a thread."""
    for member, open_files in group:
        try:
            for segment in open_files:
                segment.sync()
        except OSError as error:
            failed[member.id] = error
