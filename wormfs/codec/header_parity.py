"""Reed-Solomon parity over one 4,096-byte header block, in 16 interleaved codewords.

Byte i of the protected area (3,056 bytes) belongs to codeword i % 16, so each codeword is
191 bytes of it and 64 bytes of parity: RS(255, 191) with reedsolo's defaults (field 0x11d,
first consecutive root 0, generator 2). A codeword can be repaired when at most 32 of its 255
bytes are wrong; a block therefore survives 32 wrong bytes wherever they are, or any run of
512 consecutive wrong bytes, for example one lost sector.

reedsolo's encoder takes milliseconds. Encoding is linear, so here the parity of each
(position, byte value) is looked up in tables and XORed, which gives the same bytes in tens
of microseconds. Decoding runs on damage only and is left to reedsolo.
"""

from functools import cache, reduce
from operator import getitem, xor
from typing import Final

import reedsolo

from wormfs.codec.buffers import Buffer
from wormfs.codec.galois import multiply
from wormfs.core.errors import ChunkCorruptError

CODEWORDS: Final = 16
PARITY_PER_CODEWORD_BYTES: Final = 64
DATA_PER_CODEWORD_BYTES: Final = 255 - PARITY_PER_CODEWORD_BYTES
PROTECTED_BYTES: Final = CODEWORDS * DATA_PER_CODEWORD_BYTES
PARITY_BYTES: Final = CODEWORDS * PARITY_PER_CODEWORD_BYTES
REPAIRABLE_PER_CODEWORD_BYTES: Final = PARITY_PER_CODEWORD_BYTES // 2

_PARITY_BITS: Final = 8 * PARITY_PER_CODEWORD_BYTES


@cache
def _reedsolo() -> reedsolo.RSCodec:
    return reedsolo.RSCodec(PARITY_PER_CODEWORD_BYTES, nsize=255)


class _Tables:
    """rows[p][b]: parity, as a big-endian integer, of byte value b at data position p."""

    def __init__(self) -> None:
        generator = _reedsolo().gen[PARITY_PER_CODEWORD_BYTES]
        # One step of polynomial division by the generator, for each value of the leading byte.
        remainder = [
            int.from_bytes(bytes(multiply(factor, g) for g in generator[1:]), "big") for factor in range(256)
        ]
        # The eight one-bit values are carried from the last position to the first: what is one
        # position earlier is the same polynomial times x, reduced.
        shift, mask = _PARITY_BITS - 8, (1 << _PARITY_BITS) - 1
        step = [remainder[1 << bit] for bit in range(8)]
        self._bits = [step]
        for _ in range(DATA_PER_CODEWORD_BYTES - 1):
            step = [((value << 8) & mask) ^ remainder[value >> shift] for value in step]
            self._bits.append(step)
        self._bits.reverse()
        self.rows: list[list[int]] = []

    def extend(self, positions: int) -> None:
        """Make rows for data positions below `positions`; the first ones are needed most."""
        for position in range(len(self.rows), positions):
            row = [0]
            for bit in self._bits[position]:
                row += [value ^ bit for value in row]
            self.rows.append(row)


@cache
def _tables() -> _Tables:
    return _Tables()


def parity_of(protected: Buffer, used_bytes: int = PROTECTED_BYTES) -> bytes:
    """Return the 1,024 parity bytes of a protected area that is zero from `used_bytes` on.

    Parity byte j of codeword c lies at c + 16 * j, interleaved like the data.
    """
    depth = -(-used_bytes // CODEWORDS)
    tables = _tables()
    if len(tables.rows) < depth:
        tables.extend(depth)
    rows = tables.rows
    used = bytes(memoryview(protected)[: depth * CODEWORDS])
    parity = bytearray(PARITY_BYTES)
    for codeword in range(CODEWORDS):
        value = reduce(xor, map(getitem, rows, used[codeword::CODEWORDS]), 0)
        parity[codeword::CODEWORDS] = value.to_bytes(PARITY_PER_CODEWORD_BYTES, "big")
    return bytes(parity)


def repair(protected: Buffer, parity: Buffer) -> tuple[bytes, int]:
    """Return the repaired protected area, and how many of its bytes and of the parity were wrong.

    Raises ChunkCorruptError when a codeword has more wrong bytes than parity can mend. The
    caller must check the CRC of the result: too much damage may also look like another codeword.
    """
    mended = bytearray(protected)
    parity_view = bytes(parity)
    made = parity_of(mended)
    repaired = 0
    for codeword in range(CODEWORDS):
        if made[codeword::CODEWORDS] == parity_view[codeword::CODEWORDS]:
            continue  # sound: not worth reedsolo's milliseconds
        damaged = mended[codeword::CODEWORDS] + parity_view[codeword::CODEWORDS]
        try:
            data, _, positions = _reedsolo().decode(damaged)
        except (reedsolo.ReedSolomonError, ZeroDivisionError, IndexError, ValueError) as error:
            raise ChunkCorruptError(f"header damaged beyond repair: {error}") from None
        mended[codeword::CODEWORDS] = data
        repaired += len(positions)
    return bytes(mended), repaired
