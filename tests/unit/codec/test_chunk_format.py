"""Checksums, headers and their parity: exact bytes, limits and repairs."""

import random
import zlib

import pytest
import reedsolo

from wormfs.codec import galois, header_parity
from wormfs.codec.checksums import block_checksums, checksum_count, verify_blocks
from wormfs.codec.chunk_format import (
    CHUNK_LENGTH_MAX_BYTES,
    HEADER_BYTES,
    HEADER_MAX_BYTES,
    ONE_BLOCK_CHUNK_MAX_BYTES,
    ChunkHeader,
    ParsedHeader,
    check_identity,
    header_bytes_for,
    pack_header,
    parse_header,
)
from wormfs.core.errors import ChunkCorruptError, ChunkSizeError, InvalidError, WrongChunkError
from wormfs.core.limits import CHUNK_SIZE_MAX_BYTES
from wormfs.core.types import ChunkKey, Codec

CLUSTER = "6f1c0f34-9d8c-4b7b-8a51-3a4f2e6d5c4b"


def make_header(length: int = 1 << 20, **changes: object) -> ChunkHeader:
    fields: dict[str, object] = {
        "cluster_id": CLUSTER,
        "file": 77,
        "stripe_id": (1 << 64) - 1,
        "stripe_index": 5,
        "stripe_size_bytes": 32 << 20,
        "chunk_index": 5,
        "k": 4,
        "m": 2,
        "codec": Codec.ISAL_CAUCHY,
        "stripe_length_bytes": 4 * length,
        "chunk_length_bytes": length,
        "checksums": random.Random(length).randbytes(8 * checksum_count(length)),
    }
    return ChunkHeader(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "length",
    [
        0,
        64,
        16384,
        16448,
        1 << 20,
        4 << 20,
        16 << 20,
        ONE_BLOCK_CHUNK_MAX_BYTES,
        ONE_BLOCK_CHUNK_MAX_BYTES + 64,
        CHUNK_LENGTH_MAX_BYTES,
    ],
)
def test_headers_come_back_as_they_went(length: int) -> None:
    header = make_header(length)
    packed = pack_header(header)
    assert len(packed) == header.header_bytes == header_bytes_for(length)
    assert parse_header(packed) == ParsedHeader(header, 0)
    assert parse_header(memoryview(packed + b"data")).header == header


def test_the_largest_configurable_chunk_fits_one_block() -> None:
    assert header_bytes_for(CHUNK_SIZE_MAX_BYTES) == HEADER_BYTES
    assert header_bytes_for(ONE_BLOCK_CHUNK_MAX_BYTES + 1) == 2 * HEADER_BYTES
    assert header_bytes_for(CHUNK_LENGTH_MAX_BYTES) == HEADER_MAX_BYTES == 6 * HEADER_BYTES


def test_the_format_is_what_the_document_says() -> None:
    """Bytes written by version 1 stay readable for ever: this is one such header's start."""
    packed = pack_header(make_header(64, checksums=bytes(range(8))))
    assert packed[:12] == b"WormFSck" + bytes([0, 1, 0, 1])
    assert packed[16] == 36
    assert packed[17:53] == CLUSTER.encode()
    assert packed[57:65] == (77).to_bytes(8, "big")
    assert packed[101:109] == bytes(range(8))
    assert not any(packed[109:3072])
    assert header_parity.PROTECTED_BYTES == 3056


def test_parity_is_that_of_reedsolo() -> None:
    codec = reedsolo.RSCodec(64, nsize=255)
    source = random.Random(3)
    for used in (0, 1, 117, 230, 1000, 3056):
        block = source.randbytes(used) + bytes(3056 - used)
        parity = header_parity.parity_of(block, used)
        for codeword in range(16):
            expected = bytes(codec.encode(block[codeword::16]))[191:]
            assert parity[codeword::16] == expected, (used, codeword)


@pytest.mark.parametrize(
    "length", [1 << 20, pytest.param(CHUNK_LENGTH_MAX_BYTES, marks=pytest.mark.unsampled)]
)
def test_a_lost_sector_is_repaired_wherever_it_is(length: int) -> None:
    header = make_header(length)
    packed = pack_header(header)
    source = random.Random(4)
    for sector in range(0, len(packed), 512):
        damaged = bytearray(packed)
        damaged[sector : sector + 512] = source.randbytes(512)
        parsed = parse_header(damaged)
        assert parsed.header == header
        assert parsed.repaired_bytes <= 512


def test_thirty_two_scattered_bytes_are_repaired_and_counted() -> None:
    header = make_header()
    source = random.Random(5)
    damaged = bytearray(pack_header(header))
    for position in [0, *source.sample(range(1, 300), 31)]:
        damaged[position] ^= source.randrange(1, 256)
    assert parse_header(damaged) == ParsedHeader(header, 32)


def test_more_damage_is_told_not_guessed() -> None:
    packed = bytearray(pack_header(make_header()))
    packed[:1024] = random.Random(6).randbytes(1024)
    with pytest.raises(ChunkCorruptError, match="beyond repair"):
        parse_header(packed)


@pytest.mark.parametrize("length", [0, 1, 4095])
def test_a_short_header_is_corrupt(length: int) -> None:
    with pytest.raises(ChunkCorruptError, match="cut short"):
        parse_header(pack_header(make_header())[:length])


def test_later_blocks_must_be_there_in_order_and_belong_to_the_first() -> None:
    one = pack_header(make_header(CHUNK_LENGTH_MAX_BYTES))
    two = pack_header(make_header(CHUNK_LENGTH_MAX_BYTES, file=78))
    for cut in (HEADER_BYTES, len(one) - 1):
        with pytest.raises(ChunkCorruptError, match="cut short"):
            parse_header(one[:cut])
    with pytest.raises(ChunkCorruptError, match="block 1 belongs to another chunk"):
        parse_header(one[:HEADER_BYTES] + two[HEADER_BYTES:])
    with pytest.raises(ChunkCorruptError, match="block 2 belongs to another chunk"):
        parse_header(one[: 2 * HEADER_BYTES] + one[HEADER_BYTES:])
    with pytest.raises(ChunkCorruptError, match="block 1 of 6"):
        parse_header(one[HEADER_BYTES:])


def reseal(packed: bytes, position: int, value: bytes) -> bytes:
    """Change protected bytes, with CRC and parity made right again: a header of a buggy or newer writer."""
    block = bytearray(packed[:3056])
    block[position : position + len(value)] = value
    block[12:16] = zlib.crc32(block[16:], zlib.crc32(block[:12])).to_bytes(4, "big")
    return bytes(block) + bytes(16) + header_parity.parity_of(block)


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (8, b"\0\2"),  # version
        (10, b"\1"),  # block number
        (11, b"\0"),  # count of blocks
        (11, b"\3"),
        (11, b"\2"),  # two blocks for a short chunk, and no second there
        (16, b"\0"),  # length of the cluster id
        (16, b"\xff"),
        (17, b"\xff\xff"),  # not UTF-8
        (85, b"\xff" * 4),  # stripe length
        (89, b"\0\0\0\0"),  # chunk length
        (89, b"\xff" * 4),
        (93, b"\x06"),  # chunk index
        (94, b"\0"),  # k
        (96, b"\x09"),  # codec
        (97, b"\xff" * 4),  # count of checksums
    ],
)
def test_sealed_nonsense_is_corrupt(position: int, value: bytes) -> None:
    packed = reseal(pack_header(make_header()), position, value)
    with pytest.raises(ChunkCorruptError):
        parse_header(packed)


def test_two_blocks_for_a_short_chunk_are_corrupt() -> None:
    long = pack_header(make_header(ONE_BLOCK_CHUNK_MAX_BYTES + 64))
    first = reseal(pack_header(make_header()), 11, b"\2")
    second = reseal(long[HEADER_BYTES:], 16, first[12:16])
    with pytest.raises(ChunkCorruptError, match=r"makes no sense|2 header blocks"):
        parse_header(first + second)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"cluster_id": ""}, InvalidError),
        ({"cluster_id": "x" * 41}, InvalidError),
        ({"chunk_index": 6}, InvalidError),
        ({"chunk_index": -1}, InvalidError),
        ({"k": 0, "chunk_index": 0}, InvalidError),
        ({"m": -1, "chunk_index": 0}, InvalidError),
        ({"k": 250, "m": 6}, InvalidError),
        ({"codec": 0}, InvalidError),
        ({"file": 1 << 64}, InvalidError),
        ({"stripe_index": -1}, InvalidError),
        ({"version": 2}, InvalidError),
        ({"chunk_length_bytes": CHUNK_LENGTH_MAX_BYTES + 64}, ChunkSizeError),
        ({"chunk_length_bytes": -64}, ChunkSizeError),
        ({"stripe_length_bytes": (4 << 20) + 1}, ChunkSizeError),
        ({"stripe_size_bytes": 1 << 32}, ChunkSizeError),
        ({"checksums": b""}, ChunkSizeError),
    ],
)
def test_headers_out_of_bounds_are_not_written(changes: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        pack_header(make_header(**changes))  # type: ignore[arg-type]


def test_a_chunk_of_another_name_or_cluster_is_the_wrong_one() -> None:
    header = make_header()
    check_identity(header, header.key, CLUSTER)
    for key in (
        ChunkKey(78, header.stripe_id, 5),
        ChunkKey(77, 1, 5),
        ChunkKey(77, header.stripe_id, 4),
    ):
        with pytest.raises(WrongChunkError, match="belongs"):
            check_identity(header, key, CLUSTER)
    with pytest.raises(WrongChunkError, match="cluster"):
        check_identity(header, header.key, "another")


def test_checksums_are_one_for_each_16_kib() -> None:
    data = random.Random(1).randbytes(3 * 16384 + 100)
    sums = block_checksums(data)
    assert len(sums) == 8 * checksum_count(len(data)) == 32
    assert sums[24:] == block_checksums(data[3 * 16384 :])
    assert block_checksums(b"abc").hex() == "78af5f94892f3950"
    verify_blocks(memoryview(data)[16384:], sums[8:])
    verify_blocks(b"", b"")


def test_a_flipped_bit_names_its_block() -> None:
    data = bytearray(3 * 16384)
    sums = block_checksums(data)
    data[2 * 16384 + 7] ^= 4
    with pytest.raises(ChunkCorruptError, match="block 2 "):
        verify_blocks(data, sums)
    with pytest.raises(ChunkCorruptError, match="24 bytes of checksums"):
        verify_blocks(data[:100], sums)


def test_field_arithmetic() -> None:
    assert galois.multiply(0, 7) == galois.multiply(7, 0) == 0
    assert galois.multiply(2, 0x80) == 0x1D
    row = galois.multiply_row(bytes([1, 0]), bytes([5, 6, 7, 8]), 2)
    assert row == bytes([5, 6])
