"""Keeping the log in etcd short: entries that enough replicas hold durably leave it.

Enough are three, or all when there are fewer. While one of three servers is away for long, a majority
is: so many hold what etcd itself has acknowledged, and etcd must not fill up.
The floor moves and the keys go in one transaction that only this mastership can make. Behind the
floor a replica needs a peer's snapshot, so a tail stays for those that were away for a moment.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import trio

from wormfs.core.errors import UnavailableError, WormError
from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.metadata.etcd_log import PAGE_BATCHES
from wormfs.metadata.log_port import LogRecord
from wormfs.metadata.replica import read_floor
from wormfs.metadata.replica_table import ReplicaTable
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.rpc.etcd_types import compare_value, delete, prefix_end, put
from wormfs.rpc.v1 import replication_pb2

ROUND_S = 1.0
COMPACT_S = 30.0
BATCHES_AT_ONCE = 2_000
"""Keys deleted in one transaction: etcd answers nobody else meanwhile."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrimLimits:
    """What stays in etcd although enough replicas hold it."""

    tail_entries: int = 10_000
    tail_bytes: int = 16 << 20  # the tail is the shorter of the two
    lag_bytes: int = 64 << 20  # a replica that is up and further behind takes a snapshot
    patient_bytes: int = 512 << 20  # what is longer need not wait for replicas that are away: etcd fills up


class LogTrimmer:
    """One mastership's. `note` must be told of every batch committed; `run` does the work."""

    def __init__(
        self,
        client: EtcdClient,
        keys: EtcdKeys,
        epoch: int,
        table: ReplicaTable,
        *,
        own: Callable[[], tuple[str, int, int]],
        members: Callable[[], Collection[str]],
        limits: TrimLimits | None = None,
    ) -> None:
        """`own`: the master's name, applied and durable sequences. `members`: names of registered nodes."""
        self._client = client
        self._keys = keys
        self._epoch = str(epoch).encode()
        self._table = table
        self._own = own
        self._members = members
        self._limits = limits or TrimLimits()
        self._sizes: dict[int, int] = {}  # of the batches in etcd, by their last sequence
        self._compact_to = 0
        self.floor = 0

    @property
    def log_bytes(self) -> int:
        """Of the entries in etcd, as far as they are known already."""
        return sum(self._sizes.values())

    def note(self, batch: Sequence[LogRecord]) -> None:
        """A batch is in etcd."""
        self._sizes[batch[-1].sequence] = sum(len(record.payload) for record in batch)

    async def run(self) -> None:
        """Trim and compact until cancelled."""
        loaded = False
        silent = False
        compact_at_s = trio.current_time() + COMPACT_S
        while True:
            try:
                await self.look()
                if not loaded:
                    await self.load()
                    loaded = True
                await self.trim()
                if trio.current_time() >= compact_at_s:
                    compact_at_s = trio.current_time() + COMPACT_S
                    await self._compact()
                silent = False
            except WormError as error:
                if not silent:
                    log.warning("the log in etcd is not trimmed now: %s", error.message)
                silent = True
            await trio.sleep(ROUND_S)

    async def look(self) -> None:
        """See which replicas there are, and how far the master's own is."""
        found = await self._client.range(self._keys.replicas, prefix_end(self._keys.replicas))
        registered = set(self._members())
        names = {replication_pb2.ReplicaRecord.FromString(kv.value).name for kv in found.kvs}
        own, applied, durable = self._own()
        # One that never joined, or was forgotten, holds nothing that counts.
        self._table.set_known((names & registered) | {own})
        self._table.acknowledge(own, applied=applied, durable=durable)
        self._table.sample(applied)

    async def load(self) -> None:
        """Learn what is in etcd already; to be called once."""
        after = self._keys.log
        while True:
            page = await self._client.range(after, prefix_end(self._keys.log), limit=PAGE_BATCHES)
            for kv in page.kvs:
                self._sizes[int(kv.key.removeprefix(self._keys.log), 16)] = len(kv.value)
                after = kv.key + b"\0"
            if not page.more:
                break
        self.floor = await read_floor(self._client, self._keys)
        self._sizes = dict(sorted(self._sizes.items()))

    def target(self) -> int:
        """The last entry that may go: the end of a batch, never of the last one; 0 when none may."""
        lasts = sorted(self._sizes)
        if len(lasts) < 2:
            return 0
        head = lasts[-1]
        held = self._table.held(self._table.needed)
        if self.log_bytes > self._limits.patient_bytes:
            held = max(held, self._table.held(self._table.majority))
        bound = min(self._before_tail(lasts), held, lasts[-2])
        for applied in self._table.applied():
            missing_bytes = sum(self._sizes[last] for last in lasts if last > applied)
            if missing_bytes <= self._limits.lag_bytes and applied < head:
                bound = min(bound, applied)
        return max((last for last in lasts if last <= bound), default=0)

    def _before_tail(self, lasts: Sequence[int]) -> int:
        """The end of the newest batch that is not in the tail."""
        kept_bytes = 0
        for last in reversed(lasts):
            kept_bytes += self._sizes[last]
            if kept_bytes > self._limits.tail_bytes or lasts[-1] - last >= self._limits.tail_entries:
                return last
        return 0

    async def trim(self) -> int:
        """Trim what may go, in bounded steps; answers how many batches went. Raises UnavailableError."""
        target = self.target()
        going = sorted(last for last in self._sizes if last <= target)
        for at in range(0, len(going), BATCHES_AT_ONCE):
            part = going[at : at + BATCHES_AT_ONCE]
            floor = part[-1]
            answer = await self._client.txn(
                [compare_value(self._keys.epoch, self._epoch)],
                [
                    put(self._keys.floor, str(floor).encode()),
                    delete(self._keys.log, self._keys.batch(floor + 1)),
                ],
            )
            if not answer.succeeded:
                raise UnavailableError("another node has become master")
            self.floor = floor
            for last in part:
                del self._sizes[last]
            log.debug("the log in etcd begins behind entry %d now", floor)
        return len(going)

    async def _compact(self) -> None:
        """Forget etcd's history up to the call before this one: watches are never so far behind."""
        if self._compact_to:
            await self._client.compact(self._compact_to)
        self._compact_to = (await self._client.range(self._keys.epoch)).revision
