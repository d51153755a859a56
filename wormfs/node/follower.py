"""A follower's end of replication: entries pushed by the master, gaps read from etcd, acknowledgements.

A master that cannot be reached, or drops us, costs nothing but time: etcd has every entry, and is
read once a second until a stream is there again.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn

import trio
from google.protobuf.message import Message

from wormfs.core.errors import NoSpaceError, UnavailableError
from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.metadata.replica import GapError, Replica, TrimmedError
from wormfs.rpc import methods as m
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.rpc.stream_client import StreamConnection, open_connection
from wormfs.rpc.v1 import replication_pb2 as pb

PAUSE_S = 1.0
GAP_PAUSE_S = 0.05
ACKNOWLEDGE_S = 0.5
ACKNOWLEDGE_BYTES = 4 << 20
"""Applied since the last acknowledgement: then the next one is sent without waiting."""
CONNECT_S = 2.0
CALL_S = 2.0
QUEUE_MAX_BYTES = 64 << 20
log = logging.getLogger(__name__)


class Follower:
    """Keeps a replica up to date while another node is master."""

    def __init__(
        self,
        name: str,
        replica: Replica,
        client: EtcdClient,
        keys: EtcdKeys,
        master: Sequence[str],
        *,
        checked: Callable[[], None],
        rescue: Callable[[int, "Follower"], Awaitable[None]],
    ) -> None:
        """`master`: its addresses, none when it cannot be asked. `checked` is called after each catching up.

        `rescue(floor, self)` brings a snapshot of `floor` or later.
        """
        self._name = name
        self._replica = replica
        self._client = client
        self._keys = keys
        self._master = list(master)
        self._checked = checked
        self._rescue = rescue
        self._queue: deque[pb.Events] = deque()
        self._queued_bytes = 0
        self._gap = False
        self._wake = trio.Event()
        self._applied_bytes = 0
        self._much_applied = trio.Event()

    async def run(self) -> NoReturn:
        """Follow until cancelled. Raises DataLossError for an entry that cannot be applied."""
        silent = False
        while True:
            try:
                await self._catch_up()
                if self._master:
                    await self._stream()
                silent = False
            except (NoSpaceError, UnavailableError) as error:
                level = logging.DEBUG if silent else logging.INFO
                log.log(level, "the metadata log is not followed now: %s", error.message)
                silent = True
            await trio.sleep(PAUSE_S)

    async def _catch_up(self) -> None:
        while True:
            try:
                await self._replica.catch_up(self._client, self._keys)
                break
            except TrimmedError as error:
                log.warning("%s", error.message)
                await self._rescue(error.floor, self)
        self._checked()

    # --- the stream ---------------------------------------------------------------------------

    async def _stream(self) -> None:
        """Apply what is pushed until the connection ends (returns or raises UnavailableError)."""
        self._queue.clear()
        self._queued_bytes = 0
        async with open_connection(self._master, timeout_s=CONNECT_S, on_push=self._take) as connection:
            await connection.call(m.REPLICATION_FOLLOW, pb.FollowRequest(name=self._name), timeout_s=CALL_S)
            self._gap = True  # what was committed before
            ended: list[UnavailableError] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._apply_pushed)
                try:
                    await self._acknowledge(connection, lambda: self._replica.sequence, following=True)
                except UnavailableError as error:
                    ended.append(error)
                nursery.cancel_scope.cancel()
            raise ended[0]

    def _take(self, message: Message) -> None:
        if isinstance(message, pb.Events):
            self._queue.append(message)
            self._queued_bytes += message.ByteSize()
            if self._queued_bytes > QUEUE_MAX_BYTES:  # etcd has it all
                self._queue.clear()
                self._queued_bytes = 0
                self._gap = True
            self._wake.set()

    async def _apply_pushed(self) -> NoReturn:
        while True:
            try:
                if self._gap:
                    self._gap = False
                    await self._catch_up()
                while self._queue:
                    self._apply(self._queue.popleft())
                    await trio.lowlevel.checkpoint()
            except GapError:
                self._gap = True
                await trio.sleep(GAP_PAUSE_S)  # a hole in etcd itself is not closed by asking in haste
                continue
            except (NoSpaceError, UnavailableError) as error:
                log.warning("the metadata replica does not follow now: %s", error.message)
                self._gap = True
                await trio.sleep(PAUSE_S)
                continue
            if not self._gap:
                self._wake = trio.Event()
                await self._wake.wait()

    def _apply(self, events: pb.Events) -> None:
        size_bytes = events.ByteSize()
        self._queued_bytes -= size_bytes
        self._replica.apply_entries(events.first_sequence, events.entries)
        self._applied_bytes += size_bytes
        if self._applied_bytes > ACKNOWLEDGE_BYTES:
            self._much_applied.set()

    # --- acknowledging ------------------------------------------------------------------------

    async def _acknowledge(
        self, connection: StreamConnection, applied: Callable[[], int], *, following: bool
    ) -> NoReturn:
        """Tell the master what is here, until it cannot be told. Raises UnavailableError."""
        while True:
            self._applied_bytes = 0
            self._much_applied = trio.Event()
            request = pb.AcknowledgeRequest(
                name=self._name,
                applied_sequence=applied(),
                durable_sequence=min(self._replica.log.durable_sequence, self._replica.sequence),
            )
            reply = (await connection.call(m.REPLICATION_ACKNOWLEDGE, request, timeout_s=CALL_S)).message
            if following:
                if not reply.following:
                    raise UnavailableError("the master pushes nothing more on this connection")
                if reply.sequence > self._replica.sequence and not self._queue:
                    # Pushes arrive before later replies: what the reply tells of never came.
                    self._gap = True
                    self._wake.set()
            with trio.move_on_after(ACKNOWLEDGE_S):
                await self._much_applied.wait()

    async def hold(self, sequence: int) -> None:
        """Have the master keep what lies behind `sequence` in etcd, within bounds, until cancelled."""
        while self._master:
            try:
                async with open_connection(self._master, timeout_s=CONNECT_S) as connection:
                    await self._acknowledge(connection, lambda: sequence, following=False)
            except UnavailableError as error:
                log.debug("the master is not told of the snapshot: %s", error.message)
            await trio.sleep(PAUSE_S)
