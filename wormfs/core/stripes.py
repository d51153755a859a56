"""Stripe arithmetic: which stripe and chunk hold a byte of a file. Pure functions of integers."""

from collections.abc import Iterator
from dataclasses import dataclass

from wormfs.core.limits import CHUNK_ALIGNMENT_BYTES


def chunk_length_bytes(stripe_length_bytes: int, k: int) -> int:
    """Length of each chunk of a stripe that holds `stripe_length_bytes`, padding included."""
    per_chunk = -(-stripe_length_bytes // k)
    return -(-per_chunk // CHUNK_ALIGNMENT_BYTES) * CHUNK_ALIGNMENT_BYTES


@dataclass(frozen=True, slots=True)
class StripeRange:
    """The part of a byte range that falls into one stripe."""

    index: int
    start_bytes: int  # in the stripe
    length_bytes: int

    @property
    def end_bytes(self) -> int:
        """One past the last byte, in the stripe."""
        return self.start_bytes + self.length_bytes


def split_range(offset_bytes: int, length_bytes: int, stripe_size_bytes: int) -> Iterator[StripeRange]:
    """Cut file range [offset, offset + length) at stripe borders, in order."""
    end = offset_bytes + length_bytes
    while offset_bytes < end:
        index, start = divmod(offset_bytes, stripe_size_bytes)
        length = min(stripe_size_bytes - start, end - offset_bytes)
        yield StripeRange(index, start, length)
        offset_bytes += length
