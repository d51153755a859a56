"""A fake etcd: one linearizable key-value store with revisions, transactions, leases and history.

It knows what the log needs of etcd's API, by etcd's own rules: a transaction is one revision, a
lease that ends takes its keys along, a renewal of one that has run out finds it gone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from wormfs.core.errors import InvalidError, NotFoundError, StaleError
from wormfs.rpc.etcd_types import (
    Compare,
    EtcdDeleted,
    EtcdEvent,
    EtcdEventKind,
    EtcdEvents,
    EtcdKv,
    EtcdLease,
    EtcdPut,
    EtcdRange,
    EtcdTxn,
    Operation,
)

_FIRST_LEASE = 7000


@dataclass
class _Lease:
    ttl_s: int
    ends_s: float
    keys: dict[bytes, None] = field(default_factory=dict)


class EtcdStore:
    """The data. `clock_s` is etcd's own clock; `observe` is called with every revision's events."""

    def __init__(self, clock_s: Callable[[], float], observe: Callable[[EtcdEvents], None]) -> None:
        self._clock_s = clock_s
        self._observe = observe
        self.revision = 1
        self.kvs: dict[bytes, EtcdKv] = {}
        self._leases: dict[int, _Lease] = {}
        self._next_lease = _FIRST_LEASE
        self._history: list[EtcdEvents] = []
        self._compacted = 0
        self._events: list[EtcdEvent] = []  # of the revision being made

    # --- reading ------------------------------------------------------------------------------

    def _in_range(self, key: bytes, end: bytes) -> list[EtcdKv]:
        if not end:
            return [self.kvs[key]] if key in self.kvs else []
        return [self.kvs[each] for each in sorted(self.kvs) if key <= each < end]

    def range(self, key: bytes, end: bytes = b"", limit: int = 0) -> EtcdRange:
        """A key, or those in [key, end)."""
        found = self._in_range(key, end)
        more = bool(limit) and len(found) > limit
        return EtcdRange(self.revision, tuple(found[:limit] if limit else found), more)

    def events_from(self, revision: int, key: bytes, end: bytes) -> EtcdEvents | None:
        """The first change of the range at or behind a revision. StaleError when that was compacted."""
        if revision <= self._compacted:
            raise StaleError(f"etcd: history before {self._compacted} was compacted")
        for entry in self._history:
            if entry.revision >= revision:
                wanted = tuple(
                    event
                    for event in entry.events
                    if (key <= event.kv.key < end if end else event.kv.key == key)
                )
                if wanted:
                    return EtcdEvents(entry.revision, wanted)
        return None

    # --- changing -----------------------------------------------------------------------------

    def txn(
        self, compares: tuple[Compare, ...], success: tuple[Operation, ...], failure: tuple[Operation, ...]
    ) -> EtcdTxn:
        """One step. NotFoundError, with nothing done, when a put names a lease that is gone."""
        succeeded = all(map(self._holds, compares))
        operations = success if succeeded else failure
        for operation in operations:
            lease = operation.put.lease
            if lease and lease not in self._leases:
                raise NotFoundError("etcd: requested lease not found")
        responses = tuple(map(self._do, operations))
        self._end_revision()
        return EtcdTxn(succeeded, self.revision, responses)

    def _holds(self, compare: Compare) -> bool:
        kv = self.kvs.get(compare.key)
        if compare.result != Compare.EQUAL:
            raise InvalidError("the fake etcd compares for equality only")
        if compare.target == Compare.VALUE:
            return kv is not None and kv.value == compare.value
        if compare.target == Compare.CREATE:
            return (kv.create_revision if kv else 0) == compare.create_revision
        if compare.target == Compare.MOD:
            return (kv.mod_revision if kv else 0) == compare.mod_revision
        raise InvalidError("the fake etcd does not know this comparison")

    def _do(self, operation: Operation) -> EtcdRange | EtcdPut | EtcdDeleted:
        if operation.HasField("range"):
            request = operation.range
            return self.range(request.key, request.range_end, request.limit)
        if operation.HasField("put"):
            self._put(operation.put.key, operation.put.value, operation.put.lease)
            return EtcdPut()
        gone = self._in_range(operation.delete.key, operation.delete.range_end)
        for kv in gone:
            self._delete(kv)
        return EtcdDeleted(len(gone))

    def _put(self, key: bytes, value: bytes, lease: int) -> None:
        before = self.kvs.get(key)
        if before is not None and before.lease in self._leases:
            self._leases[before.lease].keys.pop(key, None)
        revision = self.revision + 1
        created = before.create_revision if before else revision
        kv = EtcdKv(key, value, created, revision, before.version + 1 if before else 1, lease)
        self.kvs[key] = kv
        if lease:
            self._leases[lease].keys[key] = None
        self._events.append(EtcdEvent(EtcdEventKind.PUT, kv))

    def _delete(self, kv: EtcdKv) -> None:
        del self.kvs[kv.key]
        if kv.lease in self._leases:
            self._leases[kv.lease].keys.pop(kv.key, None)
        gone = EtcdKv(kv.key, b"", 0, self.revision + 1, 0, 0)
        self._events.append(EtcdEvent(EtcdEventKind.DELETE, gone))

    def _end_revision(self) -> None:
        if self._events:
            self.revision += 1
            made = EtcdEvents(self.revision, tuple(self._events))
            self._events = []
            self._history.append(made)
            self._observe(made)

    def compact(self, revision: int) -> None:
        """Forget the history before this revision. InvalidError for one that is yet to come."""
        if revision > self.revision:
            raise InvalidError("etcd: required revision is a future revision")
        self._compacted = max(self._compacted, revision)
        self._history = [entry for entry in self._history if entry.revision > self._compacted]

    # --- leases -------------------------------------------------------------------------------

    def grant(self, ttl_s: int) -> EtcdLease:
        """A new lease."""
        self._next_lease += 1
        self._leases[self._next_lease] = _Lease(ttl_s, self._clock_s() + ttl_s)
        return EtcdLease(self._next_lease, ttl_s)

    def renew(self, lease_id: int) -> int:
        """Seconds it has now; 0: it is gone, or has run out."""
        lease = self._leases.get(lease_id)
        now_s = self._clock_s()
        if lease is None or lease.ends_s <= now_s:
            return 0
        lease.ends_s = now_s + lease.ttl_s
        return lease.ttl_s

    def revoke(self, lease_id: int) -> None:
        """End it with its keys. NotFoundError."""
        if lease_id not in self._leases:
            raise NotFoundError("etcd: requested lease not found")
        self._end_lease(lease_id)

    def _end_lease(self, lease_id: int) -> None:
        keys = list(self._leases.pop(lease_id).keys)
        for key in keys:
            self._delete(self.kvs[key])
        self._end_revision()

    def next_end_s(self) -> float | None:
        """When, by etcd's clock, the next lease runs out."""
        return min((lease.ends_s for lease in self._leases.values()), default=None)

    def expire(self) -> None:
        """End the leases that have run out."""
        now_s = self._clock_s()
        for lease_id in [key for key, lease in self._leases.items() if lease.ends_s <= now_s]:
            self._end_lease(lease_id)

    def promote(self) -> None:
        """A new leader of etcd's own lets every lease begin anew: it cannot know better."""
        now_s = self._clock_s()
        for lease in self._leases.values():
            lease.ends_s = now_s + lease.ttl_s
