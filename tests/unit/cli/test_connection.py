"""Which node a command asks: the master, however many others are silent, refuse, or are behind the times."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import trio

from wormfs.cli.connection import Target, call_master, master_map
from wormfs.core.errors import DeadlineError, NotFoundError, NotMasterError, UnavailableError
from wormfs.rpc.methods import CLUSTER_FORGET_DISK, CLUSTER_GET_CLUSTER_MAP, CLUSTER_GET_STATUS
from wormfs.rpc.registry import DataBuffer, Registry, RequestContext
from wormfs.rpc.stream_server import serve_streams
from wormfs.rpc.v1 import cluster_pb2, types_pb2

pytestmark = pytest.mark.timeout(30)
DEADLINE_S = 10.0
QUICK_S = 2.0
"""Far less than any deadline: nobody was waited for."""


class Nodes:
    """Servers by name. Each tells `masters[name]()` as the master in its map, and refuses as others do."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.addresses: dict[str, str] = {}
        self.masters: dict[str, Callable[[], str]] = {}
        self.asked: list[str] = []
        self.status: dict[str, Callable[[], str]] = {}

    async def add(self, name: str, master: Callable[[], str]) -> None:
        self.masters[name] = master
        self.status[name] = refuse
        registry = Registry()

        async def get_map(
            _: RequestContext, __: cluster_pb2.GetClusterMapRequest, ___: DataBuffer | None
        ) -> cluster_pb2.ClusterMap:
            return self.map(self.masters[name]())

        async def get_status(
            _: RequestContext, __: cluster_pb2.GetStatusRequest, ___: DataBuffer | None
        ) -> cluster_pb2.StatusReply:
            self.asked.append(name)
            return cluster_pb2.StatusReply(master=self.status[name]())

        async def forget_disk(
            _: RequestContext, __: cluster_pb2.ForgetDiskRequest, ___: DataBuffer | None
        ) -> types_pb2.Empty:
            self.asked.append(name)
            raise UnavailableError("disk 3 is needed still")

        registry.add(CLUSTER_GET_CLUSTER_MAP, get_map)
        registry.add(CLUSTER_GET_STATUS, get_status)
        registry.add(CLUSTER_FORGET_DISK, forget_disk)
        self.addresses[name] = (await self._nursery.start(serve_streams, registry, ["127.0.0.1:0"]))[0]

    def map(self, master: str) -> cluster_pb2.ClusterMap:
        found = cluster_pb2.ClusterMap(version=1)
        for number, (name, address) in enumerate(self.addresses.items(), 1):
            found.nodes.add(number=number, name=name, addresses=[address], master=name == master)
        return found

    def target(self, *names: str, deadline_s: float = DEADLINE_S) -> Target:
        return Target(tuple(self.addresses[name] for name in names), deadline_s)


@contextmanager
def silent() -> Iterator[str]:
    """The address of a node that takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def refuse() -> str:
    raise NotMasterError("nobody is master now")


async def status(target: Target) -> cluster_pb2.StatusReply:
    request = cluster_pb2.GetStatusRequest()
    return await trio.to_thread.run_sync(call_master, target, CLUSTER_GET_STATUS, request)


async def map_of(target: Target) -> cluster_pb2.ClusterMap:
    return await trio.to_thread.run_sync(master_map, target)


async def test_a_node_that_refuses_or_is_silent_holds_nobody_up() -> None:
    """As a master does that lost etcd, and one that is stopped; both are named first."""
    async with trio.open_nursery() as nursery:
        nodes = Nodes(nursery)
        await nodes.add("one", refuse)
        for name in ("two", "three"):
            await nodes.add(name, lambda: "three")
        nodes.status["three"] = lambda: "three"
        with silent() as address:
            nodes.addresses["silent"] = address
            begun_s = time.monotonic()
            assert (await status(nodes.target("silent", "one", "two"))).master == "three"
            assert nodes.asked == ["three"]
            found = await map_of(nodes.target("silent", "one", "two"))
            assert [node.name for node in found.nodes if node.master] == ["three"]
            assert time.monotonic() - begun_s < QUICK_S
        nursery.cancel_scope.cancel()


async def test_the_map_is_the_masters_own_however_old_others_are() -> None:
    async with trio.open_nursery() as nursery:
        nodes = Nodes(nursery)
        await nodes.add("old", lambda: "old master")
        await nodes.add("new", lambda: "new")
        with silent() as address:
            nodes.addresses["old master"] = address
            found = await map_of(nodes.target("old", "new"))
        assert [node.name for node in found.nodes if node.master] == ["new"]
        nursery.cancel_scope.cancel()


async def test_nodes_that_never_answer_are_named() -> None:
    with silent() as address, pytest.raises(UnavailableError, match=f"{address} .no answer within 0.5 s"):
        await map_of(Target((address,), 0.5))


async def test_one_that_loses_the_mastership_before_it_answers_is_left_for_the_next() -> None:
    async with trio.open_nursery() as nursery:
        nodes = Nodes(nursery)
        master = "one"
        for name in ("one", "two"):
            await nodes.add(name, lambda: master)

        def lost() -> str:
            nonlocal master
            master = "two"
            nodes.masters["one"] = refuse
            return refuse()

        nodes.status |= {"one": lost, "two": lambda: "two"}
        assert (await status(nodes.target("one", "two"))).master == "two"
        assert nodes.asked == ["one", "two"]
        nursery.cancel_scope.cancel()


async def test_what_the_master_answers_is_not_asked_again() -> None:
    """Its own UnavailableError too."""
    async with trio.open_nursery() as nursery:
        nodes = Nodes(nursery)
        for name in ("one", "two"):
            await nodes.add(name, lambda: "two")
        forget = cluster_pb2.ForgetDiskRequest(disk=3)
        with pytest.raises(UnavailableError, match="needed still"):
            await trio.to_thread.run_sync(call_master, nodes.target("one"), CLUSTER_FORGET_DISK, forget)

        def unknown() -> str:
            raise NotFoundError("no such thing")

        nodes.status["two"] = unknown
        with pytest.raises(NotFoundError, match="no such thing"):
            await status(nodes.target("one"))
        assert nodes.asked == ["two", "two"]
        nursery.cancel_scope.cancel()


async def test_a_master_that_keeps_losing_its_place_is_left_at_the_deadline() -> None:
    async with trio.open_nursery() as nursery:
        nodes = Nodes(nursery)
        await nodes.add("one", lambda: "one")
        begun_s = time.monotonic()
        with pytest.raises(NotMasterError):
            await status(nodes.target("one", deadline_s=1.0))
        assert 0.5 < time.monotonic() - begun_s < QUICK_S
        assert len(nodes.asked) > 2
        nursery.cancel_scope.cancel()


async def test_without_a_master_the_command_ends_in_time_and_names_all_it_tried() -> None:
    async with trio.open_nursery() as nursery:
        nodes = Nodes(nursery)
        await nodes.add("one", refuse)
        with silent() as address:
            nodes.addresses["silent"] = address
            target = nodes.target("silent", "one", deadline_s=1.0)
            begun_s = time.monotonic()
            with pytest.raises(UnavailableError, match="nobody is master now"):
                await status(target)
            with pytest.raises(UnavailableError) as caught:
                await map_of(target)
            assert time.monotonic() - begun_s < 2 * 1.0 + 1.0
            assert f"{address} (no answer within 1 s)" in caught.value.message
            assert f"{nodes.addresses['one']} (nobody is master now)" in caught.value.message
        nursery.cancel_scope.cancel()


async def test_when_no_node_runs_the_command_ends_at_once() -> None:
    target = Target(("127.0.0.1:1", "127.0.0.1:2"), DEADLINE_S)
    begun_s = time.monotonic()
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1 .*127\.0\.0\.1:2 "):
        await status(target)
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1 .*127\.0\.0\.1:2 "):
        await map_of(target)
    assert time.monotonic() - begun_s < QUICK_S


async def test_a_master_that_does_not_answer_is_told_as_that() -> None:
    async with trio.open_nursery() as nursery:
        nodes = Nodes(nursery)
        await nodes.add("one", lambda: "gone")
        nodes.addresses["gone"] = "127.0.0.1:1"
        with pytest.raises(UnavailableError, match="does not answer") as caught:
            await status(nodes.target("one", deadline_s=1.0))
        assert not isinstance(caught.value, DeadlineError)
        nursery.cancel_scope.cancel()
