"""Arithmetic in GF(2^8), reduced by x^8 + x^4 + x^3 + x^2 + 1 (0x11d), generator 2.

ISA-L, zfec and reedsolo all use this field, which is why one table serves the small matrix
products here and the header parity in header_parity.py. Only for setting up: bulk data
goes through ISA-L or zfec.
"""

from typing import Final

_POLYNOMIAL: Final = 0x11D


def _tables() -> tuple[bytes, bytes]:
    powers = bytearray(510)
    logarithms = bytearray(256)
    value = 1
    for exponent in range(255):
        powers[exponent] = powers[exponent + 255] = value
        logarithms[value] = exponent
        value <<= 1
        if value & 0x100:
            value ^= _POLYNOMIAL
    return bytes(powers), bytes(logarithms)


_POWERS, _LOGARITHMS = _tables()


def multiply(a: int, b: int) -> int:
    """Return a * b for field elements 0..255."""
    if not a or not b:
        return 0
    return _POWERS[_LOGARITHMS[a] + _LOGARITHMS[b]]


def multiply_row(row: bytes, matrix: bytes, columns: int) -> bytes:
    """Return the row vector `row` times the row-major `matrix` of len(row) rows and `columns` columns."""
    product = bytearray(columns)
    for position, factor in enumerate(row):
        if factor:
            base = position * columns
            for column in range(columns):
                product[column] ^= multiply(factor, matrix[base + column])
    return bytes(product)
