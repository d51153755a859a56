"""The nodes as a client sees them: the cluster map, and one connection to each node, made on demand."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import trio
from google.protobuf.message import Message

from wormfs.client.master_search import MasterSearch, addresses_of_master, usable_addresses
from wormfs.client.options import ClientOptions
from wormfs.core.errors import DeadlineError, NotFoundError, UnavailableError
from wormfs.rpc.frames import Buffer
from wormfs.rpc.methods import Method
from wormfs.rpc.stream_client import CallReply, StreamConnection, connect
from wormfs.rpc.v1 import cluster_pb2

__all__ = ["Peer", "PeerTable", "machine_id", "usable_addresses"]
Req = TypeVar("Req", bound=Message)
Rep = TypeVar("Rep", bound=Message)


def machine_id() -> str:
    """Name this machine until its next boot; processes that share it may share unix sockets."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class Peer:
    """One node. Its connection is shared by all calls and made again when it broke."""

    def __init__(self, addresses: Sequence[str], nursery: trio.Nursery, options: ClientOptions) -> None:
        self.addresses = list(addresses)
        self._nursery = nursery
        self._options = options
        self._connection: StreamConnection | None = None
        self._connecting = trio.Lock()
        self._suspect_until_s = 0.0
        self._tries = 0  # to connect, in vain
        self._failed: UnavailableError | None = None

    @property
    def suspect(self) -> bool:
        """Whether it failed lately: to be asked last."""
        return trio.current_time() < self._suspect_until_s

    @property
    def connected(self) -> bool:
        """Whether a call would go out at once."""
        return self._connection is not None and not self._connection.closed.is_set()

    def mark_suspect(self) -> None:
        """Ask this node last for a while."""
        self._suspect_until_s = trio.current_time() + self._options.suspect_s

    async def connection(self) -> StreamConnection:
        """Return the live connection, made now if need be; UnavailableError when it cannot be had."""
        live = self._connection
        if live is not None and not live.closed.is_set():
            return live
        tries = self._tries
        async with self._connecting:
            live = self._connection
            if live is not None and not live.closed.is_set():
                return live
            if self._tries != tries and self._failed is not None:  # while we waited: it is ours as well
                raise type(self._failed)(self._failed.message)
            try:
                self._connection = await connect(
                    self._nursery, self.addresses, timeout_s=self._options.connect_s
                )
            except UnavailableError as error:
                self._tries += 1
                self._failed = error
                raise
            return self._connection

    async def call(
        self,
        method: Method[Req, Rep],
        request: Req,
        *,
        timeout_s: float,
        data: Sequence[Buffer] = (),
        into: Sequence[memoryview] = (),
    ) -> CallReply[Rep]:
        """Call a method; the node becomes suspect when it does not answer."""
        try:
            connection = self._connection
            if connection is None or connection.closed.is_set():
                connection = await self.connection()
            return await connection.call(method, request, timeout_s=timeout_s, data=data, into=into)
        except UnavailableError as error:
            # No answer within a hedged read's patience is slow, not failed.
            if not isinstance(error, DeadlineError) or timeout_s > self._options.hedge_s:
                self.mark_suspect()
            raise


class PeerTable:
    """The cluster map and the peers in it, found through any of the given addresses."""

    def __init__(self, addresses: Sequence[str], nursery: trio.Nursery, options: ClientOptions) -> None:
        self._seeds = list(addresses)
        self._nursery = nursery
        self._options = options
        self._peers: dict[int, Peer] = {}
        self._nodes_by_disk: dict[int, int] = {}
        self._offline_disks: frozenset[int] = frozenset()
        self._own_machine_id = machine_id()
        self._refreshed_s = -1e9
        self._refreshing = trio.Lock()
        self.map = cluster_pb2.ClusterMap()

    def peer_of_disk(self, disk: int) -> Peer:
        """Return the node that serves a disk; NotFoundError for a disk the map does not know."""
        try:
            return self._peers[self._nodes_by_disk[disk]]
        except KeyError:
            raise NotFoundError(
                f"disk {disk} is not in the cluster map; its node never registered it"
            ) from None

    def likely_down(self, disk: int) -> bool:
        """Whether asking that disk is probably a waste: offline in the map, or its node just failed."""
        if disk in self._offline_disks:
            return True
        node = self._nodes_by_disk.get(disk)
        return node is None or self._peers[node].suspect

    def is_connected(self, disk: int) -> bool:
        """Whether that disk's node can be asked at once, and will probably answer."""
        node = self._nodes_by_disk.get(disk)
        if node is None or disk in self._offline_disks:
            return False
        peer = self._peers[node]
        return peer.connected and not peer.suspect

    def knows_disk(self, disk: int) -> bool:
        """Whether the map names the disk."""
        return disk in self._nodes_by_disk

    def master_addresses(self) -> list[str]:
        """Addresses of the master the map names; empty when it names none."""
        return addresses_of_master(self.map, self._own_machine_id)

    def names_as_master(self, found: cluster_pb2.ClusterMap, address: str) -> bool:
        """Whether a map says that the node at this address is master."""
        return address in addresses_of_master(found, self._own_machine_id)

    def learn(self, found: cluster_pb2.ClusterMap) -> None:
        """Take over a map that came another way, if it is newer."""
        if found.version > self.map.version:
            self._adopt(found)

    def _adopt(self, new: cluster_pb2.ClusterMap) -> None:
        for node in new.nodes:
            addresses = usable_addresses(node, self._own_machine_id)
            peer = self._peers.get(node.number)
            if peer is None or peer.addresses != addresses:
                self._peers[node.number] = Peer(addresses, self._nursery, self._options)
        offline_nodes = {node.number for node in new.nodes if not node.online}
        self._nodes_by_disk = {disk.number: disk.node for disk in new.disks}
        self._offline_disks = frozenset(
            disk.number
            for disk in new.disks
            if disk.node in offline_nodes or disk.state == cluster_pb2.DISK_STATE_OFFLINE
        )
        self.map = new

    async def refresh(self, *, at_most_every_s: float = 0.5) -> None:
        """Fetch the map anew, the master's if it answers; UnavailableError when no node does."""
        async with self._refreshing:
            if trio.current_time() - self._refreshed_s < at_most_every_s:
                return
            search = await self._search()
            if search.connection is not None:
                search.connection.close()
            if search.map is None:
                raise search.explain()

    async def reach_master(self) -> StreamConnection:
        """A new connection to the node that says it is master now; it is the caller's, who sets `on_push`.

        Raises UnavailableError when there is none, or none can be reached now.
        """
        search = await self._search()
        if search.connection is None:
            raise search.explain()
        return search.connection

    async def _search(self) -> MasterSearch:
        search = MasterSearch(self._nursery, self._own_machine_id, limit_s=self._options.connect_s)
        candidates = [self.master_addresses(), *([seed] for seed in self._seeds)]
        candidates += [peer.addresses for peer in self._peers.values()]
        try:
            await search.run(candidates)
        except BaseException:
            if search.connection is not None:
                search.connection.close()
            raise
        # The master's own word counts; others' maps may be older than the one that is here.
        found = search.map
        if found is not None:
            if search.connection is not None or found.version >= self.map.version:
                self._adopt(found)
            self._refreshed_s = trio.current_time()
        return search
