"""`run_node`: one node from its configuration to its clean end.

Order of start: disks, then (on the first node) the metadata from them, then the node's and the
disks' numbers, then the store, the services and last the servers: whoever connects is served.
"""

import logging
import uuid

import trio

from wormfs.core.errors import DataLossError, DiskError, WrongClusterError
from wormfs.metadata.machine import Machine
from wormfs.node.config import NodeConfig
from wormfs.node.master_role import MasterRole
from wormfs.node.membership import Membership
from wormfs.node.parts import NodeParts
from wormfs.node.replica_role import ReplicaRole
from wormfs.node.snapshot_service import SnapshotService
from wormfs.node.standing_role import StandingRole, is_of_newer_program
from wormfs.rpc.registry import Registry
from wormfs.store.disk import Disk

log = logging.getLogger(__name__)


async def run_node(
    config: NodeConfig, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until cancelled, then drain: no new work, what is under way ends, all is committed.

    Started when the servers listen. Raises ConfigError, WrongClusterError, DiskError and their like
    when the node cannot start or the master refuses it.
    """
    disks = await trio.to_thread.run_sync(_open_disks, config)
    try:
        await _Node(config, disks).run(task_status)
    finally:
        for disk in disks:
            disk.close()
        log.info("stopped")


def _open_disks(config: NodeConfig) -> list[Disk]:
    """Open all that can be; the others are named in the log. Raises WrongClusterError, DiskError."""
    disks: list[Disk] = []
    problems: list[str] = []
    try:
        for path in config.disks:
            try:
                disks.append(Disk.open(path, new_where_mounted=config.mounted_disks))
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
    """One node, in the role its configuration gives it."""

    def __init__(self, config: NodeConfig, disks: list[Disk]) -> None:
        self.config = config
        self.disks = disks
        joins = bool(config.join) and config.metadata.engine == "embedded"
        self.parts = NodeParts(config, disks, list(config.join) if joins else config.stream_addresses())
        self.membership: Membership | ReplicaRole | StandingRole | None = None

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
                    until_s = trio.current_time() + self.config.drain_s
                    await self.parts.gateway.finish(self.config.drain_s)  # its chunks go to this node, too
                    await self.parts.drain.finish(max(0.0, until_s - trio.current_time()))
                    if self.membership is not None:
                        await self.membership.say_goodbye()
                services.cancel()

    async def _run_services(self, scope: trio.CancelScope, task_status: trio.TaskStatus[None]) -> None:
        with scope:
            if self.config.metadata.engine == "etcd":
                await self._run_replica(task_status)
            elif self.config.is_master:
                await self._run_master(task_status)
            else:
                await self._run_member(task_status)

    # One of those with a replica

    async def _run_replica(self, task_status: trio.TaskStatus[None]) -> None:
        status = _StartedOnce(task_status)
        role = self.membership = ReplicaRole(self.parts)
        try:
            await role.run(status)
        except (DataLossError, ExceptionGroup) as error:
            if not is_of_newer_program(error):
                raise
            why = _message_of(error)
        # The role took its servers and the store's tasks along; the disks are still open.
        self.parts = NodeParts(self.config, self.disks, self.config.stream_addresses())
        standing = self.membership = StandingRole(self.parts, why)
        await standing.run(status)

    # A node beside the master

    async def _run_member(self, task_status: trio.TaskStatus[None]) -> None:
        parts = self.parts
        membership = self.membership = Membership(
            list(self.config.join), parts.info, self.disks, finds_master=True
        )
        membership.register(parts.registry)
        parts.found_damaged = membership.note_damaged
        async with trio.open_nursery() as nursery:
            await parts.serve(nursery)
            task_status.started()
            await membership.join(nursery)
            await parts.start_store(nursery, membership.cluster_id)
            nursery.start_soon(parts.gateway.run)
            nursery.start_soon(membership.beat)

    # The first node: the embedded master

    async def _run_master(self, task_status: trio.TaskStatus[None]) -> None:
        machine = self._open_machine()
        parts = self.parts
        try:
            role = MasterRole(parts, machine)
            await role.register_self()
            async with trio.open_nursery() as nursery:
                await nursery.start(machine.run)
                await parts.start_store(nursery, machine.cluster_id)
                registry = Registry()
                await nursery.start(role.run, registry)
                SnapshotService(lambda: machine.keeper).register(registry)  # for backups
                parts.registry.set_role(registry)
                await parts.serve(nursery)
                nursery.start_soon(parts.gateway.run)
                task_status.started()
        finally:
            machine.close()

    def _open_machine(self) -> Machine:
        policy = self.config.policy.policy()
        owner = next((disk for disk in self.disks if disk.cluster_id), None)
        try:
            machine = Machine.open(
                [disk.path for disk in self.disks], copies=policy.m + 1, create=owner is None
            )
        except DataLossError as error:
            if owner is None or is_of_newer_program(error):
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


class _StartedOnce(trio.TaskStatus[None]):
    """Tells of the first start only: a second role may follow the first one."""

    def __init__(self, status: trio.TaskStatus[None]) -> None:
        self._status: trio.TaskStatus[None] | None = status

    def started(self, value: None = None) -> None:
        """Pass it on, once."""
        if self._status is not None:
            self._status.started()
        self._status = None


def _message_of(error: BaseException) -> str:
    """The first of a group's messages."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)
