"""The master's end of replication: committed entries are pushed to followers, who tell what they have.

Nobody waits for a follower. One that does not take what is pushed is dropped: its next
acknowledgement is told so, and it reads from etcd what it lacks.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence

from wormfs.core.errors import InvalidError, UnavailableError
from wormfs.metadata.log_port import LogRecord
from wormfs.metadata.replica_table import ReplicaTable
from wormfs.rpc import methods as m
from wormfs.rpc.registry import DataBuffer, Registry, RequestContext
from wormfs.rpc.stream_server import ServerConnection
from wormfs.rpc.v1 import replication_pb2 as pb

UNANSWERED_MAX_BYTES = 32 << 20
"""Pushed to a follower and not acknowledged: more than it can owe while it keeps up."""
log = logging.getLogger(__name__)


class _Stream:
    """What was pushed on one connection and is not known to have been applied."""

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection
        self.owed_bytes = 0
        self._owed: deque[tuple[int, int]] = deque()  # last sequence and bytes of each push

    def push(self, events: pb.Events, last: int, size_bytes: int) -> None:
        """Raises UnavailableError when the connection is gone."""
        self.connection.push(events)
        self._owed.append((last, size_bytes))
        self.owed_bytes += size_bytes

    def applied(self, sequence: int) -> None:
        while self._owed and self._owed[0][0] <= sequence:
            self.owed_bytes -= self._owed.popleft()[1]


class Followers:
    """Handlers of Follow and Acknowledge for one mastership; `pushed` is told of every committed batch."""

    def __init__(self, table: ReplicaTable, committed: Callable[[], int]) -> None:
        """`committed`: the last entry that is in etcd."""
        self._table = table
        self._committed = committed
        self._streams: dict[str, _Stream] = {}

    def register(self, registry: Registry) -> None:
        """Add the handlers."""
        registry.add(m.REPLICATION_FOLLOW, self._follow)
        registry.add(m.REPLICATION_ACKNOWLEDGE, self._acknowledge)

    async def _follow(
        self, context: RequestContext, request: pb.FollowRequest, _: DataBuffer | None
    ) -> pb.FollowReply:
        if context.connection is None:
            raise InvalidError("Replication/Follow is served over streams only")
        self._streams[request.name] = _Stream(context.connection)
        return pb.FollowReply(sequence=self._committed())

    async def _acknowledge(
        self, context: RequestContext, request: pb.AcknowledgeRequest, _: DataBuffer | None
    ) -> pb.AcknowledgeReply:
        self._table.acknowledge(
            request.name, applied=request.applied_sequence, durable=request.durable_sequence
        )
        stream = self._streams.get(request.name)
        following = stream is not None and stream.connection is context.connection
        if stream is not None and following:
            stream.applied(request.applied_sequence)
        return pb.AcknowledgeReply(sequence=self._committed(), following=following)

    def push(self, batch: Sequence[LogRecord]) -> None:
        """Send what was just committed to every follower."""
        if not self._streams:
            return
        payloads = [record.payload for record in batch]
        events = pb.Events(first_sequence=batch[0].sequence, entries=payloads)
        size_bytes = sum(map(len, payloads))
        for name, stream in list(self._streams.items()):
            try:
                if stream.owed_bytes > UNANSWERED_MAX_BYTES:
                    raise UnavailableError(f"{stream.owed_bytes >> 20} MiB are not acknowledged")  # noqa: TRY301
                stream.push(events, batch[-1].sequence, size_bytes)
            except UnavailableError as error:
                del self._streams[name]
                log.info("nothing more is pushed to %s until it asks again: %s", name, error.message)
