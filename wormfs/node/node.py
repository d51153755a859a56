"""`run_node`: one node from its configuration to its clean end.

Order of start: disks, then (on the first node) the metadata from them, then the node's and the
disks' numbers, then the store, the services and last the servers: whoever connects is served.
"""

import logging
import random
import uuid
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import trio

from wormfs.client.peers import machine_id
from wormfs.core.errors import ConfigError, DataLossError, DiskError, WrongClusterError
from wormfs.core.types import ChunkKey
from wormfs.metadata.machine import Machine
from wormfs.node.chunk_service import ChunkService
from wormfs.node.cluster_service import ClusterService
from wormfs.node.collector import Collector
from wormfs.node.config import NodeConfig
from wormfs.node.drain import Drain
from wormfs.node.gateway import Gateway
from wormfs.node.health import Health
from wormfs.node.links import NodeLinks
from wormfs.node.master_service import MasterService
from wormfs.node.members import Members
from wormfs.node.membership import HEARTBEAT_S, Membership, disk_info
from wormfs.node.repair import Repair
from wormfs.rpc.grpc_server import serve_grpc
from wormfs.rpc.registry import Registry
from wormfs.rpc.stream_server import serve_streams
from wormfs.rpc.v1 import cluster_pb2
from wormfs.store.buffer_pool import BufferPool
from wormfs.store.chunk_store import ChunkStore
from wormfs.store.disk import Disk

log = logging.getLogger(__name__)

SWEEP_S = 0.5


def package_version() -> str:
    """The installed version of WormFS."""
    try:
        return version("wormfs")
    except PackageNotFoundError:
        return "unknown"


async def run_node(
    config: NodeConfig, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until cancelled, then drain: no new work, what is under way ends, all is committed.

    Started when the servers listen. Raises ConfigError, WrongClusterError, DiskError and their like
    when the node cannot start or the master refuses it.
    """
    disks = await trio.to_thread.run_sync(_open_disks, config.disks)
    try:
        await _Node(config, disks).run(task_status)
    finally:
        for disk in disks:
            disk.close()
        log.info("stopped")


def _open_disks(paths: Sequence[Path]) -> list[Disk]:
    """Open all that can be; the others are named in the log. Raises WrongClusterError, DiskError."""
    disks: list[Disk] = []
    problems: list[str] = []
    try:
        for path in paths:
            try:
                disks.append(Disk.open(path))
            except DiskError as error:
                log.error("a disk cannot be used: %s", error.message)
                problems.append(error.message)
        _check_disks(disks, problems)
    except BaseException:
        for disk in disks:
            disk.close()
        raise
    return disks


def _check_disks(disks: list[Disk], problems: list[str]) -> None:
    clusters = {disk.cluster_id: disk for disk in disks if disk.cluster_id}
    if len(clusters) > 1:
        one, other = list(clusters.values())[:2]
        raise WrongClusterError(
            f"{other.path} is a disk of cluster {other.cluster_id}, "
            f"but {one.path} is one of cluster {one.cluster_id}"
        )
    if not disks:
        raise DiskError(problems[0] if problems else "no disk is configured")


class _Node:
    """The parts of one node."""

    def __init__(self, config: NodeConfig, disks: list[Disk]) -> None:
        self.config = config
        self.disks = disks
        self.pool = BufferPool()
        self.store: ChunkStore | None = None
        self.drain = Drain()
        self.membership: Membership | None = None
        self.registry = Registry()
        self.info = cluster_pb2.NodeInfo(
            number=next((disk.node for disk in disks if disk.node), 0),
            name=config.name,
            addresses=_advertised(config),
            grpc_address=config.grpc_advertise or config.grpc_listen,
            version=package_version(),
            machine_id=machine_id(),
        )
        self.found_damaged: Callable[[int, ChunkKey], None] = lambda _disk, _key: None
        ChunkService(lambda: self.store, self.pool, self.drain, self._note_damaged).register(self.registry)
        gateway_seeds = config.stream_addresses() if config.is_master else list(config.join)
        self.gateway_label = f"gateway of {config.name}"
        self.gateway = Gateway(lambda: gateway_seeds, self.gateway_label)
        self.gateway.register(self.registry)

    def _note_damaged(self, disk: int, key: ChunkKey) -> None:
        self.found_damaged(disk, key)

    def make_store(self, cluster_id: str) -> ChunkStore:
        """Serve the disks, numbered now, as `cluster_id`'s."""
        self.store = ChunkStore(
            [disk for disk in self.disks if disk.number], cluster_id=cluster_id, pool=self.pool
        )
        return self.store

    async def serve(self, nursery: trio.Nursery) -> None:
        """Start the servers. Raises ConfigError for an address that cannot be used."""
        addresses = await nursery.start(serve_streams, self.registry, self.config.stream_addresses())
        if self.config.grpc_listen:
            await nursery.start(serve_grpc, self.registry, self.config.grpc_listen)
        log.info(
            "%s serves %d disks on %s", self.config.name, len(self.disks), ", ".join(map(str, addresses))
        )

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled; the parts outlive the cancellation until the drain is over."""
        services = trio.CancelScope(shield=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_services, services, task_status)
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    log.info("stopping: letting what is under way end")
                    await self.drain.finish(self.config.drain_s)
                    if self.membership is not None:
                        await self.membership.say_goodbye()
                services.cancel()

    async def _run_services(self, scope: trio.CancelScope, task_status: trio.TaskStatus[None]) -> None:
        with scope:
            if self.config.is_master:
                await self._run_master(task_status)
            else:
                await self._run_member(task_status)

    # A node beside the master

    async def _run_member(self, task_status: trio.TaskStatus[None]) -> None:
        membership = self.membership = Membership(list(self.config.join), self.info, self.disks)
        membership.register(self.registry)
        self.found_damaged = membership.note_damaged
        async with trio.open_nursery() as nursery:
            await self.serve(nursery)
            task_status.started()
            await membership.join(nursery)
            await nursery.start(self.make_store(membership.cluster_id).run)
            nursery.start_soon(self.gateway.run)
            nursery.start_soon(membership.beat)

    # The first node: the embedded master

    async def _run_master(self, task_status: trio.TaskStatus[None]) -> None:
        machine = self._open_machine()
        try:
            await self._serve_master(machine, task_status)
        finally:
            machine.close()

    async def _serve_master(self, machine: Machine, task_status: trio.TaskStatus[None]) -> None:
        members = Members(machine, silent_after_s=self.config.silent_after_s)
        self._register_self(machine, members)
        for session in machine.sessions():
            if session.label == self.gateway_label:
                machine.close_session(session.session_id)  # our own process's, before it ended
        Repair.close_old_sessions(machine)
        store = self.make_store(machine.cluster_id)
        async with trio.open_nursery() as nursery:
            links = NodeLinks(members, nursery)
            health = Health(machine, members)
            master = MasterService(machine, members, lease_s=self.config.lease_s, random=random.Random())
            master.register(self.registry)
            repair = Repair(
                machine,
                members,
                master,
                links,
                after_s=self.config.repair_after_s,
                rate_bytes=self.config.repair_rate_bytes,
                random=random.Random(),
                round_ended=health.note_change,
            )
            self.found_damaged = repair.note_damaged
            ClusterService(
                machine, members, master, health, links, repair, disk_count=len(self.disks)
            ).register(self.registry)
            await nursery.start(machine.run)
            await nursery.start(store.run)
            await nursery.start(master.run)
            await self.serve(nursery)
            nursery.start_soon(health.run)
            nursery.start_soon(repair.run)
            nursery.start_soon(Collector(machine, members, links, master).run)
            nursery.start_soon(self.gateway.run)
            nursery.start_soon(self._watch_disks, machine, members)
            nursery.start_soon(_sweep, members)
            task_status.started()

    def _open_machine(self) -> Machine:
        policy = self.config.policy.policy()
        owner = next((disk for disk in self.disks if disk.cluster_id), None)
        try:
            machine = Machine.open(
                [disk.path for disk in self.disks], copies=policy.m + 1, create=owner is None
            )
        except DataLossError as error:
            if owner is None:
                raise
            raise DataLossError(
                f"{owner.path} is a disk of cluster {owner.cluster_id}, but this node's disks do not hold "
                f"its metadata ({error.message}): bring the missing disks back, or set `join` if another "
                "node has it"
            ) from error
        if not machine.cluster_id:
            machine.form_cluster(str(uuid.uuid4()), self.config.cluster.name, policy)
            log.info("formed cluster %s with policy %s", machine.cluster_id, policy)
        elif owner is not None and owner.cluster_id != machine.cluster_id:
            machine.close()
            raise WrongClusterError(
                f"{owner.path} is a disk of cluster {owner.cluster_id}, "
                f"the metadata here is of cluster {machine.cluster_id}"
            )
        return machine

    def _register_self(self, machine: Machine, members: Members) -> None:
        """The master is a node like the others; after the loss of its disks its name tells who it is."""
        known = {node.name: node.number for node in machine.nodes()}
        self.info.number = self.info.number or known.get(self.config.name, 0)
        request = cluster_pb2.RegisterNodeRequest(cluster_id=machine.cluster_id, node=self.info)
        request.disks.extend(disk_info(disk, self.info.number) for disk in self.disks)
        reply = members.register(request)
        self.info.number = members.own_node = reply.node
        members.touch()
        for disk, given in zip(self.disks, reply.disks, strict=True):
            if disk.online:
                disk.assign(cluster_id=machine.cluster_id, node=reply.node, number=given.number)

    async def _watch_disks(self, machine: Machine, members: Members) -> None:
        """The master's own heartbeat; a disk that failed takes its copy of the metadata along."""
        failed: set[Path] = set()
        while True:
            request = cluster_pb2.HeartbeatRequest(cluster_id=machine.cluster_id, node=self.info.number)
            request.disks.extend(disk_info(disk, self.info.number) for disk in self.disks)
            members.heartbeat(request)
            for disk in self.disks:
                if not disk.online and disk.path not in failed:
                    failed.add(disk.path)
                    machine.disk_failed(disk.path)
                elif disk.online and disk.path in failed:
                    failed.discard(disk.path)
                    machine.disk_usable(disk.path)
            await trio.sleep(HEARTBEAT_S)


async def _sweep(members: Members) -> None:
    while True:
        members.sweep()
        await trio.sleep(SWEEP_S)


def _advertised(config: NodeConfig) -> list[str]:
    """The addresses others reach this node by. Raises ConfigError for a listen-on-all without a name."""
    tcp = config.advertise or config.listen
    host = tcp.rpartition(":")[0]
    if host in ("0.0.0.0", "[::]"):
        raise ConfigError(
            f"listen is {config.listen}: set `advertise` to the address others reach this node by"
        )
    unix = [f"unix:{config.unix_socket.absolute()}"] if config.unix_socket else []
    return [*unix, tcp]
