"""Streams of events between real replicas, over real connections, above a real etcd."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.etcd_members import EtcdMembers
from tests.unit.metadata.test_etcd_log import Node, make
from wormfs.core.errors import DataLossError, InvalidError, NotFoundError, StaleError, UnavailableError
from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.metadata.etcd_trim import LogTrimmer, TrimLimits
from wormfs.metadata.log_port import LogRecord
from wormfs.metadata.machine import Machine
from wormfs.metadata.replica_table import ReplicaTable
from wormfs.node import followers as followers_module
from wormfs.node.follower import Follower
from wormfs.node.followers import Followers
from wormfs.node.replica_service import ReplicaService
from wormfs.node.snapshot_fetch import fetch_snapshot, peers_of
from wormfs.node.snapshot_service import PIECE_MAX_BYTES
from wormfs.rpc import methods as m
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.rpc.etcd_types import EtcdOptions, put
from wormfs.rpc.registry import Registry
from wormfs.rpc.stream_client import open_connection
from wormfs.rpc.stream_server import serve_streams
from wormfs.rpc.v1 import replication_pb2 as pb

pytestmark = pytest.mark.timeout(60)
NAMES = ("node-1", "node-2")


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdMembers]:
    with EtcdMembers(tmp_path_factory.mktemp("etcd")) as started:
        yield started


@pytest.fixture
async def client(members: EtcdMembers) -> AsyncIterator[EtcdClient]:
    async with EtcdClient(EtcdOptions(members.endpoints)) as made:
        yield made


@pytest.fixture
def keys(request: pytest.FixtureRequest) -> EtcdKeys:
    return EtcdKeys(request.node.name)


@pytest.fixture
def nodes(tmp_path: Path, client: EtcdClient, keys: EtcdKeys) -> Iterator[list[Node]]:
    made = [Node(tmp_path / name, client, keys) for name in NAMES]
    yield made
    for node in made:
        node.replica.close()


class Master:
    """A node that leads and pushes; `between` may keep batches from being pushed."""

    def __init__(self, node: Node, machine: Machine, nursery: trio.Nursery) -> None:
        self.node = node
        self.machine = machine
        self.table = ReplicaTable(trio.current_time)
        self.table.set_known(NAMES)
        self.followers = Followers(self.table, lambda: node.log.durable_sequence)
        self.between: Callable[[Sequence[LogRecord]], bool] = lambda _: True
        node.log.listeners.append(self._pushed)
        self.registry = Registry()
        self.followers.register(self.registry)
        ReplicaService(lambda: node.replica).register(self.registry)
        self.nursery = nursery
        self.addresses: list[str] = []

    def _pushed(self, batch: Sequence[LogRecord]) -> None:
        if self.between(batch):
            self.followers.push(batch)

    async def add(self, *names: str) -> int:
        """One committed entry each; the last one's sequence."""
        for name in names:
            make(self.machine, name)
            await self.machine.confirm()
        return self.machine.sequence


@pytest.fixture
async def master(nodes: list[Node]) -> AsyncIterator[Master]:
    async with nodes[0].leading() as machine, trio.open_nursery() as nursery:
        made = Master(nodes[0], machine, nursery)
        made.addresses = await nursery.start(serve_streams, made.registry, ["127.0.0.1:0"])
        await machine.confirm()
        yield made
        nursery.cancel_scope.cancel()


async def no_rescue(floor: int, _: Follower) -> None:
    raise AssertionError(f"no snapshot is needed here, {floor}")


def follower_of(node: Node, master: Master, client: EtcdClient | None = None) -> Follower:
    return Follower(
        node.name,
        node.replica,
        client or node.client,
        node.keys,
        master.addresses,
        checked=lambda: None,
        rescue=no_rescue,
    )


@asynccontextmanager
async def following(node: Node, master: Master, client: EtcdClient | None = None) -> AsyncIterator[None]:
    """The node follows, and has all that is committed."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follower_of(node, master, client).run)
        await heard(master, node.name, master.machine.sequence)
        yield
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - what other tasks do has no event of its own
            await trio.sleep(0.02)


async def heard(master: Master, name: str, sequence: int) -> None:
    """`name` has told that it applied `sequence`."""
    await until(lambda: any(v.name == name and v.applied >= sequence for v in master.table.views()))


async def test_what_is_committed_comes_without_asking_etcd(
    nodes: list[Node], master: Master, members: EtcdMembers
) -> None:
    await master.add("before")
    async with (
        EtcdClient(EtcdOptions(members.endpoints)) as other,
        following(nodes[1], master, other),
    ):
        other.close()  # nothing can be read from etcd any more
        last = await master.add(*[f"f{number}" for number in range(40)])
        await heard(master, "node-2", last)
        assert nodes[1].replica.sequence == last
        assert nodes[1].digest() == nodes[0].digest()
        await nodes[1].replica.log.wait_durable(last)
        await until(lambda: any(view.durable == last for view in master.table.views()))


async def test_nothing_is_pushed_before_etcd_has_it(
    nodes: list[Node], master: Master, members: EtcdMembers
) -> None:
    async with following(nodes[1], master):
        before = master.machine.sequence
        members.pause(0)
        try:
            make(master.machine, "pending")
            with trio.move_on_after(0.7):
                await master.machine.confirm()
            assert nodes[1].replica.sequence == before
        finally:
            members.resume(0)
        with trio.fail_after(10):
            await master.machine.confirm()
        await heard(master, "node-2", before + 1)


@pytest.mark.parametrize("dropped", [range(10, 12), range(18, 21)], ids=["in the middle", "at the end"])
async def test_a_missed_push_is_read_from_etcd(nodes: list[Node], master: Master, dropped: range) -> None:
    first = await master.add("first")
    async with following(nodes[1], master):
        master.between = lambda batch: batch[0].sequence - first not in dropped
        last = await master.add(*[f"f{number}" for number in range(20)])
        await heard(master, "node-2", last)
    assert nodes[1].digest() == nodes[0].digest()


async def test_a_follower_that_does_not_acknowledge_is_dropped_and_follows_again(
    nodes: list[Node], master: Master, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(followers_module, "UNANSWERED_MAX_BYTES", 500)
    caplog.set_level("INFO")
    pushed: list[pb.Events] = []
    async with open_connection(
        master.addresses,
        timeout_s=2,
        on_push=pushed.append,  # type: ignore[arg-type]
    ) as connection:
        await connection.call(m.REPLICATION_FOLLOW, pb.FollowRequest(name="node-2"), timeout_s=2)
        last = await master.add(*[f"f{number}" for number in range(40)])
        request = pb.AcknowledgeRequest(name="node-2", applied_sequence=3)
        reply = (await connection.call(m.REPLICATION_ACKNOWLEDGE, request, timeout_s=2)).message
        assert not reply.following
        assert reply.sequence == last
        assert 0 < len(pushed) < 40
        assert "not acknowledged" in caplog.text
        # The same connection may ask again.
        await connection.call(m.REPLICATION_FOLLOW, pb.FollowRequest(name="node-2"), timeout_s=2)
        reply = (await connection.call(m.REPLICATION_ACKNOWLEDGE, request, timeout_s=2)).message
        assert reply.following
    async with following(nodes[1], master):
        last = await master.add(*[f"g{number}" for number in range(40)])
        await heard(master, "node-2", last)
    assert nodes[1].digest() == nodes[0].digest()


async def test_followers_go_on_by_etcd_without_a_master(nodes: list[Node], master: Master) -> None:
    last = await master.add("a")
    master.addresses = ["127.0.0.1:1"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follower_of(nodes[1], master).run)
        for name in ("b", "c"):
            await until(lambda last=last: nodes[1].replica.sequence >= last)  # type: ignore[misc]
            last = await master.add(name)
        nursery.cancel_scope.cancel()


async def test_an_entry_that_cannot_be_applied_ends_the_follower(nodes: list[Node], master: Master) -> None:
    """The node ends with it, and the entry was not passed over."""
    follower = follower_of(nodes[1], master)
    ended: list[BaseException] = []

    async def run() -> None:
        try:
            await follower.run()
        except* DataLossError as group:
            ended.append(group)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await heard(master, "node-2", master.machine.sequence)
        held = nodes[1].replica.sequence
        unknown = bytes.fromhex("2205fa3e020801")  # an event of kind 1007
        nodes[0].log._committed += 1  # as a newer master would
        master.followers.push([LogRecord(held + 1, bytes.fromhex(f"08{held + 1:02x}") + unknown)])
        await until(lambda: bool(ended))
        nodes[0].log._committed -= 1
    assert "upgrade WormFS" in str(ended[0].exceptions)  # type: ignore[attr-defined]
    assert nodes[1].replica.keeper.state.applied <= held


async def test_a_snapshot_comes_from_a_peer_and_the_rest_from_etcd(
    nodes: list[Node], master: Master, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = nodes
    record = pb.ReplicaRecord(name=one.name, addresses=["127.0.0.1:1", *master.addresses])
    broken = pb.ReplicaRecord(name="broken", addresses=["127.0.0.1:1"])
    for each in (broken, record, pb.ReplicaRecord(name=two.name)):
        await one.client.txn([], [put(one.keys.replica(each.name), each.SerializeToString())])
    last = await master.add(*[f"f{number}" for number in range(30)])
    table = ReplicaTable(trio.current_time)
    trimmer = LogTrimmer(
        one.client,
        one.keys,
        master.machine.epoch,
        table,
        own=lambda: (one.name, last, last),
        members=lambda: [one.name],
        limits=TrimLimits(tail_entries=1, tail_bytes=0),
    )
    await trimmer.load()
    await trimmer.look()
    assert await trimmer.trim()

    async def rescue(floor: int, follower: Follower) -> None:
        peers = await peers_of(two.client, two.keys, two.name)
        assert [peer.name for peer in peers] == ["broken", "node-1"]
        await fetch_snapshot(two.replica, peers, floor, follower)

    follower = Follower(
        two.name, two.replica, two.client, two.keys, master.addresses, checked=lambda: None, rescue=rescue
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(two.replica.run)
        nursery.start_soon(follower.run)
        await heard(master, "node-2", last)
        later = await master.add("later")
        await heard(master, "node-2", later)
        nursery.cancel_scope.cancel()
    assert "begins anew with the snapshot of node-1" in caplog.text
    assert two.digest() == one.digest()
    assert not list((two.replica.log.member_disks()[0] / "metadata" / "snapshots").glob("incoming*"))


async def test_no_peer_with_a_snapshot_is_told_in_one_line(nodes: list[Node], master: Master) -> None:
    peers = [pb.ReplicaRecord(name="one", addresses=master.addresses)]
    with pytest.raises(UnavailableError, match=r"one: this replica is at entry .* before 1000: ask another"):
        await fetch_snapshot(nodes[1].replica, peers, 1000, None)
    with pytest.raises(UnavailableError, match="there is no other one"):
        await fetch_snapshot(nodes[1].replica, [], 1000, None)


async def test_while_a_snapshot_comes_what_follows_it_is_kept(nodes: list[Node], master: Master) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follower_of(nodes[1], master).hold, 777)
        await heard(master, "node-2", 777)
        assert 777 in master.table.applied()
        nursery.cancel_scope.cancel()


async def test_a_damaged_snapshot_is_not_installed(
    nodes: list[Node], master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    await master.add("a")
    await nodes[0].replica.keeper.snapshot()
    snapshot = nodes[0].replica.log.snapshot
    assert snapshot is not None
    folder = nodes[0].replica.log.member_disks()[0] / "metadata" / "snapshots"
    path = folder / f"{snapshot.sequence:020d}.snapshot"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    peers = [pb.ReplicaRecord(name="one", addresses=master.addresses)]
    with pytest.raises(UnavailableError, match="checksum does not match"):
        await fetch_snapshot(nodes[1].replica, peers, 1, None)
    assert nodes[1].replica.sequence == 0
    await nodes[1].catch_up()
    assert nodes[1].digest() == nodes[0].digest()


async def test_pieces_of_a_snapshot(master: Master) -> None:
    await master.add("a")
    async with open_connection(master.addresses, timeout_s=2) as connection:
        found = await connection.call(m.REPLICATION_GET_SNAPSHOT, pb.GetSnapshotRequest(), timeout_s=10)
        assert found.data_bytes == 0
        sequence = found.message.sequence
        assert sequence == master.machine.sequence
        buffer = bytearray(100)
        request = pb.GetSnapshotRequest(sequence=sequence, offset_bytes=3, length_bytes=100)
        piece = await connection.call(
            m.REPLICATION_GET_SNAPSHOT, request, timeout_s=10, into=[memoryview(buffer)]
        )
        assert (piece.data_bytes, piece.message.file_bytes) == (100, found.message.file_bytes)
        assert buffer.startswith(b"MSNAP")
        later = await master.add("b")
        newer = pb.GetSnapshotRequest(at_least=later)
        reply = (await connection.call(m.REPLICATION_GET_SNAPSHOT, newer, timeout_s=10)).message
        assert reply.sequence == later
        with pytest.raises(NotFoundError, match="ask for a newer one"):
            await connection.call(m.REPLICATION_GET_SNAPSHOT, request, timeout_s=10)
        large = pb.GetSnapshotRequest(sequence=later, length_bytes=PIECE_MAX_BYTES + 1)
        with pytest.raises(InvalidError):
            await connection.call(m.REPLICATION_GET_SNAPSHOT, large, timeout_s=10)


async def test_replicas_that_go_on_are_digested_at_one_sequence(nodes: list[Node], master: Master) -> None:
    one, two = nodes
    registry = Registry()
    ReplicaService(lambda: two.replica).register(registry)
    addresses: list[str] = await master.nursery.start(serve_streams, registry, ["127.0.0.1:0"])

    async def ask(address: Sequence[str], **fields: int) -> pb.DigestReply:
        async with open_connection(address, timeout_s=2) as connection:
            request = pb.DigestRequest(**fields)
            return (await connection.call(m.REPLICATION_DIGEST, request, timeout_s=10)).message

    async with following(two, master):
        await master.add(*[f"f{number}" for number in range(10)])
        early = await ask(addresses)
        await master.add(*[f"g{number}" for number in range(10)])
        late = await ask(master.addresses)
        assert early.sequence < late.sequence == master.machine.sequence
        await master.add(*[f"h{number}" for number in range(10)])
        theirs = await ask(addresses, copy_id=early.copy_id, at_sequence=late.sequence)
        ours = await ask(master.addresses, copy_id=late.copy_id, at_sequence=late.sequence)
        assert theirs.digest == ours.digest != one.digest()
        with pytest.raises(StaleError):
            await ask(addresses, copy_id=early.copy_id, at_sequence=late.sequence)
        # What is not committed is not in it.
        make(master.machine, "pending")
        copy = await ask(master.addresses)
        assert copy.sequence == one.log.durable_sequence
        with pytest.raises(InvalidError):
            await ask(master.addresses, copy_id=copy.copy_id, at_sequence=copy.sequence - 1)
        # A state that was changed behind the log's back has another digest.
        two.replica.keeper.state.connection.execute("UPDATE inodes SET uid = 7 WHERE inode = 2")
        await master.add("z")
        await heard(master, "node-2", master.machine.sequence)
        last = master.machine.sequence
        digests = set()
        for address in (addresses, master.addresses):
            copied = await ask(address)
            digests.add((await ask(address, copy_id=copied.copy_id, at_sequence=last)).digest)
        assert len(digests) == 2
