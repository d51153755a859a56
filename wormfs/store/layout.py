"""Where things lie on a disk: pure functions between chunk keys and paths.

    disk/wormfs-disk.json                                     whose disk this is
    disk/chunks/{folder:03d}/{file:016x}/{stripe_id:016x}.{index:02d}
    disk/tmp/                                                 chunks being written
    disk/metadata/                                            the metadata engine's

A chunk's path follows from its key alone, so the store keeps no index: there is none to lose.
"""

import re
from typing import Final

from xxhash import xxh3_64_intdigest

from wormfs.core.errors import InvalidError
from wormfs.core.types import ChunkKey

IDENTITY_NAME: Final = "wormfs-disk.json"
CHUNKS_NAME: Final = "chunks"
TEMPORARY_NAME: Final = "tmp"
FOLDER_COUNT: Final = 1000

_FOLDER = re.compile(r"\d{3}")
_FILE = re.compile(r"[0-9a-f]{16}")
_CHUNK = re.compile(r"([0-9a-f]{16})\.(\d{2,3})")


def folder_name(file: int) -> str:
    """Top-level folder of a file: XXH3-64 of its number (8 bytes, big endian) modulo 1,000."""
    return f"{xxh3_64_intdigest(file.to_bytes(8, 'big')) % FOLDER_COUNT:03d}"


def file_folder(file: int) -> str:
    """Folder of a file's chunks, below the disk's `chunks` folder."""
    return f"{folder_name(file)}/{file:016x}"


def chunk_name(key: ChunkKey) -> str:
    """Name of a chunk file in its file's folder."""
    return f"{key.stripe_id:016x}.{key.index:02d}"


def chunk_path(key: ChunkKey) -> str:
    """Path of a chunk file below the disk's `chunks` folder."""
    return f"{file_folder(key.file)}/{chunk_name(key)}"


def is_folder_name(name: str) -> bool:
    """Tell whether `name` is one of the 1,000 top-level folders."""
    return _FOLDER.fullmatch(name) is not None


def is_file_name(name: str) -> bool:
    """Tell whether `name` is a file's folder."""
    return _FILE.fullmatch(name) is not None


def parse_chunk_name(file_name: str, name: str) -> ChunkKey | None:
    """Return the key of chunk file `name` in the folder `file_name`, None for anything else."""
    match = _CHUNK.fullmatch(name)
    if match is None or not is_file_name(file_name):
        return None
    key = ChunkKey(int(file_name, 16), int(match[1], 16), int(match[2]))
    return key if chunk_name(key) == name else None


def pack_cursor(key: ChunkKey) -> bytes:
    """Return the listing position behind chunk `key`."""
    return chunk_path(key).encode()


def parse_cursor(cursor: bytes) -> tuple[str, str, str]:
    """Return (top-level folder, file folder, chunk name) of a cursor; empty strings for the start.

    Raises InvalidError for anything pack_cursor() does not make.
    """
    if not cursor:
        return "", "", ""
    try:
        folder, file, name = cursor.decode("ascii").split("/")
    except ValueError:
        folder = file = name = ""
    if not is_folder_name(folder) or parse_chunk_name(file, name) is None:
        raise InvalidError("not a chunk listing's cursor; pass `next` of the page before, or nothing")
    return folder, file, name
