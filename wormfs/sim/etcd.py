"""Fake etcd as its clients see it: through the network, with a quorum or without.

`SimEtcdClient` has the interface, promises and errors of EtcdClient. A transaction whose answer is
late or lost was done, was not, or will be: its request may still be on its way.
"""

import hashlib
from collections.abc import Callable
from random import Random
from types import TracebackType
from typing import TypeVar

import trio

from wormfs.core.errors import DeadlineError, NotFoundError, UnavailableError, UncertainError, WormError
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.rpc.etcd_types import Compare, EtcdEvents, EtcdLease, EtcdRange, EtcdTxn, Operation
from wormfs.rpc.etcd_watch import EtcdWatch
from wormfs.sim.etcd_store import EtcdStore
from wormfs.sim.network import Box, Network
from wormfs.sim.processes import Process
from wormfs.sim.signals import Signal
from wormfs.sim.trace import Trace

NAME = "etcd"
TIMEOUT_S = 2.0
REFUSED_SHARE = 0.3
"""Of the calls over a cut link: they fail at once, as a connection that is refused."""
LOSES_SHARE = 0.5
"""Of the requests that come while there is no quorum: they are forgotten; the others wait for one."""
EXPIRY_LATE_MAX_S = 0.5
T = TypeVar("T")


class SimEtcd:
    """The service: executes what arrives, in the order it arrives."""

    def __init__(self, network: Network, random: Random, trace: Trace, rate: float) -> None:
        self.has_quorum = True
        self.changed = network.changed
        self.network = network
        self.random = random
        self.trace = trace
        self.observers: list[Callable[[EtcdStore, EtcdEvents], None]] = []
        self._rate = rate
        self._waiting: list[Callable[[], None]] = []
        self._leases_changed = Signal()
        self.store = EtcdStore(lambda: trio.current_time() * rate, self._observe)

    def _observe(self, events: EtcdEvents) -> None:
        for event in events.events:
            digest = hashlib.sha256(event.kv.value).hexdigest()[:8]
            name = event.kv.key.decode().split("/", 2)[-1]
            self.trace.note(NAME, f"{events.revision} {event.kind.value} {name} {digest}")
        for observer in self.observers:
            observer(self.store, events)
        self.changed.notify()

    def receive(self, work: Callable[[], None]) -> None:
        """A request is here."""
        if self.has_quorum:
            work()
            self._leases_changed.notify()
        elif self.random.random() >= LOSES_SHARE:
            self._waiting.append(work)

    def lose_quorum(self) -> None:
        """Execute nothing from now on; no lease ends."""
        self.has_quorum = False

    def find_quorum(self) -> None:
        """Go on, under a new leader."""
        self.has_quorum = True
        self.store.promote()
        waiting, self._waiting = self._waiting, []
        for work in waiting:
            work()
        self._leases_changed.notify()

    async def run(self) -> None:
        """End leases when their time is over, or somewhat later, never sooner."""
        while True:
            ends_s = self.store.next_end_s()
            wait_s = 1e9 if ends_s is None else max(0.0, ends_s / self._rate - trio.current_time())
            with trio.move_on_after(wait_s + self.random.random() * EXPIRY_LATE_MAX_S) as scope:
                await self._leases_changed.wait()
            if scope.cancelled_caught and self.has_quorum:
                self.store.expire()


class SimEtcdClient(EtcdClient):
    """One process's client."""

    def __init__(self, etcd: SimEtcd, process: Process) -> None:
        self._etcd = etcd
        self._process = process

    def close(self) -> None:
        """Nothing is open."""

    async def _call(
        self, what: str, work: Callable[[], T], timeout_s: float | None, *, repeatable: bool = True
    ) -> T:
        etcd, network, me = self._etcd, self._etcd.network, self._process
        if me.is_dead:
            raise UnavailableError("this process is dead")
        if network.is_cut(me.name, NAME) and etcd.random.random() < REFUSED_SHARE:
            await trio.sleep(network.delay_s())
            raise UnavailableError("etcd: connection refused")
        box: Box[T] = Box()

        def answer(reply: T | WormError) -> None:
            network.send(NAME, me.name, lambda: box.put(reply), what=f"answer to {what}")

        def execute() -> None:
            reply: T | WormError
            try:
                reply = work()
            except WormError as error:
                reply = error
            answer(reply)

        network.send(me.name, NAME, lambda: etcd.receive(execute), what=what, repeatable=repeatable)
        with trio.move_on_after(TIMEOUT_S if timeout_s is None else timeout_s):
            await box.arrived.wait()
        if box.answer is None:
            if repeatable:
                raise DeadlineError(f"etcd: {what} was not answered in time")
            raise UncertainError(f"etcd: whether {what} was done is unknown")
        if isinstance(box.answer, WormError):
            raise box.answer
        return box.answer

    async def range(
        self,
        key: bytes,
        range_end: bytes = b"",
        *,
        limit: int = 0,
        revision: int = 0,
        keys_only: bool = False,
        serializable: bool = False,
        timeout_s: float | None = None,
    ) -> EtcdRange:
        """As EtcdClient's; always of now."""
        return await self._call("range", lambda: self._etcd.store.range(key, range_end, limit), timeout_s)

    async def txn(
        self,
        compares: tuple[Compare, ...] | list[Compare],
        success: tuple[Operation, ...] | list[Operation],
        failure: tuple[Operation, ...] | list[Operation] = (),
        *,
        timeout_s: float | None = None,
    ) -> EtcdTxn:
        """As EtcdClient's."""
        steps = tuple(compares), tuple(success), tuple(failure)
        return await self._call("txn", lambda: self._etcd.store.txn(*steps), timeout_s, repeatable=False)

    async def compact(self, revision: int, *, timeout_s: float | None = None) -> None:
        """As EtcdClient's."""
        await self._call("compact", lambda: self._etcd.store.compact(revision), timeout_s)

    def watch(self, key: bytes, range_end: bytes = b"", *, start_revision: int) -> EtcdWatch:
        """As EtcdClient's."""
        return SimEtcdWatch(self._etcd, self._process, key, range_end, start_revision)

    async def grant_lease(self, ttl_s: int, *, timeout_s: float | None = None) -> EtcdLease:
        """As EtcdClient's."""
        return await self._call("grant", lambda: self._etcd.store.grant(ttl_s), timeout_s)

    async def renew_lease(self, lease: int, *, timeout_s: float | None = None) -> int:
        """As EtcdClient's."""
        return await self._call("renew", lambda: self._etcd.store.renew(lease), timeout_s)

    async def revoke_lease(self, lease: int, *, timeout_s: float | None = None) -> None:
        """As EtcdClient's."""

        def work() -> None:
            try:
                self._etcd.store.revoke(lease)
            except NotFoundError:
                return

        await self._call("revoke", work, timeout_s)


class SimEtcdWatch(EtcdWatch):
    """Events in order and without gaps; none while the link is cut."""

    def __init__(self, etcd: SimEtcd, process: Process, key: bytes, range_end: bytes, revision: int) -> None:
        self._etcd = etcd
        self._process = process
        self._key = key
        self._end = range_end
        self._next = revision

    def __enter__(self) -> "SimEtcdWatch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""

    def __aiter__(self) -> "SimEtcdWatch":
        return self

    async def __anext__(self) -> EtcdEvents:
        while True:
            if self._process.is_dead:
                raise UnavailableError("this process is dead")
            found = self._etcd.store.events_from(self._next, self._key, self._end)
            if found is None or self._is_cut():
                await self._etcd.changed.wait()
                continue
            await trio.sleep(self._etcd.network.delay_s())
            if not self._is_cut():
                self._next = found.revision + 1
                return found

    def _is_cut(self) -> bool:
        return self._etcd.network.is_cut(NAME, self._process.name)

    def close(self) -> None:
        """Nothing is open."""
