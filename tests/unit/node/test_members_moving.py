"""Disks that are moved or forgotten while a node, or a master's map, still speaks of them as they were."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import pytest

from tests.unit.node.serving import POLICY, join, open_machine
from wormfs.core.errors import UnavailableError
from wormfs.core.placement import place_stripes
from wormfs.metadata.machine import Machine
from wormfs.node.members import Members
from wormfs.rpc.v1 import cluster_pb2 as pb

ROOM_BYTES = 1 << 40


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = open_machine(tmp_path)
    yield made
    made.close()


@pytest.fixture
def clock() -> list[float]:
    return [100.0]


@pytest.fixture
def members(machine: Machine, clock: list[float]) -> Members:
    return Members(machine, silent_after_s=3.0, clock_s=lambda: clock[0])


def beat(
    members: Members, node: int, online: Sequence[int], offline: Sequence[int] = (), uuid: str = ""
) -> bool:
    """A heartbeat; whether the node and its disks are known."""
    request = pb.HeartbeatRequest(cluster_id=members.map().cluster_id, node=node)
    for number in online:
        request.disks.add(number=number, uuid=uuid, state=pb.DISK_STATE_ONLINE, free_bytes=ROOM_BYTES)
    for number in offline:
        request.disks.add(number=number, uuid=uuid, state=pb.DISK_STATE_OFFLINE, problem="reading: gone")
    return members.heartbeat(request)


def restart(members: Members, node: int, name: str, disks: dict[int, str]) -> None:
    """The node registers again, with these disks (number: uuid)."""
    request = pb.RegisterNodeRequest(
        cluster_id=members.map().cluster_id, node=pb.NodeInfo(number=node, name=name, addresses=["x:1"])
    )
    for number, uuid in disks.items():
        request.disks.add(
            number=number,
            uuid=uuid,
            path=f"/{uuid}",
            state=pb.DISK_STATE_ONLINE,
            free_bytes=ROOM_BYTES,
        )
    members.register(request)


def test_the_node_that_a_disk_left_does_not_speak_for_it(members: Members) -> None:
    """It runs on, and says that it cannot read the disk; that is no change of the map, either."""
    old, new = join(members, "old", ["one", "two"]), join(members, "new", ["three"])
    assert beat(members, old, [1], [2])  # disk 2 is pulled out
    assert not members.is_online(2)
    restart(members, new, "new", {3: "three", 2: "two"})
    assert (members.node_of(2), members.is_online(2)) == (new, True)
    changes: list[bool] = []
    members.listen(lambda: changes.append(members.is_online(2)))
    for _ in range(3):
        assert beat(members, old, [1], [2])
        assert members.is_online(2)
        assert beat(members, new, [3, 2])
        assert members.is_online(2)
    assert changes == []
    assert beat(members, new, [3], [2])
    assert changes == [False]  # its own node is heard


def test_a_copied_disk_does_not_take_its_nodes_place(members: Members, clock: list[float]) -> None:
    """The folder that was copied has the node's number too; its own node must stay what the map says."""
    one = join(members, "one", ["a", "b"])
    copy = pb.RegisterNodeRequest(
        cluster_id=members.map().cluster_id, node=pb.NodeInfo(number=one, name="two", addresses=["y:1"])
    )
    copy.disks.add(number=1, uuid="a", path="/copy", state=pb.DISK_STATE_ONLINE)
    before = members.map()
    with pytest.raises(UnavailableError, match=r"/copy is a disk of node one, which is online at x:1"):
        members.register(copy)
    assert members.map() == before
    clock[0] += 10  # the server came back under another address and name, and the old process is gone
    members.sweep()
    assert members.register(copy).node == one
    assert [(node.name, list(node.addresses)) for node in members.map().nodes] == [("two", ["y:1"])]


def test_a_copied_disk_beside_others_is_refused_until_it_is_pulled_out(members: Members) -> None:
    old, new = join(members, "old", ["one", "two"]), join(members, "new", ["three"])
    with pytest.raises(UnavailableError, match=r"/two is disk 2, which node number 1 serves at /two"):
        restart(members, new, "new", {3: "three", 2: "two"})
    assert members.node_of(2) == old


def test_a_node_killed_and_started_again_at_once_is_no_copy(members: Members) -> None:
    one = join(members, "one", ["a"])
    restart(members, one, "one", {1: "a"})
    assert members.is_online(1)


def test_a_new_master_takes_no_forgotten_disk_from_an_older_map(machine: Machine, members: Members) -> None:
    """Every placement would fail for the disk that no node has."""
    join(members, "first", ["a", "b", "c"])
    second = join(members, "second", ["d"])
    assert beat(members, second, [], [4])
    seen = pb.ClusterMap()
    seen.CopyFrom(members.map())  # what a follower fetched a second ago
    members.forget_disk(4)
    elected = Members(machine, silent_after_s=3.0, clock_s=lambda: 100.0)
    elected.adopt(seen)
    assert [(view.number, view.online) for view in elected.views()] == [(1, True), (2, True), (3, True)]
    assert [node.name for node in elected.map().nodes if node.online] == ["first"]
    assert beat(elected, 1, [1, 2, 3])
    (placement,) = place_stripes(elected.views(), POLICY, 1, Random(1))
    assert set(placement.disks) == {1, 2, 3}
    assert not beat(elected, second, [4])  # it is to register again,
    assert not beat(elected, second, [])  # whatever it says: with its last disk it was forgotten, too


def test_a_disk_whose_number_is_anothers_now_is_to_register(members: Members) -> None:
    """An older master gave the numbers of forgotten disks out again."""
    node = join(members, "node", ["a", "b"])
    assert beat(members, node, [2], uuid="b")
    assert not beat(members, node, [2], uuid="forgotten")
    assert members.is_online(2)
