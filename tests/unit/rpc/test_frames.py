"""Headers: what is packed is parsed, and nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wormfs.core.errors import ProtocolError
from wormfs.rpc.frames import (
    DATA_MAX_BYTES,
    HEADER_BYTES,
    KIND_REPLY,
    KIND_REQUEST,
    FrameHeader,
    pack_frame,
    parse_header,
)
from wormfs.rpc.link import DataSink

u32 = st.integers(0, (1 << 32) - 1)


@given(method=u32, request_id=st.integers(0, (1 << 64) - 1), timeout_ms=u32, message=st.binary(max_size=99))
def test_header_round_trip(method: int, request_id: int, timeout_ms: int, message: bytes) -> None:
    frame = pack_frame(KIND_REQUEST, method, request_id, timeout_ms, message, 7)
    header = parse_header(memoryview(b"pad" + frame), 3)
    assert header == FrameHeader(KIND_REQUEST, method, request_id, timeout_ms, len(message), 7)
    assert frame[HEADER_BYTES:] == message


@given(bit=st.integers(0, HEADER_BYTES * 8 - 1))
def test_every_flipped_bit_of_a_header_is_seen(bit: int) -> None:
    damaged = bytearray(pack_frame(KIND_REPLY, 1, 2, 3, b"", 4))
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ProtocolError):
        parse_header(memoryview(damaged), 0)


@given(garbage=st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_header(memoryview(garbage), 0)


def test_lengths_are_bounded_on_both_ends() -> None:
    with pytest.raises(ProtocolError, match="too large"):
        pack_frame(KIND_REQUEST, 1, 2, 3, b"", DATA_MAX_BYTES + 1)


@given(lengths=st.lists(st.integers(0, 50), max_size=6), steps=st.lists(st.integers(1, 30), max_size=30))
def test_sink_fills_views_in_order_and_drops_the_rest(lengths: list[int], steps: list[int]) -> None:
    room = bytearray(sum(lengths))
    views = []
    start = 0
    for length in lengths:
        views.append(memoryview(room)[start : start + length])
        start += length
    sink = DataSink(views)
    sent = b""
    for number, step in enumerate(steps):
        target = sink.target(step)
        assert 0 < target.nbytes <= step
        part = bytes([number + 1]) * target.nbytes
        target[:] = part
        sink.advance(len(part))
        sent += part
    kept = min(len(sent), len(room))
    assert room[:kept] == sent[:kept]
    assert sink.received_bytes >= kept
