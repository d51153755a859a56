"""Ending without cutting work short: what is under way is counted, nothing new is begun."""

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from wormfs.core.errors import UnavailableError


class Drain:
    """Counts the work in flight of one node."""

    def __init__(self) -> None:
        self.stopping = False
        self._count = 0
        self._idle = trio.Event()

    @contextmanager
    def work(self) -> Iterator[None]:
        """Something that a stop should wait for. Raises UnavailableError once the node is stopping."""
        if self.stopping:
            raise UnavailableError("the node is stopping")
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1
            if self.stopping and not self._count:
                self._idle.set()

    async def finish(self, patience_s: float) -> None:
        """Refuse new work and wait until what is under way has ended, at most `patience_s`."""
        self.stopping = True
        if self._count:
            with trio.move_on_after(patience_s):
                await self._idle.wait()
