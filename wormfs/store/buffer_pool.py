"""Page-aligned buffers that are used again and again.

The first touch of a fresh page costs about 12 us on a virtual machine, so a fresh 1 MiB buffer
costs more than writing it to disk. Every buffer has head room before its data, where the store
puts the chunk's header: header and data then leave in one O_DIRECT write.
"""

import mmap
import threading
from typing import Final

from wormfs.codec.chunk_format import CHUNK_LENGTH_MAX_BYTES, HEADER_MAX_BYTES
from wormfs.core.errors import TooLargeError

PAGE_BYTES: Final = 4096
HEAD_ROOM_BYTES: Final = HEADER_MAX_BYTES
_CLASS_MIN_BYTES: Final = 64 * 1024
IDLE_MAX_DEFAULT_BYTES: Final = 64 << 20
IDLE_KEPT_DEFAULT_BYTES: Final = 8 << 20


def round_up(length_bytes: int) -> int:
    """Round up to whole pages, the unit of O_DIRECT."""
    return (length_bytes + PAGE_BYTES - 1) & -PAGE_BYTES


class ChunkBuffer:
    """A buffer of the length asked for; `data` is its memory. Release it once, when nothing reads it."""

    __slots__ = ("_memory", "_pool", "data", "length_bytes")

    def __init__(self, pool: "BufferPool", memory: memoryview, length_bytes: int) -> None:
        self._pool: BufferPool | None = pool
        self._memory = memory
        self.length_bytes = length_bytes
        self.data = memory[HEAD_ROOM_BYTES : HEAD_ROOM_BYTES + length_bytes]

    def region(self, head_bytes: int, length_bytes: int) -> memoryview:
        """Return `head_bytes` of head room followed by `length_bytes` of data memory.

        The data part may pass the buffer's length up to the next page border: padding of
        O_DIRECT, its bytes are undefined.
        """
        return self._memory[HEAD_ROOM_BYTES - head_bytes : HEAD_ROOM_BYTES + length_bytes]

    def shorten(self, length_bytes: int) -> None:
        """Make `data` shorter than it is."""
        self.data = self.data[:length_bytes]
        self.length_bytes = len(self.data)

    def release(self) -> None:
        """Give the memory back to the pool; a second call does nothing."""
        pool, self._pool = self._pool, None
        if pool is not None:
            self.data.release()
            pool.take_back(self._memory)

    def disown(self) -> None:
        """Keep the memory out of the pool for good: a thread that was given up may still use it."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.forget(self._memory)


class BufferPool:
    """Buffers by size class (powers of two from 64 KiB). Safe to use from any thread.

    Idle memory is bounded by `idle_max_bytes`; memory in use is not, callers bound that.
    """

    def __init__(self, *, idle_max_bytes: int = IDLE_MAX_DEFAULT_BYTES) -> None:
        self._idle_max_bytes = idle_max_bytes
        self._lock = threading.Lock()
        self._idle: dict[int, list[memoryview]] = {}  # by size; the size used last comes last
        self.idle_bytes = 0
        self._idle_low_bytes = 0  # the least that was idle since the last trim
        self.used_bytes = 0

    def acquire(self, length_bytes: int) -> ChunkBuffer:
        """Return a buffer whose `data` has `length_bytes` of undefined content.

        Raises TooLargeError beyond the longest chunk.
        """
        if not 0 <= length_bytes <= CHUNK_LENGTH_MAX_BYTES:
            raise TooLargeError(f"no buffer of {length_bytes} bytes: at most {CHUNK_LENGTH_MAX_BYTES}")
        size = _CLASS_MIN_BYTES
        while size < length_bytes:
            size *= 2
        size += HEAD_ROOM_BYTES
        with self._lock:
            idle = self._idle.pop(size, None)
            if idle is None:
                idle = []
            self._idle[size] = idle
            self.used_bytes += size
            if idle:
                self.idle_bytes -= size
                self._idle_low_bytes = min(self._idle_low_bytes, self.idle_bytes)
                return ChunkBuffer(self, idle.pop(), length_bytes)
        return ChunkBuffer(self, memoryview(mmap.mmap(-1, size)), length_bytes)

    def take_back(self, memory: memoryview) -> None:
        """For ChunkBuffer only: the memory is idle again."""
        size = len(memory)
        dropped: list[memoryview] = []  # unmapped when the lock is free again
        with self._lock:
            self.used_bytes -= size
            self.idle_bytes += size
            self._idle[size].append(memory)
            self._shrink(self._idle_max_bytes, dropped)

    def trim(self, keep_bytes: int = IDLE_KEPT_DEFAULT_BYTES) -> None:
        """Free the memory that stayed idle since the last trim, but keep `keep_bytes` of it."""
        dropped: list[memoryview] = []
        with self._lock:
            busy_bytes = self.idle_bytes - self._idle_low_bytes
            self._shrink(max(keep_bytes, busy_bytes), dropped)
            self._idle_low_bytes = self.idle_bytes

    def _shrink(self, limit_bytes: int, dropped: list[memoryview]) -> None:
        while self.idle_bytes > limit_bytes:
            # The size class that nobody asked for longest gives first.
            crowded = next(buffers for buffers in self._idle.values() if buffers)
            dropped.append(crowded.pop())
            self.idle_bytes -= len(dropped[-1])
        self._idle_low_bytes = min(self._idle_low_bytes, self.idle_bytes)

    def forget(self, memory: memoryview) -> None:
        """For ChunkBuffer only: the memory will not come back."""
        with self._lock:
            self.used_bytes -= len(memory)
