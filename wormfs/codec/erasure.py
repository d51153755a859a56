"""Reed-Solomon coding of stripes: k data chunks make m parity chunks; any k of k + m give all back.

Two codes, named in every stripe and chunk header because their parity bytes differ:
zfec (the reference, always there) and ISA-L's Cauchy code (the bytes of pyeclib's
isa_l_rs_cauchy, ten times faster). With both, chunks 0..k-1 are the data itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache

import zfec

from wormfs.codec import isal
from wormfs.codec.buffers import Buffer, WritableBuffer, length_of
from wormfs.codec.galois import multiply_row
from wormfs.core.errors import ChunkSizeError, InvalidError, TooFewChunksError
from wormfs.core.types import Codec

CODED_WIDTH_MAX = 255
DECODE_PLANS_CACHED = 512
"""Loss patterns whose matrices are kept, per (codec, k, m)."""


class StripeCodec(ABC):
    """Coder for stripes of k + m chunks; immutable, usable from several threads. See get_codec()."""

    codec: Codec

    def __init__(self, k: int, m: int) -> None:
        self.k = k
        self.m = m

    def __repr__(self) -> str:
        return f"<StripeCodec {self.codec.name} {self.k}+{self.m}>"

    def encode(self, data: Sequence[Buffer], parity: Sequence[WritableBuffer]) -> None:
        """Fill `parity` (m buffers) from `data` (k buffers), all of one length.

        Raises InvalidError for a wrong number of buffers, ChunkSizeError when lengths differ.
        """
        if len(data) != self.k or len(parity) != self.m:
            raise InvalidError(
                f"encode wants {self.k} data and {self.m} parity buffers, got {len(data)} and {len(parity)}"
            )
        length = _same_length(dict(enumerate(data)), parity)
        if length and self.m:
            self._encode(data, parity, length)

    def decode(
        self, chunks: Mapping[int, Buffer], wanted: Sequence[int], out: Sequence[WritableBuffer]
    ) -> None:
        """Write the chunks of the indexes `wanted` (data or parity) into `out`, in that order.

        `chunks` holds at least k chunks by index; which of them are used is not specified. The
        buffers of `out` must not overlap those of `chunks`. The bytes are trusted: verify
        their checksums first.

        Raises TooFewChunksError, ChunkSizeError (lengths differ) or InvalidError (no such index).
        """
        width = self.k + self.m
        for index in (*chunks, *wanted):
            if not 0 <= index < width:
                raise InvalidError(f"no chunk {index} in a {self.k}+{self.m} stripe (0 to {width - 1})")
        if len(wanted) != len(out):
            raise InvalidError(f"decode wants one output per chunk: {len(wanted)} chunks, {len(out)} outputs")
        if len(chunks) < self.k:
            raise TooFewChunksError(
                f"{len(chunks)} chunks of a {self.k}+{self.m} stripe at hand, {self.k} are needed"
            )
        length = _same_length(chunks, out)
        missing: list[int] = []
        targets: list[WritableBuffer] = []
        for index, target in zip(wanted, out, strict=True):
            present = chunks.get(index)
            if present is None:
                missing.append(index)
                targets.append(target)
            else:
                memoryview(target).cast("B")[:] = memoryview(present).cast("B")
        if missing and length:
            # Data chunks first: zfec wants them in place, and ISA-L multiplies identity rows as fast.
            used = tuple(sorted(chunks)[: self.k])
            self._decode(used, [chunks[index] for index in used], tuple(missing), targets, length)

    @abstractmethod
    def _encode(self, data: Sequence[Buffer], parity: Sequence[WritableBuffer], length: int) -> None: ...

    @abstractmethod
    def _decode(
        self,
        used: tuple[int, ...],
        sources: Sequence[Buffer],
        missing: tuple[int, ...],
        targets: Sequence[WritableBuffer],
        length: int,
    ) -> None: ...


def _same_length(chunks: Mapping[int, Buffer], outputs: Sequence[WritableBuffer]) -> int:
    length = -1
    for index, chunk in chunks.items():
        if length < 0:
            length = length_of(chunk)
        elif length_of(chunk) != length:
            raise ChunkSizeError(f"chunk {index} has {length_of(chunk)} bytes, others of its stripe {length}")
    for target in outputs:
        if length_of(target) != length:
            raise ChunkSizeError(f"an output has {length_of(target)} bytes, the stripe's chunks {length}")
    return length


class ZfecCodec(StripeCodec):
    """zfec's code (Rizzo's Vandermonde matrix made systematic). Its outputs are copied once."""

    codec = Codec.ZFEC

    def __init__(self, k: int, m: int) -> None:
        super().__init__(k, m)
        self._encoder = zfec.Encoder(k, k + m)
        self._decoder = zfec.Decoder(k, k + m)
        self._parity_indexes = tuple(range(k, k + m))

    def _encode(self, data: Sequence[Buffer], parity: Sequence[WritableBuffer], length: int) -> None:
        made = self._encoder.encode(tuple(data), self._parity_indexes)
        for target, chunk in zip(parity, made, strict=True):
            memoryview(target).cast("B")[:] = chunk

    def _decode(
        self,
        used: tuple[int, ...],
        sources: Sequence[Buffer],
        missing: tuple[int, ...],
        targets: Sequence[WritableBuffer],
        length: int,
    ) -> None:
        data = self._decoder.decode(tuple(sources), used)
        parity = tuple(index for index in missing if index >= self.k)
        rebuilt = dict(enumerate(data))
        if parity:
            rebuilt.update(zip(parity, self._encoder.encode(tuple(data), parity), strict=True))
        for index, target in zip(missing, targets, strict=True):
            memoryview(target).cast("B")[:] = rebuilt[index]


class IsalCodec(StripeCodec):
    """ISA-L's Cauchy code, on the callers' memory."""

    codec = Codec.ISAL_CAUCHY

    def __init__(self, k: int, m: int) -> None:
        super().__init__(k, m)
        self._matrix = isal.cauchy_matrix(k, m)
        self._encoder = isal.Product(self._matrix[k * k :], k) if m else None
        self._plan = lru_cache(maxsize=DECODE_PLANS_CACHED)(self._make_plan)

    def _encode(self, data: Sequence[Buffer], parity: Sequence[WritableBuffer], length: int) -> None:
        if self._encoder is not None:
            self._encoder.run(data, parity, length)

    def _decode(
        self,
        used: tuple[int, ...],
        sources: Sequence[Buffer],
        missing: tuple[int, ...],
        targets: Sequence[WritableBuffer],
        length: int,
    ) -> None:
        self._plan(used, missing).run(sources, targets, length)

    @property
    def plans_made(self) -> int:
        """Loss patterns prepared so far."""
        return self._plan.cache_info().misses

    def _make_plan(self, used: tuple[int, ...], missing: tuple[int, ...]) -> isal.Product:
        k = self.k
        kept = b"".join(self._row(index) for index in used)
        inverse = isal.invert(kept, k)  # used chunks -> data chunks
        # A parity row of the generator times the inverse goes from the used chunks straight to parity.
        return isal.Product(b"".join(multiply_row(self._row(i), inverse, k) for i in missing), k)

    def _row(self, index: int) -> bytes:
        return self._matrix[index * self.k : (index + 1) * self.k]


_CODERS: dict[Codec, type[StripeCodec]] = {Codec.ISAL_CAUCHY: IsalCodec, Codec.ZFEC: ZfecCodec}


@lru_cache(maxsize=1)
def available_codecs() -> tuple[Codec, ...]:
    """Codecs that work on this machine, fastest first; always holds Codec.ZFEC."""
    return (Codec.ISAL_CAUCHY, Codec.ZFEC) if isal.library() is not None else (Codec.ZFEC,)


@lru_cache(maxsize=64)
def get_codec(codec: int, k: int, m: int) -> StripeCodec:
    """Return the coder for (codec, k, m).

    Raises InvalidError for an unknown codec or impossible k and m, and for a codec that this
    machine cannot run.
    """
    if k < 1 or m < 0 or k + m > CODED_WIDTH_MAX:
        raise InvalidError(f"cannot code {k}+{m}: k must be 1 or more and k+m at most {CODED_WIDTH_MAX}")
    try:
        number = Codec(codec)
        coder = _CODERS[number]
    except (ValueError, KeyError):
        raise InvalidError(f"unknown codec number {codec}") from None
    if number not in available_codecs():
        raise InvalidError(f"codec {number.name} is not available here: install the pyeclib wheel")
    return coder(k, m)
