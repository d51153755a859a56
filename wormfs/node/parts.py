"""What every node has, whatever its role: disks, the chunk service, the gateway, the servers."""

import logging
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

import trio

from wormfs.client.peers import machine_id
from wormfs.core.types import ChunkKey
from wormfs.node.chunk_service import ChunkService
from wormfs.node.config import NodeConfig
from wormfs.node.drain import Drain
from wormfs.node.gateway import Gateway
from wormfs.rpc.grpc_server import serve_grpc
from wormfs.rpc.registry import Registry
from wormfs.rpc.stream_server import serve_streams
from wormfs.rpc.v1 import cluster_pb2
from wormfs.store.buffer_pool import BufferPool
from wormfs.store.chunk_store import ChunkStore
from wormfs.store.disk import Disk

log = logging.getLogger(__name__)


def package_version() -> str:
    """The installed version of WormFS."""
    try:
        return version("wormfs")
    except PackageNotFoundError:
        return "unknown"


class NodeParts:
    """The parts of one node. `found_damaged` is where unreadable chunks are told; the role sets it."""

    def __init__(self, config: NodeConfig, disks: list[Disk], seeds: Sequence[str]) -> None:
        """`seeds`: addresses where the gateway finds the cluster."""
        self.config = config
        self.disks = disks
        self.pool = BufferPool()
        self.store: ChunkStore | None = None
        self.drain = Drain()
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
        self.gateway_label = f"gateway of {config.name}"
        self.gateway = Gateway(lambda: list(seeds), self.gateway_label)
        self.gateway.register(self.registry)

    def _note_damaged(self, disk: int, key: ChunkKey) -> None:
        self.found_damaged(disk, key)

    async def start_store(self, nursery: trio.Nursery, cluster_id: str) -> None:
        """Serve the disks, numbered now, as `cluster_id`'s; once."""
        if self.store is None:
            self.store = ChunkStore(
                [disk for disk in self.disks if disk.number], cluster_id=cluster_id, pool=self.pool
            )
            await nursery.start(self.store.run)

    async def serve(self, nursery: trio.Nursery) -> None:
        """Start the servers. Raises ConfigError for an address that cannot be used."""
        addresses = await nursery.start(serve_streams, self.registry, self.config.stream_addresses())
        if self.config.grpc_listen:
            await nursery.start(serve_grpc, self.registry, self.config.grpc_listen)
        log.info(
            "%s serves %d disks on %s", self.config.name, len(self.disks), ", ".join(map(str, addresses))
        )


def _advertised(config: NodeConfig) -> list[str]:
    """The addresses others reach this node by."""
    tcp = config.advertise or config.listen
    unix = [f"unix:{config.unix_socket.absolute()}"] if config.unix_socket else []
    return [*unix, tcp]
