"""A replica without room for its state: its log is whole, so it takes its turn and follows."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.metadata.test_lost_state import bar, record, unbar
from wormfs.core import events as ev
from wormfs.core.errors import DataLossError, UnavailableError, WrongClusterError
from wormfs.core.types import Policy
from wormfs.metadata.convert import fill_event
from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.metadata.etcd_log import head_value
from wormfs.metadata.etcd_seed import refuse_other_history
from wormfs.metadata.log_port import LogRecord
from wormfs.metadata.replica import Replica
from wormfs.node.replica_role import ReplicaRole
from wormfs.rpc.v1 import event_pb2

KEYS = EtcdKeys("c")
LAST = 6
"""The replica's last entry; all are of epoch 1."""
pytestmark = pytest.mark.timeout(30)


class Etcd:
    """Answers what lies under a key."""

    def __init__(self, values: dict[bytes, bytes]) -> None:
        self._values = values

    async def range(self, key: bytes) -> Any:
        return SimpleNamespace(kvs=[SimpleNamespace(value=self._values[key])] if key in self._values else [])


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """One that holds a replica of a cluster named `own`."""
    made = tmp_path / "disk"
    made.mkdir()
    replica = Replica.open([made])
    formed = event_pb2.LogEntry(sequence=1, epoch=1, time_ns=1)
    fill_event(formed.events.add(), ev.ClusterFormed("own", "c", Policy(2, 1, 65536)))
    replica.apply([LogRecord(1, formed.SerializeToString())])
    for sequence in range(2, LAST + 1):
        replica.apply([record(sequence)])
    replica.close()
    return made


@pytest.fixture
def lost(disk: Path) -> Iterator[Replica]:
    """Opened without room for its state."""
    bar(disk)
    replica = Replica.open([disk])
    assert (replica.keeper.is_lost, replica.sequence) == (True, LAST)
    with pytest.raises(UnavailableError):
        assert replica.cluster_id
    yield replica
    replica.close()


@pytest.mark.parametrize("begun", [None, (LAST, 7), (3, 1)], ids=["never", "behind it", "in its epoch"])
async def test_it_takes_its_turn_when_its_log_is_etcds(lost: Replica, begun: tuple[int, int] | None) -> None:
    values = {KEYS.head: head_value(LAST + 3, 7)}
    if begun is not None:
        values[KEYS.begun] = head_value(*begun)
    etcd: Any = Etcd(values)
    await refuse_other_history(etcd, KEYS, lost)
    assert lost.keeper.is_lost


@pytest.mark.parametrize(
    ("head", "begun", "why"),
    [((LAST + 3, 7), (3, 7), "they are not mixed"), ((LAST - 1, 1), (0, 0), "etcd has lost data")],
)
async def test_it_is_refused_still_when_its_log_is_of_another_history(
    lost: Replica, head: tuple[int, int], begun: tuple[int, int], why: str
) -> None:
    etcd: Any = Etcd({KEYS.head: head_value(*head), KEYS.begun: head_value(*begun)})
    with pytest.raises(DataLossError, match=why):
        await refuse_other_history(etcd, KEYS, lost)


def role_of(replica: Replica, *cluster_ids: str) -> ReplicaRole:
    """A node whose disks say that they are of these clusters."""
    disks = [SimpleNamespace(path=f"/{each}", cluster_id=each) for each in cluster_ids]
    parts: Any = SimpleNamespace(
        disks=disks, config=SimpleNamespace(cluster=SimpleNamespace(name=KEYS.cluster_name))
    )
    role = ReplicaRole(parts)
    role._replica = replica
    return role


def test_it_follows_on(lost: Replica) -> None:
    role_of(lost, "own", "")._check_cluster()  # the follower asks for it before each stream
    for sequence in range(LAST + 1, LAST + 3):
        lost.apply([record(sequence)])
    assert lost.sequence == LAST + 2


async def test_a_disk_of_another_cluster_is_refused_once_there_is_a_state(lost: Replica, disk: Path) -> None:
    role = role_of(lost, "own", "another")
    role._check_cluster()
    unbar(disk)
    await lost.keeper.care()
    with pytest.raises(WrongClusterError, match=r"/another is a disk of cluster another; .* is own"):
        role._check_cluster()
    role_of(lost, "own", "")._check_cluster()
