"""Calls over streams: what comes back, what goes wrong, and in which order."""

import errno
import logging
from pathlib import Path

import pytest
import trio

from tests.unit.rpc.conftest import (
    ECHO,
    FAILS,
    GET,
    PUSHES,
    PUT,
    SLOW,
    WAITS,
    Server,
    pattern,
    running_server,
    unix_address,
)
from wormfs.core.errors import (
    DeadlineError,
    NotFoundError,
    ProtocolError,
    UnavailableError,
    WormError,
)
from wormfs.rpc.stream_client import StreamConnection, open_connection
from wormfs.rpc.v1 import chunk_pb2, filesystem_pb2, metadata_pb2

TIMEOUT_S = 20.0


async def echo(connection: StreamConnection, number: int) -> int:
    reply = await connection.call(ECHO, filesystem_pb2.GetAttrRequest(inode=number), timeout_s=TIMEOUT_S)
    return reply.message.sequence


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_calls_and_big_data_both_ways(kind: str, tmp_path: Path) -> None:
    address = unix_address(tmp_path) if kind == "unix" else "127.0.0.1:0"
    async with (
        running_server(address) as server,
        open_connection(server.addresses, timeout_s=TIMEOUT_S) as connection,
    ):
        assert await echo(connection, 7) == 7
        for length in (1, 1000, 32 * 1024, (1 << 20) + 5, 20 << 20):
            body = pattern(length)
            await connection.call(
                PUT, chunk_pb2.PutChunkRequest(), timeout_s=TIMEOUT_S, data=[body[:100], b"", body[100:]]
            )
            assert server.put.pop() == body
            room = bytearray(length + 50)
            views = [memoryview(room)[: length // 3], memoryview(room)[length // 3 :]]
            reply = await connection.call(
                GET,
                chunk_pb2.GetChunkRequest(offset_bytes=3, length_bytes=length),
                timeout_s=TIMEOUT_S,
                into=views,
            )
            assert reply.data_bytes == length
            assert room[:length] == pattern(length, 3)
            assert not any(room[length:])
        assert server.released == 5


async def test_thousand_concurrent_calls_get_their_own_replies(tmp_path: Path) -> None:
    async with (
        running_server(unix_address(tmp_path)) as server,
        open_connection(server.addresses, timeout_s=TIMEOUT_S) as connection,
    ):
        done = 0

        async def one(number: int) -> None:
            nonlocal done
            method = (ECHO, WAITS)[number % 2]
            if method is ECHO:
                assert await echo(connection, number) == number
            else:
                request = filesystem_pb2.LookupRequest(parent=number)
                reply = await connection.call(WAITS, request, timeout_s=TIMEOUT_S)
                assert reply.message.sequence == number
            done += 1

        async with trio.open_nursery() as nursery:
            for number in range(1000):
                nursery.start_soon(one, number)
        assert done == 1000


async def test_calls_go_on_beside_a_thousand_waiting_ones(tmp_path: Path) -> None:
    async with (
        running_server(unix_address(tmp_path)) as server,
        open_connection(server.addresses, timeout_s=TIMEOUT_S) as connection,
    ):

        async def slow(number: int) -> None:
            request = filesystem_pb2.ReadLinkRequest(inode=number)
            reply = await connection.call(SLOW, request, timeout_s=TIMEOUT_S)
            assert reply.message.target == b"%d" % number

        async with trio.open_nursery() as nursery:
            for number in range(1000):
                nursery.start_soon(slow, number)
            while server.waiting < 1000:
                await echo(connection, 1)
            assert await echo(connection, 5) == 5
            server.release.set()


async def test_errors_of_handlers_arrive_as_their_class(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        running_server(unix_address(tmp_path)) as server,
        open_connection(server.addresses, timeout_s=TIMEOUT_S) as connection,
    ):
        with pytest.raises(NotFoundError, match="no entry b'x'") as caught:
            await connection.call(FAILS, filesystem_pb2.UnlinkRequest(name=b"x"), timeout_s=TIMEOUT_S)
        assert caught.value.errno == errno.ENOENT
        with pytest.raises(NotFoundError, match="later"):
            await connection.call(FAILS, filesystem_pb2.UnlinkRequest(name=b"later"), timeout_s=TIMEOUT_S)
        with caplog.at_level(logging.ERROR), pytest.raises(WormError, match="internal error") as internal:
            await connection.call(FAILS, filesystem_pb2.UnlinkRequest(name=b"bug"), timeout_s=TIMEOUT_S)
        assert internal.value.errno == errno.EIO
        assert "a bug in a handler" in caplog.text
        assert await echo(connection, 1) == 1


async def test_refused_data_is_drained_and_the_connection_goes_on(tmp_path: Path) -> None:
    async with (
        running_server(unix_address(tmp_path)) as server,
        open_connection(server.addresses, timeout_s=TIMEOUT_S) as connection,
    ):
        with pytest.raises(UnavailableError, match="no buffer"):
            await connection.call(
                PUT, chunk_pb2.PutChunkRequest(), timeout_s=TIMEOUT_S, data=[b"thirteen byte"]
            )
        assert await echo(connection, 1) == 1


async def test_deadline_ends_a_call_and_its_handler(tmp_path: Path) -> None:
    async with (
        running_server(unix_address(tmp_path)) as server,
        open_connection(server.addresses, timeout_s=TIMEOUT_S) as connection,
    ):
        began = trio.current_time()
        with pytest.raises(DeadlineError, match="no answer"):
            await connection.call(SLOW, filesystem_pb2.ReadLinkRequest(), timeout_s=0.1)
        assert trio.current_time() - began < 5
        await server.cancelled.wait()
        assert await echo(connection, 1) == 1


async def test_shorter_deadline_of_a_later_call_holds(tmp_path: Path) -> None:
    async with (
        running_server(unix_address(tmp_path)) as server,
        open_connection(server.addresses, timeout_s=TIMEOUT_S) as connection,
    ):
        ended: list[str] = []

        async def call(name: str, timeout_s: float) -> None:
            with pytest.raises(DeadlineError):
                await connection.call(SLOW, filesystem_pb2.ReadLinkRequest(), timeout_s=timeout_s)
            ended.append(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, "long", 0.4)
            await server.entered.wait()
            nursery.start_soon(call, "short", 0.1)
        assert ended == ["short", "long"]


async def test_cancellation_reaches_the_handler(tmp_path: Path) -> None:
    async with (
        running_server(unix_address(tmp_path)) as server,
        open_connection(server.addresses, timeout_s=TIMEOUT_S) as connection,
    ):
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                await connection.call(SLOW, filesystem_pb2.ReadLinkRequest(), timeout_s=TIMEOUT_S)

            nursery.start_soon(call)
            await server.entered.wait()
            nursery.cancel_scope.cancel()
        await server.cancelled.wait()
        assert await echo(connection, 2) == 2


async def test_late_data_never_touches_the_buffer_of_an_ended_call(tmp_path: Path) -> None:
    async with (
        running_server(unix_address(tmp_path)) as server,
        open_connection(server.addresses, timeout_s=TIMEOUT_S) as connection,
    ):
        room = bytearray(8 << 20)
        with pytest.raises(DeadlineError):
            await connection.call(
                GET,
                chunk_pb2.GetChunkRequest(disk=1, length_bytes=len(room), offset_bytes=1),
                timeout_s=0.1,
                into=[memoryview(room)],
            )
        server.release.set()
        assert await echo(connection, 3) == 3
        assert not any(room)


async def test_more_data_than_room_is_an_error_of_that_call_alone(tmp_path: Path) -> None:
    async with (
        running_server(unix_address(tmp_path)) as server,
        open_connection(server.addresses, timeout_s=TIMEOUT_S) as connection,
    ):
        room = bytearray(100)
        request = chunk_pb2.GetChunkRequest(length_bytes=1 << 20)
        with pytest.raises(ProtocolError, match="more than there is room"):
            await connection.call(GET, request, timeout_s=TIMEOUT_S, into=[memoryview(room)])
        with pytest.raises(ProtocolError, match="more than there is room"):
            await connection.call(GET, request, timeout_s=TIMEOUT_S)
        assert await echo(connection, 3) == 3


async def test_pushes_arrive_in_order_and_before_the_reply(tmp_path: Path) -> None:
    got: list[int] = []

    def on_push(message: object) -> None:
        assert isinstance(message, metadata_pb2.Recall)
        got.append(message.recall_id)

    async with (
        running_server(unix_address(tmp_path)) as server,
        open_connection(server.addresses, timeout_s=TIMEOUT_S, on_push=on_push) as connection,
    ):
        asked = metadata_pb2.SyncRequest(session_id=9)
        reply = await connection.call(PUSHES, asked, timeout_s=TIMEOUT_S)
        assert got == list(range(9))
        assert reply.pushes_seen == 0  # held back: what it says may be from before them
        asked.session_id = 1
        reply = await connection.call(PUSHES, asked, timeout_s=TIMEOUT_S)
        assert reply.pushes_seen == 10


async def test_lost_connection_fails_all_calls(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        server: Server | None = None
        ready = trio.Event()

        async def serve() -> None:
            nonlocal server
            with scope:
                async with running_server(unix_address(tmp_path)) as server:
                    ready.set()
                    await trio.sleep_forever()

        nursery.start_soon(serve)
        await ready.wait()
        assert server is not None
        async with open_connection(server.addresses, timeout_s=TIMEOUT_S) as connection:
            failed = 0

            async def call() -> None:
                nonlocal failed
                with pytest.raises(UnavailableError):
                    await connection.call(SLOW, filesystem_pb2.ReadLinkRequest(), timeout_s=TIMEOUT_S)
                failed += 1

            async with trio.open_nursery() as callers:
                for _ in range(5):
                    callers.start_soon(call)
                await server.entered.wait()
                scope.cancel()
            assert failed == 5
            await connection.closed.wait()
            with pytest.raises(UnavailableError):
                await echo(connection, 1)
