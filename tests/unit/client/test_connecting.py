"""Calls to a node that is gone without a word: one try to connect is for all that wait for it."""

from typing import Any, NoReturn

import pytest
import trio
import trio.testing

from wormfs.client import peers
from wormfs.client.options import ClientOptions
from wormfs.core.errors import UnavailableError
from wormfs.rpc.methods import CHUNKS_GET_CHUNK
from wormfs.rpc.v1 import chunk_pb2

pytestmark = pytest.mark.timeout(10)
CALLS = 10


async def test_calls_to_a_dead_node_do_not_queue_up(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    options = ClientOptions()
    tries = 0

    async def connect(*_: Any, timeout_s: float) -> NoReturn:
        nonlocal tries
        tries += 1
        await trio.sleep(timeout_s)
        raise UnavailableError(f"no connection within {timeout_s:g} s")

    monkeypatch.setattr(peers, "connect", connect)
    failed = 0

    async def call(peer: peers.Peer) -> None:
        nonlocal failed
        with pytest.raises(UnavailableError, match="no connection"):
            await peer.call(CHUNKS_GET_CHUNK, chunk_pb2.GetChunkRequest(), timeout_s=4.0)
        failed += 1

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        peer = peers.Peer(["10.0.0.1:1"], nursery, options)
        for _ in range(CALLS):
            nursery.start_soon(call, peer)
    assert (failed, tries) == (CALLS, 1)
    assert trio.current_time() - began == pytest.approx(options.connect_s)
    with pytest.raises(UnavailableError):
        await peer.connection()
    assert tries == 2, "who comes later tries anew"
