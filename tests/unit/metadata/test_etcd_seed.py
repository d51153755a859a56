"""A cluster of the embedded engine goes on in etcd: nothing is lost, nothing is overwritten."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.etcd_members import EtcdMembers
from wormfs.core import errors as er
from wormfs.core.types import Policy
from wormfs.metadata.election import campaign
from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.metadata.etcd_log import EtcdLog, head_value
from wormfs.metadata.etcd_seed import refuse_log, refuse_other_history, seed
from wormfs.metadata.machine import Machine
from wormfs.metadata.replica import Replica, read_floor
from wormfs.metadata.restored_state import install
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.rpc.etcd_types import EtcdOptions, put
from wormfs.rpc.v1 import filesystem_pb2 as fs
from wormfs.rpc.v1 import replication_pb2

KEYS = EtcdKeys("moved")
pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def members(tmp_path: Path) -> Iterator[EtcdMembers]:
    with EtcdMembers(tmp_path / "etcd") as started:
        yield started


def embedded(disks: list[Path], names: list[bytes]) -> tuple[int, str]:
    """Make metadata with the embedded engine; its last entry and digest."""
    for disk in disks:
        disk.mkdir()
    machine = Machine.open(disks, copies=3)
    machine.form_cluster("cluster", "moved", Policy(4, 2, 65536))
    for name in names:
        machine.execute(fs.MakeNodeRequest(parent=1, name=name, mode=0o100644))
    found = machine.sequence, machine.digest()
    machine.close()
    return found


def names_of(machine: Machine) -> list[bytes]:
    reply = machine.execute(fs.ReadDirRequest(inode=1, limit=1000)).reply
    assert isinstance(reply, fs.ReadDirReply)
    return [entry.name for entry in reply.entries]


async def test_an_embedded_cluster_goes_on_in_etcd(tmp_path: Path, members: EtcdMembers) -> None:
    disks = [tmp_path / f"disk-{number}" for number in range(6)]
    last, digest = embedded(disks, [b"a", b"b"])
    async with EtcdClient(EtcdOptions(members.endpoints)) as client:
        replica = Replica.open(disks)
        assert replica.sequence == last
        assert Machine(replica.keeper, replica.log, lambda: 0).digest() == digest
        await seed(client, KEYS, replica)
        await seed(client, KEYS, replica)  # again: nothing new
        mastership = await campaign(client, KEYS, replication_pb2.LeaderRecord(name="one"))
        assert mastership is not None
        assert mastership.epoch > replica.keeper.state.epoch
        head = (await client.range(KEYS.head)).kvs[0].value
        log = EtcdLog(replica.log, client, KEYS, mastership, head)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.run)
            machine = replica.lead(log, mastership.epoch, 1)
            machine.execute(fs.MakeNodeRequest(parent=1, name=b"c", mode=0o100644))
            await machine.confirm()
            assert names_of(machine) == [b"a", b"b", b"c"]
            assert machine.durable_sequence == last + 2
            nursery.cancel_scope.cancel()
        await mastership.resign()
        replica.follow()
        before = (await client.range(KEYS.head)).kvs
        await seed(client, KEYS, replica)  # it is what etcd has
        assert (await client.range(KEYS.head)).kvs == before
        replica.close()


async def test_another_cluster_of_that_name_is_left_alone(tmp_path: Path, members: EtcdMembers) -> None:
    disks = [tmp_path / "disk-1", tmp_path / "disk-2"]
    embedded(disks[:1], [b"a", b"b"])
    embedded(disks[1:], [b"x"])
    async with EtcdClient(EtcdOptions(members.endpoints)) as client:
        first, second = (Replica.open([disk]) for disk in disks)
        await seed(client, KEYS, first)
        before = (await client.range(KEYS.head)).kvs
        with pytest.raises(er.ExistsError, match="moved"):
            await seed(client, KEYS, second)
        assert (await client.range(KEYS.head)).kvs == before
        first.close()
        second.close()


async def test_an_empty_replica_cannot_begin_a_log(tmp_path: Path, members: EtcdMembers) -> None:
    (tmp_path / "disk").mkdir()
    replica = Replica.open([tmp_path / "disk"])
    async with EtcdClient(EtcdOptions(members.endpoints)) as client:
        with pytest.raises(er.InvalidError, match="no metadata"):
            await seed(client, KEYS, replica)
        assert not (await client.range(KEYS.head)).kvs
    replica.close()


async def test_a_replica_that_was_ahead_of_the_one_moved_is_refused(
    tmp_path: Path, members: EtcdMembers
) -> None:
    """Two replicas of one history, etcd set up anew behind the shorter one: the other is not mixed in."""
    disks = [tmp_path / f"disk-{number}" for number in range(3)]
    embedded(disks, [b"a"])
    longer = [tmp_path / f"longer-{number}" for number in range(3)]
    for disk, copy in zip(disks, longer, strict=True):
        shutil.copytree(disk, copy)
    machine = Machine.open(longer, copies=3)
    for name in (b"x", b"y", b"z"):
        machine.execute(fs.MakeNodeRequest(parent=1, name=name, mode=0o100644))
    machine.close()
    async with EtcdClient(EtcdOptions(members.endpoints)) as client:
        ahead, moved = Replica.open(longer), Replica.open(disks)
        await refuse_other_history(client, KEYS, ahead)  # an empty etcd: whoever moves decides
        await refuse_log(client, KEYS)
        await seed(client, KEYS, moved)
        with pytest.raises(er.ExistsError, match="a cluster named moved already"):
            await refuse_log(client, KEYS)
        await refuse_other_history(client, KEYS, moved)
        with pytest.raises(er.DataLossError, match="they are not mixed"):
            await refuse_other_history(client, KEYS, ahead)
        mastership = await campaign(client, KEYS, replication_pb2.LeaderRecord(name="one"))
        assert mastership is not None
        head = (await client.range(KEYS.head)).kvs[0].value
        log = EtcdLog(moved.log, client, KEYS, mastership, head)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.run)
            machine = moved.lead(log, mastership.epoch, 1)
            for name in (b"1", b"2", b"3", b"4", b"5", b"6"):
                machine.execute(fs.MakeNodeRequest(parent=1, name=name, mode=0o100644))
            await machine.confirm()
            nursery.cancel_scope.cancel()
        await mastership.resign()
        moved.follow()
        assert moved.sequence > ahead.sequence  # by their numbers alone they would fit
        with pytest.raises(er.DataLossError, match="they are not mixed"):
            await refuse_other_history(client, KEYS, ahead)
        await refuse_other_history(client, KEYS, moved)
        ahead.close()
        moved.close()


async def test_a_log_goes_on_behind_a_restored_replica_alone(tmp_path: Path, members: EtcdMembers) -> None:
    """Replicas up to the backup's event may take its snapshot; one of the event behind it is refused."""
    disks = [tmp_path / f"disk-{number}" for number in range(3)]
    last, _ = embedded(disks, [b"a"])
    replica = Replica.open(disks)
    await replica.keeper.snapshot()
    file = max((disks[0] / "metadata" / "snapshots").iterdir())
    new = [tmp_path / "new"]
    new[0].mkdir()
    install(file, new, copies=1)
    equal = [tmp_path / f"equal-{number}" for number in range(3)]
    longer = [tmp_path / f"longer-{number}" for number in range(3)]
    for disk, one, other in zip(disks, equal, longer, strict=True):
        shutil.copytree(disk, one)
        shutil.copytree(disk, other)
    machine = Machine.open(longer, copies=3)  # its mastership is one more entry
    machine.close()
    async with EtcdClient(EtcdOptions(members.endpoints)) as client:
        restored, same, ahead = Replica.open(new), Replica.open(equal), Replica.open(longer)
        assert (restored.sequence, same.sequence, ahead.sequence) == (last + 1, last, last + 1)
        await seed(client, KEYS, restored)
        await refuse_other_history(client, KEYS, restored)
        await refuse_other_history(client, KEYS, same)
        assert await read_floor(client, KEYS) > same.sequence  # so it must take the snapshot
        with pytest.raises(er.DataLossError, match=f"begun anew behind entry {last}, .* up to {last + 1} "):
            await refuse_other_history(client, KEYS, ahead)
        for each in (replica, restored, same, ahead):
            each.close()


async def test_a_replica_ahead_of_etcd_is_refused(tmp_path: Path, members: EtcdMembers) -> None:
    disks = [tmp_path / "disk"]
    last, _ = embedded(disks, [b"a"])
    async with EtcdClient(EtcdOptions(members.endpoints)) as client:
        replica = Replica.open(disks)
        await client.txn([], [put(KEYS.head, head_value(last - 1, 1))])
        with pytest.raises(er.DataLossError, match="etcd has lost data, or was set up anew"):
            await refuse_other_history(client, KEYS, replica)
        await client.txn([], [put(KEYS.head, head_value(last, 1))])
        await refuse_other_history(client, KEYS, replica)
        replica.close()
