"""What the Cluster service of a new master tells while sessions may yet hand over what they kept."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing

from tests.unit.node.serving import Served, serving
from tests.unit.node.test_kept_entries import MINE, OTHER, Kept, kept, mounts, resume
from wormfs.core.errors import NotFoundError
from wormfs.node.cluster_service import ClusterService
from wormfs.node.health import Health
from wormfs.node.links import NodeLinks
from wormfs.node.repair import Repair
from wormfs.rpc import methods as m
from wormfs.rpc.registry import Registry, RequestContext
from wormfs.rpc.stream_client import StreamConnection, open_connection
from wormfs.rpc.stream_server import serve_streams
from wormfs.rpc.v1 import cluster_pb2 as pb

__all__ = ["kept"]
pytestmark = pytest.mark.timeout(30)


@dataclass
class ClusterCaller:
    """Asks the Cluster service."""

    connection: StreamConnection
    registry: Registry

    async def locate(self, path: bytes) -> pb.LocateReply:
        request = pb.LocateRequest(path=path)
        return (await self.connection.call(m.CLUSTER_LOCATE, request, timeout_s=10)).message

    async def forget_disk(self, disk: int) -> None:
        await self.connection.call(m.CLUSTER_FORGET_DISK, pb.ForgetDiskRequest(disk=disk), timeout_s=10)

    async def status(self, timeout_s: float) -> pb.StatusReply:
        answer = await self.connection.call(m.CLUSTER_GET_STATUS, pb.GetStatusRequest(), timeout_s=timeout_s)
        return answer.message

    async def fsck(self) -> list[pb.FsckReply]:
        entry = self.registry.named(m.CLUSTER_FSCK.name)  # over gRPC only, so not over the connection
        assert entry is not None
        context = RequestContext(None, "grpc", "test")
        return [reply async for reply in entry.handler(context, pb.FsckRequest())]


@asynccontextmanager
async def cluster_of(served: Served, folder: Path) -> AsyncIterator[ClusterCaller]:
    machine, members, master = served.machine, served.members, served.master
    async with trio.open_nursery() as nursery:
        links = NodeLinks(members, nursery)
        health = Health(machine, members)
        repair = Repair(
            machine,
            members,
            master,
            links,
            after_s=300,
            rate_bytes=0,
            random=Random(1),
            round_ended=health.note_change,
        )
        registry = Registry()
        ClusterService(machine, members, master, health, links, repair, disk_count=1, engine="etcd").register(
            registry
        )
        nursery.start_soon(health.run)
        (address,) = await nursery.start(serve_streams, registry, [f"unix:{folder}/cluster"])
        async with open_connection([address], timeout_s=5) as connection:
            yield ClusterCaller(connection, registry)
        nursery.cancel_scope.cancel()


async def test_a_file_is_located_once_it_was_handed_over(kept: Kept) -> None:
    async with (
        serving(kept.folder) as served,
        mounts(served) as (mine, other),
        cluster_of(served, kept.folder) as cluster,
    ):
        await resume(other, OTHER)
        found: list[pb.LocateReply] = []
        async with trio.open_nursery() as nursery:

            async def look() -> None:
                found.append(await cluster.locate(b"/two"))

            nursery.start_soon(look)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not found
            assert not (await resume(mine, MINE, kept.entries)).entries_lost
        assert [reply.attributes for reply in found] == [kept.told[1]]


async def test_the_check_begins_once_all_was_handed_over(kept: Kept) -> None:
    async with (
        serving(kept.folder) as served,
        mounts(served) as (mine, other),
        cluster_of(served, kept.folder) as cluster,
    ):
        await resume(other, OTHER)
        replies: list[pb.FsckReply] = []
        async with trio.open_nursery() as nursery:

            async def check() -> None:
                replies.extend(await cluster.fsck())

            nursery.start_soon(check)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not replies
            assert not (await resume(mine, MINE, kept.entries)).entries_lost
        assert [(reply.problem, reply.end) for reply in replies] == [("", True)]


@pytest.mark.parametrize("call", ["locate", "fsck", "forget"])
async def test_what_was_told_without_the_entries_is_not_overtaken_by_them(kept: Kept, call: str) -> None:
    """The wait ends with the lease of the session that is away: what it kept is lost, and it is told so."""
    async with (
        serving(kept.folder, lease_s=1.0) as served,
        mounts(served) as (mine, other),
        cluster_of(served, kept.folder) as cluster,
    ):
        await resume(other, OTHER)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.keep_alive)
            if call == "fsck":
                assert (await cluster.fsck())[-1].end
            else:
                with pytest.raises(NotFoundError):
                    await (cluster.locate(b"/two") if call == "locate" else cluster.forget_disk(77))
            nursery.cancel_scope.cancel()
        assert MINE in served.master.leases.lapsed
        assert (await resume(mine, MINE, kept.entries)).entries_lost


async def test_the_status_never_waits_for_sessions_and_costs_them_nothing(kept: Kept) -> None:
    async with (
        serving(kept.folder) as served,
        mounts(served) as (mine, other),
        cluster_of(served, kept.folder) as cluster,
    ):
        await resume(other, OTHER)
        before = served.machine.sequence
        reply = await cluster.status(timeout_s=2)
        assert (reply.inode_count, reply.session_count) == (served.machine.counts().inodes, 2)
        assert served.machine.sequence == before
        assert not (await resume(mine, MINE, kept.entries)).entries_lost
