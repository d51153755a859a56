"""Codec figures as JSON rows {name: [value, unit]}; higher is better.

usage: python -m benches.codec [--seconds S]
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence

from wormfs.codec.checksums import block_checksums
from wormfs.codec.chunk_format import ChunkHeader, pack_header, parse_header
from wormfs.codec.erasure import available_codecs, get_codec

Rows = dict[str, list[float | str]]
CHUNK_BYTES = 1 << 20


def rate(step: Callable[[], object], seconds: float) -> float:
    """Calls per second of `step`, once it is warm."""
    step()
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        step()
        count += 1
    return count / passed


def measure(seconds: float) -> Rows:
    rows: Rows = {}
    for number in available_codecs():
        for k, m in ((2, 1), (4, 2), (8, 4)):
            codec = get_codec(number, k, m)
            data = [bytearray(os.urandom(CHUNK_BYTES)) for _ in range(k)]
            parity = [bytearray(CHUNK_BYTES) for _ in range(m)]
            stripe_mb = k * CHUNK_BYTES / 1e6
            label = f"{number.name.lower()}_{k}+{m}"
            calls = rate(lambda c=codec, d=data, p=parity: c.encode(d, p), seconds)  # type: ignore[misc]
            rows[f"encode_{label}"] = [round(calls * stripe_mb, 1), "MB/s"]
            kept = {i: chunk for i, chunk in enumerate([*data, *parity]) if i >= m}
            out = [bytearray(CHUNK_BYTES) for _ in range(m)]
            calls = rate(lambda c=codec, h=kept, o=out, n=m: c.decode(h, range(n), o), seconds)  # type: ignore[misc]
            rows[f"decode_{label}_{m}_lost"] = [round(calls * stripe_mb, 1), "MB/s"]
    chunk = os.urandom(CHUNK_BYTES)
    rows["checksums_1m"] = [
        round(rate(lambda: block_checksums(chunk), seconds) * CHUNK_BYTES / 1e6, 1),
        "MB/s",
    ]
    header = ChunkHeader(
        "c" * 36, 1, 2, 3, 4 << 20, 0, 4, 2, available_codecs()[0], 4 << 20, 1 << 20, block_checksums(chunk)
    )
    packed = pack_header(header)
    rows["header_pack_1m"] = [round(rate(lambda: pack_header(header), seconds), 1), "op/s"]
    rows["header_parse_1m"] = [round(rate(lambda: parse_header(packed), seconds), 1), "op/s"]
    damaged = bytearray(packed)
    damaged[:512] = bytes(512)
    rows["header_repair_sector"] = [round(rate(lambda: parse_header(damaged), seconds), 1), "op/s"]
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.3, help="for each figure")
    print(json.dumps(measure(parser.parse_args(argv).seconds), indent=1))


if __name__ == "__main__":
    main()
