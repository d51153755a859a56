"""Mastership in etcd: winning it, keeping it, knowing how long it surely lasts.

The `epoch` key fences: an append of an older epoch is refused, whatever any clock says. The lease
says who is there, and lets a master answer reads without asking etcd each time.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress

import trio

from wormfs.core.errors import UnavailableError, WormError
from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.rpc.etcd_types import compare_absent, compare_value, put
from wormfs.rpc.v1 import replication_pb2

LEASE_TTL_S = 2
"""etcd's minimum with its default election timeout of one second."""
RENEW_S = 0.4
MARGIN_SHARE = 0.1
"""Of the lease's time, left unused for clocks that run at different rates."""
GIVE_UP_S = 1.5
"""So long after what is surely its lease, a master that etcd does not answer gives up: another one may
be master, and whoever asks this one would wait. An election among etcd's members takes less."""
RESIGN_TIMEOUT_S = 1.0
log = logging.getLogger(__name__)


def boot_time_s() -> float:
    """Seconds since boot, those asleep included: a suspended machine's lease has run out too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Mastership:
    """One node's time as master. Made by `campaign`; `keep` must run."""

    def __init__(
        self,
        client: EtcdClient,
        epoch: int,
        lease_id: int,
        valid_until_s: float,
        clock_s: Callable[[], float],
    ) -> None:
        self.epoch = epoch
        self.ended = ""  # why it is over; empty while it may live
        self._unheard = False  # it is over because etcd did not answer
        self._client = client
        self._lease_id = lease_id
        self._valid_until_s = valid_until_s
        self._clock_s = clock_s
        self._moved = trio.Event()

    def is_sure(self) -> bool:
        """Whether nobody else can have become master until now."""
        return not self.ended and self._clock_s() < self._valid_until_s

    async def moved(self) -> None:
        """Return at the next renewal or at the end."""
        await self._moved.wait()

    def end(self, reason: str) -> None:
        """Be master no more: etcd refused this epoch, or the node stops."""
        if not self.ended:
            self.ended = reason
            log.warning("master no more (epoch %d): %s", self.epoch, reason)
        self._notify()

    def _notify(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    async def keep(self) -> None:
        """Renew the lease until it is lost, or cannot be renewed, or the mastership ended otherwise."""
        while not self.ended:
            sent_s = self._clock_s()
            try:
                left_s = await self._client.renew_lease(self._lease_id, timeout_s=LEASE_TTL_S / 2)
            except WormError as error:
                log.debug("the mastership's lease was not renewed: %s", error.message)
                if self._clock_s() > self._valid_until_s + GIVE_UP_S:
                    self._unheard = True
                    self.end(f"its lease in etcd cannot be renewed: {error.message}")
                    return
            else:
                if left_s <= 0:
                    self.end("its lease in etcd has expired")
                    return
                self._valid_until_s = sent_s + left_s * (1 - MARGIN_SHARE)
                self._notify()
            with trio.move_on_after(RENEW_S):
                await self._wait_ended()

    async def _wait_ended(self) -> None:
        while not self.ended:
            await self._moved.wait()

    async def resign(self) -> None:
        """Give the lease back, so that another node need not wait for its end."""
        self.end("it resigns")
        if self._unheard:
            return  # the lease ends by itself, and whoever asks this node is to hear of it at once
        with trio.move_on_after(RESIGN_TIMEOUT_S, shield=True), suppress(WormError):
            await self._client.revoke_lease(self._lease_id)


async def current_leader(
    client: EtcdClient, keys: EtcdKeys
) -> tuple[replication_pb2.LeaderRecord | None, int]:
    """The master's record, None when there is no master, and the etcd revision this holds for."""
    found = await client.range(keys.leader)
    record = replication_pb2.LeaderRecord.FromString(found.kvs[0].value) if found.kvs else None
    return record, found.revision


async def campaign(
    client: EtcdClient,
    keys: EtcdKeys,
    candidate: replication_pb2.LeaderRecord,
    *,
    clock_s: Callable[[], float] = boot_time_s,
) -> Mastership | None:
    """Try to become master; None when another one is, or was quicker.

    Raises UnavailableError when etcd does not answer; a half-won mastership then ends with its lease.
    """
    if (await client.range(keys.leader, keys_only=True)).kvs:
        return None
    known = (await client.range(keys.epoch)).kvs
    before = known[0].value if known else b""
    epoch = int(before or b"0") + 1
    sent_s = clock_s()
    lease = await client.grant_lease(LEASE_TTL_S)
    record = replication_pb2.LeaderRecord()
    record.CopyFrom(candidate)
    record.epoch = epoch
    unchanged = compare_value(keys.epoch, before) if known else compare_absent(keys.epoch)
    try:
        answer = await client.txn(
            [compare_absent(keys.leader), unchanged],
            [
                put(keys.epoch, str(epoch).encode()),
                put(keys.leader, record.SerializeToString(), lease=lease.id),
            ],
        )
        won = answer.succeeded
    except UnavailableError:
        leader, _ = await current_leader(client, keys)
        won = leader == record
    if not won:
        with suppress(WormError):
            await client.revoke_lease(lease.id)
        return None
    log.warning("%s is master now (epoch %d)", candidate.name, epoch)
    return Mastership(client, epoch, lease.id, sent_s + lease.ttl_s * (1 - MARGIN_SHARE), clock_s)
