"""Calls over gRPC, synchronous, for command line tools and tests."""

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from types import TracebackType
from typing import Any, NoReturn

import grpc

from wormfs.core.errors import DeadlineError, UnavailableError
from wormfs.rpc.errors_wire import from_status
from wormfs.rpc.frames import MESSAGE_MAX_BYTES
from wormfs.rpc.methods import Method, Reply, Request

_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
    ("grpc.max_send_message_length", MESSAGE_MAX_BYTES),
    ("grpc.enable_http_proxy", 0),
)


class GrpcClient:
    """A channel to one node ("host:port" or "unix:/path"); connects on the first call.

    Every call raises the WormError the node answered, DeadlineError after `timeout_s`, or
    UnavailableError when the node cannot be reached. Usable from several threads.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)

    def __enter__(self) -> "GrpcClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the calls under way and the connection."""
        self._channel.close()

    def call(self, method: Method[Request, Reply], request: Request, *, timeout_s: float) -> Reply:
        """One request, one reply."""
        stub = self._channel.unary_unary(f"/{method.name}", _serialize, method.reply.FromString)
        try:
            reply: Reply = stub(request, timeout=timeout_s)
        except grpc.RpcError as error:
            self._raise(error)
        return reply

    def replies(
        self, method: Method[Request, Reply], request: Request, *, timeout_s: float
    ) -> Generator[Reply, None, None]:
        """The replies of a server-streaming method, as they come; closing the iterator cancels the call.

        `timeout_s` is what the node may take for each reply: the time that the caller takes between
        two of them is not counted.
        """
        stub = self._channel.unary_stream(f"/{method.name}", _serialize, method.reply.FromString)
        turn = _NodesTurn()
        turn.begin()
        call: Any = stub(request)
        ended = threading.Event()
        watch = threading.Thread(target=turn.watch, args=(timeout_s, call.cancel, ended), daemon=True)
        watch.start()
        try:
            for reply in call:
                turn.end()
                yield reply
                turn.begin()
        except grpc.RpcError as error:
            if turn.passed_s() >= timeout_s:
                raise DeadlineError(f"{self.address}: no reply for {timeout_s:g} s") from None
            self._raise(error)
        finally:
            ended.set()
            call.cancel()

    def upload(
        self, method: Method[Request, Reply], requests: Iterable[Request], *, timeout_s: float
    ) -> Reply:
        """The requests of a client-streaming method, in order; answers when the node has used them.

        `timeout_s` is what the node may take for each request and for its answer: the time that
        `requests` take to come is not counted.
        """
        stub = self._channel.stream_unary(f"/{method.name}", _serialize, method.reply.FromString)
        failed: list[Exception] = []
        turn = _NodesTurn()

        def guarded() -> Iterator[Request]:
            try:
                for request in requests:
                    turn.begin()
                    yield request
                    turn.end()
            except Exception as error:  # gRPC would only log it
                failed.append(error)
                raise
            turn.begin()

        call: Any = stub.future(guarded())
        try:
            while True:
                try:
                    reply: Reply = call.result(timeout=timeout_s - turn.passed_s())
                except grpc.FutureTimeoutError:
                    if turn.passed_s() >= timeout_s:
                        raise DeadlineError(f"{self.address}: took nothing for {timeout_s:g} s") from None
                else:
                    return reply
        except grpc.RpcError as error:
            if failed:
                raise failed[0] from error
            self._raise(error)
        finally:
            call.cancel()

    def _raise(self, error: Any) -> NoReturn:
        trailing = {key: str(value) for key, value in error.trailing_metadata() or ()}
        found = from_status(error.code().name, error.details() or "", trailing)
        if isinstance(found, UnavailableError) and not trailing:
            found = type(found)(f"{self.address}: {found.message}")
        raise found from None


class _NodesTurn:
    """How long it has been the node's turn in a streaming call; told by one thread, asked by another."""

    def __init__(self) -> None:
        self._began_s: float | None = None

    def begin(self) -> None:
        """The node is waited for from now on."""
        self._began_s = time.monotonic()

    def end(self) -> None:
        """It did what it was waited for."""
        self._began_s = None

    def passed_s(self) -> float:
        """0 while the node waits for its client."""
        began_s = self._began_s
        return 0.0 if began_s is None else time.monotonic() - began_s

    def watch(self, limit_s: float, passed: Callable[[], object], ended: threading.Event) -> None:
        """Call `passed` when a turn lasts `limit_s`, unless `ended` is set before."""
        while not ended.wait(limit_s - self.passed_s()):
            if self.passed_s() >= limit_s:
                passed()
                return


def _serialize(message: Any) -> bytes:
    raw: bytes = message.SerializeToString()
    return raw


def call(address: str, method: Method[Request, Reply], request: Request, timeout_s: float) -> Reply:
    """One call on a channel of its own, as GrpcClient.call."""
    with GrpcClient(address) as client:
        return client.call(method, request, timeout_s=timeout_s)
