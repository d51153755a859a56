"""Decoded stripes and single checksum blocks kept for reading, least recently used out first."""

from collections import OrderedDict
from dataclasses import dataclass, field

import trio

from wormfs.client.buffers import BytesPool
from wormfs.core.errors import WormError


@dataclass(slots=True)
class CachedStripe:
    """One stripe's content (extents laid over), being fetched until `ready` is set."""

    map_version: int
    ready: trio.Event = field(default_factory=trio.Event)
    buffer: bytearray | None = None
    error: WormError | None = None


class StripeCache:
    """Stripes by (inode, index); their buffers return to the pool when they fall out.

    A view of a cached buffer is valid until its holder's next await: that is how long the data
    it shows is sure to stay.
    """

    def __init__(self, pool: BytesPool, limit_bytes: int, block_limit_bytes: int) -> None:
        self._pool = pool
        self._limit_bytes = limit_bytes
        self._used_bytes = 0
        self._stripes: OrderedDict[tuple[int, int], CachedStripe] = OrderedDict()
        self._block_limit_bytes = block_limit_bytes
        self._block_bytes = 0
        self._blocks: OrderedDict[tuple[int, int, int], bytearray] = OrderedDict()

    def get(self, inode: int, index: int, map_version: int) -> CachedStripe | None:
        """Return the entry of that version, fetched or being fetched."""
        entry = self._stripes.get((inode, index))
        if entry is None or entry.map_version != map_version:
            return None
        self._stripes.move_to_end((inode, index))
        return entry

    def begin(self, inode: int, index: int, map_version: int) -> CachedStripe:
        """Announce a fetch; the caller ends it with `fill` or `fail`."""
        self.drop(inode, index)
        entry = CachedStripe(map_version)
        self._stripes[inode, index] = entry
        return entry

    def fill(self, key: tuple[int, int], entry: CachedStripe, buffer: bytearray) -> None:
        """The fetch succeeded; the cache owns `buffer` now."""
        entry.buffer = buffer
        entry.ready.set()
        if self._stripes.get(key) is not entry:  # dropped meanwhile: its waiters still read it now
            return
        self._used_bytes += len(buffer)
        while self._used_bytes > self._limit_bytes and len(self._stripes) > 1:
            oldest = next(iter(self._stripes))
            if oldest == key:
                break
            self.drop(*oldest)

    def fail(self, key: tuple[int, int], entry: CachedStripe, error: WormError | None) -> None:
        """The fetch failed (error) or was cancelled (None): waiters try for themselves."""
        entry.error = error
        if self._stripes.get(key) is entry:
            del self._stripes[key]
        entry.ready.set()

    def drop(self, inode: int, index: int) -> None:
        """Forget a stripe."""
        entry = self._stripes.pop((inode, index), None)
        if entry is not None and entry.buffer is not None:
            buffer, entry.buffer = entry.buffer, None  # whoever was woken for it looks again
            self._used_bytes -= len(buffer)
            self._pool.release(buffer)

    def drop_inode(self, inode: int) -> None:
        """Forget all stripes of an inode."""
        for key in [key for key in self._stripes if key[0] == inode]:
            self.drop(*key)

    def get_block(self, stripe_id: int, chunk: int, block: int) -> bytearray | None:
        """Return a cached checksum block; stripes never change, so neither do their blocks."""
        key = (stripe_id, chunk, block)
        data = self._blocks.get(key)
        if data is not None:
            self._blocks.move_to_end(key)
        return data

    def put_block(self, stripe_id: int, chunk: int, block: int, data: bytearray) -> None:
        """Keep a checksum block."""
        key = (stripe_id, chunk, block)
        if key not in self._blocks:
            self._blocks[key] = data
            self._block_bytes += len(data)
        while self._block_bytes > self._block_limit_bytes:
            _, old = self._blocks.popitem(last=False)
            self._block_bytes -= len(old)
