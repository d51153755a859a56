"""A new master orders anew what a session kept of the one before: all of it as it was, or nothing."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trio

from wormfs.core.errors import InvalidError, NotMasterError, StaleError, TooLargeError, UnavailableError
from wormfs.core.ordering import EARLY_MAX_ENTRIES, SKIPPED_INODES, Place
from wormfs.core.types import Policy
from wormfs.metadata.machine import Machine
from wormfs.rpc.v1 import cluster_pb2, event_pb2, filesystem_pb2, metadata_pb2, types_pb2

NAMES = (b"one", b"two", b"three")


class Masters:
    """Masterships over copies of one folder as it was at chosen moments: what was done later is lost."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._count = 0

    def lead(self, folder: Path | None = None) -> tuple[Machine, Path]:
        """A new master over the folder, a new one by default; and the folder."""
        if folder is None:
            folder = self._folder / "first"
            folder.mkdir()
        machine = Machine.open([folder], copies=1, clock=lambda: 1_000)
        self._stack.callback(machine.close)
        return machine, folder

    def copy(self, folder: Path) -> Path:
        """What a crash now would leave of it."""
        self._count += 1
        target = self._folder / f"copy-{self._count}"
        shutil.copytree(folder, target)
        shutil.rmtree(target / "metadata" / "state", ignore_errors=True)  # a cache
        return target


@contextmanager
def masters(folder: Path) -> Iterator[Masters]:
    with ExitStack() as stack:
        yield Masters(folder, stack)


def make(machine: Machine, session: int, operation: int, name: bytes) -> types_pb2.Attributes:
    request = filesystem_pb2.MakeNodeRequest(
        caller=types_pb2.Caller(session_id=session, operation=operation, acknowledged=operation - 1),
        parent=1,
        name=name,
        mode=0o100644,
        exclusive=True,
    )
    reply = machine.execute(request).reply
    assert isinstance(reply, metadata_pb2.FileMapReply)
    return reply.attributes


def names(machine: Machine) -> dict[bytes, int]:
    reply = machine.execute(filesystem_pb2.ReadDirRequest(inode=1, limit=100)).reply
    assert isinstance(reply, filesystem_pb2.ReadDirReply)
    return {entry.name: entry.inode for entry in reply.entries}


def attributes(machine: Machine, inode: int) -> types_pb2.Attributes:
    reply = machine.execute(filesystem_pb2.GetAttrRequest(inode=inode)).reply
    assert isinstance(reply, filesystem_pb2.AttrReply)
    return reply.attributes


class Lost:
    """A master that answered a session three commands which the log lost; `folder` is what is left."""

    def __init__(self, made: Masters) -> None:
        self.before, folder = made.lead()
        self.before.form_cluster("cluster", "test", Policy(2, 1, 65536))
        self.session = self.before.open_session("mount")
        self.other = self.before.open_session("another")
        make(self.before, self.session, 1, b"zero")
        self.folder = made.copy(folder)
        self.sequence = self.before.sequence
        self.told = [make(self.before, self.session, 2 + at, name) for at, name in enumerate(NAMES)]
        self.kept = [record.payload for record in self.before.keeper.log.read(self.sequence)]
        assert len(self.kept) == 3
        self.names = names(self.before)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Masters]:
    with masters(tmp_path) as found:
        yield found


@pytest.fixture
def lost(made: Masters) -> Lost:
    return Lost(made)


def test_what_was_kept_is_as_it_was_answered(made: Masters, lost: Lost) -> None:
    machine, folder = made.lead(lost.folder)
    assert set(names(machine)) == {b"zero"}
    assert machine.adopt(lost.session, lost.kept)
    assert names(machine) == lost.names
    # Times and change numbers too: a client compares them with what it was told.
    assert [attributes(machine, told.inode) for told in lost.told] == lost.told
    assert attributes(machine, 1) == attributes(lost.before, 1)
    after = make(machine, lost.session, 5, b"after")
    assert after.inode == lost.told[-1].inode + 1
    assert attributes(machine, 1).change > attributes(lost.before, 1).change
    again, _ = made.lead(made.copy(folder))
    assert names(again) == names(machine)
    assert [attributes(again, told.inode) for told in lost.told] == lost.told
    assert list(again.check_namespace()) == []


def test_a_retry_of_what_was_adopted_gets_the_answer_it_had(made: Masters, lost: Lost) -> None:
    machine, _ = made.lead(lost.folder)
    assert machine.adopt(lost.session, lost.kept)
    sequence = machine.sequence
    assert make(machine, lost.session, 4, b"three") == lost.told[-1]
    assert machine.sequence == sequence
    with pytest.raises(InvalidError, match="operation 3 of session 1 was acknowledged"):
        make(machine, lost.session, 3, b"two")  # as the command behind it said


def test_handed_over_twice_it_is_done_once(made: Masters, lost: Lost) -> None:
    machine, _ = made.lead(lost.folder)
    assert not machine.has_kept(lost.session, lost.kept)
    assert machine.adopt(lost.session, lost.kept)
    sequence = machine.sequence
    assert machine.has_kept(lost.session, lost.kept)
    assert machine.adopt(lost.session, lost.kept)
    assert machine.sequence == sequence
    assert names(machine) == lost.names


def test_what_the_log_has_is_passed_over(made: Masters, lost: Lost) -> None:
    before, _ = made.lead(lost.folder)
    assert before.adopt(lost.session, lost.kept[:1])
    assert not before.has_kept(lost.session, lost.kept)
    assert before.adopt(lost.session, lost.kept)
    assert names(before) == lost.names


@pytest.mark.parametrize("survived", [0, 1, 2, 3])
def test_a_master_that_dies_adopting_leaves_the_rest_to_the_next(
    made: Masters, lost: Lost, survived: int
) -> None:
    second, folder = made.lead(lost.folder)
    assert second.adopt(lost.session, lost.kept[:survived])
    third, _ = made.lead(made.copy(folder))
    assert third.epoch == second.epoch + 1
    assert len(names(third)) == 1 + survived
    assert third.adopt(lost.session, lost.kept)
    assert names(third) == lost.names
    assert [attributes(third, told.inode) for told in lost.told] == lost.told
    assert third.keeper.state.tail == Place(lost.before.epoch, lost.sequence + 3)


def test_a_gap_is_refused(made: Masters, lost: Lost) -> None:
    machine, _ = made.lead(lost.folder)
    assert not machine.adopt(lost.session, lost.kept[1:])
    assert set(names(machine)) == {b"zero"}
    assert not machine.adopt(lost.session, [lost.kept[0], lost.kept[2]])
    assert set(names(machine)) == {b"zero", b"one"}


def test_nothing_is_adopted_behind_a_command_of_a_later_master(made: Masters, lost: Lost) -> None:
    second, folder = made.lead(lost.folder)
    make(second, lost.other, 1, b"mine")
    assert not second.adopt(lost.session, lost.kept)
    third, _ = made.lead(made.copy(folder))
    assert not third.adopt(lost.session, lost.kept)
    assert set(names(third)) == {b"zero", b"mine"}


def test_nothing_is_adopted_behind_a_master_that_only_answered_questions(made: Masters, lost: Lost) -> None:
    """Others were told what is without it; the master after that one must know."""
    second, folder = made.lead(lost.folder)
    second.begin_serving()
    sequence = second.sequence
    second.begin_serving()
    assert second.sequence == sequence
    third, _ = made.lead(made.copy(folder))
    assert not third.adopt(lost.session, lost.kept)
    assert set(names(third)) == {b"zero"}


def test_a_number_told_of_what_is_lost_never_names_another_file(made: Masters, lost: Lost) -> None:
    """A program may have the lost file open, and would read and write whatever its number names."""
    told = {attributes.inode for attributes in lost.told}
    folder = lost.folder
    for number in range(3):  # masters that each lose what they told
        machine, folder = made.lead(folder)
        first = machine.keeper.state.next_inode
        machine.begin_serving()
        assert machine.keeper.state.next_inode == first + SKIPPED_INODES
        left = made.copy(folder)
        mine = {make(machine, lost.other, 1 + at, b"m%d" % at).inode for at in range(3)}
        assert not told & mine, f"master {number}"
        for inode in told:
            with pytest.raises(StaleError):
                attributes(machine, inode)
        told |= mine
        folder = left
    assert SKIPPED_INODES > EARLY_MAX_ENTRIES


def test_a_master_that_never_served_skips_nothing_for_the_next(made: Masters, lost: Lost) -> None:
    """Its entry is lost, and nobody was told anything: what was kept still has its numbers."""
    second, _ = made.lead(made.copy(lost.folder))
    second.begin_serving()
    third, _ = made.lead(lost.folder)
    assert third.adopt(lost.session, lost.kept)
    third.begin_serving()
    assert names(third) == lost.names
    assert make(third, lost.session, 5, b"after").inode == lost.told[-1].inode + 1 + SKIPPED_INODES


def test_numbers_are_skipped_though_the_master_did_something_first(made: Masters, lost: Lost) -> None:
    """It frees orphans, say, before anybody asks it anything."""
    unlink = filesystem_pb2.UnlinkRequest(parent=1, name=b"zero")
    first, folder = made.lead(lost.folder)
    first.execute(unlink)
    second, _ = made.lead(made.copy(folder))
    (orphan,) = second.orphans()
    assert second.free_orphan(orphan)
    second.begin_serving()
    assert make(second, lost.other, 1, b"mine").inode > max(told.inode for told in lost.told)


def test_skipped_numbers_are_the_same_after_a_replay_and_a_snapshot(made: Masters, lost: Lost) -> None:
    machine, folder = made.lead(lost.folder)
    machine.begin_serving()
    digest, following = machine.digest(), machine.keeper.state.next_inode
    machine.keeper.rebuild_state("test")
    assert (machine.digest(), machine.keeper.state.next_inode) == (digest, following)
    trio.run(machine.snapshot)
    again, _ = made.lead(made.copy(folder))
    assert again.keeper.state.next_inode == following


def test_nodes_and_sessions_that_come_first_are_in_nobodys_way(made: Masters, lost: Lost) -> None:
    machine, _ = made.lead(lost.folder)
    machine.register_node(cluster_pb2.NodeInfo(name="n", addresses=["x:1"]))
    machine.close_session(lost.other)
    opened = machine.open_session("new")
    machine.set_policy(Policy(3, 2, 65536))
    assert machine.adopt(lost.session, lost.kept)
    assert names(machine) == lost.names
    assert make(machine, opened, 1, b"new").inode == lost.told[-1].inode + 1


def test_a_masters_own_change_of_files_comes_too_soon(made: Masters, lost: Lost) -> None:
    """Whoever changes files on the master's own account waits until the sessions are taken over."""
    machine, _ = made.lead(lost.folder)
    machine.allocate(
        metadata_pb2.AllocateStripesRequest(
            caller=types_pb2.Caller(session_id=lost.other), inode=lost.told[0].inode - 1, count=1
        ),
        [types_pb2.Stripe(k=2, m=1, disks=[1, 2, 3])],
    )
    assert not machine.adopt(lost.session, lost.kept)


def not_its_own(payload: bytes) -> bytes:
    entry = event_pb2.LogEntry.FromString(payload)
    entry.operation.session_id += 1
    return entry.SerializeToString()


def nobodys(payload: bytes) -> bytes:
    entry = event_pb2.LogEntry.FromString(payload)
    entry.ClearField("operation")
    return entry.SerializeToString()


def of_a_newer_program(payload: bytes) -> bytes:
    entry = event_pb2.LogEntry.FromString(payload)
    entry.events.add()  # what is left of a kind that is not known
    return entry.SerializeToString()


def upkeep_of_a_newer_program(payload: bytes) -> bytes:
    return of_a_newer_program(nobodys(payload))


def in_no_directory(payload: bytes) -> bytes:
    entry = event_pb2.LogEntry.FromString(payload)
    entry.events[0].inode_made.parent = 777
    return entry.SerializeToString()


def size_past_63_bits(payload: bytes) -> bytes:
    """Only in a row that is written back later."""
    entry = event_pb2.LogEntry.FromString(payload)
    entry.events[0].inode_made.stripe_size_bytes = 1 << 63
    return entry.SerializeToString()


def operation_past_63_bits(payload: bytes) -> bytes:
    entry = event_pb2.LogEntry.FromString(payload)
    entry.operation.operation = 1 << 63
    return entry.SerializeToString()


def twice_an_orphan(payload: bytes) -> bytes:
    entry = event_pb2.LogEntry.FromString(payload)
    inode = entry.events[0].inode_made.inode
    removed = event_pb2.Event(entry_removed=event_pb2.EntryRemoved(parent=1, name=b"x", inode=inode))
    linked = event_pb2.Event(entry_linked=event_pb2.EntryLinked(parent=1, name=b"x", inode=inode))
    entry.events.extend([removed, linked, removed])
    return entry.SerializeToString()


def no_message(_: bytes) -> bytes:
    return b"\xff\xff\xff"


DAMAGES = {
    not_its_own: "an entry that is not its own",
    nobodys: "an entry that is not its own",
    of_a_newer_program: "an entry of a newer program: upgrade WormFS",
    upkeep_of_a_newer_program: "an entry of a newer program: upgrade WormFS",
    in_no_directory: "the log names inode 777",
    size_past_63_bits: "too large",
    operation_past_63_bits: "a number past 63 bits",
    twice_an_orphan: "UNIQUE constraint failed",
    no_message: "what is no log entry",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_what_cannot_be_applied_is_lost_and_ends_no_mastership(
    made: Masters, lost: Lost, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """It must not get into the log either: each master after this one would fail on it."""
    machine, folder = made.lead(lost.folder)
    ended: list[str] = []
    machine.keeper.on_loss = ended.append
    live = machine.keeper.state
    handed = [lost.kept[0], damage(lost.kept[1]), lost.kept[2]]
    assert not machine.adopt(lost.session, handed)
    assert (caplog.text.count("hands over"), DAMAGES[damage] in caplog.text) == (1, True)
    assert not machine.has_kept(lost.session, handed)
    assert (ended, machine.keeper.state is live) == ([], True)
    assert set(names(machine)) == {b"zero", b"one"}
    assert list(machine.check_namespace()) == []
    digest = machine.digest()
    # As if it had never been there: the session goes on, and so does the next master.
    second = lost.told[1].inode
    assert make(machine, lost.session, 3, b"another").inode == second
    machine.keeper.commit()
    after = machine.digest()
    assert after != digest
    machine.keeper.rebuild_state("test")
    assert machine.digest() == after
    again, _ = made.lead(made.copy(folder))
    assert set(names(again)) == {b"zero", b"one", b"another"}


def test_a_kept_entry_that_the_log_does_not_take_changes_nothing(
    made: Masters, lost: Lost, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, _ = made.lead(lost.folder)
    machine.set_policy(Policy(3, 2, 65536))  # in the head, not written back yet
    before = machine.sequence
    for error in (NotMasterError("deposed"), UnavailableError("no disk")):
        with monkeypatch.context() as patch:
            patch.setattr(machine.keeper.log, "append", raiser(error))
            with pytest.raises(type(error)):
                machine.adopt(lost.session, lost.kept)
        assert (machine.sequence, machine.policy) == (before, Policy(3, 2, 65536))
    with monkeypatch.context() as patch:
        patch.setattr(machine.keeper.log, "append", raiser(TooLargeError("a change of 2 MiB")))
        assert not machine.adopt(lost.session, lost.kept)
    assert (machine.sequence, set(names(machine))) == (before, {b"zero"})
    digest = machine.digest()
    machine.keeper.rebuild_state("test")
    assert machine.digest() == digest
    assert machine.adopt(lost.session, lost.kept)
    assert names(machine) == lost.names


def test_a_disk_that_fails_while_entries_are_adopted_costs_none(made: Masters, lost: Lost) -> None:
    machine, _ = made.lead(lost.folder)
    live = machine.keeper.state
    live.connection.execute("PRAGMA query_only=1")
    assert machine.adopt(lost.session, lost.kept)
    assert machine.keeper.state is not live
    assert names(machine) == lost.names


def raiser(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_nothing_kept_is_no_loss(made: Masters, lost: Lost) -> None:
    machine, _ = made.lead(lost.folder)
    make(machine, lost.other, 1, b"mine")
    assert machine.adopt(lost.session, [])
    assert machine.has_kept(lost.session, [])
