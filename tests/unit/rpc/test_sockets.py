"""What is asked of the kernel for every connection."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from wormfs.rpc.sockets import dial, listen

pytestmark = pytest.mark.timeout(20)


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[list[socket.socket]]:
    """Both ends of a connection: the one dialed, the one accepted."""
    listener = await listen(address)
    ends: list[socket.socket] = []
    try:
        ends.append(await dial(listener.address))
        ends.append(await listener.accept())
        yield ends
    finally:
        for end in ends:
            trio.lowlevel.notify_closing(end)
            end.close()
        listener.close()


async def test_both_ends_find_out_within_eleven_seconds_that_the_other_machine_is_gone() -> None:
    """While nothing is under way by probes, else by what is not acknowledged; nobody else would tell."""
    async with connected("127.0.0.1:0") as ends:
        for end in ends:
            assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            idle_s, interval_s, probes = (
                end.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert (idle_s, idle_s + interval_s * probes) == (5, 11)
            assert probes > 1  # one lost packet ends no connection
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_both_ends_never_block_and_send_at_once(kind: str, tmp_path: Path) -> None:
    async with connected("127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/s") as ends:
        for end in ends:
            assert not end.getblocking()
            if kind == "tcp":
                assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
