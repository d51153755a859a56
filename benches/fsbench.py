"""The rows of the shared fsbench on a mounted folder, for where that script is not at hand.

usage: fsbench.py DIR [--scale S] [--only seq,small,tar] [--tar FILE]
Prints one JSON object, {row: [rate, unit]}; higher is better. Before each cold phase the kernel's
caches are dropped; before each timed one memory is touched, so that the host backs its pages.
"""

import argparse
import json
import mmap
import os
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_MIB = 1 << 20
_PAGE = 4096
_THREADS = 4


class Bench:
    """The phases on one folder; `rows` fills up."""

    def __init__(self, root: Path, scale: float) -> None:
        self.root = root
        self.scale = scale
        self.random = random.Random(7)
        self.piece = self.random.randbytes(_MIB)
        self.rows: dict[str, tuple[float, str]] = {}

    def put(self, name: str, rate: float, unit: str) -> None:
        """Note a figure, and show it at once."""
        self.rows[name] = (round(rate, 1), unit)
        print(f"{name:28s} {rate:12.1f} {unit}", file=sys.stderr, flush=True)

    def count(self, full: int, least: int) -> int:
        """So many at this scale."""
        return int(full * self.scale) or least

    def sequential(self) -> None:
        """One big file: written, read cold, read and overwritten at random places; four at once."""
        big = self.root / "big"
        mib = max(16, int(512 * self.scale))
        took = statistics.median(timed(lambda: self._write_big(big, mib), 2 * mib) for _ in range(3))
        self.put("seq_write_1m_fsync", mib * 1.048576 / took, "MB/s")
        took = statistics.median(timed(lambda: self._read_big(big, mib), mib, cold=True) for _ in range(3))
        self.put("seq_read_1m_cold", mib * 1.048576 / took, "MB/s")
        reads = self.count(1500, 100)
        took = timed(lambda: self._random_reads(big, mib, reads), cold=True)
        self.put("rand_read_4k_cold", reads / took, "op/s")
        writes = self.count(400, 50)
        self.put("rand_write_4k_sync", writes / timed(lambda: self._random_writes(big, mib, writes)), "op/s")
        with ThreadPoolExecutor(_THREADS) as threads:

            def side_by_side() -> None:
                list(threads.map(lambda number: self._write_stream(number, mib // 4), range(_THREADS)))

            took = statistics.median(timed(side_by_side, mib) for _ in range(3))
        self.put("seq_write_4_streams", mib // 4 * 4 * 1.048576 / took, "MB/s")
        for path in [big, *self.root.glob("stream.*")]:
            path.unlink()

    def _write_big(self, path: Path, mib: int) -> None:
        with open(path, "wb", buffering=0) as file:
            for number in range(mib):
                file.write(number.to_bytes(8, "big") + self.piece[8:])
            os.fsync(file.fileno())

    def _read_big(self, path: Path, mib: int) -> None:
        with open(path, "rb", buffering=0) as file:
            for number in range(mib):
                have = file.read(_MIB)
                while len(have) < _MIB:
                    more = file.read(_MIB - len(have))
                    if not more:
                        raise SystemExit(f"short read in MiB {number}")
                    have += more
                if have[:8] != number.to_bytes(8, "big") or have[8:] != self.piece[8:]:
                    raise SystemExit(f"wrong bytes in MiB {number}")

    def _random_reads(self, path: Path, mib: int, count: int) -> None:
        with open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for _ in range(count):
                os.pread(file.fileno(), _PAGE, self.random.randrange(mib * 256) * _PAGE)

    def _random_writes(self, path: Path, mib: int, count: int) -> None:
        with open(path, "rb+", buffering=0) as file:
            for _ in range(count):
                os.pwrite(file.fileno(), self.piece[:_PAGE], self.random.randrange(mib * 256) * _PAGE)
                os.fdatasync(file.fileno())

    def _write_stream(self, number: int, mib: int) -> None:
        with open(self.root / f"stream.{number}", "wb", buffering=0) as file:
            for _ in range(mib):
                file.write(self.piece)
            os.fsync(file.fileno())

    def small(self) -> None:
        """Thousands of 4 KiB files: made, listed, looked at, read, renamed, removed."""
        count = self.count(2000, 200)
        folder = self.root / "small"
        folder.mkdir()
        old = [f"{folder}/f{number:06d}" for number in range(count)]
        new = [f"{folder}/g{number:06d}" for number in range(count)]
        self._each("small_create_4k", old, lambda path: self._create(path, os.O_EXCL))
        took = timed(lambda: [entry.stat() for entry in os.scandir(folder)], cold=True)
        self.put("ls_l_cold", count / took, "op/s")
        self._each("stat_cold", old, os.stat, cold=True)
        self._each("small_read_4k_cold", old, self._read_small, cold=True)
        took = timed(lambda: list(map(os.rename, old, new)))
        self.put("rename", count / took, "op/s")
        self._each("unlink", new, os.unlink)
        with ThreadPoolExecutor(_THREADS) as threads:
            took = timed(
                lambda: list(threads.map(lambda n: self._create_many(n, count // 4), range(_THREADS)))
            )
        self.put("small_create_4k_4thr", count / took, "op/s")
        few = self.count(300, 50)
        durable = [f"{self.root}/p0/s{number}" for number in range(few)]
        self._each("small_create_4k_fsync", durable, lambda path: self._create(path, sync=True))
        self._each("mkdir", [f"{self.root}/m{number}" for number in range(few)], os.mkdir)
        took = timed(
            lambda: list(map(shutil.rmtree, [f"{self.root}/p{number}" for number in range(_THREADS)]))
        )
        self.put("rm_rf", (count + few) / took, "op/s")

    def _each(
        self, name: str, paths: list[str], action: Callable[[str], object], *, cold: bool = False
    ) -> None:
        took = timed(lambda: [action(path) for path in paths], cold=cold)
        self.put(name, len(paths) / took, "op/s")

    def _create(self, path: str, flags: int = 0, *, sync: bool = False) -> None:
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | flags)
        os.write(descriptor, self.piece[:_PAGE])
        if sync:
            os.fsync(descriptor)
        os.close(descriptor)

    def _create_many(self, thread: int, count: int) -> None:
        folder = f"{self.root}/p{thread}"
        os.mkdir(folder)
        for number in range(count):
            self._create(f"{folder}/f{number}")

    def _read_small(self, path: str) -> None:
        with open(path, "rb", buffering=0) as file:
            if file.read(2 * _PAGE) != self.piece[:_PAGE]:
                raise SystemExit(f"wrong bytes in {path}")

    def tar(self, archive: Path) -> None:
        """A real tree: unpacked, packed and measured cold."""
        with tarfile.open(archive) as opened:
            members = len(opened.getmembers())
        took = timed(lambda: subprocess.run(["tar", "xf", archive, "-C", self.root], check=True))
        self.put("untar", members / took, "file/s")
        packing = f"tar cf - -C {self.root} . | cat >/dev/null"
        took = timed(lambda: subprocess.run(packing, shell=True, check=True), cold=True)
        self.put("tar_read_cold", members / took, "file/s")
        took = timed(
            lambda: subprocess.run(["du", "-s", self.root], check=True, capture_output=True), cold=True
        )
        self.put("du_cold", members / took, "file/s")


def timed(action: Callable[[], object], warm_mib: int = 256, *, cold: bool = False) -> float:
    """Seconds an action takes, after `warm_mib` MiB of memory were touched."""
    if cold:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")
    with mmap.mmap(-1, warm_mib * _MIB) as memory:
        for offset in range(0, warm_mib * _MIB, _PAGE):
            memory[offset] = 1
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def main() -> None:
    """Run the wanted phases in a folder of their own."""
    parser = argparse.ArgumentParser(description="One fixed workload on a mounted folder.")
    parser.add_argument("dir", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--only", default="")
    parser.add_argument("--tar", type=Path)
    arguments = parser.parse_args()
    wanted = set(filter(None, arguments.only.split(","))) or {"seq", "small", "tar"}
    root = arguments.dir / f"fsbench.{os.getpid()}"
    root.mkdir()
    bench = Bench(root, arguments.scale)
    if "seq" in wanted:
        bench.sequential()
    if "small" in wanted:
        bench.small()
    if "tar" in wanted and arguments.tar is not None:
        bench.tar(arguments.tar)
    shutil.rmtree(root)
    print(json.dumps(bench.rows))


if __name__ == "__main__":
    main()
