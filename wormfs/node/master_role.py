"""The master's duties around a machine: members, sessions, health, repair, garbage."""

import random
from pathlib import Path

import trio

from wormfs.metadata.machine import Machine
from wormfs.node.cluster_service import ClusterService
from wormfs.node.collector import Collector
from wormfs.node.health import Health
from wormfs.node.links import NodeLinks
from wormfs.node.master_service import MasterService
from wormfs.node.members import Members
from wormfs.node.membership import HEARTBEAT_S, disk_info, heartbeat_message
from wormfs.node.parts import NodeParts
from wormfs.node.repair import Repair
from wormfs.node.replication_status import ReplicationStatus
from wormfs.rpc.registry import Registry
from wormfs.rpc.v1 import cluster_pb2

SWEEP_S = 0.5


class MasterRole:
    """One mastership of a node: with the embedded engine its whole life, with etcd from election to loss."""

    def __init__(
        self,
        parts: NodeParts,
        machine: Machine,
        seen: cluster_pb2.ClusterMap | None = None,
        replication: ReplicationStatus | None = None,
    ) -> None:
        """`seen`: the map of the master before, so that its nodes count as online until proven silent.

        `replication`: for `status`, of an engine with replicas on other nodes.
        """
        self._parts = parts
        self._machine = machine
        self._replication = replication
        self.members = Members(machine, silent_after_s=parts.config.silent_after_s)
        if seen is not None:
            self.members.adopt(seen)

    async def register_self(self) -> None:
        """The master is a node like the others; after the loss of its disks its name tells who it is.

        To be called before `run`: the store needs the disks' numbers.
        """
        parts, machine = self._parts, self._machine
        known = {node.name: node.number for node in machine.nodes()}
        parts.info.number = parts.info.number or known.get(parts.config.name, 0)
        request = cluster_pb2.RegisterNodeRequest(cluster_id=machine.cluster_id, node=parts.info)
        request.disks.extend(disk_info(disk, parts.info.number) for disk in parts.disks)
        reply = self.members.register(request, own=True)
        await machine.confirm()  # the numbers go onto the disks: they must stay true
        parts.info.number = self.members.own_node = reply.node
        self.members.touch()
        for disk, given in zip(parts.disks, reply.disks, strict=True):
            if disk.online:
                disk.assign(cluster_id=machine.cluster_id, node=reply.node, number=given.number)

    async def run(
        self,
        registry: Registry,
        *,
        confirmed: bool = False,
        task_status: trio.TaskStatus[None],
    ) -> None:
        """Serve as master until cancelled; started when the handlers are in `registry`.

        `confirmed`: see MasterService.register.
        """
        parts, machine, members = self._parts, self._machine, self.members
        for session in machine.sessions():
            if session.label == parts.gateway_label and not confirmed:
                machine.close_session(session.session_id)  # our own process's, before it ended
        Repair.close_old_sessions(machine)
        async with trio.open_nursery() as nursery:
            links = NodeLinks(members, nursery)
            health = Health(machine, members)
            master = MasterService(machine, members, lease_s=parts.config.lease_s, random=random.Random())
            master.register(registry, confirmed=confirmed)
            repair = Repair(
                machine,
                members,
                master,
                links,
                after_s=parts.config.repair_after_s,
                rate_bytes=parts.config.repair_rate_bytes,
                random=random.Random(),
                round_ended=health.note_change,
            )
            parts.found_damaged = repair.note_damaged
            ClusterService(
                machine,
                members,
                master,
                health,
                links,
                repair,
                disk_count=len(parts.disks),
                engine=parts.config.metadata.engine,
                replication=self._replication,
            ).register(registry)
            await nursery.start(master.run)
            task_status.started()
            nursery.start_soon(health.run)
            nursery.start_soon(repair.run)
            nursery.start_soon(Collector(machine, members, links, master).run)
            nursery.start_soon(self._watch_disks)
            nursery.start_soon(self._sweep)

    async def _watch_disks(self) -> None:
        """The master's own heartbeat; a disk that failed takes its copy of the metadata along."""
        parts = self._parts
        failed: set[Path] = set()
        while True:
            request = heartbeat_message(self._machine.cluster_id, parts.info, parts.disks)
            self.members.heartbeat(request)
            for disk in parts.disks:
                if not disk.online and disk.path not in failed:
                    failed.add(disk.path)
                    self._machine.disk_failed(disk.path)
                elif disk.online and disk.path in failed:
                    failed.discard(disk.path)
                    self._machine.disk_usable(disk.path)
            await trio.sleep(HEARTBEAT_S)

    async def _sweep(self) -> None:
        while True:
            self.members.sweep()
            await trio.sleep(SWEEP_S)
