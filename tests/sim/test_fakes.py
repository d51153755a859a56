"""The faked outside world: etcd's rules, the network, stopped processes, disks."""

from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from wormfs.core import errors as er
from wormfs.metadata.replica import Replica
from wormfs.rpc.etcd_types import EtcdEvents, compare_absent, compare_value, delete, get, put
from wormfs.rpc.v1 import event_pb2
from wormfs.sim.clocks import MachineClock
from wormfs.sim.disk import SimDisk, faked_disks
from wormfs.sim.etcd import NAME, SimEtcd, SimEtcdClient
from wormfs.sim.etcd_store import EtcdStore
from wormfs.sim.faults import KINDS, Faults, plan
from wormfs.sim.network import Network, Weather
from wormfs.sim.processes import Process, owned_by, stoppable
from wormfs.sim.trace import Trace

FOLDER = Path("/run-of-a-seed")


class Etcd:
    """A store, its clock in our hands."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.seen: list[EtcdEvents] = []
        self.store = EtcdStore(lambda: self.now_s, self.seen.append)


def test_a_transaction_is_one_revision_or_nothing() -> None:
    store = Etcd().store
    done = store.txn((compare_absent(b"a"),), (put(b"a", b"1"), put(b"b", b"2")), (get(b"a"),))
    assert (done.succeeded, done.revision) == (True, 2)
    again = store.txn((compare_absent(b"a"),), (put(b"a", b"3"),), (get(b"a"),))
    assert (again.succeeded, again.revision) == (False, 2)
    assert again.ranges[0].kvs[0].value == b"1"
    assert store.txn((compare_value(b"c", b""),), (), ()).succeeded is False
    events = store.events_from(1, b"a", b"z")
    assert events is not None
    assert [event.kv.key for event in events.events] == [b"a", b"b"]


def test_a_lease_ends_with_its_keys_and_not_before() -> None:
    etcd = Etcd()
    lease = etcd.store.grant(2)
    etcd.store.txn((), (put(b"a", b"1", lease.id), put(b"b", b"2")), ())
    etcd.now_s = 1.9
    etcd.store.expire()
    assert etcd.store.renew(lease.id) == 2
    etcd.now_s = 3.8
    etcd.store.expire()
    assert b"a" in etcd.store.kvs
    etcd.now_s = 3.95
    assert etcd.store.renew(lease.id) == 0
    etcd.store.expire()
    assert list(etcd.store.kvs) == [b"b"]
    with pytest.raises(er.NotFoundError):
        etcd.store.txn((), (put(b"c", b"", lease.id),), ())
    assert b"c" not in etcd.store.kvs


def test_what_was_compacted_cannot_be_watched() -> None:
    store = Etcd().store
    for value in (b"1", b"2", b"3"):
        store.txn((), (put(b"a", value),), ())
    store.compact(3)
    with pytest.raises(er.StaleError):
        store.events_from(3, b"a", b"")
    found = store.events_from(4, b"a", b"")
    assert found is not None
    assert found.events[0].kv.value == b"3"
    store.txn((), (delete(b"a"),), ())
    assert store.range(b"a").kvs == ()


async def test_a_transaction_without_an_answer_may_still_be_done(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    trace = Trace(trio.current_time, FOLDER)
    network = Network(Random(1), trace, nursery)
    etcd = SimEtcd(network, Random(3), trace, 1.0)
    client = SimEtcdClient(etcd, Process("node"))
    network.cut(NAME, "node")
    with pytest.raises(er.UncertainError):
        await client.txn([], [put(b"a", b"1")])
    assert etcd.store.kvs[b"a"].value == b"1"
    with pytest.raises(er.DeadlineError):
        await client.range(b"a")
    network.mend(NAME, "node")
    assert (await client.range(b"a")).kvs[0].value == b"1"
    nursery.cancel_scope.cancel()


async def test_messages_of_a_cut_link_are_lost_or_late(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    network = Network(Random(1), Trace(trio.current_time, FOLDER), nursery)
    network.weather = Weather(doubled_share=0.0)
    came: list[int] = []
    network.cut("a", "b")
    for number in range(100):
        network.send("a", "b", lambda number=number: came.append(number), what="it")  # type: ignore[misc]
    await trio.sleep(10)
    assert came == []
    network.mend("a", "b")
    await trio.sleep(10)
    assert 20 < len(came) < 60
    assert came != sorted(came)
    network.weather = Weather(doubled_share=1.0)
    network.send("a", "b", lambda: came.append(-1), what="it")
    await trio.sleep(10)
    assert came.count(-1) == 2
    nursery.cancel_scope.cancel()


def test_a_stopped_process_runs_nothing() -> None:
    steps: list[tuple[str, float]] = []

    async def step(name: str) -> None:
        for _ in range(3):
            await trio.sleep(1)
            steps.append((name, trio.current_time()))

    async def main() -> None:
        process = Process("stopped")
        async with trio.open_nursery() as nursery:
            with owned_by(process):
                nursery.start_soon(step, "its")
            nursery.start_soon(step, "other")
            await trio.sleep(1.5)
            process.stop()
            with owned_by(process):
                nursery.start_soon(step, "late")
            await trio.sleep(10)
            process.go_on()

    with stoppable():
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert sorted(steps) == [
        ("its", 1.0),
        ("its", 11.5),
        ("its", 12.5),
        ("late", 12.5),
        ("late", 13.5),
        ("late", 14.5),
        ("other", 1.0),
        ("other", 2.0),
        ("other", 3.0),
    ]


def entry(sequence: int) -> bytes:
    return event_pb2.LogEntry(sequence=sequence, epoch=1).SerializeToString()


def test_a_loss_of_power_keeps_what_was_synced(tmp_path: Path) -> None:
    fates, ends = set(), set()
    for seed in range(12):
        disk = SimDisk(tmp_path / f"disk-{seed}", Random(seed))
        with faked_disks([disk]):
            disk.begin_life()
            replica = Replica.open([disk.folder], segment_bytes=4096)
            log = replica.log
            for sequence in range(1, 21):
                log.append(sequence, entry(sequence))
            trio.run(log.wait_durable, 20)
            for sequence in range(21, 61):
                log.append(sequence, entry(sequence))
            image = disk.image()
            fates.update(disk.lose_power(image).split())
            replica.close()
            disk.become(image)
            again = Replica.open([disk.folder], segment_bytes=4096)
            ends.add(again.sequence)
            held = [record.payload for record in again.log.read(0)]
            assert held == [entry(sequence) for sequence in range(1, again.sequence + 1)]
            again.keeper.state.connection.close()
            again.log.close()
    assert {"kept", "cut", "torn", "state-kept", "state-gone", "state-cut"} <= fates
    assert min(ends) >= 20
    assert {20, 60} < ends


def test_a_full_disk_takes_no_new_segment(tmp_path: Path) -> None:
    disk = SimDisk(tmp_path / "disk", Random(1))
    with faked_disks([disk]):
        log = Replica.open([disk.folder], segment_bytes=1024).log
        disk.fill()
        log.append(1, b"x" * 700)
        with pytest.raises(er.NoSpaceError):
            log.append(2, b"x" * 700)
        disk.free()
        log.append(2, b"x" * 700)
        log.close()


def test_clocks_run_at_their_own_rate_and_boot_clocks_never_go_back() -> None:
    true_s = 0.0
    clock = MachineClock(lambda: true_s, 1.02)
    wall_ns = clock.wall_ns()
    true_s = 100.0
    assert clock.boot_s() == pytest.approx(102.0)
    clock.jump_boot(5.0)
    assert clock.boot_s() == pytest.approx(107.0)
    clock.jump_wall(-1000.0)
    assert clock.wall_ns() - wall_ns == pytest.approx(-898e9)


def test_a_plan_follows_from_its_seed_and_every_kind_can_be_done() -> None:
    first, again = (plan(Random(5), nodes=3, clients=3, length_s=60.0) for _ in range(2))
    assert first == again
    assert first != plan(Random(6), nodes=3, clients=3, length_s=60.0)
    assert all(callable(getattr(Faults, f"_{kind}")) for kind in KINDS)


def test_a_trace_holds_no_folder_of_its_run() -> None:
    first, again = (Trace(lambda: 0.0, Path(f"/dev/shm/{name}"), keep=True) for name in ("a", "b"))
    first.note("node-1", "cannot write /dev/shm/a/node-1/state.db: full")
    again.note("node-1", "cannot write /dev/shm/b/node-1/state.db: full")
    assert first.digest == again.digest
    assert first.lines[0].endswith("cannot write node-1/state.db: full")
