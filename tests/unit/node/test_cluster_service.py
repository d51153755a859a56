"""What the Cluster service answers when the mastership ends; over a real machine above a real etcd."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
import trio.testing

from tests.etcd_members import EtcdMembers
from tests.unit.metadata.test_etcd_log import Node
from tests.unit.node.serving import join
from wormfs.core.errors import NotFoundError, NotMasterError
from wormfs.metadata import keeper
from wormfs.metadata.election import Mastership
from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.metadata.machine import Machine
from wormfs.node.cluster_service import ClusterService
from wormfs.node.health import Health
from wormfs.node.links import NodeLinks
from wormfs.node.master_service import MasterService
from wormfs.node.members import Members
from wormfs.node.repair import Repair
from wormfs.rpc import methods as m
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.rpc.etcd_types import EtcdOptions
from wormfs.rpc.registry import Registry, RequestContext
from wormfs.rpc.stream_client import open_connection
from wormfs.rpc.stream_server import serve_streams
from wormfs.rpc.v1 import cluster_pb2 as pb
from wormfs.rpc.v1 import types_pb2

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdMembers]:
    with EtcdMembers(tmp_path_factory.mktemp("etcd")) as started:
        yield started


@pytest.fixture
async def client(members: EtcdMembers) -> AsyncIterator[EtcdClient]:
    async with EtcdClient(EtcdOptions(members.endpoints)) as made:
        yield made


@dataclass
class Deposable:
    """A Cluster service whose mastership the test may end; `registry` serves it at `address`."""

    machine: Machine
    mastership: Mastership
    registry: Registry
    address: str
    node: int
    master: MasterService


@asynccontextmanager
async def deposable(folder: Path, client: EtcdClient, keys: EtcdKeys) -> AsyncIterator[Deposable]:
    node = Node(folder / "node-1", client, keys)
    mastership = await node.campaign()
    assert mastership is not None
    async with trio.open_nursery() as nursery:
        async with node.writing(mastership) as machine:
            members = Members(machine, silent_after_s=3.0)
            number = join(members, "node-1", ["disk"])
            master = MasterService(machine, members, lease_s=6.0, random=Random(1))
            links = NodeLinks(members, nursery)
            health = Health(machine, members)
            repair = Repair(
                machine,
                members,
                master,
                links,
                after_s=300,
                rate_bytes=1 << 20,
                random=Random(1),
                round_ended=health.note_change,
            )
            service = ClusterService(
                machine, members, master, health, links, repair, disk_count=1, engine="etcd"
            )
            registry = Registry()
            service.register(registry)
            nursery.start_soon(health.run)
            address = (await nursery.start(serve_streams, registry, [f"unix:{folder}/s"]))[0]
            nursery.start_soon(mastership.keep)
            yield Deposable(machine, mastership, registry, address, number, master)
        await mastership.resign()
        nursery.cancel_scope.cancel()
    node.replica.close()


async def test_who_is_master_no_more_says_so_to_everything(tmp_path: Path, client: EtcdClient) -> None:
    """Answers and errors alike: what they tell may have been taken back, and the next one is to be asked."""
    async with deposable(tmp_path, client, EtcdKeys("deposed")) as served:
        machine = served.machine
        policy = types_pb2.Policy(k=2, m=1, chunk_size_bytes=1 << 20, codec=types_pb2.CODEC_ZFEC)
        beat = pb.HeartbeatRequest(cluster_id=machine.cluster_id, node=served.node)
        again = pb.RegisterNodeRequest(
            cluster_id=machine.cluster_id,
            node=pb.NodeInfo(number=served.node, name="node-1", addresses=["x:1"]),
            disks=[pb.DiskInfo(uuid="disk", path="/disk", state=pb.DISK_STATE_ONLINE)],
        )
        asked: list[tuple[m.Method[Any, Any], Any]] = [
            (m.CLUSTER_GET_CLUSTER_MAP, pb.GetClusterMapRequest()),
            (m.CLUSTER_HEARTBEAT, beat),
            (m.CLUSTER_REGISTER_NODE, again),
            (m.CLUSTER_GET_POLICY, pb.GetPolicyRequest()),
            (m.CLUSTER_SET_POLICY, pb.SetPolicyRequest(policy=policy)),
            (m.CLUSTER_GET_STATUS, pb.GetStatusRequest()),
        ]
        failing: list[tuple[m.Method[Any, Any], Any]] = [
            (m.CLUSTER_LOCATE, pb.LocateRequest(path=b"/nothing")),
            (m.CLUSTER_FORGET_DISK, pb.ForgetDiskRequest(disk=77)),
        ]
        async with open_connection([served.address], timeout_s=5) as connection:
            for method, request in asked:
                await connection.call(method, request, timeout_s=10)
            for method, request in failing:
                with pytest.raises(NotFoundError):
                    await connection.call(method, request, timeout_s=10)
            served.mastership.end("the test says so")
            for method, request in asked + failing:
                with pytest.raises(NotMasterError, match="the test says so"):
                    await connection.call(method, request, timeout_s=10)


async def test_status_says_that_the_metadatas_disk_is_full(
    tmp_path: Path, client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every create fails with ENOSPC then, however much room the other disks have."""
    async with deposable(tmp_path, client, EtcdKeys("full")) as served:
        monkeypatch.setattr(keeper, "RESERVE_SEGMENTS", 1 << 40)  # no disk has so much
        await served.machine.keeper.mind_space()
        async with open_connection([served.address], timeout_s=5) as connection:
            reply = (await connection.call(m.CLUSTER_GET_STATUS, pb.GetStatusRequest(), timeout_s=10)).message
        assert any("is nearly full: free some space" in line for line in reply.warnings)
        assert reply.health != "healthy"


async def test_who_waits_for_a_grace_that_the_mastership_does_not_outlive_is_told(
    tmp_path: Path, client: EtcdClient
) -> None:
    async with deposable(tmp_path, client, EtcdKeys("grace")) as served, trio.open_nursery() as mastership:
        session = served.machine.open_session("away")
        await mastership.start(served.master.run)
        assert served.master.leases.must_wait(0)
        told: list[str] = []

        async def locate() -> None:
            request = pb.LocateRequest(path=b"/nothing")
            with pytest.raises(NotMasterError, match="the test says so"):
                await connection.call(m.CLUSTER_LOCATE, request, timeout_s=10)
            told.append("locate")

        async def fsck() -> None:
            entry = served.registry.named(m.CLUSTER_FSCK.name)
            assert entry is not None
            with pytest.raises(NotMasterError, match="master no more"):
                await anext(entry.handler(RequestContext(None, "grpc", "test"), pb.FsckRequest()))
            told.append("fsck")

        async with open_connection([served.address], timeout_s=5) as connection:
            with trio.fail_after(5):  # the session's lease would end later
                async with trio.open_nursery() as asking:
                    asking.start_soon(locate)
                    asking.start_soon(fsck)
                    await trio.testing.wait_all_tasks_blocked(0.02)
                    assert not told
                    served.mastership.end("the test says so")
                    mastership.cancel_scope.cancel()
        assert sorted(told) == ["fsck", "locate"]
        assert session not in served.master.leases.lapsed
