"""Finding the master: all nodes are asked for the cluster map, each a moment after the one before.

Only the master itself is believed about who is master: it answers while it is sure of it. Other nodes'
maps may be older, and say where to ask next. Nobody waits for a node that is slow or gone.
"""

import logging
from collections.abc import Sequence

import trio

from wormfs.core.errors import DeadlineError, UnavailableError, WormError
from wormfs.rpc.methods import CLUSTER_GET_CLUSTER_MAP
from wormfs.rpc.stream_client import StreamConnection, connect
from wormfs.rpc.v1 import cluster_pb2

STAGGER_S = 0.25
"""So long a node is waited for before the next one is asked as well."""
AGAIN_S = 0.2
"""A node that names a master which does not answer is asked again: an election may be under way."""
log = logging.getLogger(__name__)


def usable_addresses(node: cluster_pb2.NodeInfo, own_machine_id: str) -> list[str]:
    """Return the node's addresses that mean the same thing here as there."""
    same_machine = node.machine_id == own_machine_id
    return [each for each in node.addresses if same_machine or not each.startswith("unix:")]


def addresses_of_master(found: cluster_pb2.ClusterMap, own_machine_id: str) -> list[str]:
    """Where the master that the map names is reached; empty when it names none."""
    for node in found.nodes:
        if node.master:
            return usable_addresses(node, own_machine_id)
    return []


class MasterSearch:
    """One search. `map` is the newest map it has met, `connection` leads to the master once it is found."""

    def __init__(self, nursery: trio.Nursery, own_machine_id: str, *, limit_s: float) -> None:
        """Connections live in `nursery`; a search ends after `limit_s`, successful or not."""
        self._nursery = nursery
        self._own_machine_id = own_machine_id
        self._limit_s = limit_s
        self._asking: trio.Nursery
        self._under_way: set[str] = set()  # addresses of nodes that are being asked
        self._go_on = trio.Event()  # a node was of no help: ask the next one now
        self._tried: dict[str, str] = {}
        self._answered = False
        self.map: cluster_pb2.ClusterMap | None = None
        self.connection: StreamConnection | None = None

    async def run(self, candidates: Sequence[Sequence[str]]) -> None:
        """Ask nodes by their addresses, in this order; see `map` and `connection` then."""
        with trio.move_on_after(self._limit_s):
            async with trio.open_nursery() as self._asking:
                pause_s = min(STAGGER_S, self._limit_s / 2 / max(1, len(candidates)))
                for addresses in candidates:
                    if not self._ask_soon(addresses):
                        continue
                    with trio.move_on_after(pause_s):
                        await self._go_on.wait()
                    self._go_on = trio.Event()

    def explain(self) -> UnavailableError:
        """Why there is no master to be had."""
        tried = "; ".join(f"{address} ({why})" for address, why in self._tried.items())
        if self.map is None and self._answered:
            return UnavailableError(f"no node knows of a metadata master now: {tried}")
        if self.map is None:
            return UnavailableError(
                f"no node of the cluster answers: tried {tried or 'nothing'}; "
                "check that wormfs-node runs and that the addresses are right"
            )
        if not addresses_of_master(self.map, self._own_machine_id):
            return UnavailableError("the cluster has no metadata master now; see `wormfs status`")
        return UnavailableError(f"the metadata master does not answer, and no other is known: {tried}")

    def _ask_soon(self, addresses: Sequence[str]) -> bool:
        """Ask a node, unless that is under way."""
        if not addresses or self._under_way.intersection(addresses):
            return False
        self._under_way.update(addresses)
        self._tried.setdefault(addresses[0], f"no answer within {self._limit_s:g} s")
        self._asking.start_soon(self._ask, list(addresses))
        return True

    async def _ask(self, addresses: list[str]) -> None:
        """Ask one node until it is of no use any more."""
        connection: StreamConnection | None = None
        try:
            connection = await connect(self._nursery, addresses, timeout_s=self._limit_s)
            while not await self._heard(connection, addresses):
                self._go_on.set()
                await trio.sleep(AGAIN_S)
        except WormError as error:
            self._tried[addresses[0]] = error.message
        finally:
            self._under_way.difference_update(addresses)
            self._go_on.set()
            if connection is not None and connection is not self.connection:
                connection.close()

    async def _heard(self, connection: StreamConnection, addresses: list[str]) -> bool:
        """Ask once; whether this was the master. Raises UnavailableError when asking again is no use."""
        try:
            reply = await connection.call(
                CLUSTER_GET_CLUSTER_MAP, cluster_pb2.GetClusterMapRequest(), timeout_s=self._limit_s
            )
        except WormError as error:
            if isinstance(error, DeadlineError) or connection.closed.is_set():
                raise
            self._answered = True  # it runs, and does not know a map now
            self._tried[addresses[0]] = error.message
            return False
        found = reply.message
        if not found.nodes:
            self._tried[addresses[0]] = "has no cluster map yet"
            return False
        if self.map is None or found.version > self.map.version:
            self.map = found
        named = addresses_of_master(found, self._own_machine_id)
        if not set(named).isdisjoint(addresses):
            self.map, self.connection = found, connection
            self._asking.cancel_scope.cancel()
            return True
        self._ask_soon(named)
        return False
