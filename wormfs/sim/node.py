"""One simulated node: the real replica, election, log and machine, and a front that answers clients.

It does what wormfs.node.replica_role does of elections and roles, without the parts of a node that
have nothing to do with the log (disks of chunks, gateway, servers, members).
"""

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import NoReturn

import trio
from google.protobuf.message import Message

from wormfs.core.errors import (
    DataLossError,
    NotMasterError,
    StaleError,
    UnavailableError,
    WormError,
    WrongClusterError,
)
from wormfs.core.types import Policy
from wormfs.metadata.election import Mastership, campaign, current_leader
from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.metadata.etcd_log import EtcdLog
from wormfs.metadata.replica import Replica
from wormfs.rpc.etcd_types import EtcdEventKind, prefix_end
from wormfs.rpc.v1 import replication_pb2
from wormfs.sim.clocks import MachineClock
from wormfs.sim.disk import SimDisk
from wormfs.sim.etcd import SimEtcd, SimEtcdClient
from wormfs.sim.front import FarEnd, Front, serve_metadata
from wormfs.sim.processes import Process, owned_by

CLUSTER_ID = "simulated"
POLICY = Policy(2, 1, 65536)
KEYS = EtcdKeys("sim")
PAUSE_S = 0.3
LEADER_CHECK_S = 2.0
SEGMENT_BYTES = 16 << 10
"""Short, so that segments are sealed and begun anew in every run."""
SERVE_MAX_S = 10.0
"""A request is given up then, as its client had asked for."""
Answer = Callable[[Message | WormError], None]


class SimNode:
    """`start` it; `crash` and `start` again. `failed` is told of every end that nobody asked for."""

    def __init__(
        self,
        number: int,
        etcd: SimEtcd,
        disk: SimDisk,
        clock: MachineClock,
        random: Random,
        *,
        nursery: trio.Nursery,
        failed: Callable[["SimNode", Exception], None],
        answered: Callable[[str, int], None],
    ) -> None:
        self.number = number
        self.name = f"node-{number}"
        self.disk = disk
        self.clock = clock
        self.process = Process(self.name)
        self.is_up = False
        self.was_up = False  # in this life
        self.replica: Replica | None = None
        self._etcd = etcd
        self._random = random
        self._outer = nursery
        self._failed = failed
        self._answered = answered
        self._image: Path | None = None
        self._is_wanted = False
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._ended.set()
        self._front: Front | None = None
        self._mastership: Mastership | None = None
        self._nursery: trio.Nursery

    def note(self, what: str) -> None:
        """A line in the trace."""
        self._etcd.trace.note(self.name, what)

    @property
    def epoch(self) -> int:
        """That of the mastership it thinks it has; 0: none."""
        return self._mastership.epoch if self._front is not None and self._mastership is not None else 0

    @property
    def is_elected(self) -> bool:
        """Whether etcd says so, whatever this node knows of it."""
        kv = self._etcd.store.kvs.get(KEYS.leader)
        return kv is not None and replication_pb2.LeaderRecord.FromString(kv.value).name == self.name

    # --- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin a new life, once the last one is over; does nothing for one that lives."""
        if self._is_wanted:
            return
        self._is_wanted = True
        await self._ended.wait()
        if self._image is not None:
            self.disk.become(self._image)
            self._image = None
        self.process = Process(self.name)
        self._ended = trio.Event()
        self._scope = trio.CancelScope()
        with owned_by(self.process):
            self._outer.start_soon(self._live, self.process)

    def crash(self, *, power: bool) -> None:
        """End it between two steps of its tasks; `power`: the machine's, not only the process's."""
        if self._ended.is_set() or self.process.is_dead:
            return
        self._image = self.disk.image()
        lost = self.disk.lose_power(self._image) if power else ""
        self.note(f"is killed; power {lost}" if power else "is killed")
        self.process.is_dead = True
        self.is_up = self._is_wanted = False
        self.process.go_on()
        self._scope.cancel()

    async def stop(self) -> None:
        """End it cleanly."""
        self._is_wanted = False
        self.process.go_on()
        self._scope.cancel()
        await self._ended.wait()

    async def _live(self, process: Process) -> None:
        self.note("starts")
        self.was_up = False
        try:
            self.disk.begin_life()
            self.replica = Replica.open([self.disk.folder], segment_bytes=SEGMENT_BYTES)
            try:
                self._client = SimEtcdClient(self._etcd, process)
                with self._scope:
                    async with trio.open_nursery() as self._nursery:
                        await self._nursery.start(self.replica.keeper.run)
                        self.is_up = self.was_up = True
                        await self._take_turns(self.replica)
            finally:
                self.is_up = False
                self._front = None
                replica, self.replica = self.replica, None
                if process.is_dead:  # its files are those of the image
                    with suppress(Exception):
                        replica.close()
                else:
                    replica.close()
        except* Exception as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            if not process.is_dead and isinstance(error, Exception):
                self.note(f"ends with {type(error).__name__}")
                self._is_wanted = False
                self._failed(self, error)
        finally:
            self._ended.set()
            self.note("has ended")

    def take_snapshot(self) -> None:
        """Have the replica take one now."""
        if self.is_up:
            with owned_by(self.process):
                self._nursery.start_soon(self._take_snapshot)

    async def _take_snapshot(self) -> None:
        try:
            if self.replica is not None:
                await self.replica.keeper.snapshot()
        except (OSError, sqlite3.Error, WormError) as error:
            self.note(f"takes no snapshot: {type(error).__name__}")

    # --- roles, as wormfs.node.replica_role has them ------------------------------------------

    async def _take_turns(self, replica: Replica) -> NoReturn:
        while True:
            try:
                leader, revision = await current_leader(self._client, KEYS)
                if leader is None:
                    await self._campaign(replica)
                else:
                    await self._follow(replica, leader, revision)
            except* UnavailableError:
                self.note("etcd does not answer")
            await trio.sleep(PAUSE_S * self._random.random())

    async def _follow(self, replica: Replica, leader: replication_pb2.LeaderRecord, revision: int) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_log, replica)
            await self._until_gone(leader, revision)
            nursery.cancel_scope.cancel()

    async def _follow_log(self, replica: Replica) -> None:
        while True:
            try:
                revision = await replica.catch_up(self._client, KEYS)
                log_end = prefix_end(KEYS.log)
                with self._client.watch(KEYS.log, log_end, start_revision=revision + 1) as watch:
                    async for changes in watch:
                        for event in changes.events:
                            if event.kind is EtcdEventKind.PUT:
                                replica.apply_batch(event.kv.value)
            except StaleError:
                continue
            except UnavailableError:
                pass
            await trio.sleep(PAUSE_S)

    async def _until_gone(self, leader: replication_pb2.LeaderRecord, revision: int) -> None:
        while True:
            with trio.move_on_after(LEADER_CHECK_S):
                try:
                    with self._client.watch(KEYS.leader, start_revision=revision + 1) as watch:
                        await watch.__anext__()
                except (UnavailableError, StaleError):
                    await trio.sleep(PAUSE_S)
            now, revision = await current_leader(self._client, KEYS)
            if now != leader:
                return

    async def _campaign(self, replica: Replica) -> None:
        await replica.catch_up(self._client, KEYS)
        if replica.cluster_id not in ("", CLUSTER_ID):
            raise WrongClusterError(f"{self.name} has the replica of cluster {replica.cluster_id}")
        candidate = replication_pb2.LeaderRecord(name=self.name)
        mastership = await campaign(self._client, KEYS, candidate, clock_s=self.clock.boot_s)
        if mastership is None:
            return
        self.note(f"is master of epoch {mastership.epoch}")
        self._mastership = mastership
        try:
            await self._lead(replica, mastership)
        finally:
            await mastership.resign()
            self._front = None
            self.note(f"is master no more: {mastership.ended}")
            if not self.process.is_dead:
                replica.follow()

    async def _lead(self, replica: Replica, mastership: Mastership) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mastership.keep)
            await replica.catch_up(self._client, KEYS)
            found = (await self._client.range(KEYS.head)).kvs
            head = found[0].value if found else b""
            end = replication_pb2.LogHead.FromString(head)
            if end.epoch > mastership.epoch:
                mastership.end("another node has become master")
                nursery.cancel_scope.cancel()
                return
            if end.sequence != replica.sequence:
                raise DataLossError(
                    f"the log in etcd ends at {end.sequence}, this copy at {replica.sequence}"
                )
            entries = EtcdLog(replica.log, self._client, KEYS, mastership, head)
            nursery.start_soon(entries.run)
            machine = replica.lead(entries, mastership.epoch, self.number, clock=self.clock.wall_ns)
            if not machine.cluster_id:
                machine.form_cluster(CLUSTER_ID, "sim", POLICY)
            self._front = await nursery.start(serve_metadata, machine, self._random)
            while not mastership.ended:
                await mastership.moved()
            nursery.cancel_scope.cancel()

    # --- answering ----------------------------------------------------------------------------

    def receive(self, request: Message, answer: Answer, connection: FarEnd) -> None:
        """A client's request is here, on that connection; a dead process answers nothing."""
        if self.is_up:
            with owned_by(self.process):
                self._nursery.start_soon(self._serve, request, answer, connection)

    async def _serve(self, request: Message, answer: Answer, connection: FarEnd) -> None:
        front, epoch = self._front, self.epoch
        if front is None:
            answer(NotMasterError(f"{self.name} is not the master"))
            return
        with trio.move_on_after(SERVE_MAX_S):
            try:
                reply = await front(connection, request)
            except UnavailableError as error:
                answer(error)
            except WormError as error:
                self._answered(self.name, epoch)
                answer(error)
            else:
                self._answered(self.name, epoch)
                answer(reply)
