"""Checksums of chunk data: XXH3-64 (xxhash), big endian, one for each 16 KiB block."""

from xxhash import xxh3_64_digest

from wormfs.codec.buffers import Buffer
from wormfs.core.errors import ChunkCorruptError
from wormfs.core.limits import CHECKSUM_BLOCK_BYTES

CHECKSUM_BYTES = 8


def checksum_count(length_bytes: int) -> int:
    """Number of checksums that `length_bytes` of data have; the last block may be short."""
    return -(-length_bytes // CHECKSUM_BLOCK_BYTES)


def block_checksums(data: Buffer) -> bytes:
    """Return the checksums of `data`, 8 bytes for each 16 KiB, in order."""
    view = memoryview(data).cast("B")
    return b"".join(
        [
            xxh3_64_digest(view[start : start + CHECKSUM_BLOCK_BYTES])
            for start in range(0, len(view), CHECKSUM_BLOCK_BYTES)
        ]
    )


def verify_blocks(data: Buffer, checksums: Buffer) -> None:
    """Compare `data` (starting at a block border) with its checksums.

    Raises ChunkCorruptError naming the first block, counted from the start of `data`, that does
    not match, or when there are not as many checksums as blocks.
    """
    found = block_checksums(data)
    if found == checksums:
        return
    expected = bytes(checksums)
    if len(found) != len(expected):
        raise ChunkCorruptError(
            f"{len(found) // CHECKSUM_BYTES} blocks of data but {len(expected)} bytes of checksums"
        )
    for start in range(0, len(found), CHECKSUM_BYTES):
        if found[start : start + CHECKSUM_BYTES] != expected[start : start + CHECKSUM_BYTES]:
            raise ChunkCorruptError(
                f"checksum of block {start // CHECKSUM_BYTES} is wrong:"
                f" {found[start : start + CHECKSUM_BYTES].hex()},"
                f" written as {expected[start : start + CHECKSUM_BYTES].hex()}"
            )
