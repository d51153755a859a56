"""Where requests queue that need a lease of an inode which others hold."""

from contextlib import AsyncExitStack

import trio


class Gates:
    """FIFO locks of contended inodes; they exist only while someone waits on a recall."""

    def __init__(self) -> None:
        self._locks: dict[int, tuple[trio.Lock, list[int]]] = {}

    def __bool__(self) -> bool:
        return bool(self._locks)

    def closed(self, inode: int) -> bool:
        """Whether somebody waits there, or is waited for."""
        return inode in self._locks

    async def enter(self, inode: int, stack: AsyncExitStack) -> None:
        """Hold the inode's lock until `stack` unwinds."""
        lock, users = self._locks.setdefault(inode, (trio.Lock(), [0]))
        users[0] += 1
        stack.callback(self._leave, inode, users)
        await stack.enter_async_context(lock)

    def _leave(self, inode: int, users: list[int]) -> None:
        users[0] -= 1
        if not users[0]:
            del self._locks[inode]
