"""Who is there: registration, heartbeats, silence; over a real machine with a clock of our own."""

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NoReturn

import pytest
import trio
import trio.testing

from tests.unit.node.serving import join, open_machine
from wormfs.core.errors import InvalidError, NotFoundError, UnavailableError, WrongClusterError
from wormfs.core.placement import place_stripes
from wormfs.core.types import Policy
from wormfs.metadata.machine import Machine
from wormfs.metadata.restored_state import install
from wormfs.node.drain import Drain
from wormfs.node.health import Danger, Health
from wormfs.node.members import Members
from wormfs.node.membership import heartbeat_message
from wormfs.rpc.v1 import cluster_pb2
from wormfs.store.disk import Disk


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = open_machine(tmp_path)
    yield made
    made.close()


@pytest.fixture
def members(machine: Machine, clock: Clock) -> Members:
    return Members(machine, silent_after_s=3.0, clock_s=clock)


def beat(
    members: Members,
    node: int,
    *disks: int,
    online: bool = True,
    problem: str = "",
    load: float = 0.0,
    version: str = "",
) -> bool:
    request = cluster_pb2.HeartbeatRequest(
        cluster_id=members.map().cluster_id, node=node, load=load, version=version
    )
    state = cluster_pb2.DISK_STATE_ONLINE if online else cluster_pb2.DISK_STATE_OFFLINE
    for number in disks:
        request.disks.add(number=number, state=state, free_bytes=5, total_bytes=9, problem=problem)
    return members.heartbeat(request)


def lost_disk(number: int) -> cluster_pb2.RegisterNodeRequest:
    """A node comes with a disk that has a number, and that the metadata does not know."""
    request = cluster_pb2.RegisterNodeRequest(node=cluster_pb2.NodeInfo(name="b", addresses=["x:1"]))
    request.disks.add(number=number, uuid="u9", path="/u9", state=cluster_pb2.DISK_STATE_ONLINE)
    return request


def test_a_disk_that_was_forgotten_may_be_emptied(members: Members) -> None:
    with pytest.raises(InvalidError, match=r"/u9 was disk 9 and has been forgotten; .* empty the folder"):
        members.register(lost_disk(9))


async def test_a_disk_added_since_the_backup_is_to_be_kept(
    machine: Machine, clock: Clock, tmp_path: Path
) -> None:
    """Its chunks are all that is left of the files written since."""
    await machine.snapshot()
    backed_up = machine.sequence
    snapshot = max((machine.metadata_disks()[0] / "metadata" / "snapshots").iterdir())
    (tmp_path / "new").mkdir()
    install(snapshot, [tmp_path / "new"], copies=1)
    restored = Machine.open([tmp_path / "new"], copies=1, create=False)
    try:
        with pytest.raises(InvalidError) as caught:
            Members(restored, silent_after_s=3.0, clock_s=clock).register(lost_disk(9))
    finally:
        restored.close()
    said = caught.value.message
    assert "/u9 was disk 9, which the backup" in said
    assert f"(event {backed_up})" in said
    assert "keep it as long as its chunks may be wanted" in said
    assert "empty" not in said


def test_numbers_are_kept_by_name_and_uuid(machine: Machine, clock: Clock) -> None:
    first = Members(machine, silent_after_s=3.0, clock_s=clock)
    one, two = join(first, "a", ["u1", "u2"]), join(first, "b", ["u3"])
    assert (one, two) == (1, 2)
    again = Members(machine, silent_after_s=3.0, clock_s=clock)  # the master restarted
    assert [node.online for node in again.map().nodes] == [False, False]
    assert join(again, "b", ["u3", "u4"]) == 2
    assert [(disk.number, disk.node) for disk in again.map().disks] == [(1, 1), (2, 1), (3, 2), (4, 2)]


def test_a_silent_node_is_offline_until_it_is_heard(members: Members, clock: Clock) -> None:
    node = join(members, "a", ["u1"])
    changes: list[int] = []
    members.listen(lambda: changes.append(members.version))
    version = members.map().version
    clock.now_s += 2.9
    members.sweep()
    assert members.is_online(1)
    assert members.map().nodes[0].suspected
    clock.now_s += 0.2
    members.sweep()
    assert not members.is_online(1)
    assert not members.map().nodes[0].suspected
    assert members.views()[0].online is False
    assert members.map().version > version
    assert members.map().disks[0].problem == "its node is silent"
    assert beat(members, node, 1)
    assert members.is_online(1)
    assert len(changes) == 2
    assert members.space_bytes() == (9, 5)


def test_a_node_is_suspected_when_it_has_been_silent_for_half_that_time(
    members: Members, clock: Clock
) -> None:
    node = join(members, "a", ["u1"])
    changes: list[int] = []
    members.listen(lambda: changes.append(members.version))
    before = members.map().version
    clock.now_s += 1.4
    members.sweep()
    assert not members.map().nodes[0].suspected
    clock.now_s += 0.2
    members.sweep()
    suspected = members.map()
    assert (suspected.nodes[0].suspected, suspected.nodes[0].online) == (True, True)
    assert suspected.disks[0].state == cluster_pb2.DISK_STATE_ONLINE
    assert suspected.version > before
    members.sweep()
    assert members.map().version == suspected.version
    assert beat(members, node, 1)
    assert not members.map().nodes[0].suspected
    assert members.map().version > suspected.version
    assert not changes  # neither health nor repair has anything to look at


@pytest.mark.parametrize(("silent_after_s", "after_s"), [(10.0, 5.0), (2.0, 1.5)])
def test_nobody_is_suspected_before_a_heartbeat_is_late(
    machine: Machine, clock: Clock, silent_after_s: float, after_s: float
) -> None:
    members = Members(machine, silent_after_s=silent_after_s, clock_s=clock)
    join(members, "a", ["u1"])
    clock.now_s += after_s - 0.1
    members.sweep()
    assert not members.map().nodes[0].suspected
    clock.now_s += 0.2
    members.sweep()
    assert members.map().nodes[0].suspected


def test_the_master_never_suspects_itself(members: Members, clock: Clock) -> None:
    members.own_node = join(members, "a", ["u1"])
    clock.now_s += 10
    members.sweep()
    assert not members.map().nodes[0].suspected
    assert members.is_online(1)


def all_but_the_first_beat(members: Members, nodes: int) -> None:
    for node in range(2, nodes + 1):
        request = cluster_pb2.HeartbeatRequest(cluster_id=members.map().cluster_id, node=node)
        assert members.heartbeat(request)


def test_chunks_avoid_a_suspected_node_when_the_others_are_enough(members: Members, clock: Clock) -> None:
    for name in "abcd":
        join(members, name, [f"{name}1", f"{name}2"])

    def used() -> set[int]:
        placements = place_stripes(members.views(), Policy(2, 1, 65536), 200, Random(1))
        assert all((each.k, each.m) == (2, 1) for each in placements)
        return {members.node_of(disk) for each in placements for disk in each.disks}

    assert used() == {1, 2, 3, 4}
    clock.now_s += 1.6
    all_but_the_first_beat(members, 4)
    members.sweep()
    assert used() == {2, 3, 4}
    assert {view.number for view in members.views([8]) if view.suspect} == {1, 2, 8}
    assert members.is_online(1)
    assert beat(members, 1)
    assert used() == {1, 2, 3, 4}


@pytest.mark.parametrize("disks", [1, 4])
def test_a_suspected_node_is_used_when_stripes_would_be_less_safe_without_it(
    members: Members, clock: Clock, disks: int
) -> None:
    """2+1 on two nodes: one of them would hold two chunks of a stripe, however many disks it has."""
    for name in "abc":
        join(members, name, [f"{name}{number}" for number in range(disks)])
    clock.now_s += 1.6
    all_but_the_first_beat(members, 3)
    members.sweep()
    assert members.map().nodes[0].suspected
    assert not any(view.suspect for view in members.views())
    assert [view.number for view in members.views([2]) if view.suspect] == [2]


def test_full_disks_are_not_enough_to_avoid_a_suspected_node(members: Members, clock: Clock) -> None:
    for name in "abc":
        join(members, name, [f"{name}1"])
    join(members, "d", ["d1"], free_bytes=5)
    clock.now_s += 1.6
    all_but_the_first_beat(members, 4)
    members.sweep()
    assert not any(view.suspect for view in members.views())


def test_load_and_version_come_with_heartbeats(members: Members, machine: Machine) -> None:
    node = join(members, "a", ["u1"])
    assert beat(members, node, 1, load=0.25, version="2.0")
    told = members.map_with_figures()
    assert (told.nodes[0].load, told.nodes[0].version) == (0.25, "2.0")
    version, sequence = told.version, machine.sequence
    assert beat(members, node, 1, load=1.5)  # of an older program, which does not tell its version
    told = members.map_with_figures()
    assert (told.nodes[0].load, told.nodes[0].version) == (1.5, "2.0")
    assert (told.version, machine.sequence) == (version, sequence)
    assert beat(members, node, 1, version="2.1")
    assert members.map().nodes[0].version == "2.1"
    assert members.map().version > version


def test_a_heartbeat_says_load_and_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (3.0, 9.0, 9.0))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    own = cluster_pb2.NodeInfo(number=7, version="2.0")
    disk = Disk.open(tmp_path / "disk")
    try:
        told = heartbeat_message("c", own, [disk])
    finally:
        disk.close()
    assert (told.cluster_id, told.node, told.load, told.version) == ("c", 7, 0.75, "2.0")
    assert [(each.node, each.uuid) for each in told.disks] == [(7, disk.uuid)]


def test_a_machine_without_a_load_average_says_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> NoReturn:
        raise OSError("no /proc")

    monkeypatch.setattr("os.getloadavg", unknown)
    assert heartbeat_message("c", cluster_pb2.NodeInfo(), []).load == 0


def test_a_failed_disk_is_offline_with_its_problem(members: Members) -> None:
    node = join(members, "a", ["u1", "u2"])
    assert beat(members, node, 2, online=False, problem="I/O error")
    assert [members.is_online(1), members.is_online(2)] == [True, False]
    assert members.map().disks[1].problem == "I/O error"


def test_a_disk_its_node_reports_no_more_is_offline(members: Members, clock: Clock) -> None:
    """Its folder was emptied: the node comes back with another disk in its place."""
    join(members, "a", ["u1", "u2"])
    clock.now_s += 3.1
    members.sweep()
    join(members, "a", ["u1", "u3"])
    assert [members.is_online(disk) for disk in (1, 2, 3)] == [True, False, True]
    assert [disk.problem for disk in members.map().disks] == ["", "its node serves it no more", ""]
    assert beat(members, 1, 1, 3)
    assert [members.is_online(disk) for disk in (1, 2, 3)] == [True, False, True]


def test_strangers_are_refused_by_name(members: Members) -> None:
    join(members, "a", ["u1"])
    with pytest.raises(WrongClusterError, match="node b belongs to cluster zzz"):
        members.register(
            cluster_pb2.RegisterNodeRequest(
                cluster_id="zzz", node=cluster_pb2.NodeInfo(name="b", addresses=["x:1"])
            )
        )
    with pytest.raises(WrongClusterError):
        members.heartbeat(cluster_pb2.HeartbeatRequest(cluster_id="zzz", node=1))
    with pytest.raises(UnavailableError, match="another node named a is online"):
        join(members, "a", ["u9"])
    with pytest.raises(InvalidError, match="every disk has a uuid of its own"):
        join(members, "c", ["u9", "u9"])
    with pytest.raises(NotFoundError):
        members.node_of(99)
    assert not beat(members, 77)


async def test_health_counts_what_is_missing(members: Members, machine: Machine, clock: Clock) -> None:
    join(members, "a", ["u1"])
    health = Health(machine, members)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(health.run)
        assert await health.counted(5.0) == Danger()
        clock.now_s += 10
        members.sweep()
        assert await health.counted(5.0) == Danger()  # a disk is gone, but no stripe is there
        nursery.cancel_scope.cancel()


async def test_a_drain_waits_for_work_and_refuses_more() -> None:
    drain = Drain()
    async with trio.open_nursery() as nursery:
        with drain.work():
            nursery.start_soon(drain.finish, 30.0)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(UnavailableError), drain.work():
                pass
    assert drain.stopping
