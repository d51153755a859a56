"""A node's copy of the metadata: its own log and snapshots, and the state they make.

The log here holds only what etcd had first, so it never has to be cut back; the state of a master
may be ahead of it, and is reset when the mastership ends.
"""

from collections.abc import Sequence
from pathlib import Path

from wormfs.core.errors import DataLossError
from wormfs.metadata.embedded_log import SEGMENT_BYTES, EmbeddedLog
from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.metadata.etcd_log import EtcdLog
from wormfs.metadata.keeper import StateKeeper
from wormfs.metadata.log_port import LogRecord
from wormfs.metadata.machine import Machine
from wormfs.metadata.state_files import apply_record
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.rpc.etcd_types import prefix_end
from wormfs.rpc.v1 import replication_pb2

REPLICA_COPIES = 2
"""Disks of a node that hold its replica: other nodes have theirs."""
_PAGE_BATCHES = 16


class Replica:
    """Made by `open`; `keeper.run` must be running while the node serves."""

    def __init__(self, log: EmbeddedLog, keeper: StateKeeper) -> None:
        self.log = log
        self.keeper = keeper

    @classmethod
    def open(cls, disks: Sequence[Path], *, segment_bytes: int = SEGMENT_BYTES) -> "Replica":
        """Recover the replica on these disk folders, or begin an empty one.

        Raises DataLossError, WrongClusterError, UnavailableError (no disk can be written).
        """
        copies = min(REPLICA_COPIES, len(disks))
        log = EmbeddedLog.open(disks, copies=copies, segment_bytes=segment_bytes)
        keeper = StateKeeper(log, disks)
        keeper.replicate_now()
        return cls(log, keeper)

    @property
    def sequence(self) -> int:
        """The last entry held."""
        return self.log.last_sequence

    @property
    def cluster_id(self) -> str:
        """Empty until the entry that formed the cluster is here."""
        return self.keeper.state.cluster_id

    def close(self) -> None:
        """Commit, sync and close."""
        self.keeper.close()

    def apply(self, record: LogRecord) -> None:
        """Take the next entry that etcd has.

        Raises DataLossError when it is not the next one, or one of a newer program.
        """
        if record.sequence != self.sequence + 1:
            raise DataLossError(f"entry {record.sequence} of the metadata log cannot follow {self.sequence}")
        self.log.append(record.sequence, record.payload)
        apply_record(self.keeper.state, record)

    def apply_batch(self, value: bytes) -> None:
        """Take what is new of a batch as etcd holds it. Raises as apply()."""
        batch = replication_pb2.LogBatch.FromString(value)
        for sequence, payload in enumerate(batch.entries, batch.first_sequence):
            if sequence > self.sequence:
                self.apply(LogRecord(sequence, payload))

    async def catch_up(self, client: EtcdClient, keys: EtcdKeys) -> int:
        """Apply all that etcd has behind this replica; answers the etcd revision up to which it did.

        Raises DataLossError when etcd has trimmed what is missing here, UnavailableError.
        """
        while True:
            page = await client.range(
                keys.batch(self.sequence + 1), prefix_end(keys.log), limit=_PAGE_BATCHES
            )
            for found in page.kvs:
                self.apply_batch(found.value)
            if not page.more:
                return page.revision

    def lead(self, log: EtcdLog, epoch: int, node: int) -> Machine:
        """Begin a mastership; `log` is at this replica's end."""
        return Machine.lead(self.keeper, log, epoch, node=node)

    def follow(self) -> None:
        """Be a follower (again): what a mastership applied and did not commit is taken back."""
        self.keeper.source = self.log
        self.keeper.reset_state()
