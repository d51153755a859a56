"""Whether the connection to the master is still the one to wait on, watched while a call hangs on it.

A call may hang for good reasons: the master recalls a lease, or waits for etcd. It may also hang because
the master is cut off or stopped, which no packet tells. So after a while the node is asked, on the same
connection, whether it is master; while it is silent, all others are asked too. What is found in its
place (another master, or the same one over a new connection) is kept for whoever dials next.
"""

from typing import NoReturn

import trio

from wormfs.client.peers import PeerTable
from wormfs.core.errors import UnavailableError, WormError
from wormfs.rpc.methods import CLUSTER_GET_CLUSTER_MAP
from wormfs.rpc.stream_client import StreamConnection
from wormfs.rpc.v1 import cluster_pb2

PATIENCE_S = 0.8
"""A call may take so long before anybody wonders."""
PROBE_S = 0.4
"""So long the node has to say that it is master, before others are asked as well."""
PROBE_LIMIT_S = 10.0
RENEWED_S = 1.0
"""A node that said so is not asked again before."""


class LinkWatch:
    """`begin` and `end` surround every call; `run` closes a connection that is better given up."""

    def __init__(self, peers: PeerTable) -> None:
        self._peers = peers
        self._under_way: dict[int, tuple[StreamConnection, float]] = {}  # calls, oldest first
        self._count = 0
        self._begun = trio.Event()
        self._found: StreamConnection | None = None

    def begin(self, connection: StreamConnection) -> int:
        """A call begins on this connection; give the answer to `end`."""
        if not self._under_way:
            self._begun.set()
        self._count += 1
        self._under_way[self._count] = (connection, trio.current_time())
        return self._count

    def end(self, number: int) -> None:
        """That call ended."""
        del self._under_way[number]

    def take_found(self) -> StreamConnection | None:
        """A connection to the master, found while another was watched; the caller's from here on."""
        found, self._found = self._found, None
        if found is not None and found.closed.is_set():
            return None
        return found

    async def run(self) -> NoReturn:
        """Watch until cancelled."""
        while True:
            if not self._under_way:
                self._begun = trio.Event()
                await self._begun.wait()
                continue
            connection, since_s = next(iter(self._under_way.values()))
            left_s = since_s + PATIENCE_S - trio.current_time()
            if left_s > 0 or connection.closed.is_set():
                await trio.sleep(max(left_s, PATIENCE_S / 4))
                continue
            if not await self._replace(connection):
                await trio.sleep(RENEWED_S)

    def _hangs(self, connection: StreamConnection) -> bool:
        return any(asked is connection for asked, _ in self._under_way.values())

    async def _replace(self, connection: StreamConnection) -> bool:
        """Find a better connection to the master and close this one; False when it is good itself."""
        good = False

        async def probe() -> None:
            nonlocal good
            good = await self._is_master(connection)
            if good or connection.closed.is_set():
                probing.cancel_scope.cancel()

        found: StreamConnection | None = None
        async with trio.open_nursery() as probing:
            probing.start_soon(probe)
            await trio.sleep(PROBE_S)
            while found is None and self._hangs(connection):
                try:
                    found = await self._peers.reach_master()
                except UnavailableError:
                    await trio.sleep(PROBE_S)
            probing.cancel_scope.cancel()
        if found is None:
            return good
        if good or connection.closed.is_set() or not self._hangs(connection):
            found.close()
            return good
        if self._found is not None:
            self._found.close()
        self._found = found
        connection.close()
        return True

    async def _is_master(self, connection: StreamConnection) -> bool:
        """Whether the node says so itself, however long that takes."""
        request = cluster_pb2.GetClusterMapRequest()
        try:
            reply = await connection.call(CLUSTER_GET_CLUSTER_MAP, request, timeout_s=PROBE_LIMIT_S)
        except WormError:
            return False
        return self._peers.names_as_master(reply.message, connection.address)
