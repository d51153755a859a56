"""All chunks on a node's disks: the trio face of the store.

Puts that arrive while a disk syncs share its next round (chunk_writer.py), so one thread hop
and one set of syncs serve many chunks. There is no index: a chunk's path follows from its key,
and every header says whose it is. What is cached (open descriptors with parsed headers) can
be dropped at any time.
"""

import logging
import resource
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Final, TypeVar

import trio

from wormfs.codec.chunk_format import ChunkHeader
from wormfs.core.errors import (
    ChunkSizeError,
    DiskError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    WormError,
    WrongClusterError,
)
from wormfs.core.limits import LISTING_PAGE_DEFAULT
from wormfs.core.types import ChunkKey
from wormfs.store import chunk_listing, chunk_reader, chunk_writer, layout
from wormfs.store.buffer_pool import BufferPool, ChunkBuffer
from wormfs.store.chunk_listing import ChunkPage
from wormfs.store.chunk_reader import PATIENCE_S, ChunkData, OpenChunk
from wormfs.store.chunk_writer import ChunkWriter, Put
from wormfs.store.disk import Disk, DiskStatus

logger = logging.getLogger(__name__)

_ROUND_CHUNKS_MAX: Final = 64
_DESCRIPTOR_SHARE: Final = 4
"""The cache keeps at most one chunk (two descriptors) for so many the process may open."""
_SKIP_MAX: Final = 1024
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """What a node may tune."""

    health_interval_s: float = 2.0
    probe_every: int = 15  # health checks between two test writes
    disk_timeout_s: float = 30.0  # a disk that does not answer for so long is taken offline
    cached_chunks: int = 1024  # up to two descriptors each; fewer where the process may open few
    readers_per_disk: int = 4  # threads; a hanging disk can hold no more


@dataclass(slots=True, eq=False)
class _Waiting:
    put: Put
    done: trio.Event = field(default_factory=trio.Event)
    started: bool = False


class _Lane:
    """One disk's queue of puts and its threads."""

    def __init__(self, disk: Disk, options: StoreOptions) -> None:
        self.disk = disk
        self.writer = ChunkWriter(disk)
        self.waiting: list[_Waiting] = []
        self.wake = trio.Event()
        self.committers = trio.CapacityLimiter(1)  # rounds of one disk never overlap
        self.readers = trio.CapacityLimiter(options.readers_per_disk)
        self.others = trio.CapacityLimiter(2)  # deletes, lists: never behind reads
        self.checks = trio.CapacityLimiter(1)  # health checks: waiting for others' work is not a hanging disk
        self.deletes = 0  # count of delete calls: tells a read that its chunk may be gone
        self._skip = 0  # so many reads are not waited for
        self._skip_next = 1

    def read_soon(self, chunk: OpenChunk, offset: int, length: int, pool: BufferPool) -> ChunkData | None:
        """As chunk_reader.read_soon(), with patience for a disk as long as it is fast.

        Each time that the patience was in vain, twice as many reads go without.
        """
        patience_s = 0.0 if self._skip else PATIENCE_S
        began_s = perf_counter()
        found = chunk_reader.read_soon(chunk, offset, length, pool, patience_s)
        if self._skip:
            self._skip -= 1
        elif found is not None:
            self._skip_next = 1
        elif perf_counter() - began_s >= patience_s:
            self._skip = self._skip_next
            self._skip_next = min(2 * self._skip_next, _SKIP_MAX)
        return found

    def fail_waiting(self, error: WormError) -> None:
        waiting, self.waiting = self.waiting, []
        for each in waiting:
            each.put.error = error
            each.done.set()


class ChunkStore:
    """Chunks of one cluster on the disks given, by disk number. Puts need run() to be running."""

    def __init__(
        self,
        disks: Iterable[Disk] = (),
        *,
        cluster_id: str,
        pool: BufferPool | None = None,
        options: StoreOptions | None = None,
    ) -> None:
        self.cluster_id = cluster_id
        self.pool = pool or BufferPool()
        self._options = options or StoreOptions()
        soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._opened_max = max(1, min(self._options.cached_chunks, soft_limit // _DESCRIPTOR_SHARE))
        self._lanes: dict[int, _Lane] = {}
        self._opened: OrderedDict[tuple[int, ChunkKey], OpenChunk] = OrderedDict()
        self._nursery: trio.Nursery | None = None
        for disk in disks:
            self.add_disk(disk)

    def add_disk(self, disk: Disk) -> None:
        """Serve one more disk, assigned to this cluster and numbered.

        Raises WrongClusterError, or InvalidError when its number is 0 or taken.
        """
        if disk.cluster_id != self.cluster_id:
            raise WrongClusterError(
                f"{disk.path}: disk of cluster {disk.cluster_id!r}, not {self.cluster_id!r}"
            )
        if disk.number < 1 or disk.number in self._lanes:
            raise InvalidError(f"{disk.path}: disk number {disk.number} is not free")
        lane = self._lanes[disk.number] = _Lane(disk, self._options)
        if self._nursery is not None:
            self._nursery.start_soon(self._commit_rounds, lane)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write rounds and watch the disks until cancelled; puts still waiting then fail."""
        if self._nursery is not None:
            raise InvalidError("the chunk store is running already")
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for lane in self._lanes.values():
                    nursery.start_soon(self._commit_rounds, lane)
                nursery.start_soon(self._watch_disks)
                task_status.started()
        finally:
            self._nursery = None
            for lane in self._lanes.values():
                lane.fail_waiting(UnavailableError("the node is stopping"))
            self._opened.clear()

    def close(self) -> None:
        """Let go of the disks; after run() has ended."""
        self._opened.clear()
        for lane in self._lanes.values():
            lane.disk.close()

    # --- disks

    def disks(self) -> list[DiskStatus]:
        """Return every disk as last seen, by number."""
        return [self._lanes[number].disk.status() for number in sorted(self._lanes)]

    def chunk_path(self, disk: int, chunk: ChunkKey) -> Path:
        """Return where a chunk lies, or would. Raises NotFoundError when there is no such disk."""
        return Path(self._lane(disk).disk.chunks_path, layout.chunk_path(chunk))

    async def check_disks(self, *, probe: bool = True) -> None:
        """Check every disk now; a failed or silent one is taken offline."""
        async with trio.open_nursery() as nursery:
            for lane in self._lanes.values():
                nursery.start_soon(self._check_disk, lane, probe)

    def serves(self, disk: int) -> bool:
        """Whether the disk is one of this node's."""
        return disk in self._lanes

    # --- chunks

    async def put(self, disk: int, header: ChunkHeader, buffer: ChunkBuffer) -> None:
        """Store a chunk; it is durable on return. A repeated put of the same chunk is harmless.

        The buffer stays the caller's, who must not change it meanwhile. When cancelled, the
        chunk may or may not be stored.

        Raises NotFoundError (no such disk), DiskError, NoSpaceError, WrongClusterError,
        ChunkSizeError, ChunkCorruptError (the data does not match the header's checksums),
        InvalidError or UnavailableError (stopping).
        """
        lane = self._lane(disk)
        lane.disk.require_online()
        if header.cluster_id != self.cluster_id:
            raise WrongClusterError(f"chunk of cluster {header.cluster_id!r}, not {self.cluster_id!r}")
        if buffer.length_bytes != header.chunk_length_bytes:
            raise ChunkSizeError(f"{buffer.length_bytes} bytes for a chunk of {header.chunk_length_bytes}")
        if self._nursery is None:
            raise UnavailableError("the chunk store is not running")
        waiting = _Waiting(Put(header, buffer))
        lane.waiting.append(waiting)
        lane.wake.set()
        try:
            await waiting.done.wait()
        except trio.Cancelled:
            if waiting.started and not waiting.done.is_set():
                buffer.disown()  # the round's thread may still write from it
            elif waiting in lane.waiting:
                lane.waiting.remove(waiting)
            raise
        self._forget(disk, header.key)
        if waiting.put.error is not None:
            raise waiting.put.error

    async def get(
        self, disk: int, chunk: ChunkKey, offset_bytes: int = 0, length_bytes: int = 0
    ) -> ChunkData:
        """Read a range of a chunk's data, widened to whole 16 KiB blocks; length 0: to the end.

        Every byte was checked. The caller must release() the answer. What the kernel has cached,
        or a fast disk has soon, is answered without a checkpoint.

        Raises NotFoundError, ChunkCorruptError, ChunkSizeError, WrongChunkError, DiskError or
        InvalidError (the range starts behind the data).
        """
        lane = self._lane(disk)
        lane.disk.require_online()
        name = (disk, chunk)
        opened = self._opened.get(name)
        if opened is None:
            deletes = lane.deletes
            found, data = await self._in_reader(
                lane, chunk_reader.open_and_read, lane.disk, chunk, offset_bytes, length_bytes, self.pool
            )
            if lane.deletes == deletes:
                self._remember(name, found)
            return data
        self._opened.move_to_end(name)
        soon = lane.read_soon(opened, offset_bytes, length_bytes, self.pool)
        if soon is not None:
            return soon
        return await self._in_reader(
            lane, chunk_reader.read_open, lane.disk, opened, offset_bytes, length_bytes, self.pool
        )

    async def delete(self, disk: int, chunks: Sequence[ChunkKey]) -> list[ChunkKey]:
        """Delete chunks durably; return those that failed (all of them when the disk is offline).

        Absent chunks count as deleted. Raises NotFoundError when there is no such disk.
        """
        lane = self._lane(disk)
        for key in chunks:
            self._forget(disk, key)
        lane.deletes += 1
        try:
            return await trio.to_thread.run_sync(
                chunk_writer.delete_chunks,
                lane.disk,
                chunks,
                limiter=lane.others,
                abandon_on_cancel=True,
            )
        finally:
            lane.deletes += 1

    async def list(self, disk: int, after: bytes = b"", limit: int = 0, verify: bool = False) -> ChunkPage:
        """Return a page of the disk's chunks in path order, behind cursor `after`; limit 0: 1,000.

        Raises NotFoundError (no such disk), InvalidError (bad cursor) or DiskError.
        """
        lane = self._lane(disk)
        if not after:  # what is listed is compared with what can be read: from the disk, too
            self._forget_disk(disk)
        return await trio.to_thread.run_sync(
            chunk_listing.list_page,
            lane.disk,
            after,
            limit or LISTING_PAGE_DEFAULT,
            verify,
            self.pool,
            limiter=lane.others,
            abandon_on_cancel=True,
        )

    def forget_all(self) -> None:
        """Drop every cached descriptor and header."""
        self._opened.clear()

    # --- inside

    def _lane(self, disk: int) -> _Lane:
        lane = self._lanes.get(disk)
        if lane is None:
            raise NotFoundError(f"this node has no disk {disk}")
        return lane

    async def _in_reader(self, lane: _Lane, function: Callable[..., _Result], *arguments: object) -> _Result:
        # Abandoning is safe: the thread holds the descriptors' owner, and its buffer is then freed
        # by reference count instead of going back to the pool.
        return await trio.to_thread.run_sync(
            function, *arguments, limiter=lane.readers, abandon_on_cancel=True
        )

    def _remember(self, name: tuple[int, ChunkKey], opened: OpenChunk) -> None:
        self._opened[name] = opened
        while len(self._opened) > self._opened_max:
            self._opened.popitem(last=False)

    def _forget(self, disk: int, key: ChunkKey) -> None:
        self._opened.pop((disk, key), None)

    def _forget_disk(self, disk: int) -> None:
        for name in [name for name in self._opened if name[0] == disk]:
            del self._opened[name]

    async def _commit_rounds(self, lane: _Lane) -> None:
        while True:
            await lane.wake.wait()
            if not lane.disk.online:
                lane.fail_waiting(DiskError(f"{lane.disk.path}: offline: {lane.disk.problem}"))
            if not lane.waiting:
                lane.wake = trio.Event()
                continue
            taken, lane.waiting = lane.waiting[:_ROUND_CHUNKS_MAX], lane.waiting[_ROUND_CHUNKS_MAX:]
            for each in taken:
                each.started = True
            await self._commit_round(lane, taken)

    async def _commit_round(self, lane: _Lane, taken: Sequence[_Waiting]) -> None:
        # A started round is finished even when the node stops, but not waited for without end.
        with trio.CancelScope(shield=True), trio.move_on_after(self._options.disk_timeout_s) as patience:
            await trio.to_thread.run_sync(
                lane.writer.write_round,
                [each.put for each in taken],
                limiter=lane.committers,
                abandon_on_cancel=True,
            )
        if patience.cancelled_caught:
            lane.disk.fail(f"no answer to a write within {self._options.disk_timeout_s:g} s")
            for each in taken:
                each.put.buffer.disown()
                each.put.error = DiskError(f"{lane.disk.path}: offline: {lane.disk.problem}")
        for each in taken:
            each.done.set()

    async def _watch_disks(self) -> None:
        count = 0
        while True:
            await trio.sleep(self._options.health_interval_s)  # first, for open() just looked at them
            count += 1
            rare = count % self._options.probe_every == 0
            await self.check_disks(probe=rare)
            if rare:
                self.pool.trim()

    async def _check_disk(self, lane: _Lane, probe: bool) -> None:
        with trio.move_on_after(self._options.disk_timeout_s) as patience:
            await trio.to_thread.run_sync(
                lambda: lane.disk.check(probe=probe), limiter=lane.checks, abandon_on_cancel=True
            )
        if patience.cancelled_caught:
            lane.disk.fail(f"no answer within {self._options.disk_timeout_s:g} s")
        if not lane.disk.online:
            self._forget_disk(lane.disk.number)
