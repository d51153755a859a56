"""Answers that leave before what they tell is settled; sessions keep the entries (docs/many-servers.md)."""

from collections.abc import Callable, Mapping
from typing import Any

from wormfs.core.errors import UnavailableError
from wormfs.metadata.machine import Machine
from wormfs.rpc.registry import DataBuffer, RequestContext
from wormfs.rpc.stream_server import ServerConnection
from wormfs.rpc.v1 import metadata_pb2

_OF_SESSION = frozenset({metadata_pb2.CloseFilesRequest})
"""Requests that name their session without a caller, and may be answered early."""

EarlyAnswer = Callable[[RequestContext, Any], bool]


def confirming(machine: Machine, handler: Any, early: EarlyAnswer | None = None) -> Any:
    """Serve by `handler`, and answer (errors too) only once what the answer tells cannot be taken back.

    `early`: tells whether the caller may be answered before that, and has seen to what that takes.
    """

    async def confirmed(context: RequestContext, request: Any, data: DataBuffer | None) -> Any:
        await machine.admit()
        try:
            reply = await handler(context, request, data)
        except Exception:  # also what fails because the mastership ended under it: the caller asks the next
            if early is None or not early(context, request):
                await machine.confirm()
            raise
        if early is None or not early(context, request):
            await machine.confirm()
        return reply

    return confirmed


class EarlyAnswers:
    """Which sessions may be answered early, and what they were handed for it."""

    def __init__(self, machine: Machine, connections: Mapping[int, ServerConnection]) -> None:
        """`connections`: where each session lives now."""
        self._machine = machine
        self._connections = connections
        self._pushed: dict[int, int] = {}  # by session: the last entry pushed on its connection

    def begin(self, session: int) -> None:
        """It was opened or resumed on a new connection, and keeps entries."""
        self._pushed[session] = 0

    def end(self, session: int) -> None:
        """It keeps none, or is gone."""
        self._pushed.pop(session, None)

    def answers(self, context: RequestContext, request: Any) -> bool:
        """Whether the answer may leave before its entries are settled; hands them to the session then.

        Never for what stripes are allocated by: chunks are written under their numbers at once, and a
        number must not be given away twice.
        """
        session = request.session_id if type(request) in _OF_SESSION else request.caller.session_id
        kept_sequence = self._pushed.get(session)
        connection = context.connection
        if kept_sequence is None or connection is None or self._connections.get(session) is not connection:
            return False
        if not self._machine.answers_early(session):
            return False
        entries = self._machine.unsettled(kept_sequence)
        if entries:
            try:
                connection.push(
                    metadata_pb2.KeepEntries(
                        settled_sequence=self._machine.settled_sequence,
                        first_sequence=entries[0].sequence,
                        entries=[each.payload for each in entries],
                    ),
                    now=False,
                )
            except UnavailableError:
                return False  # it does not read: the answer waits, and they are pushed with a later one
            self._pushed[session] = entries[-1].sequence
        return True
