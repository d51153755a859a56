"""The public API over gRPC: the same handlers as on streams, bridged into trio here and only here.

grpcio's threads take requests in and wait; each handler runs as a trio task. A thread hands over
with TrioToken.run_sync_soon and waits on a concurrent Future, so the trio loop never waits for
gRPC. A call's end, whatever its cause (deadline, cancellation, a client that left), cancels its task.
"""

import concurrent.futures
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import trio
from google.protobuf.message import DecodeError, Message

from wormfs.core.errors import ConfigError, DeadlineError, InvalidError, UnavailableError, WormError
from wormfs.rpc.errors_wire import status_of, trailing_metadata
from wormfs.rpc.frames import MESSAGE_MAX_BYTES
from wormfs.rpc.registry import Answer, Entry, Registry, RequestContext, only_cancelled, reported
from wormfs.rpc.sockets import parse_address

log = logging.getLogger(__name__)

T = TypeVar("T")
Future = concurrent.futures.Future

_CALLS_MAX = 512
_THREADS_MAX = _CALLS_MAX  # each call holds one to its end, also while a client's stream stalls
_UNARY_DEFAULT_S = 60.0  # for a client that set no deadline

OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
    ("grpc.max_send_message_length", MESSAGE_MAX_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 20_000),  # finds the clients whose machine is gone; by default after 2 hours
    ("grpc.keepalive_timeout_ms", 10_000),
)


async def serve_grpc(
    registry: Registry,
    address: str,
    *,
    grace_s: float = 2.0,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a registry over gRPC on "host:port" or "unix:/path" until cancelled.

    Started with the address as bound (port 0 replaced by the real one). When cancelled it refuses
    new calls at once and gives those under way `grace_s` to end. Raises ConfigError for an address
    that cannot be used.
    """
    parse_address(address)
    pool = concurrent.futures.ThreadPoolExecutor(_THREADS_MAX, thread_name_prefix="grpc")
    bridge = _Bridge(trio.lowlevel.current_trio_token())
    server = grpc.server(
        pool,
        handlers=[_Handlers(registry, bridge)],
        options=OPTIONS,
        maximum_concurrent_rpcs=_CALLS_MAX,
    )
    bound = await trio.to_thread.run_sync(_bind, server, address)
    async with trio.open_nursery() as nursery:
        bridge.nursery = nursery
        try:
            server.start()
            task_status.started(bound)
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                stopped = server.stop(grace_s)
                await trio.to_thread.run_sync(stopped.wait, grace_s + 1)
            bridge.cancel_all()
            pool.shutdown(wait=False, cancel_futures=True)


def _bind(server: grpc.Server, address: str) -> str:
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {address} for gRPC: {error}") from error
    if port == 0:
        raise ConfigError(f"cannot listen on {address} for gRPC")
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


class _Bridge:
    """The border between gRPC's threads and trio."""

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self.nursery: trio.Nursery | None = None  # set before the first call
        self._token = token
        self._scopes: set[trio.CancelScope] = set()  # trio's side only
        self._stopped = False

    def soon(self, function: Callable[..., object], *arguments: Any) -> bool:
        """Run a function on the trio loop, from any thread. Returns False when trio has ended."""
        try:
            self._token.run_sync_soon(partial(function, *arguments))
        except trio.RunFinishedError:
            return False
        return True

    def _cancel_soon(self, scope: trio.CancelScope) -> None:
        self.soon(scope.cancel)

    def run(
        self, function: Callable[[], Awaitable[T]], context: grpc.ServicerContext, timeout_s: float
    ) -> "Future[T]":
        """Run an async function as a trio task, which ends when the call does."""
        future: Future[T] = Future()
        scope = trio.CancelScope(shield=True)  # outlives the server's cancellation by its grace
        if not context.add_callback(partial(self._cancel_soon, scope)):
            future.set_exception(UnavailableError("the call has ended"))
        elif not self.soon(self._start, function, future, scope, timeout_s):
            future.set_exception(UnavailableError("the node is stopping"))
        return future

    def _start(
        self,
        function: Callable[[], Awaitable[T]],
        future: "Future[T]",
        scope: trio.CancelScope,
        timeout_s: float,
    ) -> None:
        scope.deadline = trio.current_time() + timeout_s
        if self.nursery is not None and not self._stopped:
            self.nursery.start_soon(self._task, function, future, scope)
        else:
            future.set_exception(UnavailableError("the node is stopping"))

    async def _task(
        self, function: Callable[[], Awaitable[T]], future: "Future[T]", scope: trio.CancelScope
    ) -> None:
        self._scopes.add(scope)
        try:
            with scope:
                try:
                    future.set_result(await function())
                except Exception as error:  # it is the waiting thread's, which reports it
                    future.set_exception(error)
                except BaseExceptionGroup as group:
                    raise only_cancelled(group, "a call", "a gRPC client") from None
        finally:
            self._scopes.discard(scope)
            if not future.done() and trio.current_time() >= scope.deadline:
                future.set_exception(DeadlineError("the call's deadline has passed"))
            elif not future.done():
                future.set_exception(UnavailableError("the call was cancelled, or the node is stopping"))

    def cancel_all(self) -> None:
        """End every task and start none any more, from trio's side."""
        self._stopped = True
        for scope in self._scopes:
            scope.cancel()


if TYPE_CHECKING:  # generic in the stubs only
    _GenericRpcHandler = grpc.GenericRpcHandler[bytes, bytes]
    _RpcMethodHandler = grpc.RpcMethodHandler[bytes, bytes]
else:
    _GenericRpcHandler = grpc.GenericRpcHandler
    _RpcMethodHandler = grpc.RpcMethodHandler


class _Handlers(_GenericRpcHandler):
    """Finds the handler of a method in the registry."""

    def __init__(self, registry: Registry, bridge: _Bridge) -> None:
        self._bridge = bridge
        self._registry = registry

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> _RpcMethodHandler | None:
        """Called by gRPC for each call; None answers UNIMPLEMENTED. Messages stay bytes here."""
        name = handler_call_details.method.removeprefix("/")
        entry = self._registry.named(name)
        if entry is None or entry.method.name != name:
            return None
        served = _Served(entry, self._bridge)
        if entry.method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(served.server_stream)
        if entry.method.client_streaming:
            return grpc.stream_unary_rpc_method_handler(served.client_stream)
        return grpc.unary_unary_rpc_method_handler(served.unary)


class _Served:
    """One method's calls, in gRPC's threads."""

    def __init__(self, entry: Entry, bridge: _Bridge) -> None:
        self._entry = entry
        self._bridge = bridge

    def unary(self, raw: bytes, context: grpc.ServicerContext) -> bytes:
        """One request, one reply."""
        try:
            request = self._parse(raw)
            timeout_s = _remaining_s(context, _UNARY_DEFAULT_S)
            run = partial(self._run_unary, request, context.peer())
            return self._bridge.run(run, context, timeout_s).result()
        except Exception as error:
            self._abort(context, error)
            raise

    def _parse(self, raw: bytes) -> Message:
        try:
            request: Message = self._entry.method.request.FromString(raw)
        except DecodeError as error:
            raise InvalidError(f"{self._entry.method.name}: the request cannot be parsed") from error
        return request

    async def _run_unary(self, request: Any, peer: str) -> bytes:
        """On trio's side. Raw data travels in `data`, and becomes what it is on a stream."""
        buffer = None
        if self._entry.takes_data and request.data:
            data = request.data
            buffer = self._entry.allocate(len(data))
            buffer.data[:] = data
            request.ClearField("data")
        answer = await self._entry.handler(RequestContext(None, "grpc", peer), request, buffer)
        if not isinstance(answer, Answer):
            reply: bytes = answer.SerializeToString()
            return reply
        try:
            if answer.data:
                answer.message.data = b"".join(answer.data)
            reply = answer.message.SerializeToString()
        finally:
            if answer.release is not None:
                answer.release()
        return reply

    def server_stream(self, raw: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """One request, many replies, each made when the one before it was taken (one ahead)."""
        try:
            request = self._parse(raw)
            replies = _Replies(self._bridge)
            handler = partial(self._entry.handler, RequestContext(None, "grpc", context.peer()), request)
            ended = self._bridge.run(
                partial(replies.produce, handler), context, _remaining_s(context, float("inf"))
            )
            ended.add_done_callback(replies.ended)
            ahead = replies.pull()
            while (reply := ahead.result()) is not None:
                ahead = replies.pull()
                yield reply
            ended.result()
        except Exception as error:
            self._abort(context, error)
            raise

    def client_stream(self, raws: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """Many requests, one reply. A request is taken from gRPC when the one before it was used."""
        try:
            requests = _Requests()
            run = partial(self._run_client_stream, requests, context.peer())
            reply = self._bridge.run(run, context, _remaining_s(context, float("inf")))
            reply.add_done_callback(requests.ended)
            for raw in raws:
                if not requests.put(self._parse(raw), self._bridge):
                    break
            requests.end(self._bridge)
            return reply.result()
        except Exception as error:
            self._abort(context, error)
            raise

    async def _run_client_stream(self, requests: "_Requests", peer: str) -> bytes:
        try:
            answer = await self._entry.handler(RequestContext(None, "grpc", peer), requests)
        finally:
            requests.close()
        reply: bytes = answer.SerializeToString()
        return reply

    def _abort(self, context: grpc.ServicerContext, error: Exception) -> None:
        """End the call with the status of `error`. Raises (gRPC's way), unless the call has ended."""
        if not isinstance(error, WormError):
            if not context.is_active() and isinstance(error, grpc.RpcError):
                return
            error = reported(error, self._entry.method.name, context.peer())
        context.set_trailing_metadata(trailing_metadata(error))
        context.abort(status_of(error), error.message)


def _remaining_s(context: grpc.ServicerContext, default_s: float) -> float:
    remaining = context.time_remaining()
    # gRPC says 2**63 ns or so when the client set no deadline
    return default_s if remaining is None or remaining > 1e9 else float(remaining)


class _Replies:
    """A server stream's replies, pulled by gRPC's thread."""

    def __init__(self, bridge: _Bridge) -> None:
        self._bridge = bridge
        self._send, self._pulls = trio.open_memory_channel[Future[bytes | None]](2)
        self._lock = threading.Lock()
        self._waiting: list[Future[bytes | None]] = []
        self._over = False

    def pull(self) -> "Future[bytes | None]":
        """Ask for the next reply; None: there is no more. From gRPC's thread."""
        future: Future[bytes | None] = Future()
        with self._lock:
            if self._over:
                future.set_result(None)
                return future
            self._waiting.append(future)
        if not self._bridge.soon(self._pass_on, future):
            self.ended(None)
        return future

    def _pass_on(self, future: "Future[bytes | None]") -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            self._send.send_nowait(future)

    async def produce(self, handler: Callable[[], AsyncGenerator[Message, None]]) -> None:
        """Run the handler's generator, in one task."""
        async with self._pulls, self._send, contextlib.aclosing(handler()) as replies:
            async for future in self._pulls:
                reply = await anext(replies, None)
                if reply is None:
                    return
                with self._lock:
                    self._waiting.remove(future)
                future.set_result(reply.SerializeToString())

    def ended(self, _: object) -> None:
        """The task has ended: nothing more will come. The thread learns why from its result."""
        with self._lock:
            self._over = True
            waiting, self._waiting = self._waiting, []
        for future in waiting:
            future.set_result(None)


class _Requests:
    """A client stream's requests, handed over one by one."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[tuple[Message, threading.Event]](1)
        self._taken = threading.Event()
        self._over = threading.Event()

    def put(self, request: Message, bridge: _Bridge) -> bool:
        """Hand a request over and wait until it is taken. Returns False when the handler has ended."""
        self._taken.clear()
        if self._over.is_set() or not bridge.soon(self._pass_on, request):
            return False
        self._taken.wait()
        return not self._over.is_set()

    def _pass_on(self, request: Message) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            self._send.send_nowait((request, self._taken))

    def end(self, bridge: _Bridge) -> None:
        """There are no more requests."""
        bridge.soon(self._send.close)

    def close(self) -> None:
        """The handler wants no more. On trio's side."""
        self._receive.close()
        self._send.close()

    def __aiter__(self) -> "_Requests":
        return self

    async def __anext__(self) -> Message:
        try:
            request, taken = await self._receive.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
        taken.set()
        return request

    def ended(self, _: object) -> None:
        """The handler has ended: wake the thread."""
        self._over.set()
        self._taken.set()
