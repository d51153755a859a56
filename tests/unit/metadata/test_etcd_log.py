"""The etcd engine against a real etcd: elections, fencing, group commit, answers that wait."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.etcd_members import EtcdMembers
from tests.unit.metadata.test_lost_state import bar, fail_writes, unbar
from wormfs.core import errors as er
from wormfs.core.types import Policy
from wormfs.metadata import etcd_log
from wormfs.metadata.election import Mastership, boot_time_s, campaign, current_leader
from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.metadata.etcd_log import ENTRY_MAX_BYTES, EtcdLog
from wormfs.metadata.machine import Machine
from wormfs.metadata.replica import Replica
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.rpc.etcd_types import EtcdOptions, prefix_end
from wormfs.rpc.v1 import filesystem_pb2 as fs
from wormfs.rpc.v1 import metadata_pb2, replication_pb2, types_pb2

POLICY = Policy(2, 1, 65536)
pytestmark = pytest.mark.timeout(60)


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
    """A cluster of its own for each test."""
    return EtcdKeys(request.node.name)


class Node:
    """A replica and what a mastership adds to it."""

    def __init__(self, folder: Path, client: EtcdClient, keys: EtcdKeys, disks: int = 1) -> None:
        self.disks = [folder / name for name in ("disk", "another")[:disks]]
        for disk in self.disks:
            disk.mkdir(parents=True)
        self.name = folder.name
        self.client = client
        self.keys = keys
        self.replica = Replica.open(self.disks)

    async def campaign(self) -> Mastership | None:
        record = replication_pb2.LeaderRecord(name=self.name, addresses=["127.0.0.1:1"])
        return await campaign(self.client, self.keys, record)

    @asynccontextmanager
    async def leading(self) -> AsyncIterator[Machine]:
        """Win an election and be master; the cluster is formed if it was not."""
        mastership = await self.campaign()
        assert mastership is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mastership.keep)
            async with self.writing(mastership) as machine:
                yield machine
            await mastership.resign()
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def writing(self, mastership: Mastership) -> AsyncIterator[Machine]:
        await self.replica.catch_up(self.client, self.keys)
        found = (await self.client.range(self.keys.head)).kvs
        self.log = EtcdLog(
            self.replica.log, self.client, self.keys, mastership, found[0].value if found else b""
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.log.run)
            machine = self.replica.lead(self.log, mastership.epoch, 0)
            if not machine.cluster_id:
                machine.form_cluster("cluster", "test", POLICY)
            yield machine
            nursery.cancel_scope.cancel()
        self.replica.follow()

    async def catch_up(self) -> None:
        await self.replica.catch_up(self.client, self.keys)

    def digest(self) -> str:
        return Machine(self.replica.keeper, self.replica.log, lambda: 0).digest()

    def names(self) -> list[bytes]:
        machine = Machine(self.replica.keeper, self.replica.log, lambda: 0)
        reply = machine.execute(fs.ReadDirRequest(inode=1, limit=1000)).reply
        assert isinstance(reply, fs.ReadDirReply)
        return [entry.name for entry in reply.entries]


@pytest.fixture
def nodes(tmp_path: Path, client: EtcdClient, keys: EtcdKeys) -> Iterator[list[Node]]:
    made = [Node(tmp_path / f"node-{number}", client, keys) for number in (1, 2, 3)]
    yield made
    for node in made:
        node.replica.close()


def make(machine: Machine, name: str) -> None:
    machine.execute(fs.MakeNodeRequest(parent=1, name=name.encode(), mode=0o100644))


async def test_what_a_master_confirmed_every_replica_has(nodes: list[Node]) -> None:
    one, two, three = nodes
    async with one.leading() as machine:
        for number in range(50):
            make(machine, f"f{number}")
        await machine.confirm()
        assert machine.durable_sequence == machine.sequence
        await two.catch_up()
        assert two.replica.sequence == machine.sequence
    async with two.leading() as machine:
        make(machine, "later")
        await machine.confirm()
    for node in nodes:
        await node.catch_up()
    assert len(three.names()) == 51
    assert one.digest() == two.digest() == three.digest()


async def test_commands_that_come_together_are_one_transaction(nodes: list[Node]) -> None:
    async with nodes[0].leading() as machine:
        await machine.confirm()
        before = nodes[0].log.batch_count
        for number in range(100):
            make(machine, f"f{number}")
        await machine.confirm()
        assert nodes[0].log.batch_count - before == 1


async def test_upkeep_does_not_make_entries_leave_sooner(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_log, "LINGER_S", 5.0)
    async with nodes[0].leading() as machine:
        await machine.confirm()
        before = nodes[0].log.batch_count
        make(machine, "f")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(machine.confirm, hurry=False))
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert machine.durable_sequence < machine.sequence
            make(machine, "g")
            await machine.confirm()
        assert nodes[0].log.batch_count - before == 1


async def test_a_master_that_loses_its_state_ends_its_mastership(nodes: list[Node]) -> None:
    one, two, _ = nodes
    mastership = await one.campaign()
    assert mastership is not None
    async with one.writing(mastership) as machine:
        make(machine, "f")
        await machine.confirm()
        fail_writes(one.replica.keeper)
        bar(one.replica.keeper.disk)
        with pytest.raises(er.UnavailableError, match="no disk takes the metadata state"):
            make(machine, "lost")
        assert "no disk takes the metadata state" in mastership.ended
        with pytest.raises(er.NotMasterError):
            await machine.confirm()
    await mastership.resign()
    with pytest.raises(er.UnavailableError):  # asked before it stands for election again
        assert one.replica.cluster_id
    async with two.leading() as machine:
        make(machine, "g")
        await machine.confirm()
    await one.catch_up()
    unbar(one.replica.keeper.disk)
    await one.replica.keeper.care()
    await two.catch_up()
    assert one.names() == two.names()
    assert one.digest() == two.digest()


async def test_only_one_node_is_elected_and_epochs_grow(nodes: list[Node]) -> None:
    one, two, _ = nodes
    first = await one.campaign()
    assert first is not None
    assert await two.campaign() is None
    leader, _ = await current_leader(one.client, one.keys)
    assert leader is not None
    assert (leader.name, leader.epoch) == ("node-1", first.epoch)
    await first.resign()
    assert not first.is_sure()
    second = await two.campaign()
    assert second is not None
    assert second.epoch == first.epoch + 1
    await second.resign()


async def test_of_many_that_campaign_at_once_one_wins(nodes: list[Node]) -> None:
    won: list[Mastership] = []

    async def try_it(node: Node) -> None:
        mastership = await node.campaign()
        if mastership is not None:
            won.append(mastership)

    async with trio.open_nursery() as nursery:
        for node in nodes * 4:
            nursery.start_soon(try_it, node)
    assert len(won) == 1
    await won[0].resign()


async def test_a_deposed_master_answers_nothing_and_forgets_what_was_not_committed(nodes: list[Node]) -> None:
    one, two, _ = nodes
    async with one.leading() as machine:
        make(machine, "kept")
        await machine.confirm()
    stale = await one.campaign()
    assert stale is not None
    async with one.writing(stale) as machine:
        await machine.confirm()
        # Its lease ends without it knowing, as behind a partition, and another takes over.
        await one.client.revoke_lease(stale._lease_id)
        async with two.leading() as other:
            make(other, "of the new master")
            await other.confirm()
        assert stale.is_sure()  # its clock still says so: only the epoch stops it
        make(machine, "lost")
        with pytest.raises(er.NotMasterError, match="another node"):
            await machine.confirm()
        with pytest.raises(er.NotMasterError):
            make(machine, "refused at once")
    await one.catch_up()
    await two.catch_up()
    assert one.names() == [b"kept", b"of the new master"]
    assert one.digest() == two.digest()


async def test_numbers_told_early_and_lost_are_not_given_out_again(nodes: list[Node]) -> None:
    one, two, three = nodes
    stale = await one.campaign()
    assert stale is not None
    async with one.writing(stale) as machine:
        session = machine.open_session("mount")
        machine.begin_serving()
        await machine.confirm()
        await one.client.revoke_lease(stale._lease_id)  # another takes over, and this one does not know
        newer = await two.campaign()
        assert newer is not None
        caller = types_pb2.Caller(session_id=session, operation=1)
        request = fs.MakeNodeRequest(caller=caller, parent=1, name=b"lost", mode=0o100644)
        told = machine.execute(request).reply
        assert isinstance(told, metadata_pb2.FileMapReply)
        assert machine.answers_early(session)
        async with two.writing(newer) as other:
            other.begin_serving()
            made = other.execute(fs.MakeNodeRequest(parent=1, name=b"other", mode=0o100644)).reply
            assert isinstance(made, metadata_pb2.FileMapReply)
            await other.confirm()
        await newer.resign()
    assert made.attributes.inode > told.attributes.inode
    for node in nodes:
        await node.catch_up()
        assert node.names() == [b"other"]
    assert one.digest() == two.digest() == three.digest()


async def test_an_older_epoch_is_refused_before_the_new_master_wrote_anything(nodes: list[Node]) -> None:
    one, two, _ = nodes
    stale = await one.campaign()
    assert stale is not None
    async with one.writing(stale) as machine:
        await machine.confirm()
        await one.client.revoke_lease(stale._lease_id)
        newer = await two.campaign()
        assert newer is not None
        make(machine, "lost")
        with pytest.raises(er.NotMasterError):
            await machine.confirm()
        await newer.resign()
    await one.catch_up()
    assert one.names() == []


async def test_reads_wait_when_the_lease_may_be_over(nodes: list[Node]) -> None:
    now_s = boot_time_s()
    record = replication_pb2.LeaderRecord(name="node-1")
    mastership = await campaign(nodes[0].client, nodes[0].keys, record, clock_s=lambda: now_s)
    assert mastership is not None
    async with nodes[0].writing(mastership) as machine:
        await machine.confirm()
        now_s += 1.7  # TTL 2 s less 10 %
        await machine.confirm()
        now_s += 0.2
        assert not mastership.is_sure()
        with trio.move_on_after(0.2) as patience:
            await machine.confirm()
        assert patience.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mastership.keep)  # renews
            await machine.confirm()
            assert mastership.is_sure()
            mastership.end("the test ends")
            with pytest.raises(er.NotMasterError, match="the test ends"):
                await machine.confirm()


async def test_a_lease_that_is_gone_ends_the_mastership(nodes: list[Node]) -> None:
    mastership = await nodes[0].campaign()
    assert mastership is not None
    await nodes[0].client.revoke_lease(mastership._lease_id)
    await mastership.keep()
    assert "expired" in mastership.ended


async def test_an_append_without_an_answer_counts_once(
    nodes: list[Node], members: EtcdMembers, caplog: pytest.LogCaptureFixture
) -> None:
    one, two, _ = nodes
    impatient = EtcdOptions(members.endpoints, timeout_s=0.3)
    async with EtcdClient(impatient) as one.client, one.leading() as machine:
        await machine.confirm()
        for number in range(3):
            make(machine, f"f{number}")
            members.pause(0)
            try:
                with trio.move_on_after(1.3):  # longer than one try
                    await machine.confirm()
            finally:
                members.resume(0)
            with trio.fail_after(10):
                await machine.confirm()
        last = machine.sequence
    assert "whether the request was done is unknown" in caplog.text
    await two.catch_up()
    assert two.replica.sequence == last
    assert two.names() == [b"f0", b"f1", b"f2"]
    batches = (await two.client.range(two.keys.log, prefix_end(two.keys.log))).kvs
    held = [entry for kv in batches for entry in replication_pb2.LogBatch.FromString(kv.value).entries]
    assert len(held) == last


async def test_a_change_too_large_for_etcd_is_refused_whole(nodes: list[Node]) -> None:
    async with nodes[0].leading() as machine:
        before = machine.sequence
        with pytest.raises(er.TooLargeError, match="takes"):
            nodes[0].log.append(before + 1, bytes(ENTRY_MAX_BYTES + 1))
        assert nodes[0].log.last_sequence == before
        make(machine, "still works")
        await machine.confirm()


async def test_sqlite_never_commits_what_could_be_taken_back(nodes: list[Node]) -> None:
    one = nodes[0]
    async with one.leading() as machine:
        await machine.confirm()
        settled = machine.sequence
        make(machine, "pending")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.replica.keeper._commit)
            await trio.lowlevel.checkpoint()
            rows = one.replica.keeper.state.connection
            assert rows.in_transaction  # waits for etcd
        assert not rows.in_transaction
        assert one.log.durable_sequence == settled + 1


async def test_a_replica_refuses_a_gap_and_what_it_cannot_read(nodes: list[Node]) -> None:
    one, two, _ = nodes
    async with one.leading() as machine:
        for number in range(5):
            make(machine, f"f{number}")
            await machine.confirm()
    first = (await one.client.range(one.keys.log, prefix_end(one.keys.log), limit=1)).kvs[0]
    batch = replication_pb2.LogBatch.FromString(first.value)
    batch.first_sequence += 3
    with pytest.raises(er.DataLossError, match="cannot follow 0"):
        two.replica.apply_batch(batch.SerializeToString())
    await two.catch_up()
    assert two.digest() == one.digest()
