"""Frames that are made only when they are sent: where they stand in the queue, and what they hold."""

import socket
from collections.abc import AsyncIterator

import pytest
import trio

from wormfs.core.errors import UnavailableError
from wormfs.rpc.frames import KIND_PUSH, KIND_REPLY, pack_frame
from wormfs.rpc.link import FrameLink

TIMEOUT_S = 10.0


@pytest.fixture
async def ends() -> AsyncIterator[tuple[FrameLink, FrameLink]]:
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
    links = FrameLink(ours), FrameLink(theirs)
    yield links
    for link in links:
        link.close()


def push(text: str) -> bytes:
    return pack_frame(KIND_PUSH, 1, 0, 0, text.encode(), 0)


def reply(text: str) -> bytes:
    return pack_frame(KIND_REPLY, 0, 1, 0, text.encode(), 0)


async def received(link: FrameLink, count: int) -> list[str]:
    with trio.fail_after(TIMEOUT_S):
        return [(await link.receive()).message.decode() for _ in range(count)]


async def test_it_keeps_its_place_and_is_made_when_sent(ends: tuple[FrameLink, FrameLink]) -> None:
    ours, theirs = ends
    told = ["early"]
    ours.enqueue(reply("before"))
    ours.enqueue_unmade(lambda: push(" ".join(told)))
    ours.enqueue(reply("behind"))
    told.append("late")
    assert ours.flush()
    assert await received(theirs, 3) == ["before", "early late", "behind"]
    assert ours.queued_bytes == 0


async def test_a_frame_that_could_leave_at_once_waits_its_turn_behind_it(
    ends: tuple[FrameLink, FrameLink],
) -> None:
    ours, theirs = ends
    ours.enqueue_unmade(lambda: push("first"))
    ours.send(reply("second"), now=True)
    assert ours.flush()
    assert await received(theirs, 2) == ["first", "second"]


async def test_each_is_made_once_though_the_socket_takes_a_part(ends: tuple[FrameLink, FrameLink]) -> None:
    ours, theirs = ends
    made = []

    def make() -> bytes:
        made.append(1)
        return push("x" * 3_000_000)

    ours.enqueue_unmade(make)
    assert not ours.flush()
    ours.enqueue_unmade(make)
    got: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.write_queued)
        got += await received(theirs, 2)
        nursery.cancel_scope.cancel()
    assert [len(text) for text in got] == [3_000_000] * 2
    assert len(made) == 2


async def test_on_a_lost_connection_none_is_made(ends: tuple[FrameLink, FrameLink]) -> None:
    ours, _ = ends

    def make() -> bytes:
        raise AssertionError("made for nobody")

    ours.enqueue_unmade(make)
    ours.close()
    assert ours.flush()
    with pytest.raises(UnavailableError, match="was closed"):
        ours.enqueue_unmade(make)
