"""The stream protocol's frames: packing and parsing of headers. No I/O.

A frame is a header of 32 bytes, then the protobuf message, then the raw data::

    offset size  field (big endian)
         0    2  magic "WF"
         2    1  version, 1
         3    1  kind, see Kind
         4    4  method: Method.number of a request, number of the message of a push; of a reply or an
                 error 1 (HELD_BACK) when its handler waited, else 0
         8    8  request id: chosen by the client, counts up; 0 for a push
        16    4  timeout of a request in milliseconds
        20    4  length of the message
        24    4  length of the raw data
        28    4  CRC32 of bytes 0 to 27

The message is the request, the reply, an ErrorReply or the pushed message. The header's check
finds a peer that speaks something else and a stream that lost step; the bytes of chunks have
checksums of their own, and the transport guards the rest.
"""

import struct
import zlib
from enum import IntEnum
from typing import NamedTuple, TypeAlias

from wormfs.core.errors import ProtocolError

Buffer: TypeAlias = bytes | bytearray | memoryview

MAGIC = b"WF"
VERSION = 1
HEADER_BYTES = 32
MESSAGE_MAX_BYTES = 36 << 20
DATA_MAX_BYTES = 36 << 20
TIMEOUT_MAX_MS = (1 << 32) - 1

_FIELDS = struct.Struct("!2sBBIQIII")
_HEADER = struct.Struct("!2sBBIQIIII")
_CRC = struct.Struct("!I")
_CHECKED_BYTES = _FIELDS.size


class Kind(IntEnum):
    """What a frame is."""

    REQUEST = 1  # client to server
    REPLY = 2  # server to client
    ERROR = 3  # server to client, instead of a reply
    PUSH = 4  # server to client, unasked
    CANCEL = 5  # client to server: nobody waits for this request any more


KIND_REQUEST = int(Kind.REQUEST)
KIND_REPLY = int(Kind.REPLY)
KIND_ERROR = int(Kind.ERROR)
KIND_PUSH = int(Kind.PUSH)
KIND_CANCEL = int(Kind.CANCEL)
HELD_BACK = 1
"""A reply that may tell of what was before pushes that arrive ahead of it."""
_WITH_DATA = (KIND_REQUEST, KIND_REPLY)


class FrameHeader(NamedTuple):
    """A checked header. `kind` is a Kind's number (a plain int: this is made for every frame)."""

    kind: int
    method: int
    request_id: int
    timeout_ms: int
    message_bytes: int
    data_bytes: int


def pack_frame(
    kind: int, method: int, request_id: int, timeout_ms: int, message: bytes, data_bytes: int
) -> bytes:
    """Header and message of a frame; `data_bytes` of raw data must follow on the wire.

    Raises ProtocolError for lengths past the limits.
    """
    if len(message) > MESSAGE_MAX_BYTES or data_bytes > DATA_MAX_BYTES:
        raise ProtocolError(f"a message of {len(message)} bytes with {data_bytes} bytes of data is too large")
    head = _FIELDS.pack(MAGIC, VERSION, kind, method, request_id, timeout_ms, len(message), data_bytes)
    return b"%b%b%b" % (head, _CRC.pack(zlib.crc32(head)), message)


def parse_header(buffer: memoryview, offset: int) -> FrameHeader:
    """The header at `offset`, HEADER_BYTES of which must be there.

    Raises ProtocolError for anything that pack_frame would not have made.
    """
    magic, version, kind, method, request_id, timeout_ms, message_bytes, data_bytes, crc = (
        _HEADER.unpack_from(buffer, offset)
    )
    if zlib.crc32(buffer[offset : offset + _CHECKED_BYTES]) != crc or magic != MAGIC:
        raise ProtocolError("this is no WormFS frame")
    if version != VERSION:
        raise ProtocolError(f"the peer speaks stream protocol version {version}, not {VERSION}")
    if not KIND_REQUEST <= kind <= KIND_CANCEL:
        raise ProtocolError(f"a frame of unknown kind {kind}")
    if message_bytes > MESSAGE_MAX_BYTES or data_bytes > DATA_MAX_BYTES:
        raise ProtocolError(f"a frame of {message_bytes} + {data_bytes} bytes is too large")
    if data_bytes and kind not in _WITH_DATA:
        raise ProtocolError(f"a frame of kind {Kind(kind).name} with raw data")
    return FrameHeader(kind, method, request_id, timeout_ms, message_bytes, data_bytes)
