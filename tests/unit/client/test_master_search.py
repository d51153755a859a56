"""Finding the master among nodes that are silent, gone, or behind the times; over real connections."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import trio

from wormfs.client.options import ClientOptions
from wormfs.client.peers import PeerTable
from wormfs.core.errors import NotMasterError, UnavailableError
from wormfs.rpc.methods import CLUSTER_GET_CLUSTER_MAP
from wormfs.rpc.registry import DataBuffer, Registry, RequestContext
from wormfs.rpc.stream_server import serve_streams
from wormfs.rpc.v1 import cluster_pb2

pytestmark = pytest.mark.timeout(30)
CONNECT_S = 5.0
QUICK_S = 2.0
"""Far less than CONNECT_S: nobody was waited for."""


class Nodes:
    """Servers that tell `answers[name]()` as their map; `addresses` are known from the start."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.addresses: dict[str, str] = {}
        self.answers: dict[str, Callable[[], cluster_pb2.ClusterMap]] = {}
        self.asked: list[str] = []
        self._asked_again = trio.Event()

    async def add(self, name: str) -> None:
        registry = Registry()

        async def get_map(
            _: RequestContext, __: cluster_pb2.GetClusterMapRequest, ___: DataBuffer | None
        ) -> cluster_pb2.ClusterMap:
            self.asked.append(name)
            self._asked_again.set()
            return self.answers[name]()

        registry.add(CLUSTER_GET_CLUSTER_MAP, get_map)
        bound = await self._nursery.start(serve_streams, registry, ["127.0.0.1:0"])
        self.addresses[name] = bound[0]

    async def until_asked(self, name: str, times: int = 1) -> None:
        """Wait until a node was asked so often."""
        with trio.fail_after(CONNECT_S):
            while self.asked.count(name) < times:
                self._asked_again = trio.Event()
                await self._asked_again.wait()

    def map(self, master: str, version: int = 1) -> cluster_pb2.ClusterMap:
        found = cluster_pb2.ClusterMap(version=version)
        for number, (name, address) in enumerate(self.addresses.items(), 1):
            found.nodes.add(number=number, name=name, addresses=[address], master=name == master)
        return found

    def names(self, name: str, master: str, version: int = 1) -> None:
        """This node's map names that master from here on."""
        self.answers[name] = lambda: self.map(master, version)

    def table(self, *names: str, connect_s: float = CONNECT_S) -> PeerTable:
        """A client that is told of these nodes."""
        options = ClientOptions(connect_s=connect_s)
        return PeerTable([self.addresses[name] for name in names], self._nursery, options)


@contextmanager
def silent() -> Iterator[str]:
    """A node that is cut off: what is sent to it is lost. Its backlog is full, so SYNs go unanswered."""
    with socket.socket() as listener, socket.socket() as filler:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        filler.connect(address)
        yield f"127.0.0.1:{address[1]}"


def refuse() -> cluster_pb2.ClusterMap:
    raise NotMasterError("nobody is master now")


async def test_a_silent_node_holds_nobody_up() -> None:
    async with trio.open_nursery() as nursery:
        nodes = Nodes(nursery)
        for name in ("one", "two"):
            await nodes.add(name)
        with silent() as gone:
            nodes.addresses["gone"] = gone
            nodes.names("one", "two")
            nodes.names("two", "two")
            begun_s = time.monotonic()
            connection = await nodes.table("gone", "one").reach_master()
            assert connection.address == nodes.addresses["two"]
            assert time.monotonic() - begun_s < QUICK_S
        nursery.cancel_scope.cancel()


async def test_the_master_that_the_map_names_is_asked_first_and_alone() -> None:
    async with trio.open_nursery() as nursery:
        nodes = Nodes(nursery)
        for name in ("one", "two", "three"):
            await nodes.add(name)
            nodes.names(name, "three")
        table = nodes.table("one", "two")
        (await table.reach_master()).close()
        nodes.asked.clear()
        (await table.reach_master()).close()
        assert nodes.asked == ["three"]
        nursery.cancel_scope.cancel()


async def test_who_is_elected_meanwhile_is_found_at_once() -> None:
    """Others name the one that is gone, then nobody, then the one that does not serve yet."""
    async with trio.open_nursery() as nursery:
        nodes = Nodes(nursery)
        for name in ("one", "two", "three"):
            await nodes.add(name)
        with silent() as gone:
            nodes.addresses["gone"] = gone
            nodes.names("one", "gone")
            nodes.answers["two"] = refuse
            nodes.answers["three"] = refuse
            table = nodes.table("one", "two")
            found = trio.Event()

            async def search() -> None:
                connection = await table.reach_master()
                assert connection.address == nodes.addresses["three"]
                found.set()

            nursery.start_soon(search)
            await nodes.until_asked("one", times=3)
            nodes.asked.clear()
            nodes.names("one", "three", version=2)
            await nodes.until_asked("three", times=2)
            assert not found.is_set()
            nodes.names("three", "three", version=3)
            with trio.fail_after(1.0):
                await found.wait()
            assert table.map.version == 3
        nursery.cancel_scope.cancel()


async def test_an_older_map_of_another_node_is_not_taken_for_the_masters() -> None:
    async with trio.open_nursery() as nursery:
        nodes = Nodes(nursery)
        for name in ("one", "two"):
            await nodes.add(name)
        nodes.names("one", "two", version=4)
        nodes.names("two", "two", version=7)
        table = nodes.table("one", connect_s=1.0)
        (await table.reach_master()).close()
        nodes.answers["two"] = refuse
        nodes.names("one", "gone", version=5)
        with pytest.raises(UnavailableError):
            await table.reach_master()
        assert table.map.version == 7
        nodes.names("one", "gone", version=8)
        with pytest.raises(UnavailableError, match="no metadata master"):
            await table.reach_master()
        assert table.map.version == 8
        nursery.cancel_scope.cancel()


async def test_when_all_refuse_the_search_ends_at_once_and_says_why() -> None:
    async with trio.open_nursery() as nursery:
        table = PeerTable(["127.0.0.1:1", "127.0.0.1:2"], nursery, ClientOptions(connect_s=CONNECT_S))
        begun_s = time.monotonic()
        with pytest.raises(
            UnavailableError, match=r"127\.0\.0\.1:1 .*127\.0\.0\.1:2 .*check that wormfs-node"
        ):
            await table.reach_master()
        with pytest.raises(UnavailableError, match="no node of the cluster answers"):
            await table.refresh()
        assert time.monotonic() - begun_s < QUICK_S
        nursery.cancel_scope.cancel()
