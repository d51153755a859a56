"""Walking a disk's chunks in path order, one file's folder in memory at a time. Synchronous."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from wormfs.codec.chunk_format import ChunkHeader, check_identity
from wormfs.core.errors import ChunkError, NotFoundError
from wormfs.core.types import ChunkKey
from wormfs.store import layout
from wormfs.store.buffer_pool import BufferPool
from wormfs.store.chunk_reader import open_path, read_open
from wormfs.store.disk import Disk


@dataclass(frozen=True, slots=True)
class ChunkInfo:
    """One chunk file found on a disk. `problem` is empty when it is sound as far as it was read."""

    key: ChunkKey
    length_bytes: int  # of its data; the file's size when the header cannot be read
    path: str
    problem: str
    header: ChunkHeader | None  # None when it cannot be read


@dataclass(frozen=True, slots=True)
class ChunkPage:
    """Chunks in path order, and the cursor of the next page (empty at the end)."""

    chunks: list[ChunkInfo]
    next: bytes


def list_page(disk: Disk, after: bytes, limit: int, verify: bool, pool: BufferPool) -> ChunkPage:
    """Return up to `limit` chunks behind the cursor `after`; with `verify` their data is read too.

    Raises InvalidError for a bad cursor, DiskError.
    """
    disk.require_online()
    chunks: list[ChunkInfo] = []
    for key, path in _walk(disk, after):
        info = _inspect(disk, key, path, verify, pool)
        if info is not None:
            chunks.append(info)
            if len(chunks) >= limit:
                return ChunkPage(chunks, layout.pack_cursor(key))
    return ChunkPage(chunks, b"")


def scan(disk: Disk, *, verify: bool = False) -> Iterator[ChunkInfo]:
    """Yield every chunk of a disk with its header: what is needed to piece files together.

    Raises DiskError. Blocks; call it in a thread or a tool.
    """
    pool = BufferPool()
    disk.require_online()
    for key, path in _walk(disk, b""):
        info = _inspect(disk, key, path, verify, pool)
        if info is not None:
            yield info


def _walk(disk: Disk, after: bytes) -> Iterator[tuple[ChunkKey, str]]:
    after_folder, after_file, after_name = layout.parse_cursor(after)
    for folder in _names(disk, disk.chunks_path):
        if folder < after_folder or not layout.is_folder_name(folder):
            continue
        at_folder = folder == after_folder
        for file in _names(disk, f"{disk.chunks_path}/{folder}"):
            if (at_folder and file < after_file) or not layout.is_file_name(file):
                continue
            at_file = at_folder and file == after_file
            path = f"{disk.chunks_path}/{folder}/{file}"
            for name in _names(disk, path):
                if at_file and name <= after_name:
                    continue
                key = layout.parse_chunk_name(file, name)
                if key is not None:
                    yield key, f"{path}/{name}"


def _names(disk: Disk, path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError as error:
        if disk.is_there() and path != disk.chunks_path:
            return []  # deleted since its parent was read
        raise disk.failure(error, "listing chunks") from error
    except NotADirectoryError:
        return []  # not ours
    except OSError as error:
        raise disk.failure(error, "listing chunks") from error


def _inspect(disk: Disk, key: ChunkKey, path: str, verify: bool, pool: BufferPool) -> ChunkInfo | None:
    header: ChunkHeader | None = None
    problem = ""
    try:
        chunk = open_path(disk, path)
        header = chunk.header
        check_identity(header, key, disk.cluster_id)
        if layout.chunk_path(key) != os.path.relpath(path, disk.chunks_path):
            problem = f"{path}: lies in the wrong folder"
        elif chunk.repaired_bytes:
            problem = f"{path}: {chunk.repaired_bytes} bytes of the header had to be repaired"
        if verify and header.chunk_length_bytes:
            read_open(disk, chunk, 0, 0, pool).release()
    except NotFoundError:
        return None  # deleted meanwhile
    except ChunkError as error:
        problem = error.message
    return ChunkInfo(key, header.chunk_length_bytes if header else _size(path), path, problem, header)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
