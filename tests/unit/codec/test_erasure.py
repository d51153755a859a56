"""Every loss pattern of the usual policies, both codecs, and the bytes against pyeclib's."""

import itertools
import mmap
import random
from collections.abc import Iterator

import pytest
from pyeclib.ec_iface import ECDriver

from wormfs.codec import erasure, isal
from wormfs.codec.buffers import Buffer
from wormfs.codec.erasure import StripeCodec, available_codecs, get_codec
from wormfs.core.errors import ChunkSizeError, InvalidError, TooFewChunksError
from wormfs.core.types import Codec

POLICIES = [(2, 1), (4, 2), (6, 3), (8, 4)]
CODECS = [Codec.ZFEC, Codec.ISAL_CAUCHY]
PYECLIB_HEADER_BYTES = 80


def make_stripe(codec: StripeCodec, length: int, seed: int = 1) -> list[bytes]:
    source = random.Random(seed)
    data = [source.randbytes(length) for _ in range(codec.k)]
    parity = [bytearray(length) for _ in range(codec.m)]
    codec.encode(data, parity)
    return data + [bytes(chunk) for chunk in parity]


def check_pattern(codec: StripeCodec, chunks: list[bytes], kept: tuple[int, ...]) -> None:
    lost = [index for index in range(len(chunks)) if index not in kept]
    out = [bytearray(len(chunks[0])) for _ in lost]
    codec.decode({index: chunks[index] for index in kept}, lost, out)
    assert [bytes(chunk) for chunk in out] == [chunks[index] for index in lost], kept


def test_isal_is_used_where_pyeclib_is_installed() -> None:
    assert available_codecs() == (Codec.ISAL_CAUCHY, Codec.ZFEC)


@pytest.mark.parametrize("number", CODECS)
@pytest.mark.parametrize(("k", "m"), POLICIES)
def test_any_k_chunks_give_back_all_the_others(number: Codec, k: int, m: int) -> None:
    codec = get_codec(number, k, m)
    chunks = make_stripe(codec, 64)
    for size in range(k, k + m + 1):
        for kept in itertools.combinations(range(k + m), size):
            check_pattern(codec, chunks, kept)


def wide_policies() -> Iterator[tuple[int, int]]:
    yield from ((1, m) for m in range(1, 9))
    yield from ((k, m) for k in (2, 3, 5, 7, 12, 16, 23, 24) for m in (1, 3, 8))


@pytest.mark.parametrize("number", CODECS)
@pytest.mark.parametrize(("k", "m"), list(wide_policies()))
def test_every_width_decodes_after_losing_m(number: Codec, k: int, m: int) -> None:
    codec = get_codec(number, k, m)
    chunks = make_stripe(codec, 128, seed=k * 100 + m)
    source = random.Random(k * 1000 + m)
    for _ in range(20):
        check_pattern(codec, chunks, tuple(source.sample(range(k + m), k)))


@pytest.mark.parametrize(("k", "m"), [*POLICIES, (3, 2), (12, 4)])
def test_isal_bytes_are_those_of_pyeclib(k: int, m: int) -> None:
    codec = get_codec(Codec.ISAL_CAUCHY, k, m)
    chunks = make_stripe(codec, 4096)
    driver = ECDriver(k=k, m=m, ec_type="isa_l_rs_cauchy")
    theirs = [bytes(chunk[PYECLIB_HEADER_BYTES:]) for chunk in driver.encode(b"".join(chunks[:k]))]
    assert theirs == chunks


@pytest.mark.parametrize("number", CODECS)
def test_codes_work_on_any_contiguous_memory(number: Codec) -> None:
    codec = get_codec(number, 4, 2)
    plain = make_stripe(codec, 4096)
    mapped = mmap.mmap(-1, 4096)
    mapped[:] = plain[1]
    big = bytearray(3 * 4096)
    big[4096:8192] = plain[2]
    outputs = mmap.mmap(-1, 2 * 4096)
    inputs: list[Buffer] = [plain[0], mapped, memoryview(big)[4096:8192], memoryview(plain[3]).toreadonly()]
    codec.encode(inputs, [memoryview(outputs)[:4096], memoryview(outputs)[4096:]])
    assert outputs[:4096] == plain[4]
    assert outputs[4096:] == plain[5]


def test_decode_hands_out_chunks_that_are_at_hand() -> None:
    codec = get_codec(Codec.ISAL_CAUCHY, 2, 1)
    chunks = make_stripe(codec, 64)
    out = [bytearray(64), bytearray(64)]
    codec.decode({0: chunks[0], 2: chunks[2]}, [2, 1], out)
    assert [bytes(chunk) for chunk in out] == [chunks[2], chunks[1]]


@pytest.mark.parametrize("number", CODECS)
def test_empty_chunks_and_no_parity_are_fine(number: Codec) -> None:
    get_codec(number, 2, 1).encode([b"", b""], [bytearray()])
    codec = get_codec(number, 2, 0)
    codec.encode([b"ab", b"cd"], [])
    out = [bytearray(2)]
    codec.decode({0: b"ab", 1: b"cd"}, [1], out)
    assert out == [b"cd"]


@pytest.mark.parametrize("number", CODECS)
def test_too_few_chunks_have_their_own_error(number: Codec) -> None:
    codec = get_codec(number, 4, 2)
    chunks = make_stripe(codec, 64)
    with pytest.raises(TooFewChunksError, match=r"3 chunks of a 4\+2 stripe"):
        codec.decode({i: chunks[i] for i in range(3)}, [3], [bytearray(64)])


@pytest.mark.parametrize("number", CODECS)
def test_differing_lengths_have_their_own_error(number: Codec) -> None:
    codec = get_codec(number, 2, 1)
    with pytest.raises(ChunkSizeError):
        codec.encode([bytes(64), bytes(63)], [bytearray(64)])
    with pytest.raises(ChunkSizeError):
        codec.encode([bytes(64), bytes(64)], [bytearray(65)])
    with pytest.raises(ChunkSizeError):
        codec.decode({0: bytes(64), 2: bytes(128)}, [1], [bytearray(64)])
    with pytest.raises(ChunkSizeError):
        codec.decode({0: bytes(64), 2: bytes(64)}, [1], [bytearray(32)])


def test_wrong_numbers_of_buffers_and_indexes_are_refused() -> None:
    codec = get_codec(Codec.ZFEC, 2, 1)
    with pytest.raises(InvalidError):
        codec.encode([bytes(64)], [bytearray(64)])
    with pytest.raises(InvalidError):
        codec.decode({0: bytes(64), 3: bytes(64)}, [1], [bytearray(64)])
    with pytest.raises(InvalidError):
        codec.decode({0: bytes(64), 2: bytes(64)}, [-1], [bytearray(64)])
    with pytest.raises(InvalidError):
        codec.decode({0: bytes(64), 2: bytes(64)}, [1], [])


@pytest.mark.parametrize(("number", "k", "m"), [(0, 4, 2), (99, 4, 2), (1, 0, 2), (1, 4, -1), (2, 200, 56)])
def test_impossible_codecs_are_refused(number: int, k: int, m: int) -> None:
    with pytest.raises(InvalidError):
        get_codec(number, k, m)


def test_read_only_outputs_are_refused() -> None:
    with pytest.raises(BufferError):
        isal.Product(isal.cauchy_matrix(1, 1)[1:], 1).run([b"ab"], [memoryview(b"cd")], 2)


def test_a_machine_without_isal_has_zfec(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(_name: str) -> None:
        raise OSError

    for cached in (isal.library, available_codecs, get_codec):
        cached.cache_clear()
    monkeypatch.setattr("ctypes.CDLL", no_library)
    try:
        assert available_codecs() == (Codec.ZFEC,)
        with pytest.raises(InvalidError, match="not available"):
            get_codec(Codec.ISAL_CAUCHY, 4, 2)
        with pytest.raises(RuntimeError):
            isal.cauchy_matrix(4, 2)
        monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
        isal.library.cache_clear()
        assert isal.library() is None
    finally:
        for cached in (isal.library, available_codecs, get_codec):
            cached.cache_clear()


def test_singular_matrices_are_not_inverted() -> None:
    with pytest.raises(ArithmeticError):
        isal.invert(bytes(4), 2)


def test_loss_patterns_are_planned_once() -> None:
    codec = get_codec(Codec.ISAL_CAUCHY, 4, 2)
    assert isinstance(codec, erasure.IsalCodec)
    chunks = make_stripe(codec, 64)
    before = codec.plans_made
    for _ in range(3):
        check_pattern(codec, chunks, (0, 2, 4, 5))
    assert codec.plans_made - before <= 1
    assert repr(codec) == "<StripeCodec ISAL_CAUCHY 4+2>"
