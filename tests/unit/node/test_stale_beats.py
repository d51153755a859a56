"""Nodes that are back after they were cut off speak for nobody who took their place."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.node.serving import open_machine
from wormfs.node.members import Members
from wormfs.rpc.v1 import cluster_pb2

pytestmark = pytest.mark.timeout(30)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def members(tmp_path: Path, clock: Clock) -> Iterator[Members]:
    machine = open_machine(tmp_path)
    yield Members(machine, silent_after_s=3.0, clock_s=clock)
    machine.close()


def register(members: Members, name: str, uuid: str) -> cluster_pb2.RegisterNodeReply:
    request = cluster_pb2.RegisterNodeRequest(node=cluster_pb2.NodeInfo(name=name, addresses=[f"{name}:1"]))
    request.disks.add(uuid=uuid, path=f"/{name}", state=cluster_pb2.DISK_STATE_ONLINE, total_bytes=9)
    return members.register(request)


def beat(members: Members, registered: cluster_pb2.RegisterNodeReply) -> bool:
    """The heartbeat of a node that was answered so."""
    request = cluster_pb2.HeartbeatRequest(cluster_id=members.map().cluster_id, node=registered.node)
    request.disks.extend(registered.disks)
    return members.heartbeat(request)


def test_a_forgotten_node_cannot_beat_for_another(members: Members, clock: Clock) -> None:
    register(members, "one", "u1")
    old = register(members, "old", "u2")
    assert beat(members, old)
    clock.now_s += 10
    members.sweep()
    members.forget_disk(old.disks[0].number)
    new = register(members, "new", "u3")
    assert (new.node, new.disks[0].number) == (old.node + 1, old.disks[0].number + 1)
    assert beat(members, new)
    clock.now_s += 10
    members.sweep()  # the new one is silent
    assert not members.is_online(new.disks[0].number)
    assert not beat(members, old)  # it was never restarted: told to register anew
    assert not members.is_online(new.disks[0].number)
    assert beat(members, new)
    assert members.is_online(new.disks[0].number)


def test_a_node_does_not_speak_for_a_disk_that_was_moved_to_another(members: Members) -> None:
    """Its disk is in another server by now, and offline there."""
    old = register(members, "old", "u1")
    disk = old.disks[0].number

    def tells_that_it_is_away(node: int) -> None:
        away = cluster_pb2.HeartbeatRequest(cluster_id=members.map().cluster_id, node=node)
        away.disks.add(number=disk, uuid="u1", state=cluster_pb2.DISK_STATE_OFFLINE)
        assert members.heartbeat(away)
        assert not members.is_online(disk)

    tells_that_it_is_away(old.node)
    new = register(members, "new", "u1")
    assert (new.disks[0].number, new.node) == (disk, old.node + 1)
    tells_that_it_is_away(new.node)
    beat(members, old)
    assert not members.is_online(disk)
