"""The server's end of the stream protocol.

Each connection's frames are read by one task at a time, which runs the handler of each request
itself. A handler that never waits costs no task and no switch. When a handler waits for the first
time, its task stays with it and another task becomes the reader (leader and followers), so
handlers run side by side and each runs from start to end in one task, as trio expects.
"""

import logging
import types
from collections.abc import Callable, Coroutine, Generator, Sequence
from time import perf_counter
from typing import Any

import outcome
import trio
from google.protobuf.message import DecodeError, Message

from wormfs.core.errors import InvalidError, ProtocolError, UnavailableError, WormError
from wormfs.rpc.errors_wire import to_reply
from wormfs.rpc.frames import (
    HELD_BACK,
    KIND_CANCEL,
    KIND_ERROR,
    KIND_PUSH,
    KIND_REPLY,
    KIND_REQUEST,
    Buffer,
    pack_frame,
)
from wormfs.rpc.link import DataSink, Frame, FrameLink
from wormfs.rpc.methods import number_of
from wormfs.rpc.registry import (
    Answer,
    DataBuffer,
    Entry,
    HeapBuffer,
    Registry,
    RequestContext,
    only_cancelled,
    reported,
)
from wormfs.rpc.sockets import Listener, describe_peer, listen

__all__ = [
    "Answer",
    "DataBuffer",
    "HeapBuffer",
    "Registry",
    "RequestContext",
    "ServerConnection",
    "serve_streams",
]

log = logging.getLogger(__name__)

_IN_FLIGHT_MAX = 4096  # requests whose handlers wait; far above what a client of ours has
_DATA_IN_FLIGHT_MAX_BYTES = 64 << 20
_QUEUED_MAX_BYTES = 16 << 20
_SPARES_MAX = 32
_TURN_S = 0.001  # a reader that never waits lets others run, and its answers leave, this often
_ACCEPT_PAUSE_S = 0.1


class _Reply:
    """A handler's answer, ready to be sent. Raises ProtocolError for one that is too large."""

    __slots__ = ("data", "data_bytes", "frame", "release")

    def __init__(self, request_id: int, answer: Message | Answer[Message], held_back: int) -> None:
        if not isinstance(answer, Answer):
            self.data: Sequence[Buffer] = ()
            self.data_bytes = 0
            self.release: Callable[[], None] | None = None
            self.frame = pack_frame(KIND_REPLY, held_back, request_id, 0, answer.SerializeToString(), 0)
            return
        self.data = answer.data
        self.release = answer.release
        try:
            self.data_bytes = sum(memoryview(buffer).nbytes for buffer in answer.data)
            message = answer.message.SerializeToString()
            self.frame = pack_frame(KIND_REPLY, held_back, request_id, 0, message, self.data_bytes)
        except BaseException:
            if answer.release is not None:
                answer.release()
            raise
        if not self.data_bytes and answer.release is not None:
            answer.release()


def _push_frame(message: Message) -> bytes:
    number = number_of(message.DESCRIPTOR.full_name)
    return pack_frame(KIND_PUSH, number, 0, 0, message.SerializeToString(), 0)


class ServerConnection:
    """One client. `state` is free for the node; `closed` is set when the client is gone."""

    def __init__(self, link: FrameLink, registry: Registry, peer: str) -> None:
        self.closed = trio.Event()
        self.peer = peer
        self.state: object = None
        self._link = link
        self._registry = registry
        self._context = RequestContext(self, "stream", peer)
        self._in_flight: dict[int, trio.CancelScope] = {}  # requests whose handlers wait
        self._data_bytes = 0  # raw data held by handlers
        self._finished: trio.Event | None = None  # set when a handler ends
        self._spares: list[trio.lowlevel.Task] = []  # parked, each can become the reader
        self._nursery: trio.Nursery | None = None
        self._turn_began = 0.0

    def push(self, message: Message) -> None:
        """Send a message the client did not ask for; it arrives before any later reply.

        Raises UnavailableError when the connection is gone or its client has stopped reading.
        """
        self._check_open()
        self._link.send(_push_frame(message), now=True)

    def push_unmade(self, make: Callable[[], Message]) -> None:
        """As push, together with the next reply and made only then; `make` must not raise."""
        self._check_open()
        self._link.enqueue_unmade(lambda: _push_frame(make()))

    def _check_open(self) -> None:
        if self.closed.is_set():
            raise UnavailableError(f"{self.peer} is gone")

    async def run(self) -> None:
        """Serve the client until it goes or breaks the protocol."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._link.write_queued)
                self._nursery.start_soon(self._work)
        finally:
            self.closed.set()
            self._link.close()

    def _end(self) -> None:
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    async def _work(self) -> None:
        """Read and run requests; after a handler that waited, be a spare reader or end."""
        while True:
            with trio.CancelScope() as scope:
                try:
                    await self._read_until_handler_waits(scope)
                except (ProtocolError, DecodeError) as error:
                    log.warning("closing the connection of %s: %s", self.peer, error)
                    self._link.flush()
                    self._end()
                except UnavailableError as error:
                    log.debug("%s: %s", self.peer, error)
                    self._end()
            if len(self._spares) >= _SPARES_MAX:
                return
            task = trio.lowlevel.current_task()
            self._spares.append(task)

            def abort(_: object, task: trio.lowlevel.Task = task) -> trio.lowlevel.Abort:
                self._spares.remove(task)
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)

    async def _read_until_handler_waits(self, scope: trio.CancelScope) -> None:
        """The reader's loop. Returns when this task ran a handler that waited, and answered it."""
        link = self._link
        while True:
            frame = link.poll()
            if frame is None:
                if not link.flush():
                    link.wake()
                frame = await link.receive()
                self._turn_began = perf_counter()
            elif perf_counter() - self._turn_began > _TURN_S:
                if not link.flush():
                    link.wake()
                await trio.lowlevel.checkpoint()
                self._turn_began = perf_counter()
            kind = frame.header.kind
            if kind == KIND_REQUEST:
                if self._too_much(frame.header.data_bytes):
                    await self._wait_for_room(frame.header.data_bytes)
                if await self._serve(frame, scope):
                    return
            elif kind == KIND_CANCEL:
                found = self._in_flight.get(frame.header.request_id)
                if found is not None:
                    found.cancel()
            else:
                raise ProtocolError(f"a client sent a frame of kind {kind}")

    def _too_much(self, data_bytes: int) -> bool:
        return (
            len(self._in_flight) >= _IN_FLIGHT_MAX
            or self._link.queued_bytes > _QUEUED_MAX_BYTES
            or (
                data_bytes > 0
                and self._data_bytes > 0
                and self._data_bytes + data_bytes > _DATA_IN_FLIGHT_MAX_BYTES
            )
        )

    async def _wait_for_room(self, data_bytes: int) -> None:
        """Backpressure: nothing more is read until handlers end and replies leave."""
        while self._too_much(data_bytes):
            if not self._link.flush():
                self._link.wake()
            if self._link.queued_bytes > _QUEUED_MAX_BYTES:
                await self._link.wait_for_room()
            elif self._too_much(data_bytes):
                await self._handler_ends()

    async def _handler_ends(self) -> None:
        if self._finished is None:
            self._finished = trio.Event()
        await self._finished.wait()

    async def drain(self) -> None:
        """Close the connection at the first moment when every request read is answered."""
        while self._in_flight:
            await self._handler_ends()
        while self._link.queued_bytes and self._link.lost is None:
            await self._link.wait_for_room()
        self._end()

    async def _serve(self, frame: Frame, scope: trio.CancelScope) -> bool:
        """Run one request's handler and answer. Returns whether it waited."""
        _, method, request_id, timeout_ms, _, data_bytes = frame.header
        if request_id in self._in_flight:
            raise ProtocolError(f"request {request_id} is under way already")
        entry = self._registry.by_number.get(method)
        if entry is None:  # the client's program is newer, or asks for what another node serves
            await self._link.receive_data(data_bytes, DataSink())
            unknown = ProtocolError(
                f"this node serves no method {method:#x}: it may be older than its client"
            )
            self._answer_error(request_id, unknown, now=False)
            return False
        request = entry.method.request.FromString(frame.message)
        buffer = await self._receive_data(entry, data_bytes) if data_bytes else None
        if entry.streaming and not isinstance(buffer, WormError):
            buffer = InvalidError(f"{entry.method.name} is served over gRPC only")
        if isinstance(buffer, WormError):
            self._answer_error(request_id, buffer, now=False)
            return False
        self._data_bytes += data_bytes
        reply: _Reply | WormError
        waited = False
        try:
            coroutine = entry.handler(self._context, request, buffer)
            answer = await self._drive(coroutine, request_id, scope, timeout_ms)
            reply = _Reply(request_id, answer, HELD_BACK if request_id in self._in_flight else 0)
        except Exception as error:
            reply = reported(error, entry.method.name, self.peer)
        except BaseExceptionGroup as group:
            raise only_cancelled(group, entry.method.name, self.peer) from None
        finally:
            waited = self._in_flight.pop(request_id, None) is not None
            self._data_bytes -= data_bytes
            if self._finished is not None:
                self._finished.set()
                self._finished = None
        # The reader's answers leave together, when it has nothing more to read.
        now = waited and not self._in_flight
        if isinstance(reply, WormError):
            self._answer_error(request_id, reply, now=now)
        elif reply.data_bytes:
            self._answer_data(reply)
        elif waited:
            self._link.send(reply.frame, now=now)
        else:
            self._link.enqueue(reply.frame)
        return waited

    def _answer_error(self, request_id: int, error: WormError, *, now: bool) -> None:
        message = to_reply(error).SerializeToString()
        self._link.send(pack_frame(KIND_ERROR, 0, request_id, 0, message, 0), now=now)

    def _answer_data(self, reply: "_Reply") -> None:
        try:
            self._link.send_data(reply.frame, reply.data, reply.release)
        except UnavailableError:
            if reply.release is not None:
                reply.release()
            raise

    async def _receive_data(self, entry: Entry, data_bytes: int) -> DataBuffer | WormError:
        """The raw data behind a request, or why it was refused (it is drained then)."""
        buffer: DataBuffer | None = None
        refusal = WormError("refused")
        try:
            buffer = entry.allocate(data_bytes)
        except Exception as error:
            refusal = reported(error, entry.method.name, self.peer)
        try:
            await self._link.receive_data(data_bytes, DataSink([buffer.data] if buffer else ()))
        except BaseException:
            if buffer is not None:
                buffer.release()
            raise
        return buffer if buffer is not None else refusal

    @types.coroutine
    def _drive(
        self,
        handler: Coroutine[Any, Any, Any],
        request_id: int,
        scope: trio.CancelScope,
        timeout_ms: int,
    ) -> Generator[Any, Any, Any]:
        """Run a handler; when it waits for the first time, hand the reader's role over."""
        try:
            trap = handler.send(None)
            self._hand_over(request_id, scope, timeout_ms)
            while True:
                try:
                    value = yield trap
                except BaseException as error:
                    trap = handler.throw(error)
                else:
                    trap = handler.send(value)
        except StopIteration as stop:
            return stop.value

    def _hand_over(self, request_id: int, scope: trio.CancelScope, timeout_ms: int) -> None:
        self._in_flight[request_id] = scope
        scope.deadline = trio.current_time() + timeout_ms / 1000
        if self._spares:
            trio.lowlevel.reschedule(self._spares.pop(), outcome.Value(None))
        elif self._nursery is not None:
            self._nursery.start_soon(self._work)


async def serve_streams(
    registry: Registry,
    addresses: Sequence[str],
    *,
    drain_s: float = 0.0,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a registry on addresses ("unix:/path" or "host:port") until cancelled.

    Started with the addresses as bound (port 0 replaced by the real one). When cancelled it accepts
    no more connections and gives the requests under way `drain_s` to be answered. Raises
    ConfigError for an address that cannot be used.
    """
    listeners: list[Listener] = []
    clients = _Clients(registry)
    try:
        for address in addresses:
            listeners.append(await listen(address))
        async with trio.open_nursery() as nursery:
            await nursery.start(clients.run)
            try:
                async with trio.open_nursery() as acceptors:
                    for listener in listeners:
                        acceptors.start_soon(clients.accept_from, listener)
                    task_status.started([str(listener.address) for listener in listeners])
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + drain_s):
                    await clients.drain()
                nursery.cancel_scope.cancel()
                clients.scope.cancel()
    finally:
        for listener in listeners:
            listener.close()


class _Clients:
    """All connections of a server. They outlive its cancellation until they are drained."""

    def __init__(self, registry: Registry) -> None:
        self.scope = trio.CancelScope(shield=True)
        self._registry = registry
        self._connections: set[ServerConnection] = set()
        self._nursery: trio.Nursery

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self.scope:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()

    async def accept_from(self, listener: Listener) -> None:
        while True:
            try:
                sock = await listener.accept()
                peer = describe_peer(sock)
            except OSError as error:
                log.warning("cannot accept a connection on %s: %s", listener.address, error)
                await trio.sleep(_ACCEPT_PAUSE_S)
                continue
            connection = ServerConnection(FrameLink(sock), self._registry, peer)
            self._nursery.start_soon(self._serve, connection)

    async def _serve(self, connection: ServerConnection) -> None:
        """One client's failure, even a bug of ours, is not the others'."""
        self._connections.add(connection)
        try:
            await connection.run()
        except Exception:
            log.exception("the connection of %s failed", connection.peer)
        finally:
            self._connections.discard(connection)

    async def drain(self) -> None:
        async with trio.open_nursery() as nursery:
            for connection in self._connections:
                nursery.start_soon(connection.drain)
