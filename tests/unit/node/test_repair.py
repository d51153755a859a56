"""Repair over a real machine above a real etcd, and a real node's chunks: when they are written."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from tests.etcd_members import EtcdMembers
from tests.unit.metadata.test_etcd_log import Node
from wormfs.client.peers import machine_id
from wormfs.core.records import Stripe
from wormfs.core.types import ChunkKey
from wormfs.metadata.election import Mastership
from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.metadata.machine import Machine
from wormfs.node.chunk_service import ChunkService
from wormfs.node.drain import Drain
from wormfs.node.links import NodeLinks
from wormfs.node.master_service import MasterService
from wormfs.node.members import Members
from wormfs.node.repair import Repair
from wormfs.node.stripe_copier import StripeCopier
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.rpc.etcd_types import EtcdOptions
from wormfs.rpc.registry import Registry
from wormfs.rpc.stream_server import serve_streams
from wormfs.rpc.v1 import cluster_pb2, filesystem_pb2, metadata_pb2, types_pb2
from wormfs.store.chunk_store import ChunkStore
from wormfs.store.disk import Disk

pytestmark = pytest.mark.timeout(60)

STRIPES = 5
STRIPE_BYTES = 2 * 65536
NOTHING_COMES_S = 0.5  # chunks would be there in some milliseconds


class HeldClient(EtcdClient):
    """Takes no transaction on while it is held."""

    def __init__(self, options: EtcdOptions) -> None:
        super().__init__(options)
        self.passing = trio.Event()
        self.passing.set()

    async def txn(self, *arguments: Any, **options: Any) -> Any:
        await self.passing.wait()
        return await super().txn(*arguments, **options)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdMembers]:
    with EtcdMembers(tmp_path_factory.mktemp("etcd")) as started:
        yield started


@pytest.fixture
async def client(members: EtcdMembers) -> AsyncIterator[HeldClient]:
    made = HeldClient(EtcdOptions(members.endpoints))
    async with made:
        yield made


@pytest.fixture
def nodes(tmp_path: Path, client: HeldClient, request: pytest.FixtureRequest) -> Iterator[list[Node]]:
    made = [Node(tmp_path / f"node-{number}", client, EtcdKeys(request.node.name)) for number in (1, 2)]
    yield made
    for node in made:
        node.replica.close()


@dataclass
class World:
    """A master, four disks of chunks, and a file each stripe of which wants repair."""

    client: HeldClient
    mastership: Mastership
    machine: Machine
    repair: Repair
    nursery: trio.Nursery
    disks: list[Disk]
    inode: int
    content: bytes
    copier: StripeCopier

    def stripe_ids(self) -> set[int]:
        """Of all chunks that are on the disks."""
        return {
            int(path.name.split(".")[0], 16)
            for disk in self.disks
            for path in Path(disk.chunks_path).rglob("*.*")
        }

    async def chunks_come(self, old: set[int]) -> None:
        while self.stripe_ids() <= old:  # noqa: ASYNC110 - a folder has no event
            await trio.sleep(0.01)

    async def until_allocated(self, first: int) -> None:
        with trio.fail_after(10):
            while self.machine.next_stripe_id == first:  # noqa: ASYNC110 - the state has no event
                await trio.sleep(0.01)

    async def read(self) -> bytes:
        stripes = self.machine.file_stripes(self.inode, 0, STRIPES)
        return b"".join([bytes(await self.copier.read(self.inode, each, (), ())) for each in stripes])


@asynccontextmanager
async def chunk_disks(folder: Path, members: Members, machine: Machine) -> AsyncIterator[list[Disk]]:
    """A node with four disks, which registers with the master."""
    disks = [Disk.open(folder / f"chunks-{number}", reserve_bytes=0) for number in range(4)]
    node = cluster_pb2.NodeInfo(name="node-1", addresses=[f"unix:{folder}/s"], machine_id=machine_id())
    joining = cluster_pb2.RegisterNodeRequest(node=node)
    for disk in disks:
        joining.disks.add(
            uuid=disk.uuid, path=str(disk.path), state=cluster_pb2.DISK_STATE_ONLINE, free_bytes=1 << 40
        )
    reply = members.register(joining)
    for disk, given in zip(disks, reply.disks, strict=True):
        disk.assign(cluster_id=machine.cluster_id, node=reply.node, number=given.number)
    store = ChunkStore(disks, cluster_id=machine.cluster_id)
    registry = Registry()
    ChunkService(lambda: store, store.pool, Drain()).register(registry)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            await nursery.start(serve_streams, registry, list(node.addresses))
            yield disks
            nursery.cancel_scope.cancel()
    finally:
        store.close()


async def write_file(machine: Machine, copier: StripeCopier, disks: list[Disk]) -> tuple[int, bytes]:
    """A file of `STRIPES` stripes on the first three disks: its inode and bytes."""
    session = machine.open_session("writer")
    made: Any = machine.execute(
        filesystem_pb2.MakeNodeRequest(parent=1, name=b"file", mode=0o100644, exclusive=True)
    ).reply
    inode = made.attributes.inode
    content = Random(7).randbytes(STRIPES * STRIPE_BYTES)
    asked = metadata_pb2.AllocateStripesRequest(inode=inode, count=STRIPES)
    asked.caller.session_id = session
    numbers = [disk.number for disk in disks[:3]]
    place = types_pb2.Stripe(codec=types_pb2.CODEC_ZFEC, k=2, m=1, disks=numbers)
    given: Any = machine.allocate(asked, [place] * STRIPES).reply
    commit = metadata_pb2.CommitWriteRequest(inode=inode, size_bytes=len(content))
    commit.caller.session_id = session
    for index, each in enumerate(given.stripes):
        whole = Stripe(
            index, each.stripe_id, each.codec, 2, 1, 65536, STRIPE_BYTES, STRIPE_BYTES, tuple(numbers)
        )
        data = bytearray(content[index * STRIPE_BYTES :][:STRIPE_BYTES])
        await copier.write(inode, whole, each, data, made.attributes.stripe_size_bytes)
        each.index, each.length_bytes, each.valid_bytes = index, STRIPE_BYTES, STRIPE_BYTES
        commit.stripes.append(each)
    machine.execute(commit)
    return inode, content


@asynccontextmanager
async def damaged_world(node: Node, folder: Path, *, rate_bytes: int = 0) -> AsyncIterator[World]:
    """All is confirmed, etcd is held, and repair has not begun; `rate_bytes` a second are its limit."""
    client = node.client
    assert isinstance(client, HeldClient)
    mastership = await node.campaign()
    assert mastership is not None
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        nursery.start_soon(mastership.keep)
        machine = await stack.enter_async_context(node.writing(mastership))
        members = Members(machine, silent_after_s=1e9)
        disks = await stack.enter_async_context(chunk_disks(folder, members, machine))
        links = NodeLinks(members, nursery)
        repair = Repair(
            machine,
            members,
            MasterService(machine, members, lease_s=6.0, random=Random(1)),
            links,
            after_s=300,
            rate_bytes=rate_bytes,
            random=Random(1),
            round_ended=lambda: None,
        )
        copier = StripeCopier(links, machine.cluster_id)
        inode, content = await write_file(machine, copier, disks)
        for stripe in machine.file_stripes(inode, 0, STRIPES):
            repair.note_damaged(stripe.disks[0], ChunkKey(inode, stripe.stripe_id, 0))
        await machine.confirm()
        client.passing = trio.Event()
        yield World(client, mastership, machine, repair, nursery, disks, inode, content, copier)
        nursery.cancel_scope.cancel()
    client.passing.set()


async def test_chunks_are_written_once_their_number_is_in_the_log(nodes: list[Node], tmp_path: Path) -> None:
    async with damaged_world(nodes[0], tmp_path) as world:
        before, first = world.stripe_ids(), world.machine.next_stripe_id
        assert len(before) == STRIPES
        world.nursery.start_soon(world.repair.run)
        await world.until_allocated(first)
        with trio.move_on_after(NOTHING_COMES_S):
            await world.chunks_come(before)
        assert world.stripe_ids() == before
        world.client.passing.set()
        with trio.fail_after(20):
            while world.repair.progress.rebuilt < STRIPES:  # noqa: ASYNC110 - progress has no event
                await trio.sleep(0.02)
        rebuilt = {each.stripe_id for each in world.machine.file_stripes(world.inode, 0, STRIPES)}
        assert (len(rebuilt), min(rebuilt)) == (STRIPES, first)
        assert await world.read() == world.content


async def test_who_is_deposed_has_written_nothing_that_the_next_master_numbers_so(
    nodes: list[Node], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "wormfs.node.repair")
    # One stripe is under way; the others wait for a minute each.
    async with damaged_world(nodes[0], tmp_path, rate_bytes=STRIPE_BYTES // 60) as world:
        before, first = world.stripe_ids(), world.machine.next_stripe_id
        ended = trio.Event()

        async def repair() -> None:
            await world.repair.run()
            ended.set()

        world.nursery.start_soon(repair)
        await world.until_allocated(first)
        with trio.move_on_after(NOTHING_COMES_S):
            await world.chunks_come(before)
        world.mastership.end("the test says so")
        with trio.fail_after(5):
            await ended.wait()  # by itself
        assert world.machine.next_stripe_id == first + 1
        told = [record.message for record in caplog.records if record.name == "wormfs.node.repair"]
        assert [line for line in told if "is to be rebuilt" not in line] == [
            "repair ends: this node is not the metadata master any more: the test says so"
        ]
        written = world.stripe_ids()
        await world.mastership.resign()
    async with nodes[1].leading() as machine:
        assert machine.next_stripe_id == first
        assert max(written) < first


async def test_a_master_deposed_before_repair_begins_ends_it(nodes: list[Node], tmp_path: Path) -> None:
    async with damaged_world(nodes[0], tmp_path) as world:
        world.mastership.end("the test says so")
        with trio.fail_after(5):
            await world.repair.run()
        await world.mastership.resign()
