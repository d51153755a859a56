"""What the master pushes ahead of early answers, on a connection that does not always take it."""

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

    settled_sequence = 9

    def __init__(self) -> None:
        self.records: list[LogRecord] = []

    def answers_early(self, _: int) -> bool:
        return True

    def unsettled(self, after: int) -> list[LogRecord]:
        return [record for record in self.records if record.sequence > after]


class Connection:
    """A session's end of its connection, which may have stopped reading."""

    def __init__(self) -> None:
        self.kept = KeptEntries()
        self.reads = True
        self.gaps = 0

    def push(self, message: metadata_pb2.KeepEntries, *, now: bool = True) -> None:
        if not self.reads:
            raise UnavailableError("the peer has stopped reading")
        self.gaps += not self.kept.keep(message.settled_sequence, message.first_sequence, message.entries)


def test_entries_that_could_not_be_pushed_are_pushed_later() -> None:
    machine, end = Unsettled(), Connection()
    connection: Any = end
    answers = EarlyAnswers(cast("Machine", machine), {1: cast("ServerConnection", connection)})
    answers.begin(1)
    context = RequestContext(connection, "stream", "one")
    request = filesystem_pb2.GetAttrRequest(inode=1)
    request.caller.session_id = 1
    early = []
    for number, reads in ((10, True), (11, False), (12, True)):
        machine.records.append(LogRecord(number, b"%d" % number))
        end.reads = reads
        early.append(answers.answers(context, request))
    assert early == [True, False, True]
    assert end.kept.all() == [b"10", b"11", b"12"]
    assert end.gaps == 0
