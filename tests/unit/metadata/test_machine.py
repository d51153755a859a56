import random
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from wormfs.core import errors as er
from wormfs.core.state import Touch
from wormfs.core.types import Policy
from wormfs.metadata import members as files
from wormfs.metadata.machine import Machine
from wormfs.metadata.state_files import state_path
from wormfs.rpc.v1 import cluster_pb2, types_pb2
from wormfs.rpc.v1 import filesystem_pb2 as fs
from wormfs.rpc.v1 import metadata_pb2 as md

SEGMENT = 64 * 1024


class Owner:
    """A machine on some disks, with one session; opens it again and again."""

    def __init__(self, disks: list[Path], copies: int = 3) -> None:
        self.disks = disks
        self.copies = copies
        self.machine = self.opened()
        self.machine.form_cluster("cluster", "test", Policy(4, 2, 65536))
        self.session = self.machine.open_session("test")
        self.operation = 0

    def opened(self) -> Machine:
        return Machine.open(self.disks, copies=self.copies, segment_bytes=SEGMENT)

    def reopen(self) -> Machine:
        """Close and open; the state must be the same but for the new mastership."""
        names = self.names()
        problems = list(self.machine.check_namespace())
        sequence, counts = self.machine.sequence, self.machine.counts()
        self.machine.close()
        self.machine = self.opened()
        assert problems == list(self.machine.check_namespace()) == []
        assert (self.machine.sequence, self.machine.counts()) == (sequence + 1, counts)
        assert self.names() == names
        return self.machine

    def caller(self) -> types_pb2.Caller:
        self.operation += 1
        return types_pb2.Caller(
            session_id=self.session, operation=self.operation, acknowledged=max(0, self.operation - 10)
        )

    def make(self, name: bytes, kind: int = stat.S_IFREG) -> int:
        request = fs.MakeNodeRequest(
            caller=self.caller(), parent=1, name=name, mode=kind | 0o700, exclusive=True, open=True
        )
        reply = self.machine.execute(request).reply
        assert isinstance(reply, md.FileMapReply)
        assert reply.created
        return reply.attributes.inode

    def fill(self, first: int, count: int) -> None:
        for number in range(first, first + count):
            self.make(b"file-%05d" % number)

    def names(self) -> list[bytes]:
        reply = self.machine.execute(fs.ReadDirRequest(inode=1, limit=10_000)).reply
        assert isinstance(reply, fs.ReadDirReply)
        return [entry.name for entry in reply.entries]

    def kill(self) -> None:
        """Leave the disks as a killed process does: nothing committed, nothing synced."""
        self.machine._keeper.state.close()
        self.machine._keeper._log._members = []


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    disks = [tmp_path / f"disk-{number}" for number in range(5)]
    for disk in disks:
        disk.mkdir()
    made = Owner(disks)
    yield made
    made.machine.close()


def attr(machine: Machine, inode: int) -> types_pb2.Attributes:
    reply = machine.execute(fs.GetAttrRequest(inode=inode)).reply
    assert isinstance(reply, fs.AttrReply)
    return reply.attributes


def test_identity_and_epoch_survive(owner: Owner) -> None:
    before = owner.machine.epoch
    machine = owner.reopen()
    assert (machine.cluster_id, machine.cluster_name, machine.policy.k) == ("cluster", "test", 4)
    assert machine.epoch == before + 1
    with pytest.raises(er.ExistsError):
        machine.form_cluster("x", "y", Policy(1, 1, 1))
    machine.set_policy(Policy(2, 1, 4096))
    assert owner.reopen().policy_message().k == 2


def test_nodes_and_disks_keep_their_numbers(owner: Owner) -> None:
    machine = owner.machine
    node = cluster_pb2.NodeInfo(name="node-1", addresses=["unix:/a", "h:1"], grpc_address="h:2")
    assert machine.register_node(node) == 1
    sequence = machine.sequence
    assert machine.register_node(node) == 1
    assert machine.sequence == sequence
    assert machine.register_node(cluster_pb2.NodeInfo(name="node-2")) == 2
    with pytest.raises(er.NotFoundError):
        machine.register_node(cluster_pb2.NodeInfo(name="x", number=9))
    assert machine.register_disk(cluster_pb2.DiskInfo(uuid="u1", node=1, path="/a")) == 1
    assert machine.register_disk(cluster_pb2.DiskInfo(uuid="u2", node=2, path="/b")) == 2
    assert machine.register_disk(cluster_pb2.DiskInfo(uuid="u1", node=1, path="/c")) == 1
    machine = owner.reopen()
    assert [list(row.addresses) for row in machine.nodes()] == [["unix:/a", "h:1"], []]
    assert [(row.uuid, row.path) for row in machine.disks()] == [("u1", "/c"), ("u2", "/b")]


def test_a_retry_repeats_the_reply_and_changes_nothing(owner: Owner) -> None:
    request = fs.MakeNodeRequest(caller=owner.caller(), parent=1, name=b"x", mode=0o600, exclusive=True)
    first = owner.machine.execute(request)
    assert first.touched == (Touch(1, (b"x",)),)
    for reopened in (False, True):
        machine = owner.reopen() if reopened else owner.machine
        sequence = machine.sequence
        again = machine.execute(request)
        assert (again.reply, again.touched, machine.sequence) == (first.reply, (), sequence)
    owner.fill(0, 20)
    with pytest.raises(er.InvalidError):
        owner.machine.execute(request)
    owner.machine.close_session(owner.session)
    with pytest.raises(er.SessionExpiredError):
        owner.machine.execute(request)


def test_allocate_commit_and_collect(owner: Owner) -> None:
    machine, inode = owner.machine, owner.make(b"f")
    place = types_pb2.Stripe(codec=1, k=4, m=2, disks=[1, 2, 3, 4, 5, 6])  # type: ignore[arg-type]
    request = md.AllocateStripesRequest(caller=owner.caller(), inode=inode, count=2)
    reply = machine.allocate(request, [place, place]).reply
    assert isinstance(reply, md.AllocateStripesReply)
    assert machine.remembered(request) is not None
    assert machine.allocate(request, []).reply == reply
    ids = [stripe.stripe_id for stripe in reply.stripes]
    commit = md.CommitWriteRequest(
        caller=owner.caller(),
        inode=inode,
        stripes=[types_pb2.Stripe(index=0, stripe_id=ids[0], length_bytes=1000, valid_bytes=1000)],
        extents=[types_pb2.Extent(offset_bytes=5, data=b"hello")],
        size_bytes=1000,
    )
    done = machine.execute(commit)
    assert isinstance(done.reply, fs.AttrReply)
    assert done.reply.attributes == attr(machine, inode)
    assert done.touched == (Touch(inode, (), True, True),)
    page = machine.execute(md.GetFileMapRequest(inode=inode)).reply
    assert isinstance(page, md.FileMapReply)
    assert [(stripe.stripe_id, stripe.chunk_length_bytes) for stripe in page.stripes] == [(ids[0], 256)]
    assert [extent.data for extent in page.extents] == [b"hello"]
    assert machine.inline_bytes(inode) == 5
    assert [row.stripe.stripe_id for row in machine.stripes_page().stripes] == ids[:1]
    machine.abandon(owner.session, ids[1:])
    opened = machine.execute(md.OpenFileRequest(caller=owner.caller(), inode=inode, truncate=True)).reply
    assert isinstance(opened, md.FileMapReply)
    assert opened.attributes == attr(machine, inode)
    assert (len(opened.stripes), opened.attributes.size_bytes) == (0, 0)
    assert [chunk.stripe_id for chunk in machine.garbage(3)] == ids
    for disk in machine.garbage_disks():
        machine.chunks_collected(disk, ids)
    assert owner.reopen().counts().garbage_chunks == 0


def test_targets_name_what_a_request_touches(owner: Owner) -> None:
    machine = owner.machine
    one, two = owner.make(b"1"), owner.make(b"2")
    assert machine.targets(fs.LookupRequest(parent=1, name=b"1")) == (one,)
    assert machine.targets(fs.LookupRequest(parent=1, name=b"none")) == ()
    rename = fs.RenameRequest(parent=1, name=b"1", new_parent=1, new_name=b"2")
    assert machine.targets(rename) == (one, two)
    assert machine.targets(fs.ReadDirRequest(inode=1, want_attributes=True)) == (one, two)
    assert machine.targets(fs.ReadDirRequest(inode=1)) == ()
    assert machine.targets(fs.GetXattrRequest(inode=one)) == ()
    assert machine.targets(md.CommitWriteRequest(inode=two)) == (two,)


def test_queries_answer_and_refuse(owner: Owner) -> None:
    machine = owner.machine
    inode = owner.make(b"f")
    machine.execute(fs.SetXattrRequest(caller=owner.caller(), inode=inode, name=b"user.b", value=b"v"))
    assert machine.execute(fs.ListXattrsRequest(inode=inode)).reply == fs.ListXattrsReply(names=[b"user.b"])
    assert machine.execute(fs.GetXattrRequest(inode=inode, name=b"user.b")).reply == fs.GetXattrReply(
        value=b"v"
    )
    machine.execute(fs.RemoveXattrRequest(caller=owner.caller(), inode=inode, name=b"user.b"))
    with pytest.raises(er.NoXattrError):
        machine.execute(fs.GetXattrRequest(inode=inode, name=b"user.b"))
    with pytest.raises(er.InvalidError):
        machine.execute(fs.ReadLinkRequest(inode=inode))
    with pytest.raises(er.NotDirectoryError):
        machine.execute(fs.ReadDirRequest(inode=inode))
    with pytest.raises(er.StaleError):
        machine.execute(fs.GetAttrRequest(inode=999))
    with pytest.raises(er.InvalidError):
        machine.execute(fs.GetAttrRequest(inode=2**64 - 1))
    with pytest.raises(er.IsADirectoryWormError):
        machine.execute(md.GetFileMapRequest(inode=1))
    with pytest.raises(er.InvalidError):
        machine.execute(md.SyncRequest())


def test_a_listing_pages_in_byte_order(owner: Owner) -> None:
    names = sorted(bytes([number]) + b"x" for number in range(256) if number not in (0, 47))
    for name in names:
        owner.make(name)
    seen: list[bytes] = []
    while True:
        request = fs.ReadDirRequest(inode=1, after=seen[-1] if seen else b"", limit=50)
        reply = owner.machine.execute(request).reply
        assert isinstance(reply, fs.ReadDirReply)
        seen += [entry.name for entry in reply.entries]
        if reply.end:
            break
    assert seen == names


def test_equal_logs_give_equal_digests(owner: Owner) -> None:
    owner.fill(0, 50)
    digest = owner.machine.digest()
    owner.machine._keeper.rebuild_state("test")
    assert owner.machine.digest() == digest
    owner.make(b"more")
    assert owner.machine.digest() != digest


@pytest.mark.parametrize("damage", ["lost", "corrupt", "ahead", "foreign"])
def test_a_useless_sqlite_file_is_rebuilt(owner: Owner, damage: str) -> None:
    owner.fill(0, 40)
    names = owner.names()
    sequence = owner.machine.sequence
    owner.machine.close()
    path = state_path(owner.disks[0])
    if damage == "lost":
        shutil.rmtree(path.parent)
    elif damage == "corrupt":
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(random.Random(1).randbytes(20_000))
    else:
        with sqlite3.connect(path) as connection:
            key, value = ("applied", 10_000) if damage == "ahead" else ("log_id", "00")
            connection.execute("UPDATE head SET value = ? WHERE key = ?", (value, key))
        connection.close()
    owner.machine = owner.opened()
    assert owner.names() == names
    assert owner.machine.sequence == sequence + 1
    owner.reopen()


def test_a_state_of_a_cut_history_is_rebuilt(owner: Owner) -> None:
    """The log lost its unsynced tail, and went on otherwise; the state file kept the tail."""
    owner.fill(0, 10)
    owner.machine.close()
    saved = owner.disks[4] / "saved"
    shutil.copytree(owner.disks[0] / "metadata" / "state", saved)
    for disk in owner.disks[:3]:
        last = files.segments(disk)[-1]
        path = files.segment_path(disk, last)
        path.write_bytes(path.read_bytes()[: path.stat().st_size - 3000])
    owner.machine = owner.opened()
    count = len(owner.names())
    owner.fill(100, 20)
    owner.machine.close()
    shutil.rmtree(owner.disks[0] / "metadata" / "state")
    shutil.move(saved, owner.disks[0] / "metadata" / "state")
    owner.machine = owner.opened()
    assert len(owner.names()) == count + 20
    assert list(owner.machine.check_namespace()) == []


@pytest.mark.parametrize("lost", [(0, 1), (1, 2), (0, 2)])
async def test_disks_deleted_while_running_are_replaced(owner: Owner, lost: tuple[int, int]) -> None:
    owner.fill(0, 100)
    for number in lost:
        shutil.rmtree(owner.disks[number])
    owner.fill(100, 100)
    await owner.machine._keeper.care()
    assert len(owner.machine.metadata_disks()) == 3
    assert not {owner.disks[number] for number in lost} & set(owner.machine.metadata_disks())
    owner.fill(200, 100)
    await owner.machine.wait_durable(owner.machine.sequence)
    survivor = next(number for number in range(3) if number not in lost)
    owner.reopen()
    assert len(owner.names()) == 300
    # The newcomers alone hold everything.
    shutil.rmtree(owner.disks[survivor])
    owner.reopen()


async def test_a_recreated_folder_is_used_again(owner: Owner) -> None:
    owner.disks = owner.disks[:3]
    owner.machine.close()
    owner.machine = owner.opened()
    owner.fill(0, 10)
    shutil.rmtree(owner.disks[0])
    await owner.machine._keeper.care()
    assert owner.machine.metadata_disks() == owner.disks[1:]
    owner.disks[0].mkdir()
    await owner.machine._keeper.care()
    assert owner.machine.metadata_disks() == [*owner.disks[1:], owner.disks[0]]
    owner.reopen()


def test_disks_deleted_while_down_are_replaced(owner: Owner) -> None:
    owner.fill(0, 100)
    names = owner.names()
    owner.machine.close()
    for disk in owner.disks[:2]:
        shutil.rmtree(disk)
    owner.machine = owner.opened()
    assert owner.names() == names
    assert owner.machine.metadata_disks() == owner.disks[2:]


async def test_a_failed_disk_is_left_and_used_again_when_usable(owner: Owner) -> None:
    owner.disks.append(owner.disks[0])
    owner.machine.disk_failed(owner.disks[0])
    owner.fill(0, 10)
    await owner.machine._keeper.care()
    assert owner.machine.metadata_disks() == owner.disks[1:4]
    for disk in owner.disks[3:5]:
        owner.machine.disk_failed(disk)
    owner.machine.disk_usable(owner.disks[0])
    await owner.machine._keeper.care()
    assert owner.machine.metadata_disks() == [*owner.disks[1:3], owner.disks[0]]


async def test_snapshots_trim_the_log_and_carry_the_state(owner: Owner) -> None:
    owner.fill(0, 600)
    assert len(files.segments(owner.disks[0])) > 1
    await owner.machine.snapshot()
    snapshot = files.snapshots(owner.disks[0])
    assert snapshot == [owner.machine.sequence]
    assert files.segments(owner.disks[2]) == [owner.machine.sequence + 1]
    owner.fill(600, 10)
    shutil.rmtree(state_path(owner.disks[0]).parent)
    owner.machine._keeper.rebuild_state("test")
    # One member's snapshot rots: another's serves and mends it.
    path = files.snapshot_path(owner.disks[0], snapshot[0])
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    owner.machine.close()
    shutil.rmtree(state_path(owner.disks[1]).parent)
    owner.machine = owner.opened()
    assert len(owner.names()) == 610
    assert path.read_bytes() == files.snapshot_path(owner.disks[1], snapshot[0]).read_bytes()


async def test_run_commits_syncs_and_ends(owner: Owner) -> None:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(owner.machine.run)
            owner.fill(0, 10)
            await owner.machine.wait_durable(owner.machine.sequence)
            nursery.cancel_scope.cancel()
    assert owner.machine.durable_sequence == owner.machine.sequence


def test_what_was_answered_survives_sigkill(tmp_path: Path) -> None:
    disks = [tmp_path / "a", tmp_path / "b"]
    for disk in disks:
        disk.mkdir()
    answered: list[bytes] = []
    chance = random.Random(4)
    for _ in range(3):
        command = [sys.executable, str(Path(__file__).with_name("kill_target.py")), *map(str, disks)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(chance.randrange(200, 3_000)):
                answered.append(process.stdout.readline().strip())
            process.kill()
            answered += process.stdout.read().split(b"\n")[:-1]
    machine = Machine.open(disks, copies=2)
    for name in answered:
        machine.execute(fs.LookupRequest(parent=1, name=name))
    assert list(machine.check_namespace()) == []
    machine.close()


async def test_the_namespace_is_checked_apart_from_the_machine(owner: Owner) -> None:
    owner.fill(0, 20)
    assert await owner.machine.check_namespace_apart() == []
    state = owner.machine._keeper.state
    state.begin()
    state.connection.execute("INSERT INTO entries VALUES (1, x'6c6f7374', 4711)")  # names no inode
    state.connection.execute("INSERT INTO inodes SELECT 4712, 1, 16877, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, x''")
    problems = await owner.machine.check_namespace_apart()
    assert problems == list(owner.machine.check_namespace())
    assert "entry b'lost' of directory 1 names inode 4711, which does not exist" in problems
    assert "directory 4712 says it lies in directory 1, which does not name it" in problems
    owner.fill(20, 40)  # the machine goes on


def test_a_failing_sqlite_is_replaced_without_failing_callers(owner: Owner) -> None:
    owner.fill(0, 20)
    owner.machine._keeper.state.connection.close()
    assert len(owner.names()) == 20  # a query meets it
    owner.fill(20, 5)
    connection = owner.machine._keeper.state.connection
    connection.execute("DROP TABLE orphans")  # an apply meets it, the entry being logged
    request = fs.UnlinkRequest(caller=owner.caller(), parent=1, name=b"file-00003")
    owner.machine.execute(request)
    owner.machine.execute(request)
    assert len(owner.names()) == 24
    assert len(owner.machine.orphans()) == 1
    owner.reopen()


async def test_every_disk_deleted_while_running_loses_nothing_once_one_is_back(owner: Owner) -> None:
    owner.fill(0, 50)
    for disk in owner.disks:
        shutil.rmtree(disk)
    await owner.machine._keeper.care()
    assert owner.machine.metadata_disks() == []
    with pytest.raises(er.UnavailableError):
        owner.make(b"refused")
    with pytest.raises(er.UnavailableError):
        await owner.machine.wait_durable(owner.machine.sequence)
    for disk in owner.disks[2:]:
        disk.mkdir()
    await owner.machine._keeper.care()
    assert owner.machine.metadata_disks() == owner.disks[2:]
    owner.fill(50, 10)
    owner.reopen()
    assert len(owner.names()) == 60


async def test_the_write_ahead_log_is_emptied(owner: Owner) -> None:
    value = b"v" * 65536
    inode = owner.make(b"f")
    for number in range(150):
        request = fs.SetXattrRequest(caller=owner.caller(), inode=inode, name=b"%d" % number, value=value)
        owner.machine.execute(request)
    owner.machine._keeper.state.commit()
    wal = state_path(owner.disks[0]).with_name("state.db-wal")
    assert wal.stat().st_size > 8 << 20
    await owner.machine._keeper.care()
    assert wal.stat().st_size == 0


def test_a_file_longer_than_a_page_is_mapped_in_pages(owner: Owner) -> None:
    inode = owner.make(b"f")
    size = 4 * 65536
    for number in range(600):
        extent = types_pb2.Extent(offset_bytes=number * size, data=b"x")
        request = md.CommitWriteRequest(
            caller=owner.caller(), inode=inode, extents=[extent], size_bytes=number * size + 1
        )
        owner.machine.execute(request)
    opened = owner.machine.execute(md.AcquireWriteLeaseRequest(inode=inode)).reply
    assert isinstance(opened, md.FileMapReply)
    assert (opened.count, len(opened.extents)) == (256, 256)
    page = owner.machine.execute(md.GetFileMapRequest(inode=inode, first_index=512)).reply
    assert isinstance(page, md.FileMapReply)
    assert [extent.offset_bytes // size for extent in page.extents] == list(range(512, 600))
    far = owner.machine.execute(md.GetFileMapRequest(inode=inode, first_index=1 << 50)).reply
    assert isinstance(far, md.FileMapReply)
    assert not far.extents


def test_replaced_stripes_and_forgotten_disks_are_replayed(owner: Owner) -> None:
    machine = owner.machine
    for number, uuid in enumerate(("u1", "u2", "u3", "u4"), start=1):
        node = machine.register_node(cluster_pb2.NodeInfo(name=f"n{number}", addresses=["x:1"]))
        machine.register_disk(cluster_pb2.DiskInfo(uuid=uuid, node=node, path=f"/{uuid}"))
    inode = owner.make(b"f")
    ids = []
    for disks in ([1, 2, 3], [2, 3, 4]):
        place = types_pb2.Stripe(codec=1, k=2, m=1, disks=disks)  # type: ignore[arg-type]
        request = md.AllocateStripesRequest(caller=owner.caller(), inode=inode, count=1)
        reply = machine.allocate(request, [place]).reply
        assert isinstance(reply, md.AllocateStripesReply)
        ids.append(reply.stripes[0].stripe_id)
    stripe = types_pb2.Stripe(index=0, stripe_id=ids[0], length_bytes=1000, valid_bytes=1000)
    machine.execute(
        md.CommitWriteRequest(caller=owner.caller(), inode=inode, stripes=[stripe], size_bytes=1000)
    )
    before = attr(machine, inode)
    replace = md.ReplaceStripeRequest(
        inode=inode, holder=owner.session, old_stripe_id=ids[0], new_stripe_id=ids[1]
    )
    assert machine.execute(replace).touched == (Touch(inode, (), False, True),)
    assert machine.execute(replace).touched == ()  # it is not the old one any more
    machine.forget_disk(1)
    with pytest.raises(er.NotFoundError):
        machine.forget_disk(1)
    assert ([disk.number for disk in machine.disks()], machine.garbage_disks()) == ([2, 3, 4], [2, 3])
    assert [node.number for node in machine.nodes()] == [2, 3, 4]
    assert attr(machine, inode) == before
    found = machine.stripe_by_id(inode, ids[1])
    assert found is not None
    assert found.disks == (2, 3, 4)
    digest = machine.digest()
    machine._keeper.rebuild_state("test")
    assert machine.digest() == digest
    counts = machine.counts()
    assert (counts.garbage_chunks, counts.stripes, counts.allocations) == (2, 1, 0)


def register(machine: Machine, *names: str) -> list[tuple[int, int]]:
    """A node with one disk by each name; their numbers."""
    given = []
    for name in names:
        node = machine.register_node(cluster_pb2.NodeInfo(name=name, addresses=["x:1"]))
        given.append((node, machine.register_disk(cluster_pb2.DiskInfo(uuid=name, node=node, path="/"))))
    return given


@pytest.mark.parametrize("began", ["going on", "restarted", "rebuilt", "from a snapshot"])
async def test_numbers_of_forgotten_disks_and_nodes_are_not_given_out_again(owner: Owner, began: str) -> None:
    """What is late and names the old disk must not mean the new one."""
    assert register(owner.machine, "a", "b", "c") == [(1, 1), (2, 2), (3, 3)]
    owner.machine.forget_disk(3)
    owner.machine.forget_disk(2)
    if began == "restarted":
        owner.reopen()
    elif began == "rebuilt":
        owner.machine._keeper.rebuild_state("test")
    elif began == "from a snapshot":
        await owner.machine.snapshot()
        owner.machine._keeper.rebuild_state("test")
    assert register(owner.machine, "d") == [(4, 4)]


def test_a_state_of_an_older_program_goes_on_behind_the_numbers_it_has(owner: Owner) -> None:
    """It did not keep the highest; its digest stays what it was, as that of replicas that have it."""
    register(owner.machine, "a", "b")
    digest = owner.machine.digest()
    state = owner.machine._keeper.state
    state.commit()
    state.connection.execute("DELETE FROM head WHERE key IN ('last_disk', 'last_node')")
    state.reload()
    assert owner.machine.digest() == digest
    assert register(owner.machine, "c") == [(3, 3)]


@pytest.mark.parametrize("field", ["operation", "acknowledged"])
def test_a_number_past_63_bits_is_refused_before_it_is_logged(owner: Owner, field: str) -> None:
    """SQLite could not take it: a log with it would make no state, here and on no other server."""
    request = fs.MakeNodeRequest(caller=owner.caller(), parent=1, name=b"f", mode=stat.S_IFREG)
    setattr(request.caller, field, 1 << 63)
    before = owner.machine.sequence
    with pytest.raises(er.InvalidError, match="63 bits"):
        owner.machine.execute(request)
    allocate = md.AllocateStripesRequest(caller=owner.caller(), inode=1 << 63, count=1)
    with pytest.raises(er.InvalidError, match="63 bits"):
        owner.machine.allocate(allocate, [])
    assert owner.machine.sequence == before
    assert owner.reopen().sequence == before + 1


@pytest.mark.parametrize("field", ["operation", "acknowledged"])
def test_a_log_with_a_number_past_63_bits_makes_a_state(
    owner: Owner, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = fs.MakeNodeRequest(caller=owner.caller(), parent=1, name=b"f", mode=stat.S_IFREG)
    setattr(request.caller, field, 1 << 63)
    monkeypatch.setattr("wormfs.metadata.machine.NUMBER_MAX", 1 << 64)
    owner.machine.execute(request)
    assert owner.reopen().execute(fs.LookupRequest(parent=1, name=b"f")).reply
