"""The lock and the wait that pyfuse3's workers are given."""

import os
import socket

import pyfuse3
import pytest
import trio
import trio.testing

from fuse_client import turns
from fuse_client.turns import TURN_S, TurnLock

pytestmark = pytest.mark.timeout(20)


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def take_turn(
    lock: TurnLock, had: list[str], name: str, *, task_status: trio.TaskStatus[trio.CancelScope]
) -> None:
    """Wait for the lock in a scope that can be cancelled, and note that it was had."""
    with trio.CancelScope() as scope:
        task_status.started(scope)
        async with lock:
            await trio.lowlevel.checkpoint()
            had.append(name)


async def test_one_holds_it_and_nobody_is_left_waiting() -> None:
    """Workers that hold it for a while each, more of them than turns at a time."""
    lock = TurnLock()
    inside = 0
    done = 0

    async def work(number: int) -> None:
        nonlocal inside, done
        for turn in range(20):
            async with lock:
                inside += 1
                assert inside == 1
                for _ in range((number + turn) % 3):
                    await trio.lowlevel.checkpoint()
                inside -= 1
            for _ in range(number % 4):
                await trio.lowlevel.checkpoint()
            done += 1

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(work, number)
    assert done == 200


async def test_a_free_lock_is_had_without_a_switch() -> None:
    lock = TurnLock()
    switched = trio.Event()

    async def other() -> None:
        switched.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(3):
            async with lock:
                pass
        assert not switched.is_set()


async def test_who_lets_go_may_be_first_to_have_it_again_and_wakes_one() -> None:
    lock = TurnLock()
    order: list[str] = []

    async def wait(name: str) -> None:
        async with lock:
            order.append(name)

    async with trio.open_nursery() as nursery:
        async with lock:
            nursery.start_soon(wait, "first")
            await settle()
            nursery.start_soon(wait, "second")
            await settle()
        async with lock:
            order.append("again")
            await settle()
        assert order == ["again"]
    assert order == ["again", "first", "second"]


async def test_only_one_is_woken_to_look() -> None:
    lock = TurnLock()

    async def wait() -> None:
        async with lock:
            pass

    async with trio.open_nursery() as nursery:
        async with lock:
            for _ in range(5):
                nursery.start_soon(wait)
            await settle()
        for _ in range(5):
            async with lock:
                pass
        assert trio.lowlevel.current_statistics().tasks_runnable == 1


@pytest.mark.parametrize("woken", [False, True])
async def test_one_that_is_cancelled_leaves_its_turn_to_the_next(woken: bool) -> None:
    lock = TurnLock()
    had: list[str] = []

    async with trio.open_nursery() as nursery:
        async with lock:
            first = await nursery.start(take_turn, lock, had, "first")
            await settle()
            await nursery.start(take_turn, lock, had, "second")
            await settle()
            if not woken:
                first.cancel()
                await settle()
        if woken:
            first.cancel()
    assert had == ["second"]


async def test_one_woken_in_vain_and_cancelled_is_not_missed() -> None:
    lock = TurnLock()
    had: list[str] = []

    async with trio.open_nursery() as nursery:
        async with lock:
            first = await nursery.start(take_turn, lock, had, "first")
            await settle()
            await nursery.start(take_turn, lock, had, "second")
            await settle()
        async with lock:  # the first was woken
            first.cancel()
            await settle()
    assert had == ["second"]


async def test_what_is_there_is_read_without_a_switch_for_a_while() -> None:
    ours, theirs = socket.socketpair()
    lowlevel = turns._Lowlevel()
    others = 0

    async def count() -> None:
        nonlocal others
        while True:
            await trio.lowlevel.checkpoint()
            others += 1

    with ours, theirs:
        theirs.send(b"x")
        await lowlevel.wait_readable(ours.fileno())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            await trio.lowlevel.checkpoint()
            begun_s = trio.current_time()
            waits = 0
            while others < 3:  # never, if others had no turn
                await lowlevel.wait_readable(ours.fileno())
                waits += 1
            assert trio.current_time() - begun_s >= TURN_S
            assert waits > 3 * others
            nursery.cancel_scope.cancel()


async def test_what_is_not_there_is_waited_for() -> None:
    ours, theirs = socket.socketpair()
    lowlevel = turns._Lowlevel()
    with ours, theirs:
        for _ in range(2):
            with trio.move_on_after(0.05) as waiting:
                await lowlevel.wait_readable(ours.fileno())
            assert waiting.cancelled_caught
            theirs.send(b"x")
            await lowlevel.wait_readable(ours.fileno())
            assert os.read(ours.fileno(), 1) == b"x"


class TakesBack(trio.abc.Instrument):
    """Takes what a task was woken for before the task looks, once."""

    def __init__(self, ours: socket.socket) -> None:
        self.waiting: trio.lowlevel.Task | None = None
        self.taken = b""
        self._ours = ours

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        if task is self.waiting and not self.taken:
            self.taken = self._ours.recv(1)


async def test_what_is_gone_again_when_it_is_looked_for_is_waited_for() -> None:
    """A request goes with its caller; reading then would block the whole process."""
    ours, theirs = socket.socketpair()
    lowlevel = turns._Lowlevel()
    takes_back = TakesBack(ours)
    ended = trio.Event()

    async def wait() -> None:
        takes_back.waiting = trio.lowlevel.current_task()
        await lowlevel.wait_readable(ours.fileno())
        ended.set()

    with ours, theirs:
        ours.setblocking(False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await settle()
            trio.lowlevel.add_instrument(takes_back)
            theirs.send(b"1")
            with trio.fail_after(5):
                while not takes_back.taken:
                    await trio.lowlevel.checkpoint()
            await settle()
            assert not ended.is_set()
            theirs.send(b"2")
            with trio.fail_after(5):
                await ended.wait()
            trio.lowlevel.remove_instrument(takes_back)
        assert (takes_back.taken, ours.recv(1)) == (b"1", b"2")


async def test_a_wait_ends_when_the_device_is_closed() -> None:
    ours, theirs = socket.socketpair()
    lowlevel = turns._Lowlevel()
    ended = trio.Event()

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await lowlevel.wait_readable(ours.fileno())
        ended.set()

    with ours, theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await settle()
            lowlevel.notify_closing(ours.fileno())
            await ended.wait()


def test_pyfuse3_has_what_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module's own name for trio; a version that has none must be looked at."""
    monkeypatch.setattr(pyfuse3, "trio", trio)  # AttributeError when there is none
    turns.install()
    found = pyfuse3.trio  # type: ignore[attr-defined]
    assert found.Lock is TurnLock
    assert found.lowlevel.wait_readable.__module__ == "fuse_client.turns"
    assert found.open_nursery is trio.open_nursery
    assert found.lowlevel.current_task is trio.lowlevel.current_task
