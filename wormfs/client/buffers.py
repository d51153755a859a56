"""Reused memory for stripes: fresh pages cost more than anything else on the data path."""

from collections import defaultdict


class BytesPool:
    """Keeps released bytearrays by length, up to `limit_bytes` idle in all."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._idle_bytes = 0
        self._idle: defaultdict[int, list[bytearray]] = defaultdict(list)

    def acquire(self, length_bytes: int) -> bytearray:
        """Return a bytearray of exactly that length; its content is arbitrary."""
        idle = self._idle[length_bytes]
        if idle:
            self._idle_bytes -= length_bytes
            return idle.pop()
        return bytearray(length_bytes)

    def release(self, buffer: bytearray) -> None:
        """Take a buffer back. The caller holds no view of it that it will still use."""
        if self._idle_bytes + len(buffer) <= self._limit_bytes:
            self._idle_bytes += len(buffer)
            self._idle[len(buffer)].append(buffer)
