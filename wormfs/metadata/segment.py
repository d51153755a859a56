"""The log's file format: segments of checksummed records. Pure functions of bytes.

Segment file `{first_sequence:020d}.log`, little endian:
  64 bytes header: magic "WORMLOG1", u64 first sequence, 16 bytes log id, u32 CRC32 of those, zeros
  records, then zeros (space allocated ahead) or the end of the file
Record: u32 payload length (>= 1), u64 sequence, u64 durable sequence, u32 CRC32 of the payload,
  u32 CRC32 of the 24 bytes before; then the payload, a serialized LogEntry.
"durable sequence": entries up to it were on stable storage when the record was written. It tells a
tail torn by a power loss (may be cut) from rot in what was promised (must not be).
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple
from zlib import crc32

SEGMENT_HEADER_BYTES = 64
_SEGMENT = struct.Struct("<8sQ16s")
_RECORD = struct.Struct("<IQQI")
_CRC = struct.Struct("<I")
_MAGIC = b"WORMLOG1"
RECORD_HEADER_BYTES = _RECORD.size + _CRC.size


class ScannedRecord(NamedTuple):
    """A record as found in a file."""

    sequence: int
    durable_sequence: int
    payload: bytes | None  # None: its checksum does not match


def segment_header(first_sequence: int, log_id: bytes) -> bytes:
    """The first bytes of a segment file."""
    head = _SEGMENT.pack(_MAGIC, first_sequence, log_id)
    return (head + _CRC.pack(crc32(head))).ljust(SEGMENT_HEADER_BYTES, b"\0")


def pack_record(sequence: int, durable_sequence: int, payload: bytes) -> bytes:
    """A record's bytes."""
    head = _RECORD.pack(len(payload), sequence, durable_sequence, crc32(payload))
    return b"".join((head, _CRC.pack(crc32(head)), payload))


def header_matches(data: bytes, first_sequence: int, log_id: bytes) -> bool:
    """Whether a segment file begins as it must."""
    return data[:SEGMENT_HEADER_BYTES] == segment_header(first_sequence, log_id)


def scan(data: bytes) -> Iterator[ScannedRecord]:
    """Records of a segment file, up to where the framing ends or breaks."""
    offset = SEGMENT_HEADER_BYTES
    end = len(data)
    while offset + RECORD_HEADER_BYTES <= end:
        length, sequence, durable, checksum = _RECORD.unpack_from(data, offset)
        (head_checksum,) = _CRC.unpack_from(data, offset + _RECORD.size)
        if not length or crc32(data[offset : offset + _RECORD.size]) != head_checksum:
            return
        start = offset + RECORD_HEADER_BYTES
        payload = data[start : start + length]
        sound = len(payload) == length and crc32(payload) == checksum
        yield ScannedRecord(sequence, durable, payload if sound else None)
        offset = start + length


class MergedSegment(NamedTuple):
    """What several copies of one segment hold together."""

    data: bytes  # header and records, without space allocated ahead
    last_sequence: int  # of the run without gaps; first - 1 when there is none
    durable_sequence: int  # the highest that any copy's records promise
    beyond: int  # the highest sound record behind a gap; 0: none


def merge(copies: list[bytes], first_sequence: int, log_id: bytes) -> MergedSegment:
    """Put the longest gapless run together, each record from any copy that holds it whole."""
    records: dict[int, bytes] = {}
    durables: dict[int, int] = {}
    promised = 0
    distinct = list(dict.fromkeys(copy for copy in copies if header_matches(copy, first_sequence, log_id)))
    for copy in distinct:
        for record in scan(copy):
            promised = max(promised, record.durable_sequence)
            if record.payload is not None and record.sequence not in records:
                records[record.sequence] = record.payload
                durables[record.sequence] = record.durable_sequence
    parts = [segment_header(first_sequence, log_id)]
    sequence = first_sequence
    while sequence in records:
        parts.append(pack_record(sequence, durables[sequence], records[sequence]))
        sequence += 1
    beyond = max((number for number in records if number > sequence), default=0)
    return MergedSegment(b"".join(parts), sequence - 1, promised, beyond)
