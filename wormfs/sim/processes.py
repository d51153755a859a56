"""Which simulated process a task belongs to, and processes that stand still.

A stopped process (SIGSTOP, a paused virtual machine) runs none of its tasks, whatever happens to
them: its timers end and its messages come while it does not look. Trio has no such thing, so the
one method through which every task becomes runnable is wrapped: tasks of a stopped process are
taken off the run queue and come back when it goes on.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import trio
from trio._core import _run as trio_run


class Process:
    """Something that runs tasks of its own, and can be stopped and die."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_dead = False
        self.is_stopped = False
        self._waiting: list[tuple[Any, trio.lowlevel.Task]] = []

    def stop(self) -> None:
        """Run none of its tasks from now on."""
        self.is_stopped = True

    def go_on(self) -> None:
        """Run them again, all that became due meanwhile at once."""
        self.is_stopped = False
        waiting, self._waiting = self._waiting, []
        for runner, task in waiting:
            runner.runq.append(task)

    def hold(self, runner: Any, task: trio.lowlevel.Task) -> None:
        """Keep a task that would run now."""
        self._waiting.append((runner, task))


_OWNER: ContextVar[Process | None] = ContextVar("wormfs_sim_process", default=None)


@contextmanager
def owned_by(process: Process) -> Iterator[None]:
    """Tasks started within belong to the process."""
    token = _OWNER.set(process)
    try:
        yield
    finally:
        _OWNER.reset(token)


@contextmanager
def stoppable() -> Iterator[None]:
    """Let stop() have its effect on trio runs within."""
    original: Callable[..., None] = trio_run.Runner.reschedule

    def reschedule(runner: Any, task: trio.lowlevel.Task, *args: Any) -> None:
        original(runner, task, *args)
        process = task.context.get(_OWNER)
        if process is not None and process.is_stopped:
            process.hold(runner, runner.runq.pop())

    trio_run.Runner.reschedule = reschedule  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        trio_run.Runner.reschedule = original  # type: ignore[method-assign]
