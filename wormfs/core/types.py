"""Types that several layers share: names that carry meaning instead of bare ints and tuples."""

from dataclasses import dataclass
from enum import IntEnum
from typing import NewType

InodeId = NewType("InodeId", int)
StripeId = NewType("StripeId", int)
SessionId = NewType("SessionId", int)
DiskNumber = NewType("DiskNumber", int)
NodeNumber = NewType("NodeNumber", int)


class Codec(IntEnum):
    """Erasure codes; the numbers are those of proto/wormfs/v1/types.proto and of chunk headers."""

    UNSPECIFIED = 0
    ZFEC = 1
    ISAL_CAUCHY = 2


@dataclass(frozen=True, slots=True)
class Policy:
    """How data is spread: any `m` of a stripe's `k + m` chunks may be lost."""

    k: int
    m: int
    chunk_size_bytes: int
    codec: Codec = Codec.UNSPECIFIED

    @property
    def stripe_size_bytes(self) -> int:
        """File bytes that one full stripe covers."""
        return self.k * self.chunk_size_bytes

    def __str__(self) -> str:
        return f"{self.k}+{self.m}"


@dataclass(frozen=True, slots=True, order=True)
class ChunkKey:
    """Names one chunk for ever: the inode it was written for, its stripe, its index in 0..k+m-1."""

    file: int
    stripe_id: int
    index: int
