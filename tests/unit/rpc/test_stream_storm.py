"""Many calls with data, cut off at random moments: no wrong byte, no stream out of step."""

import random
from pathlib import Path

import pytest
import trio

from tests.unit.rpc.conftest import GET, PUT, pattern, unix_address
from wormfs.core.errors import DeadlineError
from wormfs.rpc.stream_client import StreamConnection, open_connection
from wormfs.rpc.stream_server import Answer, DataBuffer, HeapBuffer, Registry, RequestContext, serve_streams
from wormfs.rpc.v1 import chunk_pb2

TIMEOUT_S = 30.0
JUNK = 255  # never in a pattern


class Store:
    """Checks what comes, and makes what goes into buffers that are spoilt on release."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.wrong = 0
        self.put_count = 0
        self.out = 0  # answers whose buffers are not released

    async def pause(self) -> None:
        if self.random.random() < 0.5:
            await trio.sleep(self.random.random() * 0.003)

    async def put(
        self, context: RequestContext, request: chunk_pb2.PutChunkRequest, data: DataBuffer | None
    ) -> chunk_pb2.PutChunkReply:
        assert data is not None
        if data.data != pattern(data.data.nbytes, request.k):
            self.wrong += 1
        self.put_count += 1
        await self.pause()
        return chunk_pb2.PutChunkReply()

    async def get(
        self, context: RequestContext, request: chunk_pb2.GetChunkRequest, data: DataBuffer | None
    ) -> Answer[chunk_pb2.GetChunkReply]:
        await self.pause()
        body = bytearray(pattern(request.length_bytes, request.offset_bytes))
        self.out += 1

        def release() -> None:
            body[:] = bytes([JUNK]) * len(body)
            self.out -= 1

        return Answer(chunk_pb2.GetChunkReply(), (body,), release)


async def one_call(connection: StreamConnection, choice: random.Random) -> bool:
    """Returns whether it was answered. Its buffer is spoilt, or checked, the moment it ends."""
    length = choice.choice([1, 500, 40_000, 1 << 20, 5 << 20])
    seed = choice.randrange(200)
    timeout_s = choice.choice([TIMEOUT_S, TIMEOUT_S, 0.0005, 0.003, 0.01])
    cancel_s = choice.choice([TIMEOUT_S, TIMEOUT_S, TIMEOUT_S, 0.0, 0.002])
    answered = False
    with trio.move_on_after(cancel_s):
        try:
            if choice.random() < 0.5:
                body = bytearray(pattern(length, seed))
                try:
                    request = chunk_pb2.PutChunkRequest(k=seed)
                    await connection.call(PUT, request, timeout_s=timeout_s, data=[body])
                    answered = True
                finally:
                    body[:] = bytes([JUNK]) * length
            else:
                await get_and_check(connection, length, seed, timeout_s)
                answered = True
        except DeadlineError:
            pass
    return answered


async def get_and_check(connection: StreamConnection, length: int, seed: int, timeout_s: float) -> None:
    room = bytearray(length)
    try:
        request = chunk_pb2.GetChunkRequest(offset_bytes=seed, length_bytes=length)
        await connection.call(GET, request, timeout_s=timeout_s, into=[memoryview(room)])
    except BaseException:
        room[:] = bytes(length)
        with trio.CancelScope(shield=True):
            await trio.sleep(0.002)  # late data has its chance to come
        assert not any(room)
        raise
    assert room == pattern(length, seed)


@pytest.mark.parametrize("address", ["unix", "127.0.0.1:0"])
@pytest.mark.parametrize("seed", [1, 2])
async def test_storm_of_calls_cut_off_at_random(address: str, seed: int, tmp_path: Path) -> None:
    store = Store(seed)
    registry = Registry()
    registry.add(PUT, store.put, allocate=HeapBuffer)
    registry.add(GET, store.get)
    where = unix_address(tmp_path) if address == "unix" else address
    choice = random.Random(seed)
    answered = 0

    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(serve_streams, registry, [where])
        async with open_connection(addresses, timeout_s=TIMEOUT_S) as connection:

            async def lane() -> None:
                nonlocal answered
                for _ in range(25):
                    done = await one_call(connection, choice)
                    answered += done

            with trio.fail_after(60):
                async with trio.open_nursery() as lanes:
                    for _ in range(12):
                        lanes.start_soon(lane)
                await get_and_check(connection, 1 << 20, 9, TIMEOUT_S)
            assert not connection.closed.is_set()
        assert answered > 50
        assert store.put_count > 20
        assert store.wrong == 0
        nursery.cancel_scope.cancel()
    assert store.out == 0
