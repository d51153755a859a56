"""What must hold of a run, judged by what etcd holds and what left the nodes; nothing of the code is asked.

Promises checked as it goes: an answer leaves only while its node is master of the newest epoch by
etcd's own books; an entry is appended only by the newest epoch, with the next number. Afterwards:
numbers without gaps, each operation of a session once.
"""

from dataclasses import dataclass, field

from wormfs.rpc.etcd_types import EtcdEventKind, EtcdEvents
from wormfs.rpc.v1 import event_pb2, replication_pb2
from wormfs.sim.etcd_store import EtcdStore

_FOLDER = b"wormfs/sim/"


@dataclass
class LogWatcher:
    """Looks at every revision of etcd and every answer of a node; `problems` says what was wrong."""

    problems: list[str] = field(default_factory=list)
    entries: list[bytes] = field(default_factory=list)  # serialized LogEntry, from sequence 1 on
    done: dict[tuple[int, int], int] = field(default_factory=dict)  # after finish(): operation -> entry
    adopted_count: int = 0  # entries that were ordered anew
    _masters: dict[int, str] = field(default_factory=dict)  # epoch -> the node that won it

    @property
    def epoch_count(self) -> int:
        """Masterships that were won."""
        return len(self._masters)

    def revision(self, store: EtcdStore, events: EtcdEvents) -> None:
        """Etcd changed."""
        for event in events.events:
            key = event.kv.key.removeprefix(_FOLDER)
            if event.kind is not EtcdEventKind.PUT:
                continue
            if key == b"leader":
                self._won(replication_pb2.LeaderRecord.FromString(event.kv.value))
            elif key == b"head":
                self._appended(replication_pb2.LogHead.FromString(event.kv.value), _epoch(store))
            elif key.startswith(b"log/"):
                self._batch(replication_pb2.LogBatch.FromString(event.kv.value))

    def _won(self, leader: replication_pb2.LeaderRecord) -> None:
        other = self._masters.setdefault(leader.epoch, leader.name)
        if other != leader.name:
            self.problems.append(f"{leader.name} and {other} are both masters of epoch {leader.epoch}")

    def _appended(self, head: replication_pb2.LogHead, epoch: int) -> None:
        if head.epoch != epoch:
            self.problems.append(f"entry {head.sequence} of epoch {head.epoch} was appended in epoch {epoch}")

    def _batch(self, batch: replication_pb2.LogBatch) -> None:
        if batch.first_sequence != len(self.entries) + 1:
            self.problems.append(f"entry {batch.first_sequence} was appended behind {len(self.entries)}")
        self.entries[batch.first_sequence - 1 :] = batch.entries

    def answered(self, store: EtcdStore, node: str, epoch: int) -> None:
        """A node tells a client something, as master of that epoch."""
        kv = store.kvs.get(_FOLDER + b"leader")
        leader = replication_pb2.LeaderRecord.FromString(kv.value) if kv else None
        newest = _epoch(store)
        if newest != epoch:
            self.problems.append(f"{node}, master of epoch {epoch}, answers in epoch {newest}")
        elif leader is None or leader.name != node:
            self.problems.append(f"{node}, master of epoch {epoch}, answers when its lease is over")

    def finish(self) -> None:
        """Look at the whole log."""
        done = self.done
        epoch = 0
        for number, payload in enumerate(self.entries, 1):
            entry = event_pb2.LogEntry.FromString(payload)
            if entry.sequence != number:
                self.problems.append(f"entry {number} says it is {entry.sequence}")
            if entry.epoch < epoch:
                self.problems.append(f"entry {number} of epoch {entry.epoch} comes after epoch {epoch}")
            epoch = entry.epoch
            self.adopted_count += entry.HasField("origin")
            if entry.HasField("operation"):
                key = entry.operation.session_id, entry.operation.operation
                if key in done:
                    self.problems.append(f"operation {key} was done by entries {done[key]} and {number}")
                done[key] = number


def _epoch(store: EtcdStore) -> int:
    kv = store.kvs.get(_FOLDER + b"epoch")
    return int(kv.value) if kv else 0
