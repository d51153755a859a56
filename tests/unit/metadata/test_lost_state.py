"""No disk takes the state: every use says so, the log goes on, and it comes back by itself."""

import shutil
import sqlite3
import time
from pathlib import Path

import pytest
import trio

from wormfs.core import events as ev
from wormfs.core.errors import UnavailableError
from wormfs.core.types import Policy
from wormfs.metadata import members as files
from wormfs.metadata.convert import fill_event
from wormfs.metadata.keeper import StateKeeper
from wormfs.metadata.log_port import LogRecord
from wormfs.metadata.machine import Machine
from wormfs.metadata.replica import Replica
from wormfs.metadata.state_files import state_path
from wormfs.rpc.v1 import cluster_pb2, event_pb2, metadata_pb2, types_pb2
from wormfs.rpc.v1 import filesystem_pb2 as fs


def bar(disk: Path) -> None:
    """Let no new state be made on the disk: a file is in its folder's place."""
    shutil.rmtree(state_path(disk).parent, ignore_errors=True)
    state_path(disk).parent.write_bytes(b"")


def unbar(disk: Path) -> None:
    state_path(disk).parent.unlink()


def fail_writes(keeper: StateKeeper) -> None:
    """SQLite takes no change any more, as on a full disk."""
    keeper.state.connection.execute("PRAGMA query_only=1")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    made = tmp_path / "disk"
    made.mkdir()
    return made


def make(machine: Machine, name: bytes, session: int, operation: int) -> None:
    caller = types_pb2.Caller(session_id=session, operation=operation)
    request = fs.MakeNodeRequest(caller=caller, parent=1, name=name, mode=0o100644, exclusive=True)
    machine.execute(request)


def names(machine: Machine) -> list[bytes]:
    reply = machine.execute(fs.ReadDirRequest(inode=1, limit=1000)).reply
    assert isinstance(reply, fs.ReadDirReply)
    return [entry.name for entry in reply.entries]


async def test_an_embedded_master_goes_on_when_there_is_room(disk: Path) -> None:
    machine = Machine.open([disk], copies=1)
    machine.form_cluster("cluster", "test", Policy(2, 1, 65536))
    machine.register_node(cluster_pb2.NodeInfo(name="n", addresses=["x:1"]))
    assert [node.name for node in machine.nodes()] == ["n"]
    session = machine.open_session("test")
    for number in range(5):
        make(machine, b"%d" % number, session, number + 1)
    before = names(machine), machine.counts()
    fail_writes(machine.keeper)
    bar(disk)
    # Its entry is in the log when its state is lost: whether it was done shows later.
    with pytest.raises(UnavailableError, match=r"no disk takes the metadata state .*free some space"):
        make(machine, b"last", session, 6)
    for _ in range(2):
        for use in (
            lambda: names(machine),
            lambda: make(machine, b"more", session, 7),
            lambda: machine.allocate(stripes_for(session), []),
            machine.sessions,
            machine.orphans,
            lambda: machine.sequence,
            machine.stripes_page,
        ):
            with pytest.raises(UnavailableError, match="no disk takes the metadata state"):
                use()
        await machine.keeper.care()
    # What the node itself needs to live on is known.
    assert (machine.cluster_id, machine.cluster_name, machine.policy.k) == ("cluster", "test", 2)
    assert [node.name for node in machine.nodes()] == ["n"]
    assert (machine.disks(), machine.garbage_disks()) == ([], [])
    machine.disk_failed(disk.with_name("another"))
    assert machine.counts().sessions == before[1].sessions
    unbar(disk)
    async with trio.open_nursery() as nursery:
        await nursery.start(machine.run)
        with trio.fail_after(10):
            while machine.keeper.is_lost:  # noqa: ASYNC110 - the keeper has no event
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    make(machine, b"last", session, 6)  # sent again: it had been done
    assert names(machine) == [*before[0], b"last"]
    make(machine, b"more", session, 7)
    machine.close()
    machine = Machine.open([disk], copies=1)
    assert names(machine) == [*before[0], b"last", b"more"]
    machine.close()


def stripes_for(session: int) -> metadata_pb2.AllocateStripesRequest:
    request = metadata_pb2.AllocateStripesRequest(inode=2, count=1)
    request.caller.session_id = session
    return request


async def test_a_failed_commit_is_never_read_on(disk: Path) -> None:
    """SQLite rolls back what it cannot commit: the state is made anew before anybody asks it."""
    machine = Machine.open([disk], copies=1)
    machine.form_cluster("cluster", "test", Policy(2, 1, 65536))
    session = machine.open_session("test")
    make(machine, b"a", session, 1)
    keeper = machine.keeper
    keeper.state.connection.execute("ROLLBACK")
    keeper.commit()
    assert names(machine) == [b"a"]
    keeper.state.connection.close()
    assert machine.sessions()[-1].session_id == session  # an error under a query is put right, too
    assert machine.open_session("another") == session + 1
    machine.close()


def test_no_metadata_of_a_spare_disk_is_wiped_without_a_state(tmp_path: Path) -> None:
    disks = [tmp_path / "one", tmp_path / "two"]
    for each in disks:
        each.mkdir()
    machine = Machine.open(disks, copies=2)
    machine.form_cluster("cluster", "test", Policy(2, 1, 65536))
    machine.disk_failed(disks[1])
    bar(disks[0])
    with pytest.raises(UnavailableError):
        machine.keeper.rebuild_state("test")
    machine.disk_usable(disks[1])
    segments = files.segments(disks[1])
    trio.run(machine.keeper.care)
    machine.keeper.replicate_now()
    assert files.read_membership(disks[1]) is not None
    assert files.segments(disks[1]) == segments
    unbar(disks[0])
    give_up_s = time.monotonic() + 20
    while machine.metadata_disks() != disks:  # a failed rebuild is not tried again at once
        assert time.monotonic() < give_up_s
        trio.run(machine.keeper.care)
    machine.close()


def test_a_start_without_room_is_refused_in_one_line(disk: Path) -> None:
    Machine.open([disk], copies=1).close()
    bar(disk)
    with pytest.raises(UnavailableError, match=r"no disk takes the metadata state \(.*disk: .*free some"):
        Machine.open([disk], copies=1)
    unbar(disk)
    Machine.open([disk], copies=1).close()


def record(sequence: int) -> LogRecord:
    entry = event_pb2.LogEntry(sequence=sequence, epoch=1, time_ns=sequence)
    event = ev.NodeRegistered(sequence, f"n{sequence}", ("x:1",), "", "")
    fill_event(entry.events.add(), event)
    return LogRecord(sequence, entry.SerializeToString())


@pytest.mark.parametrize("at_start", [False, True], ids=["later", "at the start"])
async def test_a_replica_keeps_its_log_without_a_state(disk: Path, at_start: bool) -> None:
    replica = Replica.open([disk])
    for sequence in range(1, 6):
        replica.apply([record(sequence)])
    if at_start:
        replica.close()
        bar(disk)
        replica = Replica.open([disk])
    else:
        fail_writes(replica.keeper)
        bar(disk)
        replica.apply([record(6)])
    assert replica.keeper.is_lost
    for sequence in range(replica.sequence + 1, 9):
        replica.apply([record(sequence)])
    assert replica.sequence == 8
    with pytest.raises(UnavailableError, match="no disk takes the metadata state"):
        assert replica.cluster_id
    replica.follow()
    await replica.log.wait_durable(8)
    unbar(disk)
    await replica.keeper.care()
    assert replica.keeper.state.applied == 8
    assert [node.name for node in replica.keeper.state.nodes()] == [f"n{number}" for number in range(1, 9)]
    replica.close()
    with sqlite3.connect(state_path(disk)) as connection:
        assert connection.execute("SELECT count(*) FROM nodes").fetchone() == (8,)
    connection.close()
