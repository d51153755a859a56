"""A master's state is ahead of etcd: nothing of that gets onto a disk, whatever becomes of the disks."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
import trio

from tests.etcd_members import EtcdMembers
from tests.unit.metadata.test_etcd_log import Node, make
from tests.unit.metadata.test_lost_state import bar, unbar
from wormfs.core.errors import DataLossError, NotMasterError, UnavailableError
from wormfs.core.types import Policy
from wormfs.metadata import keeper as keeper_module
from wormfs.metadata import members as files
from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.metadata.keeper import RESERVE_SEGMENTS, StateKeeper
from wormfs.metadata.machine import Machine
from wormfs.metadata.replica import Replica
from wormfs.metadata.snapshots import take
from wormfs.metadata.state_files import state_path
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.rpc.etcd_types import EtcdOptions

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[list[Node]]:
    """Two nodes of two disks each, and an etcd."""
    (tmp_path / "etcd").mkdir()
    with EtcdMembers(tmp_path / "etcd") as members:
        async with EtcdClient(EtcdOptions(members.endpoints)) as client:
            made = [Node(tmp_path / name, client, EtcdKeys("t"), disks=2) for name in ("one", "two")]
            yield made
            for node in made:
                node.replica.close()


def committed(keeper: StateKeeper) -> int:
    """The last entry that the state's file has for others, and after a crash."""
    with closing(sqlite3.connect(f"file:{state_path(keeper.disk)}?mode=ro", uri=True)) as reader:
        return int(reader.execute("SELECT value FROM head WHERE key = 'applied'").fetchone()[0])


@pytest.mark.parametrize("how", ["its disk fails", "its file is deleted"])
async def test_a_state_that_moves_leaves_what_etcd_may_not_have_uncommitted(
    nodes: list[Node], how: str
) -> None:
    one, two = nodes
    async with one.leading() as machine:
        make(machine, "kept")
        await machine.confirm()
        keeper, settled, left = machine.keeper, machine.sequence, machine.keeper.disk
        make(machine, "pending")
        if how == "its disk fails":
            keeper.disk_failed(left)
            assert keeper.disk != left
        else:
            live = keeper.state
            state_path(left).unlink()
            keeper.check_state()
            assert keeper.state is not live
        assert (machine.sequence, one.names()) == (settled + 1, [b"kept", b"pending"])
        assert committed(keeper) == settled
        await machine.confirm()
        await keeper._commit()
        assert committed(keeper) == settled + 1
    await two.catch_up()
    assert one.digest() == two.digest()


async def test_what_a_deposed_master_lost_is_in_no_snapshot(nodes: list[Node]) -> None:
    one, two = nodes
    stale = await one.campaign()
    assert stale is not None
    async with one.writing(stale) as machine:
        await machine.confirm()
        keeper, settled = machine.keeper, machine.sequence
        await one.client.revoke_lease(stale._lease_id)  # as behind a partition: it does not know
        async with two.leading() as other:
            make(other, "of the new master")
            await other.confirm()
        make(machine, "lost")
        keeper.disk_failed(keeper.disk)
        taken = take(state_path(keeper.disk), keeper._folders())
        assert taken.info.sequence == settled
        with pytest.raises(NotMasterError):
            await machine.confirm()
    one.replica.close()
    one.replica = Replica.open(one.disks)
    await one.catch_up()
    await two.catch_up()
    assert one.names() == [b"of the new master"]
    assert one.digest() == two.digest()


async def test_a_state_leaves_a_nearly_full_disk_once_it_is_settled(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = nodes
    async with one.leading() as machine:
        await machine.confirm()
        keeper, left, live = machine.keeper, machine.keeper.disk, machine.keeper.state
        needed = RESERVE_SEGMENTS * keeper.log.segment_bytes
        monkeypatch.setattr(
            keeper_module, "_free_bytes", lambda disk: needed - 1 if disk == left else 2 * needed
        )
        make(machine, "pending")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.mind_space)
            await trio.lowlevel.checkpoint()
            assert keeper.disk == left  # it waits for etcd
            assert committed(keeper) < machine.sequence
        assert keeper.disk != left
        assert keeper.state is not live  # copied, with what is in etcd by now
        assert committed(keeper) == machine.sequence == machine.durable_sequence
        assert not state_path(left).exists()
        assert one.names() == [b"pending"]


async def test_a_disk_that_joins_while_the_state_cannot_be_moved_joins_later(tmp_path: Path) -> None:
    """Else it would take entries for ever, and never count."""
    disks = [tmp_path / "one", tmp_path / "two"]
    for disk in disks:
        (disk / "metadata").mkdir(parents=True)
    machine = Machine.open(disks, copies=1)
    machine.form_cluster("cluster", "test", Policy(2, 1, 65536))
    keeper = machine.keeper
    state_path(disks[0]).unlink()
    machine.disk_failed(disks[0])  # the only copy of the log: the open connection has all there is
    bar(disks[1])
    with pytest.raises(UnavailableError, match="no disk holds the metadata log"):
        await keeper.care()
    assert keeper.log.used_disks() == []
    unbar(disks[1])
    await keeper.care()
    assert (machine.metadata_disks(), keeper.disk) == ([disks[1]], disks[1])
    make(machine, "f")
    machine.close()
    machine = Machine.open(disks[1:], copies=1)
    assert machine.counts().inodes == 2
    machine.close()


async def test_a_snapshot_ahead_of_the_log_is_refused(tmp_path: Path) -> None:
    machine = Machine.open([tmp_path], copies=1)
    keeper = machine.keeper
    state = keeper.state
    state.set_applied(machine.sequence + 1, state.applied_epoch, state.tail)
    with pytest.raises(DataLossError, match=r"the state holds entry 2, the log ends at 1"):
        await keeper.snapshot()
    assert (files.snapshots(tmp_path), keeper.log.snapshot) == ([], None)
    assert list((tmp_path / "metadata" / "snapshots").iterdir()) == []
    keeper.rebuild_state("test")
    await keeper.snapshot()
    assert files.snapshots(tmp_path) == [1]
    machine.close()
