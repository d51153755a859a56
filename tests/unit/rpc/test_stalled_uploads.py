"""Uploads whose clients send nothing more, beside the calls of others."""

import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial

import pytest
import trio

from tests.unit.rpc.conftest import ECHO, Server
from wormfs.rpc import methods
from wormfs.rpc.grpc_client import GrpcClient
from wormfs.rpc.grpc_server import serve_grpc
from wormfs.rpc.registry import Registry, RequestContext
from wormfs.rpc.v1 import filesystem_pb2

pytestmark = pytest.mark.timeout(30)

UPLOADS = 64
LIMIT_S = 20.0
ANSWER_S = 5.0


class Uploads:
    """Counts the uploads that have begun, and the bytes of those that ended."""

    def __init__(self) -> None:
        self.all_begun = trio.Event()
        self.begun = 0
        self.go_on = threading.Event()
        self.ended: list[int] = []

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
