"""What the master pushes ahead of early answers, on a connection that does not always take it."""

from collections.abc import Callable
from typing import Any, cast

from wormfs.client.kept_entries import KeptEntries
from wormfs.core.errors import UnavailableError
from wormfs.metadata.log_port import LogRecord
from wormfs.metadata.machine import Machine
from wormfs.node.early_answers import EarlyAnswers
from wormfs.rpc.registry import RequestContext
from wormfs.rpc.stream_server import ServerConnection
from wormfs.rpc.v1 import filesystem_pb2, metadata_pb2


class Unsettled:
    """As a machine, of which only these are asked."""

    def __init__(self) -> None:
        self.settled_sequence = 9
        self.records: list[LogRecord] = []

    def settle(self, sequence: int) -> None:
        self.settled_sequence = sequence
        self.records = [record for record in self.records if record.sequence > sequence]

    def answers_early(self, _: int) -> bool:
        return True

    def unsettled(self, after: int) -> list[LogRecord]:
        return [record for record in self.records if record.sequence > after]


class Connection:
    """A session's end of its connection, which may have stopped reading."""

    def __init__(self) -> None:
        self.kept = KeptEntries()
        self.reads = True
        self.sends_at_once = False
        self.gaps = 0
        self.unmade: list[Callable[[], metadata_pb2.KeepEntries]] = []

    def push_unmade(self, make: Callable[[], metadata_pb2.KeepEntries]) -> None:
        if not self.reads:
            raise UnavailableError("the peer has stopped reading")
        self.unmade.append(make)
        if self.sends_at_once:
            self.send()

    def send(self) -> int:
        """What waits leaves; answers how many messages that were."""
        messages = [make() for make in self.unmade]
        self.unmade.clear()
        for message in messages:
            self.gaps += not self.kept.keep(message.settled_sequence, message.first_sequence, message.entries)
        return len(messages)


class Master:
    """Early answers to one session, after each of which one more entry is unsettled."""

    def __init__(self) -> None:
        self.machine, self.end = Unsettled(), Connection()
        connection: Any = self.end
        self._answers = EarlyAnswers(cast("Machine", self.machine), {1: cast("ServerConnection", connection)})
        self._answers.begin(1)
        self._context = RequestContext(connection, "stream", "one")
        self._request = filesystem_pb2.GetAttrRequest(inode=1)
        self._request.caller.session_id = 1

    def log(self, number: int) -> None:
        self.machine.records.append(LogRecord(number, b"%d" % number))

    def answers(self, number: int) -> bool:
        self.log(number)
        return self._answers.answers(self._context, self._request)


def test_entries_that_could_not_be_pushed_are_pushed_later() -> None:
    master = Master()
    early = []
    for number, reads in ((10, True), (11, False), (12, True)):
        master.end.reads = reads
        early.append(master.answers(number))
        master.end.send()
    assert early == [True, False, True]
    assert master.end.kept.all() == [b"10", b"11", b"12"]
    assert master.end.gaps == 0


def test_a_push_that_leaves_at_once_has_what_the_answer_tells() -> None:
    master = Master()
    master.end.sends_at_once = True
    assert master.answers(10)
    assert master.answers(11)
    assert (master.end.kept.all(), master.end.gaps) == ([b"10", b"11"], 0)


def test_answers_that_leave_together_share_a_push() -> None:
    master = Master()
    assert [master.answers(number) for number in (10, 11, 12)] == [True] * 3
    assert master.end.send() == 1
    assert master.end.kept.all() == [b"10", b"11", b"12"]
    assert master.answers(13)
    assert master.end.send() == 1
    assert (master.end.kept.all(), master.end.gaps) == ([b"10", b"11", b"12", b"13"], 0)


def test_what_others_change_before_the_push_leaves_is_not_handed_over() -> None:
    master = Master()
    assert master.answers(10)
    master.log(11)
    master.end.send()
    assert master.end.kept.all() == [b"10"]


def test_what_settles_before_the_push_leaves_is_not_handed_over() -> None:
    master = Master()
    assert master.answers(10)
    assert master.answers(11)
    master.machine.settle(10)
    master.end.send()
    assert master.end.kept.all() == [b"11"]
    assert master.answers(12)
    master.machine.settle(12)
    master.end.send()
    assert (master.end.kept.all(), master.end.gaps) == ([], 0)
