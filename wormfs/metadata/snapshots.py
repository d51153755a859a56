"""Snapshots: checksummed copies of the SQLite state at one sequence.

File, little endian: 128 bytes header: magic "WORMSNAP", u64 sequence, u64 epoch of that entry,
16 bytes log id, u64 length of the database, 16 bytes xxh3-128 of the database, u32 CRC32 of all
those; zeros; then the SQLite database.
"""

import os
import sqlite3
import struct
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import xxhash

from wormfs.core.errors import DataLossError, DiskError
from wormfs.metadata.members import fsync_folder

HEADER_BYTES = 128
_HEADER = struct.Struct("<8sQQ16sQ16s")
_CRC = struct.Struct("<I")
_MAGIC = b"WORMSNAP"
_PIECE_BYTES = 1 << 20


class SnapshotInfo(NamedTuple):
    """What a snapshot's header says."""

    sequence: int
    epoch: int
    log_id: str
    length_bytes: int
    checksum: bytes


def read_header(path: Path) -> SnapshotInfo:
    """A snapshot's header. DataLossError when it is damaged, OSError when it cannot be read."""
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    (checksum,) = _CRC.unpack_from(head.ljust(HEADER_BYTES, b"\0"), _HEADER.size)
    if len(head) < HEADER_BYTES or crc32(head[: _HEADER.size]) != checksum:
        raise DataLossError(f"{path}: the snapshot's header is damaged")
    magic, sequence, epoch, log_id, length, digest = _HEADER.unpack_from(head)
    if magic != _MAGIC:
        raise DataLossError(f"{path}: not a snapshot")
    return SnapshotInfo(sequence, epoch, log_id.hex(), length, digest)


def verify(path: Path) -> SnapshotInfo:
    """Read a whole snapshot and check it. DataLossError or OSError when it cannot be used."""
    info = read_header(path)
    digest = xxhash.xxh3_128()
    length = 0
    with path.open("rb") as file:
        file.seek(HEADER_BYTES)
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            length += len(piece)
    if length != info.length_bytes or digest.digest() != info.checksum:
        raise DataLossError(f"{path}: the snapshot's checksum does not match")
    return info


def extract(path: Path, database: Path) -> SnapshotInfo:
    """Write the database in a snapshot to a file, checking it. DataLossError when it is damaged."""
    info = verify(path)
    with path.open("rb") as source, database.open("wb") as target:
        source.seek(HEADER_BYTES)
        while piece := source.read(_PIECE_BYTES):
            target.write(piece)
    return info


class Taken(NamedTuple):
    """A snapshot that was made, and the disk folders where it could not be stored."""

    info: SnapshotInfo
    failed: dict[Path, str]


def take(database: Path, folders: Sequence[Path], log_end: Callable[[], int] | None = None) -> Taken:
    """Store a snapshot of the last committed state into each folder, durably. Runs in a thread.

    `folders` are the members' snapshots folders. Reads through a second connection: the writer
    goes on meanwhile. `log_end` answers the last entry of the log that the state must follow: a snapshot
    ahead of it would be taken for the newest metadata at the next start, and is refused.
    Raises sqlite3.Error or DiskError when there is none to be had, DataLossError when it is refused.
    """
    failed: dict[Path, str] = {}
    for folder in folders:
        copy = folder / "snapshot.db"
        try:
            copy.unlink(missing_ok=True)
            with (
                closing(sqlite3.connect(f"file:{_quote(database)}?mode=ro", uri=True)) as source,
                closing(sqlite3.connect(copy)) as target,
            ):
                target.execute("PRAGMA synchronous=OFF")
                source.backup(target)
                head = dict(target.execute("SELECT key, value FROM head").fetchall())
            break
        except OSError as error:
            failed[folder] = str(error)
    else:
        raise DiskError("no metadata disk takes a snapshot")
    try:
        sequence = int(str(head.get("applied", 0)))
        if log_end is not None and sequence > (end := log_end()):
            raise DataLossError(
                f"{database}: the state holds entry {sequence}, the log ends at {end}: nothing is stored. "
                "Restart the node: that makes the state anew"
            )
        return _store(copy, head, [folder for folder in folders if folder not in failed], failed)
    finally:
        for name in ("snapshot.db", "snapshot.db-wal", "snapshot.db-shm", "snapshot.db-journal"):
            with suppress(OSError):
                copy.with_name(name).unlink()


def _quote(path: Path) -> str:
    return str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _store(copy: Path, head: dict[str, object], folders: Sequence[Path], failed: dict[Path, str]) -> Taken:
    digest = xxhash.xxh3_128()
    length = 0
    with copy.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            length += len(piece)
    info = SnapshotInfo(
        int(str(head.get("applied", 0))),
        int(str(head.get("applied_epoch", 0))),
        str(head.get("log_id", "")),
        length,
        digest.digest(),
    )
    packed = _HEADER.pack(
        _MAGIC, info.sequence, info.epoch, bytes.fromhex(info.log_id), info.length_bytes, info.checksum
    )
    packed = (packed + _CRC.pack(crc32(packed))).ljust(HEADER_BYTES, b"\0")
    for folder in folders:
        try:
            _store_one(copy, packed, folder, info.sequence)
        except OSError as error:
            failed[folder] = str(error)
    if len(failed) >= len(folders) + len(failed.keys() - set(folders)):
        raise DiskError(f"no metadata disk takes a snapshot: {next(iter(failed.values()))}")
    return Taken(info, failed)


def _store_one(copy: Path, header: bytes, folder: Path, sequence: int) -> None:
    final = folder / f"{sequence:020d}.snapshot"
    temporary = final.with_name(final.name + ".new")
    with copy.open("rb") as source, temporary.open("wb") as target:
        target.write(header)
        while piece := source.read(_PIECE_BYTES):
            target.write(piece)
        target.flush()
        os.fsync(target.fileno())
    temporary.replace(final)
    fsync_folder(folder)


def copy_snapshot(source: Path, target: Path) -> None:
    """Copy a snapshot file to another member, durably."""
    temporary = target.with_name(target.name + ".new")
    with source.open("rb") as reader, temporary.open("wb") as writer:
        while piece := reader.read(_PIECE_BYTES):
            writer.write(piece)
        writer.flush()
        os.fsync(writer.fileno())
    temporary.replace(target)
    fsync_folder(target.parent)
