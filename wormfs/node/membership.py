"""A node's side of belonging to a cluster: joining, heartbeats, the map as the master last told it."""

import logging
import os
import random
from collections.abc import Iterable
from itertools import islice

import trio

from wormfs.client.options import ClientOptions
from wormfs.client.peers import Peer
from wormfs.core.errors import InvalidError, UnavailableError, WormError, WrongClusterError
from wormfs.core.types import ChunkKey
from wormfs.node.chunk_service import id_from
from wormfs.node.master_contact import MasterContact
from wormfs.rpc import methods as m
from wormfs.rpc.registry import DataBuffer, Registry, RequestContext, UnaryHandler
from wormfs.rpc.v1 import cluster_pb2 as pb
from wormfs.store.disk import Disk

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
DAMAGED_MAX = 1000
DAMAGED_AT_ONCE = 100  # in a heartbeat: the master looks each up
CALL_TIMEOUT_S = 2.0
FORWARD_TIMEOUT_S = 10.0
_PAUSE_MIN_S = 0.1
_PAUSE_MAX_S = 2.0


def disk_info(disk: Disk, node: int) -> pb.DiskInfo:
    """A disk as its node reports it."""
    status = disk.status()
    return pb.DiskInfo(
        number=status.number,
        uuid=status.uuid,
        node=node,
        path=status.path,
        state=pb.DISK_STATE_ONLINE if status.online else pb.DISK_STATE_OFFLINE,
        total_bytes=status.total_bytes,
        free_bytes=status.free_bytes,
        problem=status.problem,
    )


def heartbeat_message(cluster_id: str, own: pb.NodeInfo, disks: Iterable[Disk]) -> pb.HeartbeatRequest:
    """What a node says of itself and its disks."""
    request = pb.HeartbeatRequest(cluster_id=cluster_id, node=own.number, load=_load(), version=own.version)
    request.disks.extend(disk_info(disk, own.number) for disk in disks)
    return request


def _load() -> float:
    """The machine's 1-minute load average divided by its processors; 0 when it does not tell."""
    try:
        return round(os.getloadavg()[0] / (os.cpu_count() or 1), 2)
    except OSError:  # no /proc: not worth a node's life
        return 0.0


def damaged_message(disk: int, key: ChunkKey) -> pb.DamagedChunk:
    """A chunk that cannot be read, as its node reports it."""
    return pb.DamagedChunk(disk=disk, chunk=id_from(key))


class Membership:
    """Joins through any of these addresses, and stays joined."""

    def __init__(
        self, addresses: list[str], own: pb.NodeInfo, disks: list[Disk], *, finds_master: bool = False
    ) -> None:
        """`addresses`: the master's; with `finds_master` those of any nodes, and the master may move."""
        self._addresses = addresses
        self._finds_master = finds_master
        self._own = own
        self._disks = disks
        self.cluster_id = next((disk.cluster_id for disk in disks if disk.cluster_id), "")
        self.map = pb.ClusterMap()
        self._peer: Peer | MasterContact | None = None
        self._damaged: dict[tuple[int, ChunkKey], None] = {}

    def note_damaged(self, disk: int, key: ChunkKey) -> None:
        """A chunk cannot be read: the master is told with the next heartbeat."""
        if len(self._damaged) < DAMAGED_MAX:
            self._damaged[disk, key] = None

    def register(self, registry: Registry) -> None:
        """Add the Cluster service's handlers of a node that is not the master."""
        registry.add(m.CLUSTER_GET_CLUSTER_MAP, self._get_map)
        # Any node is good for joining through.
        registry.add(m.CLUSTER_REGISTER_NODE, self._forwarder(m.CLUSTER_REGISTER_NODE))
        registry.add(m.CLUSTER_HEARTBEAT, self._forwarder(m.CLUSTER_HEARTBEAT))
        registry.add(m.CLUSTER_GET_STATUS, self._forwarder(m.CLUSTER_GET_STATUS))
        registry.add(m.CLUSTER_GET_POLICY, self._forwarder(m.CLUSTER_GET_POLICY))
        registry.add(m.CLUSTER_SET_POLICY, self._forwarder(m.CLUSTER_SET_POLICY))
        registry.add(m.CLUSTER_LOCATE, self._forwarder(m.CLUSTER_LOCATE))
        registry.add(m.CLUSTER_FORGET_DISK, self._forwarder(m.CLUSTER_FORGET_DISK))

    def _forwarder(self, method: m.Method[m.Request, m.Reply]) -> UnaryHandler[m.Request, m.Reply]:
        async def forward(_: RequestContext, request: m.Request, __: DataBuffer | None) -> m.Reply:
            if self._peer is None:
                raise UnavailableError("this node has not reached the master yet; its log says why")
            return (await self._peer.call(method, request, timeout_s=FORWARD_TIMEOUT_S)).message

        return forward

    async def _get_map(
        self, _: RequestContext, __: pb.GetClusterMapRequest, ___: DataBuffer | None
    ) -> pb.ClusterMap:
        if not self.map.nodes:
            raise UnavailableError("this node has not joined its cluster yet; its log says why")
        return self.map

    async def join(self, nursery: trio.Nursery) -> None:
        """Register, however long it takes for the master to be there; numbers go onto the disks.

        Raises WrongClusterError or InvalidError when the master refuses: trying again is no use.
        """
        if self._finds_master:
            self._peer = MasterContact(self._addresses, nursery)
        else:
            self._peer = Peer(self._addresses, nursery, ClientOptions())
        pause_s = _PAUSE_MIN_S
        while True:
            try:
                await self._register()
            except (WrongClusterError, InvalidError):
                raise
            except WormError as error:
                log.warning("cannot join through %s yet: %s", ", ".join(self._addresses), error.message)
            else:
                log.info("joined cluster %s as node number %d", self.cluster_id, self._own.number)
                return
            await trio.sleep(pause_s * (0.5 + random.random()))
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)

    async def _register(self) -> None:
        assert self._peer is not None
        request = pb.RegisterNodeRequest(cluster_id=self.cluster_id, node=self._own)
        request.disks.extend(disk_info(disk, self._own.number) for disk in self._disks)
        reply = (await self._peer.call(m.CLUSTER_REGISTER_NODE, request, timeout_s=CALL_TIMEOUT_S)).message
        self.cluster_id = reply.cluster_id
        self._own.number = reply.node
        for disk, given in zip(self._disks, reply.disks, strict=True):
            if disk.online:
                await trio.to_thread.run_sync(_assign, disk, reply.cluster_id, reply.node, given.number)
        await self._fetch_map()

    async def _fetch_map(self) -> None:
        assert self._peer is not None
        request = pb.GetClusterMapRequest()
        self.map = (
            await self._peer.call(m.CLUSTER_GET_CLUSTER_MAP, request, timeout_s=CALL_TIMEOUT_S)
        ).message
        if isinstance(self._peer, MasterContact):
            self._peer.learn(self.map)

    async def beat(self) -> None:
        """Tell the master every second that this node and its disks are alive, until cancelled."""
        assert self._peer is not None
        failed = False
        while True:
            try:
                known = await self._heartbeat()
                if not known:
                    await self._register()
                await self._fetch_map()
                if failed:
                    log.info("the master answers again")
                failed = False
            except (WrongClusterError, InvalidError):
                raise
            except WormError as error:
                if not failed:
                    log.warning("the master does not answer: %s", error.message)
                failed = True
            await trio.sleep(HEARTBEAT_S)

    async def _heartbeat(self) -> bool:
        assert self._peer is not None
        request = heartbeat_message(self.cluster_id, self._own, self._disks)
        damaged = list(islice(self._damaged, DAMAGED_AT_ONCE))
        request.damaged.extend(damaged_message(disk, key) for disk, key in damaged)
        reply = await self._peer.call(m.CLUSTER_HEARTBEAT, request, timeout_s=CALL_TIMEOUT_S)
        for each in damaged:
            del self._damaged[each]
        return reply.message.known

    async def say_goodbye(self) -> None:
        """Tell the master that this node's disks are gone, so that nobody waits for them."""
        if self._peer is None or not self._own.number:
            return
        request = heartbeat_message(self.cluster_id, self._own, self._disks)
        for info in request.disks:
            info.state = pb.DISK_STATE_OFFLINE
            info.problem = "its node was stopped"
        try:
            await self._peer.call(m.CLUSTER_HEARTBEAT, request, timeout_s=0.5)
        except WormError as error:
            log.debug("the master was not told of the stop: %s", error.message)


def _assign(disk: Disk, cluster_id: str, node: int, number: int) -> None:
    disk.assign(cluster_id=cluster_id, node=node, number=number)
