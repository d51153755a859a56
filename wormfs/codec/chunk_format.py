"""The chunk file: header blocks of 4,096 bytes, then the chunk's data.

docs/on-disk-format.md describes it field by field. A header block is 3,056 protected bytes
(prefix with magic, version and CRC32; then content), 16 zero bytes and 1,024 bytes of
Reed-Solomon parity (header_parity.py). Chunks up to ONE_BLOCK_CHUNK_MAX_BYTES (5.8 MiB) have
one block; the checksums of longer ones, which only policies with huge chunks or narrow stripes
of them have, go on in more.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from wormfs.codec import header_parity
from wormfs.codec.buffers import Buffer, length_of
from wormfs.codec.checksums import CHECKSUM_BYTES, checksum_count
from wormfs.core.errors import ChunkCorruptError, ChunkSizeError, InvalidError, WrongChunkError
from wormfs.core.limits import CHECKSUM_BLOCK_BYTES, STRIPE_SIZE_MAX_BYTES
from wormfs.core.types import ChunkKey, Codec

HEADER_BYTES: Final = 4096
"""One header block; the whole header of all but the longest chunks."""
FORMAT_VERSION: Final = 1
MAGIC: Final = b"WormFSck"

CLUSTER_ID_MAX_BYTES: Final = 40

_PREFIX = struct.Struct(">8sHBBI")
"""Magic, version, this block's number, count of blocks, CRC32 of the other protected bytes."""
_CRC_OFFSET: Final = 12
_FIELDS = struct.Struct(f">B{CLUSTER_ID_MAX_BYTES}sQQQIIIBBBBI")
"""Length of and cluster id, file, stripe id, stripe index, stripe size, stripe length, chunk length,
chunk index, k, m, codec, count of checksums."""
_CHAIN = struct.Struct(">I")
"""In each later block: the CRC32 of the first, which binds them together."""

_CONTENT_BYTES: Final = header_parity.PROTECTED_BYTES - _PREFIX.size
_CHECKSUMS_IN_FIRST: Final = (_CONTENT_BYTES - _FIELDS.size) // CHECKSUM_BYTES
_CHECKSUMS_IN_LATER: Final = (_CONTENT_BYTES - _CHAIN.size) // CHECKSUM_BYTES
_PARITY_OFFSET: Final = HEADER_BYTES - header_parity.PARITY_BYTES

ONE_BLOCK_CHUNK_MAX_BYTES: Final = _CHECKSUMS_IN_FIRST * CHECKSUM_BLOCK_BYTES
CHUNK_LENGTH_MAX_BYTES: Final = STRIPE_SIZE_MAX_BYTES


@dataclass(frozen=True, slots=True)
class ChunkHeader:
    """All that is known of a chunk without any metadata: enough to piece files together."""

    cluster_id: str
    file: int
    stripe_id: int
    stripe_index: int
    stripe_size_bytes: int  # file bytes that one stripe covers
    chunk_index: int
    k: int
    m: int
    codec: int
    stripe_length_bytes: int  # bytes of the file that were encoded in this stripe
    chunk_length_bytes: int  # data in this file, padding included
    checksums: bytes  # XXH3-64, big endian, for each 16 KiB
    version: int = FORMAT_VERSION

    @property
    def key(self) -> ChunkKey:
        """The chunk's name."""
        return ChunkKey(self.file, self.stripe_id, self.chunk_index)

    @property
    def header_bytes(self) -> int:
        """Offset of the data in the chunk file."""
        return header_bytes_for(self.chunk_length_bytes)


@dataclass(frozen=True, slots=True)
class ParsedHeader:
    """A header read back, and how many of its bytes had to be repaired."""

    header: ChunkHeader
    repaired_bytes: int


def _blocks_for(checksums: int) -> int:
    """Number of header blocks that so many checksums take."""
    return 1 + -(-max(0, checksums - _CHECKSUMS_IN_FIRST) // _CHECKSUMS_IN_LATER)


def header_bytes_for(chunk_length_bytes: int) -> int:
    """Size of the header of a chunk of that length: 4,096, more beyond ONE_BLOCK_CHUNK_MAX_BYTES."""
    return HEADER_BYTES * _blocks_for(checksum_count(chunk_length_bytes))


HEADER_MAX_BYTES: Final = header_bytes_for(CHUNK_LENGTH_MAX_BYTES)


def check_header(header: ChunkHeader) -> None:
    """Raise InvalidError (a field out of bounds) or ChunkSizeError (lengths that do not fit together)."""
    if not 1 <= len(header.cluster_id.encode()) <= CLUSTER_ID_MAX_BYTES:
        raise InvalidError(f"cluster id must be 1 to {CLUSTER_ID_MAX_BYTES} bytes: {header.cluster_id!r}")
    if header.k < 1 or not 0 <= header.chunk_index < header.k + header.m <= 255 or header.m < 0:
        raise InvalidError(f"no chunk {header.chunk_index} in a {header.k}+{header.m} stripe")
    if header.codec not in (Codec.ZFEC, Codec.ISAL_CAUCHY):
        raise InvalidError(f"unknown codec number {header.codec}")
    for value in (header.file, header.stripe_id, header.stripe_index):
        if not 0 <= value < 1 << 64:
            raise InvalidError(f"not an unsigned 64-bit number: {value}")
    if header.version != FORMAT_VERSION:
        raise InvalidError(f"cannot write chunk format version {header.version}")
    length = header.chunk_length_bytes
    if not 0 <= length <= CHUNK_LENGTH_MAX_BYTES:
        raise ChunkSizeError(f"chunk of {length} bytes, at most {CHUNK_LENGTH_MAX_BYTES} can be stored")
    if not 0 <= header.stripe_length_bytes <= header.k * length:
        raise ChunkSizeError(f"stripe of {header.stripe_length_bytes} bytes in {header.k} chunks of {length}")
    if not 0 <= header.stripe_size_bytes < 1 << 32:
        raise ChunkSizeError(f"stripe size of {header.stripe_size_bytes} bytes")
    if len(header.checksums) != CHECKSUM_BYTES * checksum_count(length):
        raise ChunkSizeError(f"{len(header.checksums)} bytes of checksums for {length} bytes of data")


def check_identity(header: ChunkHeader, key: ChunkKey, cluster_id: str) -> None:
    """Raise WrongChunkError unless `header` is that of chunk `key` of cluster `cluster_id`."""
    if header.cluster_id != cluster_id:
        raise WrongChunkError(f"chunk of cluster {header.cluster_id!r}, this is cluster {cluster_id!r}")
    if header.file != key.file or header.stripe_id != key.stripe_id or header.chunk_index != key.index:
        raise WrongChunkError(
            f"chunk {header.chunk_index} of stripe {header.stripe_id:x} of file {header.file:x} lies where"
            f" chunk {key.index} of stripe {key.stripe_id:x} of file {key.file:x} belongs"
        )


def pack_header(header: ChunkHeader) -> bytes:
    """Return the header's block or blocks, `header.header_bytes` long. Raises as check_header()."""
    check_header(header)
    cluster_id = header.cluster_id.encode()
    fields = _FIELDS.pack(
        len(cluster_id),
        cluster_id,
        header.file,
        header.stripe_id,
        header.stripe_index,
        header.stripe_size_bytes,
        header.stripe_length_bytes,
        header.chunk_length_bytes,
        header.chunk_index,
        header.k,
        header.m,
        header.codec,
        len(header.checksums) // CHECKSUM_BYTES,
    )
    in_first, *in_later = _cut_checksums(header.checksums)
    count = 1 + len(in_later)
    first = _pack_block(0, count, fields + in_first)
    chain = first[_CRC_OFFSET : _CRC_OFFSET + _CHAIN.size]
    later = (_pack_block(number, count, chain + part) for number, part in enumerate(in_later, 1))
    return b"".join((first, *later))


def _cut_checksums(checksums: bytes) -> list[bytes]:
    """Each header block's share of the checksums."""
    step = _CHECKSUMS_IN_LATER * CHECKSUM_BYTES
    first = _CHECKSUMS_IN_FIRST * CHECKSUM_BYTES
    later = [checksums[start : start + step] for start in range(first, len(checksums), step)]
    return [checksums[:first], *later]


def _pack_block(number: int, count: int, content: bytes) -> bytes:
    prefix = _PREFIX.pack(MAGIC, FORMAT_VERSION, number, count, 0)
    padded = content.ljust(_CONTENT_BYTES, b"\0")
    crc = zlib.crc32(padded, zlib.crc32(prefix[:_CRC_OFFSET]))
    protected = prefix[:_CRC_OFFSET] + crc.to_bytes(4, "big") + padded
    parity = header_parity.parity_of(protected, _PREFIX.size + len(content))
    return b"".join((protected, bytes(_PARITY_OFFSET - header_parity.PROTECTED_BYTES), parity))


def parse_header(blocks: Buffer) -> ParsedHeader:
    """Read a header from the start of a chunk file: HEADER_BYTES, or HEADER_MAX_BYTES for longer chunks.

    More bytes than the header may be given. The CRC32 is tried first; the slow repair runs
    only when it does not match. Raises ChunkCorruptError for anything that is not a sound or
    repairable header, whatever its bytes.
    """
    view = memoryview(blocks).cast("B")
    first, crc, repaired = _open_block(view[:HEADER_BYTES])
    _, version, number, count, _ = _PREFIX.unpack_from(first)
    if version != FORMAT_VERSION or number != 0 or count < 1:
        raise ChunkCorruptError(f"chunk header of unknown version {version}, block {number} of {count}")
    shares = [first[_PREFIX.size + _FIELDS.size :][: _CHECKSUMS_IN_FIRST * CHECKSUM_BYTES]]
    for later in range(1, count):
        share, repaired_later = _open_later(view[later * HEADER_BYTES :][:HEADER_BYTES], later, count, crc)
        repaired += repaired_later
        shares.append(share)
    header = _parse_fields(first, b"".join(shares))
    if count != _blocks_for(checksum_count(header.chunk_length_bytes)):
        raise ChunkCorruptError(f"{count} header blocks for a chunk of {header.chunk_length_bytes} bytes")
    return ParsedHeader(header, repaired)


def _open_later(block: memoryview, number: int, count: int, first_crc: int) -> tuple[bytes, int]:
    """Return the checksums' part of a block behind the first, and how many bytes were repaired."""
    protected, _, repaired = _open_block(block)
    expected = (MAGIC, FORMAT_VERSION, number, count)
    if _PREFIX.unpack_from(protected)[:4] != expected or (
        _CHAIN.unpack_from(protected, _PREFIX.size)[0] != first_crc
    ):
        raise ChunkCorruptError(f"header block {number} belongs to another chunk")
    start = _PREFIX.size + _CHAIN.size
    return protected[start : start + _CHECKSUMS_IN_LATER * CHECKSUM_BYTES], repaired


def _parse_fields(first: bytes, checksums: bytes) -> ChunkHeader:
    """The header from the first block and all blocks' checksums, zeros behind them."""
    (
        id_length,
        cluster_id,
        file,
        stripe_id,
        stripe_index,
        stripe_size,
        stripe_length,
        chunk_length,
        chunk_index,
        k,
        m,
        codec,
        checksums_count,
    ) = _FIELDS.unpack_from(first, _PREFIX.size)
    if id_length > CLUSTER_ID_MAX_BYTES:
        raise ChunkCorruptError(f"chunk header makes no sense: cluster id of {id_length} bytes")
    try:
        header = ChunkHeader(
            cluster_id=cluster_id[:id_length].decode(),
            file=file,
            stripe_id=stripe_id,
            stripe_index=stripe_index,
            stripe_size_bytes=stripe_size,
            chunk_index=chunk_index,
            k=k,
            m=m,
            codec=codec,
            stripe_length_bytes=stripe_length,
            chunk_length_bytes=chunk_length,
            checksums=checksums[: checksums_count * CHECKSUM_BYTES],
        )
        check_header(header)
    except (UnicodeDecodeError, InvalidError, ChunkSizeError) as error:
        raise ChunkCorruptError(f"chunk header makes no sense: {error}") from None
    return header


def _open_block(block: memoryview) -> tuple[bytes, int, int]:
    """Return the block's protected bytes, its CRC and how many bytes were repaired."""
    if length_of(block) < HEADER_BYTES:
        raise ChunkCorruptError(f"chunk header cut short: {length_of(block)} of {HEADER_BYTES} bytes")
    protected = bytes(block[: header_parity.PROTECTED_BYTES])
    repaired = 0
    crc = _crc_if_sound(protected)
    if crc is None:
        protected, repaired = header_parity.repair(protected, block[_PARITY_OFFSET:])
        crc = _crc_if_sound(protected)
        if crc is None:
            raise ChunkCorruptError("chunk header damaged beyond repair: its CRC32 is wrong")
    return protected, crc, repaired


def _crc_if_sound(protected: bytes) -> int | None:
    if not protected.startswith(MAGIC):
        return None
    stored = int.from_bytes(protected[_CRC_OFFSET : _PREFIX.size], "big")
    crc = zlib.crc32(memoryview(protected)[_PREFIX.size :], zlib.crc32(protected[:_CRC_OFFSET]))
    return stored if crc == stored else None
