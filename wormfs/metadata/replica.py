"""A node's copy of the metadata: its own log and snapshots, and the state they make.

The log here holds only what etcd had first, so it never has to be cut back; the state of a master
may be ahead of it, and is reset when the mastership ends.
"""

import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import trio

from wormfs.core.errors import (
    DataLossError,
    DiskError,
    NewerProgramError,
    NoSpaceError,
    UnavailableError,
)
from wormfs.metadata import members as files
from wormfs.metadata.embedded_log import SEGMENT_BYTES, EmbeddedLog
from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.metadata.etcd_log import PAGE_BATCHES, EtcdLog
from wormfs.metadata.keeper import StateKeeper
from wormfs.metadata.log_port import LogRecord
from wormfs.metadata.machine import Machine
from wormfs.metadata.snapshots import read_header
from wormfs.metadata.state_files import apply_record, state_path
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.rpc.etcd_types import prefix_end
from wormfs.rpc.v1 import replication_pb2

REPLICA_COPIES = 2
"""Disks of a node that hold its replica: other nodes have theirs."""


class TrimmedError(DataLossError):
    """Entries missing here are no longer in etcd: a peer's snapshot is needed, of `floor` or later."""

    def __init__(self, message: str, floor: int) -> None:
        super().__init__(message)
        self.floor = floor


class GapError(DataLossError):
    """Entries between this replica's end and those at hand are missing: they are read from etcd."""


class Replica:
    """Made by `open`; `run` must be running while the node serves."""

    def __init__(self, log: EmbeddedLog, keeper: StateKeeper, disks: Sequence[Path]) -> None:
        self.log = log
        self.keeper = keeper
        self._disks = list(disks)
        self._care: trio.CancelScope | None = None  # of the keeper's run
        self._resting = trio.Event()  # the keeper's run has ended for an install
        self._installed = trio.Event()

    @classmethod
    def open(cls, disks: Sequence[Path], *, segment_bytes: int = SEGMENT_BYTES) -> "Replica":
        """Recover the replica on these disk folders, or begin an empty one.

        Raises DataLossError, WrongClusterError, UnavailableError (no disk can be written).
        """
        for disk in disks:
            shutil.rmtree(disk / "metadata" / "copy", ignore_errors=True)  # of a verification cut short
        copies = min(REPLICA_COPIES, len(disks))
        log = EmbeddedLog.open(disks, copies=copies, segment_bytes=segment_bytes)
        try:
            keeper = StateKeeper(log, disks)
        except BaseException:
            log.close()
            raise
        keeper.replicate_now()
        return cls(log, keeper, disks)

    @property
    def sequence(self) -> int:
        """The last entry held."""
        return self.log.last_sequence

    @property
    def cluster_id(self) -> str:
        """Empty until the entry that formed the cluster is here. UnavailableError while there is no state.

        Asked before a node stands for election: one without a state cannot lead.
        """
        return self.keeper.state.cluster_id

    def close(self) -> None:
        """Commit, sync and close."""
        self.keeper.close()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Care for log and state until cancelled."""
        task_status.started()
        while True:
            self._resting = trio.Event()
            try:
                with trio.CancelScope() as self._care:
                    await self.keeper.run(task_status=trio.TASK_STATUS_IGNORED)
            finally:
                self._resting.set()
            await self._installed.wait()  # only install() ends a keeper's run without a cancellation here

    def apply_batch(self, value: bytes) -> None:
        """Take what is new of a batch as etcd holds it. Raises as apply()."""
        batch = replication_pb2.LogBatch.FromString(value)
        self.apply_entries(batch.first_sequence, batch.entries)

    def apply_entries(self, first_sequence: int, entries: Sequence[bytes]) -> None:
        """Take what is new of committed entries. Raises as apply()."""
        numbered = enumerate(entries, first_sequence)
        self.apply([LogRecord(*entry) for entry in numbered if entry[0] > self.sequence])

    def apply(self, records: Sequence[LogRecord]) -> None:
        """Take the next entries that etcd has; while there is no state they go to the log only.

        Raises GapError when they are not the next ones, DataLossError for one of a newer program,
        UnavailableError when the log takes one on no disk.
        """
        if records and records[0].sequence != self.sequence + 1:
            raise GapError(f"entry {records[0].sequence} of the metadata log cannot follow {self.sequence}")
        try:
            self.log.append_all(records)
        except NoSpaceError as error:
            raise UnavailableError(f"{error.message}; this replica goes on when there is space") from error
        finally:  # what the log took is applied, also when it has no room for the rest
            for record in records:
                if record.sequence <= self.sequence and not self.keeper.is_lost:
                    self._apply(record)

    def _apply(self, record: LogRecord) -> None:
        """Apply an entry that is in the log, unless the state was made anew with it."""
        state = self.keeper.state
        if record.sequence <= state.applied:
            return
        try:
            apply_record(state, record)
        except DataLossError as error:
            # A part of the entry may be applied: it must never be committed.
            state.rollback()
            kind = NewerProgramError if isinstance(error, NewerProgramError) else DataLossError
            raise kind(f"entry {record.sequence} of the metadata log: {error.message}") from error
        except sqlite3.Error as error:
            # The entry is in the log, and applied with it; without room for a state, later.
            with suppress(UnavailableError):
                self.keeper.rebuild_state(str(error))

    async def catch_up(self, client: EtcdClient, keys: EtcdKeys) -> int:
        """Apply all that etcd has behind this replica; answers the etcd revision up to which it did.

        Raises TrimmedError when etcd has trimmed what is missing here, DataLossError, UnavailableError.
        """
        while True:
            page = await client.range(keys.batch(self.sequence + 1), prefix_end(keys.log), limit=PAGE_BATCHES)
            try:
                for found in page.kvs:
                    self.apply_batch(found.value)
            except GapError as error:
                floor = await read_floor(client, keys)
                if floor > self.sequence:
                    raise TrimmedError(
                        f"etcd holds the metadata log behind entry {floor}, this replica ends at "
                        f"{self.sequence}: it needs the snapshot of another one",
                        floor,
                    ) from error
                raise
            if not page.more:
                return page.revision

    # --- a snapshot of another replica ----------------------------------------------------------

    def incoming(self) -> Path:
        """Where to write a peer's snapshot file for `install`. What a crash leaves there is removed at open.

        Raises UnavailableError when no disk holds the replica.
        """
        for disk in self.log.member_disks():
            return disk / "metadata" / "snapshots" / "incoming"
        raise UnavailableError("no disk holds the metadata replica: bring a metadata disk back")

    async def install(self, file: Path) -> None:
        """Become the replica that the snapshot in `file` makes; `file` was made by `incoming`, and checked.

        A crash leaves this replica as it was, or as the snapshot has it: what decides is one rename.
        Raises DataLossError for one not ahead of this replica; after any other error the replica is closed.
        """
        info = read_header(file)
        if info.sequence <= self.sequence:
            raise DataLossError(
                f"{file}: the snapshot is of entry {info.sequence}, this replica has {self.sequence}"
            )
        self._installed = trio.Event()
        with trio.CancelScope(shield=True):  # whoever waited for it: a closed replica must not stay
            if self._care is not None:
                self._care.cancel()
                await self._resting.wait()
            try:
                self.log, self.keeper = await trio.to_thread.run_sync(self._reopen, file, info.sequence)
            except OSError as error:
                raise DiskError(f"{file}: the snapshot cannot be installed: {error.strerror}") from error
            except UnavailableError as error:  # not one to be waited out: this replica is closed
                raise DiskError(f"{file}: the snapshot cannot be installed: {error.message}") from error
        self._installed.set()

    def _reopen(self, file: Path, sequence: int) -> tuple[EmbeddedLog, StateKeeper]:
        """Close the replica, and open the one of the snapshot. Blocks."""
        disks, copies, segment_bytes = self._disks, self.log.copies_wanted, self.log.segment_bytes
        self.keeper.close()
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        # Recovery takes the newest sound snapshot, gives it to the other copies, and drops the log before.
        file.replace(file.with_name(files.snapshot_path(file.parent, sequence).name))
        files.fsync_folder(file.parent)
        for disk in disks:
            shutil.rmtree(state_path(disk).parent, ignore_errors=True)
        log = EmbeddedLog.open(disks, copies=copies, create=False, segment_bytes=segment_bytes)
        log.trim(sequence)
        return log, StateKeeper(log, disks)

    # --- roles ------------------------------------------------------------------------------------

    def lead(
        self, log: EtcdLog, epoch: int, node: int, *, clock: Callable[[], int] = time.time_ns
    ) -> Machine:
        """Begin a mastership; `log` is at this replica's end. The mastership ends when the state is lost.

        `clock`: nanoseconds since 1970 UTC. Raises UnavailableError when there is no state.
        """
        self.keeper.on_loss = log.give_up  # another node, with a good disk, takes over
        return Machine.lead(self.keeper, log, epoch, node=node, clock=clock)

    def follow(self) -> None:
        """Be a follower (again): what a mastership applied and did not commit is taken back."""
        self.keeper.on_loss = None
        self.keeper.source = self.log
        self.keeper.reset_state()


async def read_floor(client: EtcdClient, keys: EtcdKeys) -> int:
    """Entries up to this one are no longer in etcd."""
    found = (await client.range(keys.floor)).kvs
    return int(found[0].value) if found else 0
