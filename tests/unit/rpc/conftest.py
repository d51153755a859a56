"""A server with handlers that show each behaviour, and the methods they stand behind."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio

from wormfs.core.errors import NotFoundError, UnavailableError
from wormfs.rpc import methods
from wormfs.rpc.grpc_server import serve_grpc
from wormfs.rpc.stream_server import Answer, DataBuffer, HeapBuffer, Registry, RequestContext, serve_streams
from wormfs.rpc.v1 import chunk_pb2, filesystem_pb2, metadata_pb2, types_pb2

ECHO = methods.METADATA_GET_ATTR  # answers at once; inode travels back as the sequence
SLOW = methods.METADATA_READ_LINK  # waits for `release` of the server
WAITS = methods.METADATA_LOOKUP  # answers after one checkpoint
FAILS = methods.METADATA_UNLINK  # NotFoundError, or a bug when the name is "bug"
PUSHES = methods.METADATA_SYNC  # pushes `session_id` recalls, then answers
PUT = methods.CHUNKS_PUT_CHUNK
GET = methods.CHUNKS_GET_CHUNK


@dataclass
class Server:
    addresses: list[str]
    release: trio.Event = field(default_factory=trio.Event)
    entered: trio.Event = field(default_factory=trio.Event)
    cancelled: trio.Event = field(default_factory=trio.Event)
    put: list[bytes] = field(default_factory=list)
    released: int = 0
    waiting: int = 0
    connections: list[object] = field(default_factory=list)

    async def echo(
        self, context: RequestContext, request: filesystem_pb2.GetAttrRequest, data: DataBuffer | None
    ) -> filesystem_pb2.AttrReply:
        return filesystem_pb2.AttrReply(sequence=request.inode)

    async def waits(
        self, context: RequestContext, request: filesystem_pb2.LookupRequest, data: DataBuffer | None
    ) -> filesystem_pb2.AttrReply:
        await trio.lowlevel.checkpoint()
        return filesystem_pb2.AttrReply(sequence=request.parent)

    async def slow(
        self, context: RequestContext, request: filesystem_pb2.ReadLinkRequest, data: DataBuffer | None
    ) -> filesystem_pb2.ReadLinkReply:
        self.waiting += 1
        self.entered.set()
        try:
            await self.release.wait()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        return filesystem_pb2.ReadLinkReply(target=b"%d" % request.inode)

    async def fails(
        self, context: RequestContext, request: filesystem_pb2.UnlinkRequest, data: DataBuffer | None
    ) -> metadata_pb2.DirectoriesReply:
        if request.name == b"bug":
            raise RuntimeError("a bug in a handler")
        if request.name == b"later":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.lowlevel.checkpoint)
                raise NotFoundError("later")
        raise NotFoundError(f"no entry {request.name!r}")

    async def pushes(
        self, context: RequestContext, request: metadata_pb2.SyncRequest, data: DataBuffer | None
    ) -> types_pb2.Empty:
        if context.connection is not None:
            self.connections.append(context.connection)
            for number in range(request.session_id):
                context.connection.push(metadata_pb2.Recall(recall_id=number))
                if number % 2:
                    await trio.lowlevel.checkpoint()
        return types_pb2.Empty()

    async def put_chunk(
        self, context: RequestContext, request: chunk_pb2.PutChunkRequest, data: DataBuffer | None
    ) -> chunk_pb2.PutChunkReply:
        if data is not None:
            self.put.append(bytes(data.data))
            data.release()
        return chunk_pb2.PutChunkReply()

    async def get_chunk(
        self, context: RequestContext, request: chunk_pb2.GetChunkRequest, data: DataBuffer | None
    ) -> Answer[chunk_pb2.GetChunkReply]:
        def release() -> None:
            self.released += 1

        if request.disk:  # wait, so that the caller may be gone by then
            self.entered.set()
            await self.release.wait()
        body = pattern(request.length_bytes, request.offset_bytes)
        half = len(body) // 2
        return Answer(
            chunk_pb2.GetChunkReply(offset_bytes=request.offset_bytes),
            (body[:half], memoryview(body)[half:]),
            release,
        )


class CountingBuffer(HeapBuffer):
    __slots__ = ()


def allocate(length_bytes: int) -> DataBuffer:
    if length_bytes == 13:
        raise UnavailableError("no buffer of that size")
    return CountingBuffer(length_bytes)


def pattern(length_bytes: int, seed: int = 0) -> bytes:
    return (bytes((seed + i) % 251 for i in range(251)) * (length_bytes // 251 + 1))[:length_bytes]


def make_registry(server: Server) -> Registry:
    registry = Registry()
    registry.add(ECHO, server.echo)
    registry.add(SLOW, server.slow)
    registry.add(WAITS, server.waits)
    registry.add(FAILS, server.fails)
    registry.add(PUSHES, server.pushes)
    registry.add(PUT, server.put_chunk, allocate=allocate)
    registry.add(GET, server.get_chunk)
    return registry


@asynccontextmanager
async def running_server(*addresses: str) -> AsyncIterator[Server]:
    server = Server([])
    async with trio.open_nursery() as nursery:
        server.addresses = await nursery.start(serve_streams, make_registry(server), addresses)
        with trio.fail_after(30):
            yield server
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def grpc_node(method: methods.Method[Any, Any], handler: Any) -> AsyncIterator[str]:
    """A gRPC server of one method, and of SLOW, which is never answered; its address."""
    registry = Registry()
    registry.add(method, handler)
    registry.add(SLOW, Server([]).slow)
    async with trio.open_nursery() as nursery:
        address = await nursery.start(partial(serve_grpc, registry, "127.0.0.1:0", grace_s=0.2))
        with trio.fail_after(20):
            yield address
        nursery.cancel_scope.cancel()


def unix_address(folder: Path) -> str:
    return f"unix:{folder}/s"
