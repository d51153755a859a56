"""How pyfuse3's workers wait for the FUSE device: with fewer system calls and switches than by themselves.

pyfuse3 takes a trio.Lock and waits with trio.lowlevel.wait_readable before each request it reads:
two passes of trio's scheduler, an epoll_ctl and an epoll_wait, also when requests are queued already.
Under load that is a sixth of all the mount computes. So its module gets this lock and this wait:

- a request that is there is read at once, without a switch, for up to TURN_S at a stretch;
- who lets go of the lock wakes at most one worker, and may be first to have it again: a worker whose
  handler did not wait goes on by itself, and the one woken reads while a handler waits.
"""

import select
from collections import deque
from time import perf_counter
from types import TracebackType
from typing import Any

import outcome
import pyfuse3
import trio

TURN_S = 0.001
"""So long requests are read before other tasks, those with answers among them, have their turn."""


class TurnLock:
    """A lock that may be taken out of turn; only for workers that are all alike. Cancellation is kept."""

    def __init__(self) -> None:
        self._held = False
        self._waking = False  # somebody was woken, and has not looked yet
        self._waiting: deque[trio.lowlevel.Task] = deque()

    async def __aenter__(self) -> None:
        park = self._waiting.append
        while self._held:
            task = trio.lowlevel.current_task()
            park(task)

            def abort(_: object, task: trio.lowlevel.Task = task) -> trio.lowlevel.Abort:
                self._waiting.remove(task)
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
            self._waking = False
            park = self._waiting.appendleft  # woken in vain, it comes first again
        self._held = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held = False
        if self._waiting and not self._waking:
            self._waking = True
            trio.lowlevel.reschedule(self._waiting.popleft(), outcome.Value(None))


class _Lowlevel:
    """trio.lowlevel, but for wait_readable."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._polled = -1
        self._turn_began = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    async def wait_readable(self, descriptor: int) -> None:
        """Raises as trio's."""
        if descriptor != self._polled:
            self._poll = select.poll()
            self._poll.register(descriptor, select.POLLIN)
            self._polled = descriptor
        if perf_counter() - self._turn_began < TURN_S and self._poll.poll(0):
            return
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            self._turn_began = perf_counter()
            # Asked again: a request goes with its caller, if that is killed, and pyfuse3 would then
            # stop the whole process in a read(2) that blocks, until some other request comes.
            if self._poll.poll(0):
                return


class _Trio:
    """trio, but for Lock and lowlevel.wait_readable."""

    Lock = TurnLock

    def __init__(self) -> None:
        self.lowlevel = _Lowlevel()

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


def install() -> None:
    """Have pyfuse3 wait so in this process. Before its first `main`."""
    pyfuse3.trio = _Trio()  # type: ignore[attr-defined]
