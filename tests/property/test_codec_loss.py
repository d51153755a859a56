"""Random policies, contents and losses: what was encoded comes back."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from wormfs.codec.erasure import get_codec
from wormfs.core.types import Codec


@st.composite
def losses(draw: st.DrawFn) -> tuple[Codec, int, int, int, list[int], int]:
    k = draw(st.integers(1, 24))
    m = draw(st.integers(1, 8))
    kept = draw(st.permutations(range(k + m)))[: draw(st.integers(k, k + m))]
    length = 64 * draw(st.integers(1, 20))
    return draw(st.sampled_from([Codec.ZFEC, Codec.ISAL_CAUCHY])), k, m, length, kept, draw(st.integers(0))


@settings(max_examples=150, deadline=None)
@given(losses())
def test_any_k_of_any_policy_decode(case: tuple[Codec, int, int, int, list[int], int]) -> None:
    number, k, m, length, kept, seed = case
    codec = get_codec(number, k, m)
    data = [random.Random(seed + i).randbytes(length) for i in range(k)]
    parity = [bytearray(length) for _ in range(m)]
    codec.encode(data, parity)
    chunks = [*data, *map(bytes, parity)]
    out = [bytearray(length) for _ in chunks]
    codec.decode({index: chunks[index] for index in kept}, range(k + m), out)
    assert [bytes(chunk) for chunk in out] == chunks
