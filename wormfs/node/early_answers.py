"""Answers that leave before what they tell is settled; sessions keep the entries (docs/many-servers.md)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from wormfs.core.errors import UnavailableError
from wormfs.metadata.machine import Machine
from wormfs.rpc.registry import DataBuffer, RequestContext
from wormfs.rpc.stream_server import ServerConnection
from wormfs.rpc.v1 import metadata_pb2

_OF_SESSION = frozenset({metadata_pb2.CloseFilesRequest})
"""Requests that name their session without a caller, and may be answered early."""

EarlyAnswer = Callable[[RequestContext, Any], bool]


def confirming(
    machine: Machine, handler: Any, early: EarlyAnswer | None = None, *, hurry: bool = True
) -> Any:
    """Serve by `handler`, and answer (errors too) only once what the answer tells cannot be taken back.

    `early`: tells whether the caller may be answered before that, and has seen to what that takes.
    `hurry=False`: upkeep, which does not make entries leave sooner than they would without it.
    """

    async def confirmed(context: RequestContext, request: Any, data: DataBuffer | None) -> Any:
        await machine.admit()
        try:
            reply = await handler(context, request, data)
        except Exception:  # also what fails because the mastership ended under it: the caller asks the next
            if early is None or not early(context, request):
                await machine.confirm(hurry=hurry)
            raise
        if early is None or not early(context, request):
            await machine.confirm(hurry=hurry)
        return reply

    return confirmed


class _Keeper:
    """A session on the connection where it keeps entries."""

    __slots__ = ("pushed", "pushing", "told")

    def __init__(self) -> None:
        self.pushed = 0  # the last entry pushed there
        self.told = 0  # the last entry that an early answer may tell of; behind it others' may come
        self.pushing = False  # a push waits in the queue: it will take all that is told when it is sent


class EarlyAnswers:
    """Which sessions may be answered early, and what they were handed for it."""

    def __init__(self, machine: Machine, connections: Mapping[int, ServerConnection]) -> None:
        """`connections`: where each session lives now."""
        self._machine = machine
        self._connections = connections
        self._keepers: dict[int, _Keeper] = {}  # by session

    def begin(self, session: int) -> None:
        """It was opened or resumed on a new connection, and keeps entries."""
        self._keepers[session] = _Keeper()

    def end(self, session: int) -> None:
        """It keeps none, or is gone."""
        self._keepers.pop(session, None)

    def answers(self, context: RequestContext, request: Any) -> bool:
        """Whether the answer may leave before its entries are settled; hands them to the session then.

        Never for what stripes are allocated by: chunks are written under their numbers at once, and a
        number must not be given away twice.
        """
        session = request.session_id if type(request) in _OF_SESSION else request.caller.session_id
        keeper = self._keepers.get(session)
        connection = context.connection
        if keeper is None or connection is None or self._connections.get(session) is not connection:
            return False
        if not self._machine.answers_early(session):
            return False
        entries = self._machine.unsettled(keeper.pushed)
        if entries:
            keeper.told = entries[-1].sequence
            if not keeper.pushing:  # one push for all answers that leave together, ahead of them
                keeper.pushing = True
                try:
                    connection.push_unmade(partial(self._entries, keeper))
                except UnavailableError:
                    keeper.pushing = False
                    return False  # it does not read: the answer waits, and they are pushed with a later one
        return True

    def _entries(self, keeper: _Keeper) -> metadata_pb2.KeepEntries:
        """What was told of, is unsettled and was not pushed yet; none, when etcd has it all by now."""
        keeper.pushing = False
        settled = self._machine.settled_sequence
        entries = [each for each in self._machine.unsettled(keeper.pushed) if each.sequence <= keeper.told]
        keeper.pushed = keeper.told
        return metadata_pb2.KeepEntries(
            settled_sequence=settled,
            first_sequence=entries[0].sequence if entries else settled + 1,
            entries=[each.payload for each in entries],
        )
