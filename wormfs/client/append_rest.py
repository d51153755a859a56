"""Whether more of one appending write(2) may follow: the kernel sends a long one in pieces.

A piece ends where the kernel's pages do, unless it is the last one. Between two pieces the kernel holds
its lock of the inode, so on this mount nothing else is appended; another mount is kept out by the
write lease, which is therefore not given back before the rest came. That no rest comes cannot be
known at once when a write(2) ends on a page border by chance: then a recall waits for a moment.
"""

import math

import trio

PAGE_BYTES = 4096
"""The smallest page there is: with larger ones, fewer pieces end where more may follow."""
REQUEST_STEP_BYTES = 128 << 10
"""The kernel's largest WRITE is a multiple of this: a page aligned one of another length is the last."""
REST_WAIT_S = 0.2
"""A rest follows its piece within a millisecond, later only on an overloaded host."""
REST_WAIT_MAX_S = 5.0
"""For all pieces together: far below what the master allows for a recall."""


def rest_may_follow(offset_bytes: int, length_bytes: int) -> bool:
    """Whether a WRITE at the kernel's `offset_bytes` may be a piece that is not the last one."""
    if (offset_bytes + length_bytes) % PAGE_BYTES:
        return False
    return offset_bytes % PAGE_BYTES != 0 or length_bytes % REQUEST_STEP_BYTES == 0


class AppendRest:
    """What may follow the append that one inode saw last; at most one, for the kernel locks the inode."""

    def __init__(self) -> None:
        self._handle: object = None  # an open file, told from others by identity
        self._offset_bytes = 0  # as the kernel counts, which may not know the file's true end
        self._until_s = 0.0
        self._changed = trio.Event()

    @property
    def expected(self) -> bool:
        """Whether a rest may still come, or is being taken."""
        return self._handle is not None and trio.current_time() < self._until_s

    def is_rest(self, handle: object, offset_bytes: int) -> bool:
        """Whether an append at the kernel's `offset_bytes` is the rest; another one ends the wait for it."""
        if self._handle is not handle:
            return False
        if self._offset_bytes != offset_bytes:
            self.end()
            return False
        self._until_s = math.inf  # until it is taken
        return True

    def taken(self, handle: object, offset_bytes: int, length_bytes: int) -> None:
        """An append was taken; the lock is held."""
        self.end()
        if rest_may_follow(offset_bytes, length_bytes):
            self._handle = handle
            self._offset_bytes = offset_bytes + length_bytes
            self._until_s = trio.current_time() + REST_WAIT_S

    def end(self, handle: object = None) -> None:
        """Nothing more follows; of `handle`, if given."""
        if handle is None or self._handle is handle:
            self._handle = None
            self._changed.set()
            self._changed = trio.Event()

    async def wait_ended(self) -> None:
        """Wait until no rest is expected, at most REST_WAIT_MAX_S; nothing is taken for one afterwards."""
        with trio.move_on_after(REST_WAIT_MAX_S):
            while self.expected:
                with trio.move_on_at(self._until_s):
                    await self._changed.wait()
        self.end()
