"""The master as a node without etcd finds it: through any node that it has ever heard of."""

from collections.abc import Sequence

import trio

from wormfs.client.options import ClientOptions
from wormfs.client.peers import PeerTable
from wormfs.core.errors import UnavailableError
from wormfs.rpc.methods import Method, Reply, Request
from wormfs.rpc.stream_client import CallReply, StreamConnection
from wormfs.rpc.v1 import cluster_pb2


class MasterContact:
    """A connection to the master, given up when a call is not answered; the next one searches again."""

    def __init__(self, addresses: Sequence[str], nursery: trio.Nursery) -> None:
        """`addresses`: of nodes to ask first. Connections live in `nursery`."""
        self._nodes = PeerTable(addresses, nursery, ClientOptions())
        self._connection: StreamConnection | None = None
        self._searching = trio.Lock()

    def learn(self, found: cluster_pb2.ClusterMap) -> None:
        """Its nodes can be asked for the master from now on."""
        self._nodes.learn(found)

    async def call(
        self, method: Method[Request, Reply], request: Request, *, timeout_s: float
    ) -> CallReply[Reply]:
        """Call a method of the master. Raises UnavailableError when there is none, or it does not answer."""
        connection = await self._reach()
        try:
            return await connection.call(method, request, timeout_s=timeout_s)
        except UnavailableError:
            connection.close()
            raise

    async def _reach(self) -> StreamConnection:
        async with self._searching:
            if self._connection is None or self._connection.closed.is_set():
                self._connection = await self._nodes.reach_master()
            return self._connection
