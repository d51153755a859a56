"""What leaves the log in etcd, and what stays: against a real etcd, with replicas on real disks."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from tests.etcd_members import EtcdMembers
from tests.unit.metadata.test_etcd_log import Node, make
from wormfs.core.errors import DataLossError, NewerProgramError, StaleError, UnavailableError
from wormfs.core.events import Event
from wormfs.metadata import etcd_trim, state_files
from wormfs.metadata.convert import event_record
from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.metadata.etcd_trim import LogTrimmer, TrimLimits
from wormfs.metadata.machine import Machine
from wormfs.metadata.replica import Replica, TrimmedError, read_floor
from wormfs.metadata.replica_table import FRESH_S, LAG_S, ReplicaTable
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.rpc.etcd_types import EtcdOptions, prefix_end, put
from wormfs.rpc.v1 import event_pb2, replication_pb2
from wormfs.rpc.v1 import filesystem_pb2 as fs

pytestmark = pytest.mark.timeout(60)
NAMES = ("node-1", "node-2", "node-3", "node-4")
NO_TAIL = TrimLimits(tail_entries=1, tail_bytes=0)


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


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


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(clock: Clock) -> ReplicaTable:
    return ReplicaTable(clock)


async def name_replicas(client: EtcdClient, keys: EtcdKeys, names: tuple[str, ...] = NAMES) -> None:
    for name in names:
        record = replication_pb2.ReplicaRecord(name=name)
        await client.txn([], [put(keys.replica(name), record.SerializeToString())])


def trimmer_of(node: Node, epoch: int, table: ReplicaTable, limits: TrimLimits = NO_TAIL) -> LogTrimmer:
    log = node.replica.log
    return LogTrimmer(
        node.client,
        node.keys,
        epoch,
        table,
        own=lambda: (node.name, log.last_sequence, log.durable_sequence),
        members=lambda: NAMES,
        limits=limits,
    )


async def fill(machine: Machine, count: int, prefix: str = "f") -> None:
    """So many entries, each a batch of its own."""
    for number in range(count):
        make(machine, f"{prefix}{number}")
        await machine.confirm()


async def sync(node: Node) -> int:
    """The node holds durably what it has; answers up to where that is."""
    await node.replica.log.wait_durable(node.replica.sequence)
    return node.replica.sequence


async def batches(client: EtcdClient, keys: EtcdKeys) -> list[int]:
    found = await client.range(keys.log, prefix_end(keys.log), keys_only=True)
    return [int(kv.key.removeprefix(keys.log), 16) for kv in found.kvs]


async def test_entries_leave_when_three_replicas_hold_them_durably(
    nodes: list[Node], table: ReplicaTable
) -> None:
    one = nodes[0]
    await name_replicas(one.client, one.keys)
    async with one.leading() as machine:
        trimmer = trimmer_of(one, machine.epoch, table)
        one.log.listeners.append(trimmer.note)
        await fill(machine, 30)
        last = await sync(one)
        await trimmer.load()
        await trimmer.look()
        assert table.needed == 3
        assert await trimmer.trim() == 0  # the master alone
        table.acknowledge("node-2", applied=last, durable=last)
        assert await trimmer.trim() == 0  # two of them
        table.acknowledge("node-3", applied=last, durable=last - 12)
        assert await trimmer.trim() > 0
        assert await batches(one.client, one.keys) == list(range(last - 11, last + 1))
        assert await read_floor(one.client, one.keys) == trimmer.floor == last - 12
        left_bytes = sum(len(record.payload) for record in one.replica.log.read(last - 12))
        assert left_bytes <= trimmer.log_bytes <= left_bytes + 12 * 8  # and a few bytes for each key
        table.acknowledge("node-4", applied=last, durable=last)
        assert await trimmer.trim() == 11
        assert await batches(one.client, one.keys) == [last]  # the last batch always stays


async def test_a_replica_that_lost_its_disks_or_is_silent_counts_no_more(
    nodes: list[Node], table: ReplicaTable, clock: Clock
) -> None:
    one = nodes[0]
    await name_replicas(one.client, one.keys)
    async with one.leading() as machine:
        trimmer = trimmer_of(one, machine.epoch, table)
        one.log.listeners.append(trimmer.note)
        await fill(machine, 10)
        last = await sync(one)
        await trimmer.load()
        await trimmer.look()
        table.acknowledge("node-2", applied=last, durable=last)
        table.acknowledge("node-3", applied=last, durable=last)
        table.acknowledge("node-3", applied=0, durable=0)
        assert await trimmer.trim() == 0
        table.acknowledge("node-3", applied=last, durable=last)
        clock.now_s += FRESH_S + 1
        await trimmer.look()
        assert await trimmer.trim() == 0
        assert table.holding() == 1
        assert [view.online for view in table.views()] == [True, False, False, False]
        # Names that are no replica of this cluster do not help either.
        table.acknowledge("stranger", applied=last, durable=last)
        table.acknowledge("other", applied=last, durable=last)
        assert await trimmer.trim() == 0


async def test_a_new_master_asks_anew_before_it_trims(nodes: list[Node], clock: Clock) -> None:
    one, two, *_ = nodes
    await name_replicas(one.client, one.keys)
    async with one.leading() as machine:
        await fill(machine, 10)
    await two.catch_up()
    last = await sync(two)
    async with two.leading() as machine:
        await machine.confirm()
        fresh = ReplicaTable(clock)
        trimmer = trimmer_of(two, machine.epoch, fresh)
        await trimmer.load()
        await trimmer.look()
        assert await trimmer.trim() == 0
        for name in NAMES:
            fresh.acknowledge(name, applied=last, durable=last)
        assert await trimmer.trim() > 0


async def test_a_deposed_master_cannot_trim(nodes: list[Node], table: ReplicaTable) -> None:
    one, two, *_ = nodes
    await name_replicas(one.client, one.keys)
    async with one.leading() as machine:
        await fill(machine, 10)
        last = await sync(one)
        trimmer = trimmer_of(one, machine.epoch, table)
        await trimmer.load()
        await trimmer.look()
        for name in NAMES:
            table.acknowledge(name, applied=last, durable=last)
        before = await batches(one.client, one.keys)
        epoch = machine.epoch
    async with two.leading() as newer:
        await newer.confirm()
        assert newer.epoch == epoch + 1
        with pytest.raises(UnavailableError, match="another node has become master"):
            await trimmer.trim()
        assert set(before) <= set(await batches(one.client, one.keys))
        assert await read_floor(one.client, one.keys) == 0


async def test_the_tail_and_what_replicas_lack_stay(nodes: list[Node], table: ReplicaTable) -> None:
    one = nodes[0]
    await name_replicas(one.client, one.keys)
    async with one.leading() as machine:
        limits = TrimLimits(tail_entries=20, tail_bytes=1 << 20, lag_bytes=1 << 20)
        trimmer = trimmer_of(one, machine.epoch, table, limits)
        one.log.listeners.append(trimmer.note)
        await fill(machine, 60)
        last = await sync(one)
        await trimmer.load()
        await trimmer.look()
        for name in NAMES:
            table.acknowledge(name, applied=last, durable=last)
        assert trimmer.target() == last - 20
        entry_bytes = trimmer.log_bytes // last
        short = TrimLimits(tail_entries=20, tail_bytes=5 * entry_bytes)
        trimmer._limits = short
        assert last - 8 <= trimmer.target() <= last - 3
        trimmer._limits = limits
        table.acknowledge("node-4", applied=last - 40, durable=last - 40)
        assert trimmer.target() == last - 40  # it is up, and lacks 40 entries
        trimmer._limits = TrimLimits(tail_entries=20, tail_bytes=1 << 20, lag_bytes=10 * entry_bytes)
        assert trimmer.target() == last - 20  # too far behind: it takes a snapshot


async def test_a_long_log_does_not_wait_for_a_replica_that_is_away(
    nodes: list[Node], table: ReplicaTable
) -> None:
    """Two of three hold it, as many as etcd's members: with the third one down, etcd must not fill up."""
    one = nodes[0]
    await name_replicas(one.client, one.keys)
    async with one.leading() as machine:
        long_bytes = 1 << 30
        trimmer = trimmer_of(one, machine.epoch, table, TrimLimits(1, 1, patient_bytes=long_bytes))
        one.log.listeners.append(trimmer.note)
        await fill(machine, 30)
        last = await sync(one)
        await trimmer.load()
        await trimmer.look()
        table.set_known(["node-1", "node-2", "node-3"])
        trimmer._limits = TrimLimits(1, 1, patient_bytes=trimmer.log_bytes)
        table.acknowledge("node-2", applied=last, durable=last - 5)
        assert trimmer.target() == 0  # not longer than it may be
        trimmer._limits = TrimLimits(1, 1, patient_bytes=trimmer.log_bytes - 1)
        assert trimmer.target() == last - 5
        table.set_known(["node-1", "node-2"])
        assert trimmer.target() == last - 5
        table.set_known(["node-1", "node-3"])
        assert trimmer.target() == 0  # the master alone is no majority
        table.set_known(["node-1", "node-2", "node-3", "node-4", "node-5"])
        assert trimmer.target() == 0


async def is_compacted(node: Node, revision: int) -> bool:
    try:
        await node.client.range(node.keys.head, revision=revision)
    except StaleError:
        return True
    return False


async def test_trimmer_runs_by_itself_and_forgets_the_history(
    nodes: list[Node], table: ReplicaTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = nodes[0]
    monkeypatch.setattr(etcd_trim, "ROUND_S", 0.02)
    monkeypatch.setattr(etcd_trim, "COMPACT_S", 0.05)
    await name_replicas(one.client, one.keys, NAMES[:1])
    async with one.leading() as machine:
        await fill(machine, 30)
        revision = (await one.client.range(one.keys.head)).revision
        last = await sync(one)
        trimmer = trimmer_of(one, machine.epoch, table)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trimmer.run)
            with trio.fail_after(10):
                while trimmer.floor < last - 1:  # noqa: ASYNC110 - etcd has no event for it
                    await trio.sleep(0.02)
                while not await is_compacted(one, revision - 1):
                    await fill(machine, 1, f"more-{trio.current_time()}-")
            nursery.cancel_scope.cancel()
        await machine.confirm()


async def test_who_lags_and_how_many_hold(clock: Clock, table: ReplicaTable) -> None:
    table.set_known(["a", "b", "c", "d"])
    table.sample(100)
    for name, durable in (("a", 100), ("b", 100), ("c", 90)):
        table.acknowledge(name, applied=100, durable=durable)
    assert table.settling
    assert (table.needed, table.holding(), table.held(table.needed)) == (3, 3, 90)
    assert not any(view.lags for view in table.views())
    clock.now_s += LAG_S
    table.sample(200)
    assert not table.settling
    assert table.holding() == 2
    assert [(view.name, view.online, view.lags) for view in table.views()] == [
        ("a", True, False),
        ("b", True, False),
        ("c", True, True),
        ("d", False, False),
    ]
    table.set_known(["a", "b"])
    assert (table.needed, table.held(table.needed)) == (2, 100)


async def test_a_replica_behind_the_floor_knows_that_it_needs_a_snapshot(
    nodes: list[Node], table: ReplicaTable
) -> None:
    one, two, three, _ = nodes
    await name_replicas(one.client, one.keys)
    async with one.leading() as machine:
        await fill(machine, 5)
        await two.catch_up()
        await fill(machine, 20, "g")
        last = await sync(one)
        trimmer = trimmer_of(one, machine.epoch, table)
        await trimmer.load()
        await trimmer.look()
        for name in NAMES:
            table.acknowledge(name, applied=last, durable=last)
        await trimmer.trim()
        for behind in (two, three):
            with pytest.raises(TrimmedError, match="needs the snapshot") as caught:
                await behind.catch_up()
            assert caught.value.floor == trimmer.floor
        held = two.replica.sequence

        # The snapshot of the master makes it whole, on its own disk.
        await one.replica.keeper.snapshot()
        await fill(machine, 3, "h")
        await receive(one.replica, two.replica)
        assert two.replica.sequence > held
        await two.catch_up()
        await machine.confirm()
        assert two.replica.sequence == machine.sequence
    await one.catch_up()
    await two.catch_up()
    assert two.digest() == one.digest()
    # And it stays so over a restart.
    two.replica.close()
    two.replica = Replica.open([two.replica._disks[0]])
    assert two.digest() == one.digest()
    with pytest.raises(DataLossError, match="this replica has"):
        await receive(one.replica, two.replica)


async def receive(source: Replica, target: Replica) -> None:
    """What a node fetches from another."""
    snapshot = source.log.snapshot
    assert snapshot is not None
    path = source.log.member_disks()[0] / "metadata" / "snapshots" / f"{snapshot.sequence:020d}.snapshot"
    incoming = target.incoming()
    incoming.write_bytes(path.read_bytes())
    await target.install(incoming)


@pytest.mark.parametrize("kept", ["part", "whole", "renamed"])
async def test_a_crash_while_a_snapshot_comes_leaves_the_old_replica_or_the_new(
    nodes: list[Node], tmp_path: Path, kept: str
) -> None:
    one, two, *_ = nodes
    async with one.leading() as machine:
        await fill(machine, 5)
        await two.catch_up()
        await fill(machine, 20, "g")
        await one.replica.keeper.snapshot()
    old, held = two.digest(), two.replica.sequence
    snapshot = one.replica.log.snapshot
    assert snapshot is not None
    folder = one.replica.log.member_disks()[0] / "metadata" / "snapshots"
    data = (folder / f"{snapshot.sequence:020d}.snapshot").read_bytes()
    incoming = two.replica.incoming()
    incoming.write_bytes(data[: len(data) // 2] if kept == "part" else data)
    if kept == "renamed":
        incoming.replace(incoming.with_name(f"{snapshot.sequence:020d}.snapshot"))
    two.replica.close()
    two.replica = Replica.open([tmp_path / "node-2" / "disk"])
    if kept == "renamed":
        assert two.replica.sequence == snapshot.sequence
    else:
        assert (two.replica.sequence, two.digest()) == (held, old)
        assert not incoming.exists()
    await one.catch_up()
    await two.catch_up()
    assert two.digest() == one.digest()


async def test_a_snapshot_is_installed_while_the_replica_is_cared_for(
    nodes: list[Node], tmp_path: Path
) -> None:
    one = nodes[0]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    target = Replica.open([tmp_path / "a", tmp_path / "b"])
    async with one.leading() as machine:
        await fill(machine, 20)
        await one.replica.keeper.snapshot()
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(target.run)
            before = target.keeper
            with trio.CancelScope() as scope:
                scope.cancel()  # a snapshot that is there is installed whole, whoever gives up waiting
                await receive(one.replica, target)
            assert target.keeper is not before
            assert target.sequence == one.replica.sequence
            async with one.leading() as machine:
                await fill(machine, 5, "later")
            await target.catch_up(one.client, one.keys)
            with trio.fail_after(5):
                while target.log.durable_sequence < target.sequence:  # noqa: ASYNC110 - a thread's sync
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
        assert target.log.member_disks() == [tmp_path / "a", tmp_path / "b"]
        assert Machine(target.keeper, target.log, lambda: 0).digest() == one.digest()
    finally:
        target.close()
    # Each disk alone has it whole.
    for disk in ("a", "b"):
        alone = Replica.open([tmp_path / disk])
        assert Machine(alone.keeper, alone.log, lambda: 0).digest() == one.digest()
        alone.close()


async def test_an_event_of_a_newer_program_stops_a_replica(nodes: list[Node], tmp_path: Path) -> None:
    one, two, *_ = nodes
    async with one.leading() as machine:
        await fill(machine, 5)
    await two.catch_up()
    held = two.replica.sequence
    entry = event_pb2.LogEntry(sequence=held + 1, epoch=1).SerializeToString()
    unknown = bytes.fromhex("fa3e020801")  # field 1007 of Event, a message
    with pytest.raises(NewerProgramError, match=f"entry {held + 1} of the metadata log: .*upgrade WormFS"):
        two.replica.apply_entries(held + 1, [entry + b"\x22" + bytes([len(unknown)]) + unknown])
    two.replica.close()
    with pytest.raises(NewerProgramError, match="upgrade WormFS"):
        Replica.open([tmp_path / "node-2" / "disk"])


async def test_after_the_upgrade_the_entry_is_applied_whole(
    nodes: list[Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that does not know files of mode 0600 stands for the older one."""
    one, two, *_ = nodes
    async with one.leading() as machine:
        await fill(machine, 5)
        await two.catch_up()
        held = two.replica.sequence
        machine.execute(fs.MakeNodeRequest(parent=1, name=b"known", mode=0o040755))
        machine.execute(fs.MakeNodeRequest(parent=1, name=b"new", mode=0o100600))
        await machine.confirm()
        before, after = (event_pb2.LogEntry.FromString(each.payload) for each in one.replica.log.read(held))
    before.events.extend(after.events)

    def older(message: event_pb2.Event) -> Event:
        if message.inode_made.mode == 0o100600:
            return event_record(event_pb2.Event())
        return event_record(message)

    with monkeypatch.context() as patch:
        patch.setattr(state_files, "event_record", older)
        with pytest.raises(NewerProgramError, match="upgrade WormFS"):
            two.replica.apply_entries(held + 1, [before.SerializeToString()])
        two.replica.close()  # commits what may be committed
    two.replica = Replica.open([tmp_path / "node-2" / "disk"])
    assert two.replica.sequence == held + 1
    assert two.names()[-2:] == [b"known", b"new"]
    reread = Machine(two.replica.keeper, two.replica.log, lambda: 0)
    assert not list(reread.check_namespace())  # nothing was applied twice
