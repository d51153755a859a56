"""Handlers that are cancelled, and whose clean-up fails: an error and a Cancelled in one group."""

from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.unit.rpc.conftest import ECHO, SLOW, Server, unix_address
from wormfs.core.errors import UnavailableError, WormError
from wormfs.rpc.grpc_client import GrpcClient, call
from wormfs.rpc.grpc_server import serve_grpc
from wormfs.rpc.registry import DataBuffer, Registry, RequestContext
from wormfs.rpc.stream_client import open_connection
from wormfs.rpc.stream_server import serve_streams
from wormfs.rpc.v1 import filesystem_pb2

pytestmark = pytest.mark.timeout(30)

LIMIT_S = 10.0


class Handlers:
    """SLOW waits in a nursery until it is cancelled, and then raises `failure` beside trio's Cancelled."""

    def __init__(self, failure: BaseException) -> None:
        self.failure = failure
        self.entered = trio.Event()
        self.cleaned_up = trio.Event()

    @property
    def registry(self) -> Registry:
        """With ECHO too."""
        made = Registry()
        made.add(SLOW, self.slow)
        made.add(ECHO, Server([]).echo)
        return made

    async def slow(
        self, context: RequestContext, request: filesystem_pb2.ReadLinkRequest, data: DataBuffer | None
    ) -> filesystem_pb2.ReadLinkReply:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._fail_in_the_end)
            self.entered.set()
            await trio.sleep_forever()
        return filesystem_pb2.ReadLinkReply()

    async def _fail_in_the_end(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.cleaned_up.set()
            raise self.failure


FAILURES = [UnavailableError("the clean-up met a broken connection"), RuntimeError("a bug in the clean-up")]


@pytest.mark.parametrize("failure", FAILURES, ids=["error", "bug"])
async def test_a_stream_serves_on(
    failure: Exception, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One call's end does not take the connection of all others."""
    handlers = Handlers(failure)
    address = unix_address(tmp_path)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_streams, handlers.registry, [address])
        with trio.fail_after(LIMIT_S):
            async with open_connection([address], timeout_s=LIMIT_S) as connection:
                request = filesystem_pb2.ReadLinkRequest(inode=1)
                async with trio.open_nursery() as calls:
                    calls.start_soon(partial(connection.call, SLOW, request, timeout_s=LIMIT_S))
                    await handlers.entered.wait()
                    calls.cancel_scope.cancel()
                await handlers.cleaned_up.wait()
                echo = filesystem_pb2.GetAttrRequest(inode=5)
                answer = await connection.call(ECHO, echo, timeout_s=LIMIT_S)
                assert answer.message.sequence == 5
        nursery.cancel_scope.cancel()
    assert ("a bug in the clean-up" in caplog.text) == isinstance(failure, RuntimeError)


@pytest.mark.parametrize("failure", FAILURES, ids=["error", "bug"])
async def test_grpc_serves_on(failure: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """One call's end does not take the server."""
    handlers = Handlers(failure)
    async with trio.open_nursery() as nursery:
        address = await nursery.start(partial(serve_grpc, handlers.registry, "127.0.0.1:0", grace_s=0.2))

        def wait_for_reply(client: GrpcClient) -> None:
            with pytest.raises(WormError):
                client.call(SLOW, filesystem_pb2.ReadLinkRequest(inode=1), timeout_s=LIMIT_S)

        with trio.fail_after(LIMIT_S):
            async with trio.open_nursery() as calls:
                with GrpcClient(address) as client:
                    calls.start_soon(trio.to_thread.run_sync, wait_for_reply, client)
                    await handlers.entered.wait()
                await handlers.cleaned_up.wait()
            echo = filesystem_pb2.GetAttrRequest(inode=5)
            reply = await trio.to_thread.run_sync(call, address, ECHO, echo, LIMIT_S)
            assert reply.sequence == 5
        nursery.cancel_scope.cancel()
    assert ("a bug in the clean-up" in caplog.text) == isinstance(failure, RuntimeError)


async def test_what_must_end_the_process_still_does(tmp_path: Path) -> None:
    """A KeyboardInterrupt in the group is no handler's error."""
    handlers = Handlers(KeyboardInterrupt())
    address = unix_address(tmp_path)
    ended_by: list[BaseException] = []
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_streams, handlers.registry, [address])
            with trio.fail_after(LIMIT_S), suppress(UnavailableError):
                async with open_connection([address], timeout_s=LIMIT_S) as connection:
                    request = filesystem_pb2.ReadLinkRequest(inode=1)
                    async with trio.open_nursery() as calls:
                        calls.start_soon(partial(connection.call, SLOW, request, timeout_s=LIMIT_S))
                        await handlers.entered.wait()
                        calls.cancel_scope.cancel()
                    await trio.sleep_forever()
    except BaseExceptionGroup as group:
        found, _ = group.split(KeyboardInterrupt)
        ended_by += [found] if found is not None else []
    assert len(ended_by) == 1
