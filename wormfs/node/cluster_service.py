"""The Cluster service: the map, registration and heartbeats, status, policy, locate, fsck.

What tells names, files or stripes waits as the Metadata service does until no session can hand over
entries any more that it was answered early (`MasterService.admit`): else it would tell that something is
not there which is there a moment later. The status tells counts only, and is looked at just
then: it never waits for that.
"""

from collections.abc import AsyncIterator
from typing import Any, cast

import trio

from wormfs.core.errors import InvalidError, NotFoundError
from wormfs.core.types import ChunkKey
from wormfs.metadata.machine import Machine
from wormfs.node.chunk_service import key_from
from wormfs.node.config import policy_problem
from wormfs.node.early_answers import confirming
from wormfs.node.fsck import Fsck
from wormfs.node.health import Health
from wormfs.node.links import NodeLinks
from wormfs.node.master_service import MasterService
from wormfs.node.members import Members, policy_from
from wormfs.node.repair import Repair
from wormfs.node.replication_status import ReplicationStatus
from wormfs.rpc import methods as m
from wormfs.rpc.registry import DataBuffer, Registry, RequestContext
from wormfs.rpc.v1 import cluster_pb2 as pb
from wormfs.rpc.v1 import filesystem_pb2, metadata_pb2, types_pb2
from wormfs.store import layout

STATUS_PATIENCE_S = 2.0
LOCATE_DEFAULT = 256
LOCATE_MAX = 4096
FORGET_PAGE = 1000


class ClusterService:
    """The master's handlers."""

    def __init__(
        self,
        machine: Machine,
        members: Members,
        master: MasterService,
        health: Health,
        links: NodeLinks,
        repair: Repair,
        *,
        disk_count: int,
        engine: str,
        replication: ReplicationStatus | None = None,
    ) -> None:
        """`replication`: of an engine with replicas on other nodes."""
        self._machine = machine
        self._members = members
        self._master = master
        self._health = health
        self._links = links
        self._repair = repair
        self._disk_count = disk_count
        self._engine = engine
        self._replication = replication

    def register(self, registry: Registry) -> None:
        """Add the handlers. What they answer is confirmed first, the map too: who tells it is master."""
        handlers: tuple[tuple[m.Method[Any, Any], Any], ...] = (
            (m.CLUSTER_GET_CLUSTER_MAP, self._get_map),
            (m.CLUSTER_REGISTER_NODE, self._register_node),
            (m.CLUSTER_HEARTBEAT, self._heartbeat),
            (m.CLUSTER_GET_STATUS, self._get_status),
            (m.CLUSTER_GET_POLICY, self._get_policy),
            (m.CLUSTER_SET_POLICY, self._set_policy),
            (m.CLUSTER_LOCATE, self._locate),
            (m.CLUSTER_FORGET_DISK, self._forget_disk),
        )
        for method, handler in handlers:
            registry.add(method, confirming(self._machine, handler, hurry=method is not m.CLUSTER_HEARTBEAT))
        registry.add(m.CLUSTER_FSCK, self._fsck)

    async def _get_map(
        self, _: RequestContext, __: pb.GetClusterMapRequest, ___: DataBuffer | None
    ) -> pb.ClusterMap:
        return self._members.map()

    async def _register_node(
        self, _: RequestContext, request: pb.RegisterNodeRequest, __: DataBuffer | None
    ) -> pb.RegisterNodeReply:
        reply = self._members.register(request)
        # The numbers are written on the node's disks next: they must survive us.
        await self._machine.wait_durable(self._machine.sequence)
        return reply

    async def _heartbeat(
        self, _: RequestContext, request: pb.HeartbeatRequest, __: DataBuffer | None
    ) -> pb.HeartbeatReply:
        known = self._members.heartbeat(request)
        for each in request.damaged:
            self._repair.note_damaged(each.disk, key_from(each.chunk))
            await trio.lowlevel.checkpoint()  # each may look through all stripes of a long file
        return pb.HeartbeatReply(known=known)

    async def _get_policy(
        self, _: RequestContext, __: pb.GetPolicyRequest, ___: DataBuffer | None
    ) -> types_pb2.Policy:
        return self._machine.policy_message()

    async def _set_policy(
        self, _: RequestContext, request: pb.SetPolicyRequest, __: DataBuffer | None
    ) -> types_pb2.Policy:
        """For stripes written from now on; a file's stripe size stays as it was made."""
        try:
            problem = policy_problem(policy_from(request.policy))
        except ValueError:
            problem = f"codec {request.policy.codec} is unknown"
        if problem:
            raise InvalidError(f"policy: {problem}")
        self._machine.set_policy(policy_from(request.policy))
        self._members.touch()
        await self._machine.wait_durable(self._machine.sequence)
        return self._machine.policy_message()

    # Status

    async def _get_status(
        self, _: RequestContext, __: pb.GetStatusRequest, ___: DataBuffer | None
    ) -> pb.StatusReply:
        danger = await self._health.counted(STATUS_PATIENCE_S)
        counts = self._machine.counts()
        disks = [str(path) for path in self._machine.metadata_disks()]
        reply = pb.StatusReply(
            map=self._members.map_with_figures(),
            engine=self._engine,
            sequence=self._machine.sequence,
            durable_sequence=self._machine.durable_sequence,
            session_count=len(self._master.leases.sessions),
            inode_count=counts.inodes,
            stripe_count=counts.stripes,
            garbage_chunk_count=counts.garbage_chunks,
            missing_chunk_count=danger.missing_chunks,
            stripes_one_loss_from_loss=danger.at_the_edge,
            stripes_lost=danger.lost,
            metadata_disks=disks,
            metadata_copies_wanted=self._machine.metadata_copies_wanted,
            repair=self._repair.status(),
        )
        reply.master = next((node.name for node in reply.map.nodes if node.master), "")
        lacking: list[str] = []
        if self._replication is not None:
            self._replication.fill(reply)
            lacking = self._replication.warnings(reply)
        reply.warnings.extend(self._warnings(reply) + lacking)
        reply.health = self._verdict(reply)
        full = self._machine.keeper.short_of_space
        if full:
            reply.warnings.append(f"{full}; until then nothing new can be written")
        if (lacking or full) and reply.health == "healthy":
            reply.health = "degraded"
        return reply

    def _verdict(self, reply: pb.StatusReply) -> str:
        online = sum(disk.state == pb.DISK_STATE_ONLINE for disk in reply.map.disks)
        if reply.stripes_lost or online <= reply.map.policy.m or not reply.metadata_disks:
            return "failed"
        wanted = min(reply.metadata_copies_wanted, self._disk_count)
        # Lost disks that nothing needs any more do no harm, while the others are enough.
        empty = set(reply.repair.empty_disks)
        needed = {disk.node for disk in reply.map.disks if disk.number not in empty}
        nodes_up = all(node.online for node in reply.map.nodes if node.number in needed)
        width = reply.map.policy.k + reply.map.policy.m
        if (
            online < len(reply.map.disks) - len(empty)
            or online < min(width, len(reply.map.disks))
            or not nodes_up
            or len(reply.metadata_disks) < wanted
            or reply.repair.waiting_stripes
            or reply.repair.stuck_stripes
        ):
            return "degraded"
        return "healthy"

    def _warnings(self, reply: pb.StatusReply) -> list[str]:
        warnings = []
        policy = reply.map.policy
        width = policy.k + policy.m
        for node in reply.map.nodes:
            if not node.online:
                warnings.append(f"{node.name} is offline: it has been silent")
        names = {node.number: node.name for node in reply.map.nodes}
        online = [disk for disk in reply.map.disks if disk.state == pb.DISK_STATE_ONLINE]
        down = {node.number for node in reply.map.nodes if not node.online}
        for disk in reply.map.disks:
            if disk.state != pb.DISK_STATE_ONLINE and disk.node not in down:
                where = f"disk {disk.number} ({disk.path}) of {names.get(disk.node, '?')}"
                warnings.append(f"{where} is offline: {disk.problem}")
        if len(online) < width:
            warnings.append(
                f"{len(online)} disks are online, policy {policy.k}+{policy.m} wants {width}: "
                "new stripes are narrower and take more space"
            )
        nodes = len({disk.node for disk in online})
        if (
            len(reply.map.nodes) > 1
            and nodes
            and policy.m
            and -(-min(width, len(online)) // nodes) > policy.m
        ):
            warnings.append(
                f"{nodes} node(s) hold more than {policy.m} chunks of a stripe each: "
                "losing one node makes files unreadable until it is back"
            )
        if reply.metadata_copies_wanted > len(reply.metadata_disks):
            warnings.append(
                f"the metadata is on {len(reply.metadata_disks)} disk(s), "
                f"{reply.metadata_copies_wanted} are wanted to survive the loss of "
                f"{reply.metadata_copies_wanted - 1}: "
                f"give {reply.master} more disks"
            )
        if len(reply.map.nodes) > 1 and self._engine == "embedded":
            warnings.append(
                f"the metadata lives on {reply.master} alone (engine embedded): "
                "without it nothing can be reached"
            )
        warnings += self._repair_warnings(reply.repair)
        if reply.stripes_lost:
            warnings.append(f"{reply.stripes_lost} stripes cannot be read until disks come back")
        if reply.stripes_one_loss_from_loss and policy.m:
            warnings.append(f"{reply.stripes_one_loss_from_loss} stripes do not survive one more lost disk")
        return warnings

    def _repair_warnings(self, repair: pb.RepairStatus) -> list[str]:
        warnings = []
        if repair.waiting_stripes:
            warnings.append(
                f"repair is under way: {repair.waiting_stripes} stripes "
                f"({repair.waiting_bytes >> 20} MiB) left"
            )
        if repair.stuck_stripes:
            warnings.append(f"{repair.stuck_stripes} stripes cannot be repaired now: {repair.stuck_reason}")
        elif repair.stuck_reason:
            warnings.append(f"repair tries again: {repair.stuck_reason}")
        for disk in repair.empty_disks:
            warnings.append(
                f"disk {disk} is lost and nothing on it is needed any more: "
                f"if it will not come back, `wormfs disk forget {disk}`"
            )
        return warnings

    async def _forget_disk(
        self, _: RequestContext, request: pb.ForgetDiskRequest, __: DataBuffer | None
    ) -> types_pb2.Empty:
        """Refused while a stripe has a chunk there: then the disk is still worth bringing back."""
        await self._master.admit()
        disk = request.disk
        self._members.node_of(disk)  # NotFoundError
        if self._members.is_online(disk):
            raise InvalidError(f"disk {disk} is online: only a lost disk can be forgotten")
        count = 0
        after = None
        while True:
            page = self._machine.stripes_page(after, FORGET_PAGE)
            count += sum(disk in stripe.disks for _, stripe in page.stripes)
            after = page.next
            if after is None:
                break
            await trio.lowlevel.checkpoint()
        if count:
            raise InvalidError(
                f"{count} stripes still have a chunk on disk {disk}: bring it back, or wait until they are "
                "repaired (`wormfs status`)"
            )
        self._members.forget_disk(disk)
        await self._machine.wait_durable(self._machine.sequence)
        return types_pb2.Empty()

    # Locate

    async def _locate(
        self, _: RequestContext, request: pb.LocateRequest, __: DataBuffer | None
    ) -> pb.LocateReply:
        await self._master.admit()
        inode = self._resolve(request.path)
        count = min(request.limit or LOCATE_DEFAULT, LOCATE_MAX)
        query = metadata_pb2.GetFileMapRequest(inode=inode, first_index=request.after_index, count=count)
        page = cast("metadata_pb2.FileMapReply", self._machine.execute(query).reply)
        reply = pb.LocateReply(inline_bytes=self._machine.inline_bytes(inode))
        reply.attributes.CopyFrom(page.attributes)
        names = {node.number: node.name for node in self._members.map().nodes}
        disks = {disk.number: disk for disk in self._members.map().disks}
        for stripe in page.stripes:
            place = reply.stripes.add()
            place.stripe.CopyFrom(stripe)
            for index, number in enumerate(stripe.disks):
                disk = disks.get(number, pb.DiskInfo(number=number))
                chunk = layout.chunk_path(ChunkKey(inode, stripe.stripe_id, index))
                place.chunks.add(
                    index=index,
                    node=names.get(disk.node, ""),
                    disk=number,
                    disk_path=disk.path,
                    path=f"{disk.path}/{layout.CHUNKS_NAME}/{chunk}",
                    online=self._members.is_online(number),
                )
        stripe_size = page.attributes.stripe_size_bytes
        reply.end = (
            not stripe_size or (request.after_index + count) * stripe_size >= page.attributes.size_bytes
        )
        return reply

    def _resolve(self, path: bytes) -> int:
        inode = 1
        for name in path.split(b"/"):
            if name in (b"", b"."):
                continue
            lookup = filesystem_pb2.LookupRequest(parent=inode, name=name)
            try:
                reply = cast("filesystem_pb2.AttrReply", self._machine.execute(lookup).reply)
            except NotFoundError as error:
                shown = path.decode(errors="replace")
                raise NotFoundError(f"{shown}: no such file or directory") from error
            inode = reply.attributes.inode
        return inode

    async def _fsck(self, _: RequestContext, request: pb.FsckRequest) -> AsyncIterator[pb.FsckReply]:
        await self._master.admit()
        check = Fsck(
            self._machine,
            self._members,
            self._links,
            found_damaged=self._repair.note_damaged,
            verify_data=request.verify_data,
            collect_unknown=request.collect_unknown,
        )
        async for reply in check.run():
            await self._machine.confirm()
            yield reply
