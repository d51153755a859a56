"""Handlers by method: one registry serves streams and gRPC alike."""

import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, overload

import trio

from wormfs.core.errors import WormError
from wormfs.rpc.frames import Buffer
from wormfs.rpc.methods import Method, Reply, Request, number_of

if TYPE_CHECKING:
    from wormfs.rpc.stream_server import ServerConnection

log = logging.getLogger(__name__)


class DataBuffer(Protocol):
    """Where a request's raw data was received; it belongs to the handler, which releases it."""

    @property
    def data(self) -> memoryview:
        """The bytes."""

    def release(self) -> None:
        """The bytes are no longer needed."""


class HeapBuffer:
    """Memory of its own, given back to the allocator: the default DataBuffer."""

    __slots__ = ("data",)

    def __init__(self, data: Buffer | int) -> None:
        self.data = memoryview(bytearray(data) if isinstance(data, int) else data)

    def release(self) -> None:
        """Nothing to do: the memory goes with the last reference."""


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Who asks, and how."""

    connection: "ServerConnection | None"  # None over gRPC
    transport: Literal["stream", "grpc"]
    peer: str


@dataclass(slots=True)
class Answer(Generic[Reply]):
    """A reply with raw data. On a stream it travels behind the message, over gRPC in `message.data`.

    `release` is called once, when the buffers of `data` are no longer needed.
    """

    message: Reply
    data: Sequence[Buffer] = ()
    release: Callable[[], None] | None = None


UnaryHandler = Callable[
    [RequestContext, Request, DataBuffer | None], Coroutine[Any, Any, Reply | Answer[Reply]]
]
ServerStreamHandler = Callable[[RequestContext, Request], AsyncIterator[Reply]]
ClientStreamHandler = Callable[[RequestContext, AsyncIterator[Request]], Coroutine[Any, Any, Reply]]
Allocate = Callable[[int], DataBuffer]


@dataclass(frozen=True, slots=True)
class Entry:
    """A method and what serves it."""

    method: Method[Any, Any]
    handler: Callable[..., Any]
    allocate: Allocate
    takes_data: bool = False  # over gRPC, `data` of the request becomes raw data

    @property
    def streaming(self) -> bool:
        """Served over gRPC only."""
        return self.method.client_streaming or self.method.server_streaming


class Registry:
    """The handlers of a node."""

    def __init__(self) -> None:
        self.by_number: dict[int, Entry] = {}
        self._role: Registry | None = None

    def named(self, name: str) -> Entry | None:
        """What serves the method of that full name."""
        return self.by_number.get(number_of(name))

    def set_role(self, role: "Registry") -> None:
        """Serve a role's handlers in place of those of the role before; requests under way go on."""
        if self._role is not None:
            for number in self._role.by_number:
                del self.by_number[number]
        twice = self.by_number.keys() & role.by_number.keys()
        if twice:
            raise ValueError(f"{role.by_number[twice.pop()].method.name} is served twice")
        self.by_number.update(role.by_number)
        self._role = role

    @overload
    def add(
        self,
        method: Method[Request, Reply],
        handler: UnaryHandler[Request, Reply],
        *,
        allocate: Allocate | None = None,
    ) -> None: ...
    @overload
    def add(self, method: Method[Request, Reply], handler: ServerStreamHandler[Request, Reply]) -> None: ...
    @overload
    def add(self, method: Method[Request, Reply], handler: ClientStreamHandler[Request, Reply]) -> None: ...
    def add(
        self, method: Method[Any, Any], handler: Callable[..., Any], *, allocate: Allocate | None = None
    ) -> None:
        """Serve `method` by `handler`.

        A unary handler is `async def h(context, request, data)`: `data` is the DataBuffer the
        request's raw data was received into (made by `allocate(length_bytes)`), or None without
        any; the handler releases it. A method with `allocate` takes its raw data from the request's
        `data` field over gRPC. A server-streaming handler is an async generator function of
        (context, request); a client-streaming one is `async def h(context, requests)` over an
        async iterator. A WormError raised travels to the caller; anything else is logged here
        with its traceback and reported as an internal error.
        """
        if method.number in self.by_number:
            raise ValueError(f"{method.name} is served twice, or two names share a number")
        self.by_number[method.number] = Entry(
            method, handler, allocate or HeapBuffer, takes_data=allocate is not None
        )


def reported(error: Exception, method: str, peer: str) -> WormError:
    """What the caller is told of an exception that a handler raised; a bug is logged here."""
    single: BaseException = error
    while isinstance(single, BaseExceptionGroup) and len(single.exceptions) == 1:
        single = single.exceptions[0]  # a handler's own nursery wraps what went wrong in it
    if isinstance(single, WormError):
        return single
    log.error("%s asked by %s failed", method, peer, exc_info=error)
    return WormError("internal error; the node's log says more")


def only_cancelled(
    group: BaseExceptionGroup[BaseException], method: str, peer: str
) -> BaseExceptionGroup[BaseException]:
    """What is left to raise of a cancelled handler's group: nobody waits for the errors in it any more.

    They would pass the call's cancel scope, and end the server with it.
    """
    cancelled, errors = group.split(trio.Cancelled)
    if cancelled is None or not isinstance(errors, Exception):
        return group
    reported(errors, method, peer)
    return cancelled
