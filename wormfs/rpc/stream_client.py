"""The client's end of the stream protocol: many calls at once on one connection.

Deadlines hold for every call without a cancel scope for each: one task per connection wakes at
the earliest deadline. A call that ends early (deadline, cancellation) takes its buffers back
at once; its late reply is received into nothing.
"""

import contextlib
import logging
import math
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NoReturn

import outcome
import trio
from google.protobuf.message import DecodeError, Message

from wormfs.core.errors import DeadlineError, ProtocolError, UnavailableError, WormError
from wormfs.rpc.errors_wire import from_reply
from wormfs.rpc.frames import (
    HELD_BACK,
    KIND_CANCEL,
    KIND_ERROR,
    KIND_PUSH,
    KIND_REPLY,
    KIND_REQUEST,
    TIMEOUT_MAX_MS,
    Buffer,
    pack_frame,
)
from wormfs.rpc.link import DataSink, Frame, FrameLink, Outgoing
from wormfs.rpc.methods import PUSHED, PUSHED_WITH_REPLY, Method, Reply, Request
from wormfs.rpc.sockets import TcpAddress, UnixAddress, dial, parse_address
from wormfs.rpc.v1 import types_pb2

log = logging.getLogger(__name__)


@dataclass(slots=True)
class CallReply(Generic[Reply]):
    """What a call brought."""

    message: Reply
    data_bytes: int  # raw data received into `into`
    pushes_seen: int
    """Pushes received on this connection that what the reply says is surely later than.

    Those before the reply; if it was held back, those before its request.
    """


class _Call:
    """A call that waits for its reply."""

    __slots__ = (
        "deadline",
        "method",
        "outgoing",
        "pushes_seen",
        "reply_class",
        "sink",
        "task",
        "timeout_s",
    )

    def __init__(
        self,
        method: Method[Any, Any],
        into: Sequence[memoryview],
        timeout_s: float,
        deadline: float,
        pushes_seen: int,
    ) -> None:
        self.method = method.name
        self.reply_class: type[Message] = method.reply
        self.sink = DataSink(into) if into else None
        self.timeout_s = timeout_s
        self.deadline = deadline
        self.pushes_seen = pushes_seen
        self.task = trio.lowlevel.current_task()
        self.outgoing: Outgoing | None = None


class StreamConnection:
    """One connection to a stream server. Made by `connect` or `open_connection`.

    `closed` is set when the connection is lost or closed; every waiting call has failed then with
    UnavailableError, and so does every later one.
    """

    def __init__(self, sock: socket.socket, address: str, on_push: Callable[[Message], None] | None) -> None:
        self.address = address
        self.closed = trio.Event()
        self.on_push = on_push
        self.pushes_seen = 0
        self._link = FrameLink(sock)
        self._pending: dict[int, _Call] = {}
        self._next_id = 1
        self._wake_at = math.inf
        self._timer: trio.CancelScope | None = None
        self._scope = trio.CancelScope()

    async def call(
        self,
        method: Method[Request, Reply],
        request: Request,
        *,
        timeout_s: float,
        data: Sequence[Buffer] = (),
        into: Sequence[memoryview] = (),
    ) -> CallReply[Reply]:
        """Call a method and wait for its reply.

        `data` is sent behind the request; the buffers must not change until the call returns.
        Raw data of the reply is received into the views of `into`, in order; it is written only
        while the call lasts. Raises the error the server answered (a WormError subclass);
        DeadlineError after `timeout_s`; UnavailableError when the connection is lost;
        ProtocolError when the reply's data is longer than `into`.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.closed.is_set():
            raise self._unavailable()
        request_id = self._next_id
        timeout_ms = min(int(timeout_s * 1000) + 1, TIMEOUT_MAX_MS)
        frame = pack_frame(
            KIND_REQUEST,
            method.number,
            request_id,
            timeout_ms,
            request.SerializeToString(),
            sum(memoryview(buffer).nbytes for buffer in data) if data else 0,
        )
        call = _Call(method, into, timeout_s, trio.current_time() + timeout_s, self.pushes_seen)
        try:
            if data:
                call.outgoing = self._link.send_data(frame, data)
            else:
                # Others are under way: let their frames and this one leave together.
                self._link.send(frame, now=not self._pending)
        except UnavailableError as error:
            raise UnavailableError(f"{self.address}: {error.message}") from error
        self._next_id = request_id + 1
        self._pending[request_id] = call
        if call.deadline < self._wake_at:
            self._wake_at = call.deadline
            if self._timer is not None:
                self._timer.deadline = call.deadline

        def abort(_: object) -> trio.lowlevel.Abort:
            self._abandon(request_id)
            return trio.lowlevel.Abort.SUCCEEDED

        reply: CallReply[Reply] = await trio.lowlevel.wait_task_rescheduled(abort)
        return reply

    async def aclose(self) -> None:
        """Close the connection; waiting calls fail with UnavailableError."""
        self._scope.cancel()
        await self.closed.wait()

    def close(self) -> None:
        """As `aclose`, without waiting for `closed`."""
        self._scope.cancel()

    def _unavailable(self) -> UnavailableError:
        reason = self._link.lost.message if self._link.lost else "the connection was closed"
        return UnavailableError(f"{self.address}: {reason}")

    def _take(self, request_id: int) -> _Call | None:
        """End a call: from here on none of its buffers is used."""
        call = self._pending.pop(request_id, None)
        if call is not None:
            if call.sink is not None:
                call.sink.discard()
            if call.outgoing is not None and call.outgoing.buffers:
                self._link.detach(call.outgoing)
        return call

    def _abandon(self, request_id: int) -> _Call | None:
        """End a call that has no reply, and tell the server."""
        call = self._pending.get(request_id)
        never_sent = False
        if call is not None and call.outgoing is not None:
            never_sent = not self._link.detach(call.outgoing)
        self._take(request_id)
        if not never_sent:
            with contextlib.suppress(UnavailableError):
                self._link.send(pack_frame(KIND_CANCEL, 0, request_id, 0, b"", 0), now=True)
        return call

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The connection's tasks; returns when it is lost or closed. Started by `connect`."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._link.write_queued)
                    nursery.start_soon(self._keep_deadlines)
                    task_status.started()
                    await self._receive_replies()
                    nursery.cancel_scope.cancel()
        finally:
            self._link.close()
            self.closed.set()
            error = self._unavailable()
            for request_id in list(self._pending):
                self._fail(request_id, error)

    def _fail(self, request_id: int, error: WormError) -> None:
        call = self._take(request_id)
        if call is not None:
            trio.lowlevel.reschedule(call.task, outcome.Error(type(error)(error.message)))

    async def _receive_replies(self) -> None:
        try:
            while True:
                frame = self._link.poll() or await self._link.receive()
                kind = frame.header.kind
                if kind == KIND_REPLY:
                    if frame.header.data_bytes:
                        await self._receive_with_data(frame)
                    else:
                        self._deliver(frame, 0, self.pushes_seen)
                elif kind == KIND_ERROR:
                    self._deliver_error(frame)
                elif kind == KIND_PUSH:
                    self._receive_push(frame)
                else:
                    self._refuse(kind)
        except (ProtocolError, DecodeError) as error:
            log.warning("closing the connection to %s: %s", self.address, error)
            self._link.lost = UnavailableError(f"the peer broke the protocol: {error}")
        except UnavailableError as error:
            if self._link.lost is None:
                self._link.lost = error

    def _refuse(self, kind: int) -> NoReturn:
        raise ProtocolError(f"a server sent a frame of kind {kind}")

    def _check_issued(self, request_id: int) -> None:
        if not 0 < request_id < self._next_id:
            raise ProtocolError(f"an answer to request {request_id}, which was never sent")

    def _deliver(self, frame: Frame, data_bytes: int, pushes_seen: int) -> None:
        request_id = frame.header.request_id
        call = self._take(request_id)
        if call is None:
            self._check_issued(request_id)
            return
        try:
            message = call.reply_class.FromString(frame.message)
        except DecodeError as error:
            lost = ProtocolError(f"{call.method}: the reply cannot be parsed")
            trio.lowlevel.reschedule(call.task, outcome.Error(lost))
            raise lost from error
        if frame.header.method == HELD_BACK:
            pushes_seen = call.pushes_seen
        reply: CallReply[Message] = CallReply(message, data_bytes, pushes_seen)
        trio.lowlevel.reschedule(call.task, outcome.Value(reply))

    async def _receive_with_data(self, frame: Frame) -> None:
        """The call may end while its data arrives: then the rest goes nowhere."""
        header = frame.header
        pushes_seen = self.pushes_seen
        call = self._pending.get(header.request_id)
        if call is None:
            self._check_issued(header.request_id)
        sink = call.sink if call is not None and call.sink is not None else DataSink()
        await self._link.receive_data(header.data_bytes, sink)
        if call is not None and sink.received_bytes < header.data_bytes:
            too_long = f"{call.method}: {header.data_bytes} bytes came, more than there is room for"
            self._fail(header.request_id, ProtocolError(too_long))
        else:
            self._deliver(frame, header.data_bytes, pushes_seen)

    def _deliver_error(self, frame: Frame) -> None:
        self._check_issued(frame.header.request_id)
        error = from_reply(types_pb2.ErrorReply.FromString(frame.message))
        self._fail(frame.header.request_id, error)

    def _receive_push(self, frame: Frame) -> None:
        message_class = PUSHED.get(frame.header.method)
        if message_class is None:
            raise ProtocolError(f"a push of unknown kind {frame.header.method:#x}")
        message = message_class.FromString(frame.message)
        if frame.header.method not in PUSHED_WITH_REPLY:
            self.pushes_seen += 1
        if self.on_push is None:
            return
        try:
            self.on_push(message)
        except Exception:  # a bug of the owner's must not cost the other calls their connection
            log.exception("on_push failed for %s", message_class.__name__)

    async def _keep_deadlines(self) -> None:
        """Ends calls at their deadlines. Invariant: `_wake_at` <= every waiting call's deadline."""
        while True:
            with trio.CancelScope(deadline=self._wake_at) as self._timer:
                await trio.sleep_forever()
            now = trio.current_time()
            late = [number for number, call in self._pending.items() if call.deadline <= now]
            for request_id in late:
                call = self._abandon(request_id)
                if call is not None:
                    text = f"{call.method}: no answer from {self.address} within {call.timeout_s:g} s"
                    trio.lowlevel.reschedule(call.task, outcome.Error(DeadlineError(text)))
            self._wake_at = min((call.deadline for call in self._pending.values()), default=math.inf)


def _absent(address: UnixAddress | TcpAddress) -> bool:
    return isinstance(address, UnixAddress) and not os.path.exists(address.path)


async def connect(
    nursery: trio.Nursery,
    addresses: Sequence[str],
    *,
    timeout_s: float,
    on_push: Callable[[Message], None] | None = None,
) -> StreamConnection:
    """Connect to the first of `addresses` that answers; the connection's tasks run in `nursery`.

    `timeout_s` is for all of them together, shared so that a dead one leaves time for the next.
    Raises UnavailableError, which names each address and why; ConfigError for a malformed one.
    """
    deadline = trio.current_time() + timeout_s
    reasons = []
    for left, text in zip(range(len(addresses), 0, -1), addresses, strict=True):
        address = parse_address(text)
        if _absent(address):
            reasons.append(f"{text}: no such socket, or no way to it")
            continue
        share_s = max(deadline - trio.current_time(), 0) / left
        try:
            with trio.fail_after(share_s):
                sock = await dial(address)
        except trio.TooSlowError:
            reasons.append(f"{text}: no connection within {share_s:.1f} s")
        except OSError as error:
            reasons.append(f"{text}: {error.strerror or error}")
        else:
            connection = StreamConnection(sock, text, on_push)
            await nursery.start(connection.run)
            return connection
    raise UnavailableError(f"no connection: {'; '.join(reasons) or 'no address given'}")


@contextlib.asynccontextmanager
async def open_connection(
    addresses: Sequence[str], *, timeout_s: float, on_push: Callable[[Message], None] | None = None
) -> AsyncIterator[StreamConnection]:
    """As `connect`, closed at the end of the block. Errors of the block are raised as they are."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            connection = await connect(nursery, addresses, timeout_s=timeout_s, on_push=on_push)
            try:
                yield connection
            finally:
                connection.close()
        except Exception as error:
            failure = error
    if failure is not None:
        raise failure
