"""Uploads whose clients send nothing for a while, and those whose node takes nothing more."""

import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial

import pytest
import trio

from tests.unit.rpc.conftest import ECHO, SLOW, Server, grpc_node
from wormfs.core.errors import DeadlineError
from wormfs.rpc import methods
from wormfs.rpc.grpc_client import GrpcClient
from wormfs.rpc.grpc_server import serve_grpc
from wormfs.rpc.registry import Registry, RequestContext
from wormfs.rpc.v1 import filesystem_pb2

pytestmark = pytest.mark.timeout(30)

UPLOADS = 64
LIMIT_S = 20.0
ANSWER_S = 5.0
PATIENCE_S = 0.3


class Uploads:
    """Counts the uploads that have begun, and the bytes of those that ended."""

    def __init__(self) -> None:
        self.all_begun = trio.Event()
        self.begun = 0
        self.go_on = threading.Event()
        self.ended: list[int] = []

    async def take_none(
        self, context: RequestContext, requests: AsyncIterator[filesystem_pb2.WriteRequest]
    ) -> filesystem_pb2.WriteReply:
        """A node that stalls with its first request."""
        await anext(aiter(requests))
        self.all_begun.set()
        await trio.sleep_forever()
        raise AssertionError

    async def answer_never(
        self, context: RequestContext, requests: AsyncIterator[filesystem_pb2.WriteRequest]
    ) -> filesystem_pb2.WriteReply:
        """A node that stalls with its answer."""
        async for _ in requests:
            pass
        self.all_begun.set()
        await trio.sleep_forever()
        raise AssertionError

    async def write_stream(
        self, context: RequestContext, requests: AsyncIterator[filesystem_pb2.WriteRequest]
    ) -> filesystem_pb2.WriteReply:
        total = 0
        async for request in requests:
            if not total:
                self.begun += 1
            if self.begun == UPLOADS:
                self.all_begun.set()
            total += len(request.data)
        return filesystem_pb2.WriteReply(written_bytes=total)

    def _stalled(self) -> Iterator[filesystem_pb2.WriteRequest]:
        yield filesystem_pb2.WriteRequest(handle=1, data=b"12")
        self.go_on.wait(LIMIT_S)
        yield filesystem_pb2.WriteRequest(handle=1, data=b"345")

    def upload(self, client: GrpcClient) -> None:
        """One upload, to its end."""
        reply = client.upload(methods.FILESYSTEM_WRITE_STREAM, self._stalled(), timeout_s=LIMIT_S)
        self.ended.append(reply.written_bytes)


async def test_others_are_served_while_uploads_stall() -> None:
    """Each holds a thread of the server to its end: there are as many as calls."""
    uploads = Uploads()
    registry = Registry()
    registry.add(methods.FILESYSTEM_WRITE_STREAM, uploads.write_stream)
    registry.add(ECHO, Server([]).echo)
    limiter = trio.CapacityLimiter(UPLOADS + 1)
    async with trio.open_nursery() as nursery:
        address = await nursery.start(partial(serve_grpc, registry, "127.0.0.1:0", grace_s=0.2))

        def ask() -> int:
            with GrpcClient(address) as client:
                return client.call(ECHO, filesystem_pb2.GetAttrRequest(inode=5), timeout_s=ANSWER_S).sequence

        with GrpcClient(address) as client, trio.fail_after(LIMIT_S):
            async with trio.open_nursery() as threads:
                for _ in range(UPLOADS):
                    threads.start_soon(
                        partial(trio.to_thread.run_sync, uploads.upload, client, limiter=limiter)
                    )
                try:
                    with trio.fail_after(ANSWER_S):
                        await uploads.all_begun.wait()
                    assert await trio.to_thread.run_sync(ask, limiter=limiter) == 5
                finally:
                    uploads.go_on.set()
        nursery.cancel_scope.cancel()
    assert uploads.ended == [5] * UPLOADS


async def test_time_that_the_source_takes_is_not_the_nodes() -> None:
    """It says nothing for longer than the node may: at its begin, in between and at its end."""
    uploads = Uploads()

    def let_time_pass(address: str) -> None:
        """As long as a node has that never answers, and some more."""
        with GrpcClient(address) as client, pytest.raises(DeadlineError):
            client.call(SLOW, filesystem_pb2.ReadLinkRequest(), timeout_s=1.5 * PATIENCE_S)

    def slow(address: str) -> Iterator[filesystem_pb2.WriteRequest]:
        let_time_pass(address)
        yield filesystem_pb2.WriteRequest(data=b"12")
        let_time_pass(address)
        yield filesystem_pb2.WriteRequest(data=b"345")
        let_time_pass(address)

    async with grpc_node(methods.FILESYSTEM_WRITE_STREAM, uploads.write_stream) as address:

        def upload() -> int:
            with GrpcClient(address) as client:
                method = methods.FILESYSTEM_WRITE_STREAM
                return client.upload(method, slow(address), timeout_s=PATIENCE_S).written_bytes

        assert await trio.to_thread.run_sync(upload) == 5


@pytest.mark.parametrize("stall", ["take_none", "answer_never"])
async def test_a_node_that_stalls_is_waited_for_no_longer_than_told(stall: str) -> None:
    uploads = Uploads()
    count = 40 if stall == "take_none" else 2  # more than gRPC takes in for a node that does not

    def pieces() -> Iterator[filesystem_pb2.WriteRequest]:
        for _ in range(count):
            yield filesystem_pb2.WriteRequest(data=bytes(1 << 20))

    async with grpc_node(methods.FILESYSTEM_WRITE_STREAM, getattr(uploads, stall)) as address:

        def upload() -> None:
            with GrpcClient(address) as client, pytest.raises(DeadlineError, match=address):
                client.upload(methods.FILESYSTEM_WRITE_STREAM, pieces(), timeout_s=PATIENCE_S)

        await trio.to_thread.run_sync(upload)
        await uploads.all_begun.wait()
