"""Streams beside gRPC, as JSON rows {name: [value, unit]}; higher is better.

One server process, one client process, the same handlers behind both: empty calls one after the
other and 16 at a time, and messages with 1 MiB of data both ways.

usage: python -m benches.streams [--seconds S]
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import trio

from wormfs.rpc import methods
from wormfs.rpc.grpc_client import GrpcClient
from wormfs.rpc.grpc_server import serve_grpc
from wormfs.rpc.memory import raise_mmap_threshold
from wormfs.rpc.stream_client import StreamConnection, open_connection
from wormfs.rpc.stream_server import Answer, DataBuffer, Registry, RequestContext, serve_streams
from wormfs.rpc.v1 import chunk_pb2, metadata_pb2, types_pb2

Rows = dict[str, list[float | str]]
DATA_BYTES = 1 << 20
LANES = 16
DATA_LANES = 4
TIMEOUT_S = 60.0


class PooledBuffer:
    """A reused megabyte, as the chunk store has them."""

    def __init__(self, pool: "list[PooledBuffer]") -> None:
        self.data = memoryview(bytearray(DATA_BYTES))
        self._pool = pool

    def release(self) -> None:
        self._pool.append(self)


def make_registry() -> Registry:
    pool: list[PooledBuffer] = []
    body = os.urandom(DATA_BYTES)

    async def empty(
        context: RequestContext, request: metadata_pb2.SyncRequest, data: DataBuffer | None
    ) -> types_pb2.Empty:
        return types_pb2.Empty()

    async def put(
        context: RequestContext, request: chunk_pb2.PutChunkRequest, data: DataBuffer | None
    ) -> chunk_pb2.PutChunkReply:
        if data is not None:
            data.release()
        return chunk_pb2.PutChunkReply()

    async def get(
        context: RequestContext, request: chunk_pb2.GetChunkRequest, data: DataBuffer | None
    ) -> Answer[chunk_pb2.GetChunkReply]:
        return Answer(chunk_pb2.GetChunkReply(), (body,))

    registry = Registry()
    registry.add(methods.METADATA_SYNC, empty)
    registry.add(methods.CHUNKS_PUT_CHUNK, put, allocate=lambda _: pool.pop() if pool else PooledBuffer(pool))
    registry.add(methods.CHUNKS_GET_CHUNK, get)
    return registry


def serve(folder: str, ready: Connection) -> None:
    """The server process: ends when its standard pipe closes, that is when the parent terminates it."""
    raise_mmap_threshold()

    async def run() -> None:
        registry = make_registry()
        async with trio.open_nursery() as nursery:
            streams = await nursery.start(serve_streams, registry, [f"unix:{folder}/streams", "127.0.0.1:0"])
            grpc = await nursery.start(serve_grpc, registry, "127.0.0.1:0")
            ready.send((streams, grpc))

    trio.run(run)


async def rate(step: Callable[[int], Awaitable[None]], lanes: int, seconds: float) -> float:
    """Steps per second of `lanes` tasks, once warm."""
    for lane in range(lanes):
        for _ in range(5):
            await step(lane)
    count = 0
    began = trio.current_time()

    async def work(lane: int) -> None:
        nonlocal count
        while trio.current_time() < began + seconds:
            await step(lane)
            count += 1

    async with trio.open_nursery() as nursery:
        for lane in range(lanes):
            nursery.start_soon(work, lane)
    return count / (trio.current_time() - began)


async def measure_streams(address: str, label: str, seconds: float) -> Rows:
    rows: Rows = {}
    buffers = [bytearray(os.urandom(DATA_BYTES)) for _ in range(DATA_LANES)]
    async with open_connection([address], timeout_s=TIMEOUT_S) as connection:
        steps = StreamSteps(connection, buffers)
        rows[f"{label}_empty_sequential"] = [round(await rate(steps.empty, 1, seconds)), "call/s"]
        rows[f"{label}_empty_{LANES}_in_flight"] = [round(await rate(steps.empty, LANES, seconds)), "call/s"]
        for name, step in (("send", steps.put), ("receive", steps.get)):
            calls = await rate(step, DATA_LANES, seconds)
            rows[f"{label}_{name}_1m"] = [round(calls * DATA_BYTES / 1e6), "MB/s"]
    return rows


class StreamSteps:
    """One call each."""

    def __init__(self, connection: StreamConnection, buffers: Sequence[bytearray]) -> None:
        self._connection = connection
        self._buffers = buffers

    async def empty(self, _: int) -> None:
        await self._connection.call(methods.METADATA_SYNC, metadata_pb2.SyncRequest(), timeout_s=TIMEOUT_S)

    async def put(self, lane: int) -> None:
        request = chunk_pb2.PutChunkRequest()
        await self._connection.call(
            methods.CHUNKS_PUT_CHUNK, request, timeout_s=TIMEOUT_S, data=(self._buffers[lane],)
        )

    async def get(self, lane: int) -> None:
        request = chunk_pb2.GetChunkRequest()
        view = memoryview(self._buffers[lane])
        reply = await self._connection.call(
            methods.CHUNKS_GET_CHUNK, request, timeout_s=TIMEOUT_S, into=(view,)
        )
        if reply.data_bytes != DATA_BYTES:
            raise SystemExit("short data")


def thread_rate(step: Callable[[], object], lanes: int, seconds: float) -> float:
    """As `rate`, with threads."""
    for _ in range(10):
        step()
    counts = [0] * lanes
    began = time.perf_counter()

    def work(lane: int) -> None:
        while time.perf_counter() < began + seconds:
            step()
            counts[lane] += 1

    threads = [threading.Thread(target=work, args=(lane,)) for lane in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def measure_grpc(address: str, seconds: float) -> Rows:
    body = os.urandom(DATA_BYTES)
    with GrpcClient(address) as client:

        def empty() -> object:
            return client.call(methods.METADATA_SYNC, metadata_pb2.SyncRequest(), timeout_s=TIMEOUT_S)

        def put() -> object:
            request = chunk_pb2.PutChunkRequest(data=body)
            return client.call(methods.CHUNKS_PUT_CHUNK, request, timeout_s=TIMEOUT_S)

        def get() -> object:
            request = chunk_pb2.GetChunkRequest()
            return client.call(methods.CHUNKS_GET_CHUNK, request, timeout_s=TIMEOUT_S)

        send = thread_rate(put, DATA_LANES, seconds) * DATA_BYTES / 1e6
        receive = thread_rate(get, DATA_LANES, seconds) * DATA_BYTES / 1e6
        return {
            "grpc_empty_sequential": [round(thread_rate(empty, 1, seconds)), "call/s"],
            f"grpc_empty_{LANES}_in_flight": [round(thread_rate(empty, LANES, seconds)), "call/s"],
            "grpc_send_1m": [round(send), "MB/s"],
            "grpc_receive_1m": [round(receive), "MB/s"],
        }


def measure(seconds: float) -> Rows:
    raise_mmap_threshold()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="streams-") as folder:
        here, there = spawn.Pipe()
        server = spawn.Process(target=serve, args=(str(Path(folder)), there), daemon=True)
        server.start()
        there.close()
        try:
            (unix, tcp), grpc = here.recv()
            rows = trio.run(measure_streams, unix, "unix", seconds)
            rows |= trio.run(measure_streams, tcp, "tcp", seconds)
            rows |= measure_grpc(grpc, seconds)
        finally:
            server.terminate()
            server.join()
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure")
    options = parser.parse_args(arguments)
    print(json.dumps(measure(options.seconds)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
