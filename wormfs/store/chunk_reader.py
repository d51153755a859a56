"""Reading chunks with every byte checked. Synchronous; called in threads, but for read_soon().

An OpenChunk keeps a chunk's parsed header and its file descriptors, and closes them when the
last reference to it goes: a thread that reads holds one, so the cache may drop an entry
at any time and no descriptor number is ever reused under a read.
"""

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Final

from wormfs.codec.checksums import CHECKSUM_BYTES, verify_blocks
from wormfs.codec.chunk_format import (
    HEADER_BYTES,
    HEADER_MAX_BYTES,
    ONE_BLOCK_CHUNK_MAX_BYTES,
    ChunkHeader,
    check_identity,
    parse_header,
)
from wormfs.core.errors import ChunkCorruptError, ChunkError, ChunkSizeError, InvalidError, NotFoundError
from wormfs.core.limits import CHECKSUM_BLOCK_BYTES
from wormfs.core.types import ChunkKey
from wormfs.store import layout
from wormfs.store.buffer_pool import BufferPool, ChunkBuffer, round_up
from wormfs.store.disk import Disk

DIRECT_READ_MIN_BYTES: Final = 256 * 1024
"""Reads from this length on bypass the page cache: cold they are faster, and big reads are cold."""
INLINE_READ_MAX_BYTES: Final = 128 * 1024
"""Reads up to this length of a cached chunk are tried without a thread."""
PATIENCE_S: Final = 150e-6
"""How long such a read waits for the disk: about what the hop to a thread and back costs."""

_opening = threading.Lock()


@dataclass(slots=True, eq=False)
class ChunkData:
    """Verified bytes of a chunk, whole checksum blocks. Call release() when they have been sent."""

    offset_bytes: int
    checksums: bytes
    data: memoryview
    buffer: ChunkBuffer

    def release(self) -> None:
        """Give the memory back."""
        self.buffer.release()


class OpenChunk:
    """A chunk file with its header read and checked; its maker adopts the descriptor it was read by."""

    __slots__ = ("_direct", "_plain", "header", "path", "repaired_bytes")

    def __init__(self, path: str, header: ChunkHeader, repaired_bytes: int) -> None:
        self.path = path
        self.header = header
        self.repaired_bytes = repaired_bytes
        self._plain = -1
        self._direct = -1

    def __del__(self) -> None:
        for descriptor in (self._plain, self._direct):
            if descriptor >= 0:
                os.close(descriptor)

    def descriptor(self, direct: bool) -> int:
        """Return a descriptor, opened when first needed; nothing waits for the disk.

        Raises OSError, EMFILE for example.
        """
        found = self._direct if direct else self._plain
        if found < 0:
            with _opening:
                found = self._direct if direct else self._plain
                if found < 0:
                    # The file is open the other way; by that number no path is looked up.
                    path = f"/proc/self/fd/{self._plain if direct else self._direct}"
                    found = (_open_direct if direct else _open_plain)(path)
                    self.adopt(found, direct)
        return found

    def adopt(self, descriptor: int, direct: bool) -> None:
        """Take over an open descriptor."""
        if direct:
            self._direct = descriptor
        else:
            self._plain = descriptor


def _open_direct(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)


def _open_plain(path: str) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    # Readahead would fetch blocks nobody asked for; the client reads ahead, over all disks at once.
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    return descriptor


def block_range(chunk_length_bytes: int, offset_bytes: int, length_bytes: int) -> tuple[int, int]:
    """Widen a range to checksum blocks: return its (start, end). Length 0 means to the chunk's end.

    Raises InvalidError when the range starts behind the data.
    """
    if length_bytes < 0 or not 0 <= offset_bytes <= max(0, chunk_length_bytes - 1):
        raise InvalidError(f"range at {offset_bytes} of a chunk of {chunk_length_bytes} bytes")
    end = chunk_length_bytes if not length_bytes else min(chunk_length_bytes, offset_bytes + length_bytes)
    start = offset_bytes - offset_bytes % CHECKSUM_BLOCK_BYTES
    return start, min(chunk_length_bytes, -(-end // CHECKSUM_BLOCK_BYTES) * CHECKSUM_BLOCK_BYTES)


def read_soon(
    chunk: OpenChunk, offset: int, length: int, pool: BufferPool, patience_s: float
) -> ChunkData | None:
    """Read from the kernel's page cache, in the caller's thread; None when that cannot be.

    Linux starts to read from the disk before it answers EAGAIN, so asking again for
    `patience_s` is enough for a fast disk, and dearer than a thread for none.
    """
    header = chunk.header
    start, end = block_range(header.chunk_length_bytes, offset, length)
    wanted = end - start
    if wanted > INLINE_READ_MAX_BYTES:
        return None
    try:
        descriptor = chunk.descriptor(False)
    except OSError:  # shows up in the thread
        return None
    buffer = pool.acquire(wanted)
    views = [buffer.data]
    give_up_at = 0.0
    while True:
        try:
            got = os.preadv(descriptor, views, header.header_bytes + start, os.RWF_NOWAIT)
        except BlockingIOError:
            got = 0
        except OSError:  # EOPNOTSUPP: no such file system; others show up in the thread
            patience_s = got = 0
        if got == wanted:
            return _verified(chunk, buffer, start)
        now = perf_counter()
        if not give_up_at:
            give_up_at = now + patience_s
        if now >= give_up_at:
            buffer.release()
            return None


def read_open(disk: Disk, chunk: OpenChunk, offset: int, length: int, pool: BufferPool) -> ChunkData:
    """Read and verify a range of an open chunk.

    Raises ChunkCorruptError, ChunkSizeError, NotFoundError, InvalidError or DiskError.
    """
    header = chunk.header
    start, end = block_range(header.chunk_length_bytes, offset, length)
    direct = disk.direct and end - start >= DIRECT_READ_MIN_BYTES
    buffer = pool.acquire(end - start)
    try:
        target = buffer.region(0, round_up(end - start)) if direct else buffer.data
        got = _read_fully(chunk.descriptor(direct), target, header.header_bytes + start, end - start)
    except OSError as error:
        buffer.release()
        raise _read_failure(disk, error, chunk.path) from error
    if got < end - start:
        buffer.release()
        raise ChunkSizeError(f"{chunk.path}: cut short at {header.header_bytes + start + got} bytes")
    return _verified(chunk, buffer, start)


def open_chunk(disk: Disk, key: ChunkKey) -> OpenChunk:
    """Open a chunk by its key, read its header and check that it is the one.

    Raises NotFoundError, ChunkCorruptError, ChunkSizeError, WrongChunkError or DiskError.
    """
    path = f"{disk.chunks_path}/{layout.chunk_path(key)}"
    chunk = open_path(disk, path)
    _check(disk, chunk, key)
    return chunk


def open_path(disk: Disk, path: str) -> OpenChunk:
    """Open a chunk file and read its header, whoever's it is. Raises as open_chunk() but WrongChunkError."""
    try:
        descriptor = _open_plain(path)
    except OSError as error:
        raise _read_failure(disk, error, path) from error
    with _owning(disk, descriptor, path) as size:
        return _open_header(descriptor, path, size)


def open_and_read(
    disk: Disk, key: ChunkKey, offset: int, length: int, pool: BufferPool
) -> tuple[OpenChunk, ChunkData]:
    """Open a chunk and read a range. A chunk read whole comes with its header in one read.

    Raises as open_chunk() and read_open().
    """
    disk.require_online()
    path = f"{disk.chunks_path}/{layout.chunk_path(key)}"
    try:
        descriptor = _open_plain(path)
    except OSError as error:
        raise _read_failure(disk, error, path) from error
    with _owning(disk, descriptor, path) as size:
        data_bytes = size - HEADER_BYTES
        # Any range from 0 of a chunk of one checksum block is the whole chunk.
        whole = offset == 0 and (not length or length >= data_bytes or data_bytes <= CHECKSUM_BLOCK_BYTES)
        if whole and 0 < data_bytes <= ONE_BLOCK_CHUNK_MAX_BYTES and length >= 0:
            return _read_whole(disk, key, descriptor, path, data_bytes, pool)
        _read_ahead(descriptor, offset, length or data_bytes, data_bytes)
        chunk = _open_header(descriptor, path, size)
    _check(disk, chunk, key)
    return chunk, read_open(disk, chunk, offset, length, pool)


def _read_ahead(descriptor: int, offset: int, length: int, data_bytes: int) -> None:
    """Let the disk fetch a small range's data while its header is read and checked."""
    if 0 <= offset < data_bytes and 0 < length <= INLINE_READ_MAX_BYTES:
        start, end = block_range(data_bytes, offset, length)
        os.posix_fadvise(descriptor, HEADER_BYTES + start, end - start, os.POSIX_FADV_WILLNEED)


@contextlib.contextmanager
def _owning(disk: Disk, descriptor: int, path: str) -> Iterator[int]:
    """Close the descriptor and translate the error when the body fails; gives the file's size."""
    try:
        yield os.fstat(descriptor).st_size
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError):
            raise _read_failure(disk, error, path) from error
        raise


def _open_header(descriptor: int, path: str, size: int) -> OpenChunk:
    block = os.pread(descriptor, HEADER_BYTES, 0)
    if size > HEADER_BYTES + ONE_BLOCK_CHUNK_MAX_BYTES:
        block += os.pread(descriptor, HEADER_MAX_BYTES - HEADER_BYTES, HEADER_BYTES)
    chunk = _parse(path, block, size)
    chunk.adopt(descriptor, False)
    return chunk


def _read_whole(
    disk: Disk, key: ChunkKey, descriptor: int, path: str, data_bytes: int, pool: BufferPool
) -> tuple[OpenChunk, ChunkData]:
    direct = disk.direct and data_bytes >= DIRECT_READ_MIN_BYTES
    if direct:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_RDONLY | os.O_DIRECT)
    buffer = pool.acquire(data_bytes)
    try:
        region = buffer.region(HEADER_BYTES, round_up(data_bytes) if direct else data_bytes)
        got = _read_fully(descriptor, region, 0, HEADER_BYTES + data_bytes)
        chunk = _parse(path, region[:HEADER_BYTES], got)
        _check(disk, chunk, key)
    except BaseException:
        buffer.release()
        raise
    data = _verified(chunk, buffer, 0)  # releases the buffer when it fails
    chunk.adopt(descriptor, direct)
    return chunk, data


def _read_fully(descriptor: int, target: memoryview, position: int, wanted: int) -> int:
    got = 0
    while got < wanted:
        count = os.preadv(descriptor, [target[got:]], position + got)
        if not count:
            break
        got += count
    return got


def _parse(path: str, block: bytes | memoryview, size: int) -> OpenChunk:
    try:
        parsed = parse_header(block)
        header = parsed.header
        if size != header.header_bytes + header.chunk_length_bytes:
            raise ChunkSizeError(
                f"{size} bytes, its header says {header.header_bytes} + {header.chunk_length_bytes}"
            )
    except ChunkError as error:
        raise type(error)(f"{path}: {error.message}") from None
    return OpenChunk(path, header, parsed.repaired_bytes)


def _check(disk: Disk, chunk: OpenChunk, key: ChunkKey) -> None:
    try:
        check_identity(chunk.header, key, disk.cluster_id)
    except ChunkError as error:
        raise type(error)(f"{chunk.path}: {error.message}") from None


def _verified(chunk: OpenChunk, buffer: ChunkBuffer, start: int) -> ChunkData:
    first = start // CHECKSUM_BLOCK_BYTES * CHECKSUM_BYTES
    count = -(-buffer.length_bytes // CHECKSUM_BLOCK_BYTES) * CHECKSUM_BYTES
    checksums = chunk.header.checksums[first : first + count]
    try:
        verify_blocks(buffer.data, checksums)
    except ChunkCorruptError as error:
        buffer.release()
        raise ChunkCorruptError(f"{chunk.path}: data from {start}: {error.message}") from None
    return ChunkData(start, checksums, buffer.data, buffer)


def _read_failure(disk: Disk, error: OSError, path: str) -> Exception:
    if isinstance(error, FileNotFoundError) and disk.is_there():
        return NotFoundError(f"{path}: no such chunk")
    return disk.failure(error, f"reading {path}")
