"""The same handlers over gRPC: replies, raw data, streams, statuses, deadlines and the server's end."""

import errno
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc
import pytest
import trio
import trio.testing

from tests.unit.rpc.conftest import ECHO, FAILS, GET, PUT, SLOW, Server, make_registry, pattern
from wormfs.core.errors import (
    ConfigError,
    DeadlineError,
    NotFoundError,
    ProtocolError,
    UnavailableError,
    WormError,
)
from wormfs.rpc import methods
from wormfs.rpc.grpc_client import GrpcClient, call
from wormfs.rpc.grpc_server import serve_grpc
from wormfs.rpc.registry import RequestContext
from wormfs.rpc.v1 import chunk_pb2, cluster_pb2, filesystem_pb2

TIMEOUT_S = 20.0


class Streams:
    """Streaming handlers that count what was made and taken."""

    def __init__(self) -> None:
        self.made = 0
        self.closed = trio.Event()
        self.refuse_after = 1 << 30

    async def fsck(
        self, context: RequestContext, request: cluster_pb2.FsckRequest
    ) -> AsyncIterator[cluster_pb2.FsckReply]:
        try:
            while True:
                await trio.lowlevel.checkpoint()
                if not request.verify_data and self.made == 50:
                    return
                if self.made == self.refuse_after:
                    raise NotFoundError("it is gone")
                self.made += 1
                yield cluster_pb2.FsckReply(checked=self.made, problem="x" * 100_000)
        finally:
            self.closed.set()

    async def write_stream(
        self, context: RequestContext, requests: AsyncIterator[filesystem_pb2.WriteRequest]
    ) -> filesystem_pb2.WriteReply:
        total = 0
        async for request in requests:
            self.made += 1
            if self.made > self.refuse_after:
                raise NotFoundError("it is gone")
            total += len(request.data)
        return filesystem_pb2.WriteReply(written_bytes=total)


@asynccontextmanager
async def grpc_server(server: Server, streams: Streams) -> AsyncIterator[str]:
    registry = make_registry(server)
    registry.add(methods.CLUSTER_FSCK, streams.fsck)
    registry.add(methods.FILESYSTEM_WRITE_STREAM, streams.write_stream)
    async with trio.open_nursery() as nursery:
        address = await nursery.start(partial(serve_grpc, registry, "127.0.0.1:0", grace_s=0.2))
        with trio.fail_after(30):
            yield address
        nursery.cancel_scope.cancel()


async def in_thread(function: Any, *arguments: Any, **named: Any) -> Any:
    return await trio.to_thread.run_sync(partial(function, *arguments, **named), abandon_on_cancel=True)


async def test_calls_raw_data_and_errors() -> None:
    server = Server([])
    async with grpc_server(server, Streams()) as address:
        with GrpcClient(address) as client:
            ask = partial(in_thread, client.call, timeout_s=TIMEOUT_S)
            assert (await ask(ECHO, filesystem_pb2.GetAttrRequest(inode=5))).sequence == 5
            body = pattern(8 << 20)
            await ask(PUT, chunk_pb2.PutChunkRequest(data=body))
            assert server.put == [body]
            reply = await ask(GET, chunk_pb2.GetChunkRequest(length_bytes=8 << 20))
            assert reply.data == body
            assert server.released == 1
            with pytest.raises(NotFoundError, match="no entry b'x'") as caught:
                await ask(FAILS, filesystem_pb2.UnlinkRequest(name=b"x"))
            assert caught.value.errno == errno.ENOENT
            with pytest.raises(WormError, match="internal error"):
                await ask(FAILS, filesystem_pb2.UnlinkRequest(name=b"bug"))
            with pytest.raises(ProtocolError):
                await ask(methods.CLUSTER_LOCATE, cluster_pb2.LocateRequest())
        reply = await in_thread(call, address, ECHO, filesystem_pb2.GetAttrRequest(inode=6), TIMEOUT_S)
        assert reply.sequence == 6


async def test_status_code_and_errno_for_strangers() -> None:
    server = Server([])
    async with grpc_server(server, Streams()) as address:

        def raw(method: str, message: bytes) -> Any:
            with grpc.insecure_channel(address) as channel:
                try:
                    channel.unary_unary(method, None, None)(message, timeout=TIMEOUT_S)
                except grpc.RpcError as error:
                    return error
            return None

        error = await in_thread(raw, f"/{FAILS.name}", filesystem_pb2.UnlinkRequest().SerializeToString())
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert dict(error.trailing_metadata())["wormfs-errno"] == str(errno.ENOENT)
        error = await in_thread(raw, f"/{FAILS.name}", b"\xff\xff\xff")
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        error = await in_thread(raw, "/wormfs.v1.Nothing/Such", b"")
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_deadline_cancels_the_handler() -> None:
    server = Server([])
    async with grpc_server(server, Streams()) as address:
        with pytest.raises(DeadlineError):
            await in_thread(call, address, SLOW, filesystem_pb2.ReadLinkRequest(), 0.2)
        await server.cancelled.wait()


async def test_nobody_there_is_unavailable(unused_tcp_port_number: int) -> None:
    address = f"127.0.0.1:{unused_tcp_port_number}"
    with pytest.raises(UnavailableError, match=address):
        await in_thread(call, address, ECHO, filesystem_pb2.GetAttrRequest(), 5.0)


@pytest.fixture
def unused_tcp_port_number() -> int:
    import socket  # noqa: PLC0415

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def test_taken_address_is_a_config_error() -> None:
    async with grpc_server(Server([]), Streams()) as address:
        with pytest.raises(ConfigError, match="cannot listen"):
            await serve_grpc(make_registry(Server([])), address)


async def test_server_stream_ends_in_order() -> None:
    streams = Streams()
    async with grpc_server(Server([]), streams) as address:
        with GrpcClient(address) as client:

            def collect() -> list[int]:
                replies = client.replies(methods.CLUSTER_FSCK, cluster_pb2.FsckRequest(), timeout_s=TIMEOUT_S)
                return [reply.checked for reply in replies]

            assert await in_thread(collect) == list(range(1, 51))


async def test_server_stream_waits_for_its_reader_and_stops_with_it() -> None:
    streams = Streams()
    async with grpc_server(Server([]), streams) as address:
        with GrpcClient(address) as client:
            endless = cluster_pb2.FsckRequest(verify_data=True)
            replies = client.replies(methods.CLUSTER_FSCK, endless, timeout_s=TIMEOUT_S)
            first = await in_thread(next, replies)
            assert first.checked == 1
            # 100 kB each: what gRPC's windows take, which grow on a loaded machine, then no more.
            made = 0
            while streams.made > made:
                made = streams.made
                assert made < 1_000
                await trio.testing.wait_all_tasks_blocked(0.2)
            await in_thread(replies.close)
            await streams.closed.wait()


async def test_error_in_a_server_stream_comes_after_its_replies() -> None:
    streams = Streams()
    streams.refuse_after = 3
    async with grpc_server(Server([]), streams) as address:
        with GrpcClient(address) as client:
            got: list[int] = []

            def collect() -> None:
                for reply in client.replies(
                    methods.CLUSTER_FSCK, cluster_pb2.FsckRequest(), timeout_s=TIMEOUT_S
                ):
                    got.append(reply.checked)

            with pytest.raises(NotFoundError, match="it is gone"):
                await in_thread(collect)
            assert got == [1, 2, 3]


def pieces(count: int, length_bytes: int = 1 << 20) -> Iterator[filesystem_pb2.WriteRequest]:
    for _ in range(count):
        yield filesystem_pb2.WriteRequest(data=bytes(length_bytes))


async def test_client_stream() -> None:
    streams = Streams()
    async with grpc_server(Server([]), streams) as address:
        with GrpcClient(address) as client:
            upload = partial(in_thread, client.upload, methods.FILESYSTEM_WRITE_STREAM, timeout_s=TIMEOUT_S)
            assert (await upload(pieces(20))).written_bytes == 20 << 20
            assert (await upload(iter(()))).written_bytes == 0
            streams.refuse_after = streams.made + 3
            with pytest.raises(NotFoundError, match="it is gone"):
                await upload(pieces(10))

            def broken() -> Iterator[filesystem_pb2.WriteRequest]:
                yield from pieces(1)
                raise OSError("the source file vanished")

            streams.refuse_after = 1 << 30
            with pytest.raises(OSError, match="vanished"):
                await upload(broken())


async def test_cancelled_server_ends_within_its_grace() -> None:
    server = Server([])
    outcome: list[BaseException] = []
    async with trio.open_nursery() as callers:
        async with grpc_server(server, Streams()) as address:

            async def ask() -> None:
                with pytest.raises(UnavailableError) as caught:
                    await in_thread(call, address, SLOW, filesystem_pb2.ReadLinkRequest(), TIMEOUT_S)
                outcome.append(caught.value)

            callers.start_soon(ask)
            await server.entered.wait()
            began = trio.current_time()
        assert trio.current_time() - began < 5
    assert len(outcome) == 1
