"""Peers that break the protocol, stop reading, or leave half way: the server goes on."""

import logging
import os
import random
import socket
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.unit.rpc.conftest import (
    ECHO,
    GET,
    PUT,
    SLOW,
    Server,
    make_registry,
    pattern,
    running_server,
    unix_address,
)
from wormfs.core.errors import ConfigError, DeadlineError, ProtocolError, UnavailableError, WormError
from wormfs.rpc.frames import (
    DATA_MAX_BYTES,
    KIND_CANCEL,
    KIND_ERROR,
    KIND_PUSH,
    KIND_REPLY,
    KIND_REQUEST,
    pack_frame,
)
from wormfs.rpc.methods import Method
from wormfs.rpc.sockets import TcpAddress, UnixAddress, parse_address
from wormfs.rpc.stream_client import open_connection
from wormfs.rpc.stream_server import Answer, DataBuffer, Registry, RequestContext, serve_streams
from wormfs.rpc.v1 import chunk_pb2, filesystem_pb2

TIMEOUT_S = 20.0


async def raw_client(server: Server) -> trio.SocketStream:
    address = parse_address(server.addresses[0])
    assert isinstance(address, UnixAddress)
    return await trio.open_unix_socket(address.path)


async def assert_serving(server: Server) -> None:
    async with open_connection(server.addresses, timeout_s=TIMEOUT_S) as connection:
        request = filesystem_pb2.GetAttrRequest(inode=1)
        reply = await connection.call(ECHO, request, timeout_s=TIMEOUT_S)
        assert reply.message.sequence == 1


async def read_to_end(stream: trio.SocketStream) -> bytes:
    received = b""
    try:
        while part := await stream.receive_some(65_536):
            received += part
    except trio.BrokenResourceError:
        pass
    return received


GOOD = pack_frame(KIND_REQUEST, ECHO.number, 1, 1000, b"", 0)
BROKEN: dict[str, bytes] = {
    "garbage": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a server's frame": pack_frame(KIND_REPLY, 0, 1, 0, b"", 0),
    "a push": pack_frame(KIND_PUSH, 0, 0, 0, b"", 0),
    "unparsable request": pack_frame(KIND_REQUEST, ECHO.number, 1, 1000, b"\xff\xff\xff", 0),
    "garbage after a request": GOOD + b"\0" * 64,
    "same id twice": pack_frame(KIND_REQUEST, SLOW.number, 1, 1000, b"", 0) * 2,
}


@pytest.mark.parametrize("what", BROKEN)
async def test_broken_frames_close_that_connection_with_one_line(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_server(unix_address(tmp_path)) as server:
        stream = await raw_client(server)
        with caplog.at_level(logging.WARNING):
            await stream.send_all(BROKEN[what])
            received = await read_to_end(stream)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert bool(received) == (what == "garbage after a request")
        await stream.aclose()
        await assert_serving(server)


UNKNOWN: Method[chunk_pb2.PutChunkRequest, chunk_pb2.PutChunkReply] = Method(
    "wormfs.v1.Chunks/OfANewerProgram", chunk_pb2.PutChunkRequest, chunk_pb2.PutChunkReply
)


@pytest.mark.parametrize("data_bytes", [0, 20, 3 << 20])
async def test_a_method_of_a_newer_program_is_an_error_of_its_call_alone(
    data_bytes: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its data is read past; what is under way on the connection, and what comes behind, is served."""
    async with (
        running_server(unix_address(tmp_path)) as server,
        open_connection(server.addresses, timeout_s=TIMEOUT_S) as connection,
    ):

        async def slow() -> None:
            request = filesystem_pb2.ReadLinkRequest(inode=4)
            assert (await connection.call(SLOW, request, timeout_s=TIMEOUT_S)).message.target == b"4"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow)
            await server.entered.wait()
            for _ in range(2):
                with pytest.raises(ProtocolError, match=f"method {UNKNOWN.number:#x}"):
                    await connection.call(
                        UNKNOWN, chunk_pb2.PutChunkRequest(), timeout_s=TIMEOUT_S, data=[bytes(data_bytes)]
                    )
            reply = await connection.call(ECHO, filesystem_pb2.GetAttrRequest(inode=7), timeout_s=TIMEOUT_S)
            assert reply.message.sequence == 7
            server.release.set()
        assert not connection.closed.is_set()
    assert caplog.records == []


async def test_random_bytes_never_crash_or_hang_the_server(tmp_path: Path) -> None:
    seed = random.Random(7)
    async with running_server(unix_address(tmp_path)) as server:
        for _ in range(150):
            parts = []
            for _ in range(seed.randrange(1, 6)):
                method = seed.choice([ECHO.number, SLOW.number, PUT.number, GET.number])
                size = seed.choice([0, 1, 13, 5000, 100_000])
                kind = seed.choice([KIND_REQUEST] * 6 + [KIND_CANCEL])
                frame = pack_frame(
                    kind, method, seed.randrange(9), 50, b"", 0 if kind != KIND_REQUEST else size
                )
                body = seed.randbytes(seed.choice([size, size, size // 2]))
                parts.append(frame + body)
            raw = bytearray(b"".join(parts))
            if seed.random() < 0.5:
                raw[seed.randrange(len(raw))] ^= 1 << seed.randrange(8)
            stream = await raw_client(server)
            try:
                await stream.send_all(raw[: seed.randrange(1, len(raw) + 1)])
                await stream.send_eof()
            except trio.BrokenResourceError:
                pass
            await read_to_end(stream)
            await stream.aclose()
        await assert_serving(server)


@pytest.mark.parametrize("cut", [1, 31, 32, 40, 5000])
async def test_truncated_frames_end_quietly(cut: int, tmp_path: Path) -> None:
    frame = pack_frame(
        KIND_REQUEST, PUT.number, 1, 1000, chunk_pb2.PutChunkRequest(k=4).SerializeToString(), 9000
    )
    async with running_server(unix_address(tmp_path)) as server:
        stream = await raw_client(server)
        await stream.send_all((frame + bytes(9000))[:cut])
        await stream.send_eof()
        assert await read_to_end(stream) == b""
        await stream.aclose()
        await assert_serving(server)
        assert server.put == []


async def test_client_that_leaves_cancels_its_handlers(tmp_path: Path) -> None:
    async with running_server(unix_address(tmp_path)) as server:
        stream = await raw_client(server)
        await stream.send_all(pack_frame(KIND_REQUEST, SLOW.number, 1, 60_000, b"", 0))
        await server.entered.wait()
        await stream.aclose()
        await server.cancelled.wait()


async def test_slow_reader_is_not_read_from_and_others_are_served(tmp_path: Path) -> None:
    request = chunk_pb2.GetChunkRequest(length_bytes=4 << 20).SerializeToString()
    count = 60
    async with running_server(unix_address(tmp_path)) as server:
        stream = await raw_client(server)
        for number in range(count):
            await stream.send_all(pack_frame(KIND_REQUEST, GET.number, number + 1, 60_000, request, 0))
        await assert_serving(server)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert server.released <= 3  # what fits into the socket: the rest of the answers do not exist yet
        received = 0
        while received < count * (4 << 20):
            received += len(await stream.receive_some(1 << 20))
        await stream.aclose()


async def fake_server(path: Path) -> trio.SocketListener:
    sock = trio.socket.socket(socket.AF_UNIX)
    await sock.bind(str(path))
    sock.listen(5)
    return trio.SocketListener(sock)


async def test_server_that_never_reads_costs_the_deadline_only(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = await fake_server(path)
    body = bytes(20 << 20)
    async with open_connection([f"unix:{path}"], timeout_s=TIMEOUT_S) as connection:
        peer = await listener.accept()
        for timeout_s in (0.1, 0.05, 0.05):
            with pytest.raises(DeadlineError):
                await connection.call(PUT, chunk_pb2.PutChunkRequest(), timeout_s=timeout_s, data=[body])
        await peer.aclose()
    await listener.aclose()


async def test_request_cut_off_by_its_deadline_keeps_the_stream_in_step(tmp_path: Path) -> None:
    """The caller has its buffer back and changes it; the server must see the old bytes, then more frames."""
    path = tmp_path / "s"
    listener = await fake_server(path)
    body = bytearray(pattern(20 << 20))
    async with open_connection([f"unix:{path}"], timeout_s=TIMEOUT_S) as connection:
        peer = await listener.accept()
        with pytest.raises(DeadlineError):
            await connection.call(PUT, chunk_pb2.PutChunkRequest(), timeout_s=0.1, data=[body])
        body[:] = bytes(len(body))
        received = bytearray()
        while len(received) < 32 + (20 << 20) + 32:
            received += await peer.receive_some(1 << 20)
        assert received[32 : 32 + (20 << 20)] == pattern(20 << 20)
        assert received[-32:] == pack_frame(KIND_CANCEL, 0, 1, 0, b"", 0)
        await peer.aclose()
    await listener.aclose()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"x" * 40,
        pack_frame(KIND_REPLY, 0, 77, 0, b"", 0),
        pack_frame(KIND_REPLY, 0, 1, 0, b"\xff\xff", 0),
        pack_frame(KIND_ERROR, 0, 1, 0, b"\xff\xff", 0),
        pack_frame(KIND_PUSH, 5, 0, 0, b"", 0),
        pack_frame(KIND_REQUEST, ECHO.number, 1, 0, b"", 0),
        b"",
    ],
)
async def test_server_that_answers_nonsense_fails_the_call(answer: bytes, tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = await fake_server(path)
    async with open_connection([f"unix:{path}"], timeout_s=TIMEOUT_S) as connection:
        peer = await listener.accept()
        async with trio.open_nursery() as nursery:

            async def answer_it() -> None:
                await peer.receive_some(1000)
                if answer:
                    await peer.send_all(answer)
                else:
                    await peer.send_eof()

            nursery.start_soon(answer_it)
            with pytest.raises((ProtocolError, UnavailableError)):
                await connection.call(ECHO, filesystem_pb2.GetAttrRequest(), timeout_s=TIMEOUT_S)
        with trio.fail_after(TIMEOUT_S):
            await connection.closed.wait()
        await peer.aclose()
    await listener.aclose()


async def test_addresses_are_tried_in_order(tmp_path: Path) -> None:
    async with running_server(unix_address(tmp_path)) as server:
        addresses = [f"unix:{tmp_path}/none", "127.0.0.1:1", *server.addresses]
        async with open_connection(addresses, timeout_s=TIMEOUT_S) as connection:
            assert connection.address == server.addresses[0]
    with pytest.raises(UnavailableError, match=r"no such socket.*127.0.0.1:1"):
        async with open_connection(addresses[:2], timeout_s=TIMEOUT_S):
            pass


async def test_socket_path_longer_than_an_address_holds(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    async with running_server(f"unix:{folder}/socket") as server:
        await assert_serving(server)
        assert (folder / "socket").stat().st_mode & 0o777 == 0o666
    assert not (folder / "socket").exists()


async def test_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    async with running_server(f"unix:{path}") as server:
        with pytest.raises(ConfigError, match="another process"):
            await serve_streams(Registry(), [f"unix:{path}"])
        await assert_serving(server)
    path.write_text("a file")
    with pytest.raises(ConfigError, match="something else"):
        await serve_streams(Registry(), [f"unix:{path}"])
    assert path.read_text() == "a file"
    with pytest.raises(ConfigError, match="cannot listen"):
        await serve_streams(Registry(), [f"unix:{tmp_path}/absent/s"])


def test_addresses() -> None:
    assert parse_address("unix:/a/b") == UnixAddress(Path("/a/b"))
    assert parse_address("host:80") == TcpAddress("host", 80)
    assert str(parse_address("[::1]:80")) == "[::1]:80"
    for wrong in ("unix:a", "host", "host:", ":80", "::1:80", "host:http", "host:99999", ""):
        with pytest.raises(ConfigError):
            parse_address(wrong)


async def test_no_descriptor_stays_behind(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with running_server(unix_address(tmp_path)) as server:
        for _ in range(3):
            await assert_serving(server)
    assert len(os.listdir("/proc/self/fd")) <= before + 1


async def test_answers_that_cannot_be_sent_are_errors_of_their_call_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    released = []

    async def too_large(
        context: RequestContext, request: chunk_pb2.GetChunkRequest, data: DataBuffer | None
    ) -> Answer[chunk_pb2.GetChunkReply]:
        body = memoryview(bytes(request.length_bytes))
        return Answer(chunk_pb2.GetChunkReply(), (body,), lambda: released.append(1))

    async def nothing(
        context: RequestContext, request: filesystem_pb2.GetAttrRequest, data: DataBuffer | None
    ) -> filesystem_pb2.AttrReply:
        return None  # type: ignore[return-value]

    registry = Registry()
    registry.add(GET, too_large)
    registry.add(ECHO, nothing)
    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(serve_streams, registry, [unix_address(tmp_path)])
        async with open_connection(addresses, timeout_s=TIMEOUT_S) as connection:
            for length in (DATA_MAX_BYTES + 1, DATA_MAX_BYTES + 1):
                request = chunk_pb2.GetChunkRequest(length_bytes=length)
                with pytest.raises(ProtocolError, match="too large"):
                    await connection.call(GET, request, timeout_s=TIMEOUT_S)
            assert len(released) == 2
            reply = await connection.call(GET, chunk_pb2.GetChunkRequest(), timeout_s=TIMEOUT_S)
            assert reply.data_bytes == 0
            assert len(released) == 3
            with pytest.raises(WormError, match="internal error"):
                await connection.call(ECHO, filesystem_pb2.GetAttrRequest(), timeout_s=TIMEOUT_S)
            assert "nothing" in caplog.text or "NoneType" in caplog.text
        nursery.cancel_scope.cancel()


async def test_cancelled_server_answers_what_is_under_way_within_its_drain(tmp_path: Path) -> None:
    server = Server([])
    serve = partial(serve_streams, make_registry(server), [unix_address(tmp_path)], drain_s=10)
    scope = trio.CancelScope()
    stopped = trio.Event()

    async def run(*, task_status: trio.TaskStatus[list[str]]) -> None:
        with scope:
            await serve(task_status=task_status)
        stopped.set()

    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(run)
        async with open_connection(addresses, timeout_s=TIMEOUT_S) as connection:

            async def call() -> None:
                request = filesystem_pb2.ReadLinkRequest(inode=4)
                reply = await connection.call(SLOW, request, timeout_s=TIMEOUT_S)
                assert reply.message.target == b"4"

            nursery.start_soon(call)
            await server.entered.wait()
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert not stopped.is_set()
            server.release.set()
            await stopped.wait()
            await connection.closed.wait()


async def test_call_that_ends_while_its_data_arrives_keeps_its_buffer_untouched(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = await fake_server(path)
    room = bytearray(100_000)
    message = chunk_pb2.GetChunkReply().SerializeToString()
    async with open_connection([f"unix:{path}"], timeout_s=TIMEOUT_S) as connection:
        peer = await listener.accept()
        async with trio.open_nursery() as nursery:

            async def get() -> None:
                request = chunk_pb2.GetChunkRequest()
                await connection.call(GET, request, timeout_s=TIMEOUT_S, into=[memoryview(room)])

            nursery.start_soon(get)
            await peer.receive_some(1000)
            await peer.send_all(pack_frame(KIND_REPLY, 0, 1, 0, message, len(room)) + b"x" * 60_000)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert room.count(b"x") == 60_000
            nursery.cancel_scope.cancel()
        room[:] = bytes(len(room))
        async with trio.open_nursery() as nursery:

            async def answer() -> None:
                await peer.receive_some(1000)
                await peer.send_all(b"x" * 40_000 + pack_frame(KIND_REPLY, 0, 2, 0, b"", 0))

            nursery.start_soon(answer)
            await connection.call(ECHO, filesystem_pb2.GetAttrRequest(), timeout_s=TIMEOUT_S)
        assert not any(room)
        await peer.aclose()
    await listener.aclose()
