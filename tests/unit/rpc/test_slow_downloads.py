"""Downloads whose readers take their time, and those whose node says nothing more."""

from collections.abc import AsyncIterator

import pytest
import trio

from tests.unit.rpc.conftest import SLOW, grpc_node
from wormfs.core.errors import DeadlineError
from wormfs.rpc import methods
from wormfs.rpc.grpc_client import GrpcClient
from wormfs.rpc.registry import RequestContext
from wormfs.rpc.v1 import filesystem_pb2

pytestmark = pytest.mark.timeout(30)

PATIENCE_S = 0.3
PIECES = 8
PIECE_BYTES = 1 << 20  # more of them than gRPC takes in for a reader that does not


async def read_stream(
    context: RequestContext, request: filesystem_pb2.ReadRequest
) -> AsyncIterator[filesystem_pb2.ReadReply]:
    for _ in range(request.length_bytes // PIECE_BYTES):
        yield filesystem_pb2.ReadReply(data=bytes(PIECE_BYTES))
    if request.handle:  # of a node that stalls
        await trio.sleep_forever()


async def test_time_that_the_reader_takes_is_not_the_nodes() -> None:
    async with grpc_node(methods.FILESYSTEM_READ_STREAM, read_stream) as address:

        def download() -> int:
            total = 0
            with GrpcClient(address) as client, GrpcClient(address) as other:
                request = filesystem_pb2.ReadRequest(length_bytes=PIECES * PIECE_BYTES)
                for reply in client.replies(methods.FILESYSTEM_READ_STREAM, request, timeout_s=PATIENCE_S):
                    total += len(reply.data)
                    if total in (PIECE_BYTES, PIECES * PIECE_BYTES):
                        with pytest.raises(DeadlineError):  # so time passes
                            other.call(SLOW, filesystem_pb2.ReadLinkRequest(), timeout_s=2 * PATIENCE_S)
            return total

        assert await trio.to_thread.run_sync(download) == PIECES * PIECE_BYTES


@pytest.mark.parametrize("pieces", [0, 1])
async def test_a_node_that_stalls_is_waited_for_no_longer_than_told(pieces: int) -> None:
    async with grpc_node(methods.FILESYSTEM_READ_STREAM, read_stream) as address:
        taken: list[int] = []
        request = filesystem_pb2.ReadRequest(handle=1, length_bytes=pieces * PIECE_BYTES)

        def download() -> None:
            with GrpcClient(address) as client:
                replies = client.replies(methods.FILESYSTEM_READ_STREAM, request, timeout_s=PATIENCE_S)
                taken.extend(len(reply.data) for reply in replies)

        with pytest.raises(DeadlineError, match=address):
            await trio.to_thread.run_sync(download)
        assert sum(taken) == pieces * PIECE_BYTES
