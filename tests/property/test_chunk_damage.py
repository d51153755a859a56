"""Bytes flipped, cut, swapped and moved anywhere in a chunk file: right bytes or a WormError."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sampling import rounds
from wormfs.codec.checksums import block_checksums, verify_blocks
from wormfs.codec.chunk_format import ChunkHeader, check_identity, pack_header, parse_header
from wormfs.core.errors import WormError

CLUSTER = "c" * 36
Damage = tuple[str, int, int, int]


def make_chunk(length: int, stripe_id: int) -> tuple[ChunkHeader, bytes]:
    data = random.Random(stripe_id).randbytes(length)
    header = ChunkHeader(
        cluster_id=CLUSTER,
        file=9,
        stripe_id=stripe_id,
        stripe_index=0,
        stripe_size_bytes=4 << 20,
        chunk_index=1,
        k=2,
        m=1,
        codec=2,
        stripe_length_bytes=2 * length,
        chunk_length_bytes=length,
        checksums=block_checksums(data),
    )
    return header, data


def apply(image: bytes, other: bytes, damages: list[Damage]) -> bytes:
    changed = bytearray(image)
    for kind, where, length, value in damages:
        if not changed:
            break
        start = where % len(changed)
        end = min(len(changed), start + length)
        if kind == "flip":
            changed[start] ^= value
        elif kind == "cut":
            del changed[start:]
        elif kind == "remove":
            del changed[start:end]
        elif kind == "overwrite":
            changed[start:end] = random.Random(value).randbytes(end - start)
        elif kind == "zero":
            changed[start:end] = bytes(end - start)
        elif kind == "swap":
            target = (where * 7 + value) % len(changed)
            changed[start], changed[target] = changed[target], changed[start]
        elif kind == "other":  # a piece of another chunk's file, at its own place
            changed[start:end] = other[start:end].ljust(end - start, b"\0")
    return bytes(changed)


damages = st.lists(
    st.tuples(
        st.sampled_from(["flip", "flip", "cut", "remove", "overwrite", "zero", "swap", "other"]),
        st.one_of(st.integers(0, 4096), st.integers(0, 1 << 20)),
        st.integers(1, 5000),
        st.integers(1, 255),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.long
@settings(max_examples=rounds(50, 1000), deadline=None)
@given(damages, st.sampled_from([64, 70_016, 200_000]))
def test_damage_is_repaired_or_told(damages: list[Damage], length: int) -> None:
    header, data = make_chunk(length, 1)
    other_header, other_data = make_chunk(length, 2)
    image = apply(pack_header(header) + data, pack_header(other_header) + other_data, damages)
    try:
        parsed = parse_header(image).header
        check_identity(parsed, header.key, CLUSTER)
        found = image[parsed.header_bytes :][: parsed.chunk_length_bytes]
        verify_blocks(found, parsed.checksums)
    except WormError:
        return
    assert parsed == header
    assert found == data


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=9000), st.binary(max_size=64).map(lambda b: b * 200)))
def test_any_bytes_are_no_header(noise: bytes) -> None:
    try:
        parse_header(noise)
    except WormError:
        return
    raise AssertionError("noise was taken for a header")


def test_every_single_flipped_byte_of_a_chunk_is_caught_or_repaired(tmp_path: Path) -> None:
    header, data = make_chunk(640, 3)
    image = pack_header(header) + data
    for position in [*range(130), *range(130, len(image), 37)]:
        changed = bytearray(image)
        changed[position] ^= 1 << (position % 8)
        try:
            parsed = parse_header(changed).header
            verify_blocks(changed[4096:], parsed.checksums)
        except WormError:
            assert position >= 4096
            continue
        assert parsed == header
        assert position < 4096
