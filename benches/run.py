"""`make bench`: every figure in one run, as JSON and as a readable table.

usage: python -m benches.run [--rounds N] [--only PART,...] [--no-peer] [--scale S] ...

Parts: codec, store, streams, metadata (this repository's own), fs (fsbench beside a peer), space,
memory. Everything that is compared is measured in this one run, on this one machine.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benches import fs
from benches.rows import Row, medians

ROOT = Path(__file__).resolve().parent.parent
MICRO = ("codec", "store", "streams", "metadata")
PARTS = (*MICRO, "fs", "space", "memory")
FSBENCH_PARTS = ("seq", "small", "tar")
_MICRO_TIMEOUT_S = 900.0
_console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
# What each row of fsbench must reach beside the peer; the rest 1.0. Synced small overwrites may
# fall short until the small-write log is there.
_WANTED_RATIOS = {"seq_write_1m_fsync": 1.5, "seq_read_1m_cold": 1.5, "rand_write_4k_sync": 0.0}


@dataclass(slots=True)
class Results:
    """All of a run."""

    micro: dict[str, dict[str, Row]] = field(default_factory=dict)
    wormfs: list[dict[str, Row]] = field(default_factory=list)
    peer: list[dict[str, Row]] = field(default_factory=list)
    own: dict[str, Row] = field(default_factory=dict)
    problem: str = ""  # why the peer could not be measured


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when everything was measured, whatever the figures say."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # clusters and peers end too
    results = Results()
    for name in MICRO:
        if name in options.only:
            results.micro[name] = _micro(name, options.rounds)
    if {"fs", "space", "memory"} & set(options.only):
        _file_systems(options, results)
    path = _write(options, results)
    _print(options, results)
    _console.print(f"written to {path}")
    if results.problem:
        print(f"bench: {options.peer} was not measured: {results.problem}", file=sys.stderr)
        return 1
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benches.run", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    shared = Path(os.environ.get("WORMFS_SHARED_BENCH", ROOT.parent / "shared" / "bench"))
    parser.add_argument("--rounds", type=int, default=3, help="runs to take the median of (3)")
    parser.add_argument("--only", type=_parts, default=list(PARTS), help=f"parts: {','.join(PARTS)}")
    parser.add_argument("--fsbench-only", default="", help=f"parts of fsbench: {','.join(FSBENCH_PARTS)}")
    parser.add_argument("--scale", type=float, default=1.0, help="size of fsbench's work (1.0)")
    parser.add_argument("--no-peer", action="store_true", help="WormFS alone")
    parser.add_argument("--peer", default="gluster", help="a peer that peers.sh knows (gluster)")
    parser.add_argument("--shared-bench", type=Path, default=shared, help="folder of fsbench.py and peers.sh")
    parser.add_argument("--folder", type=Path, help="where clusters and peers lie (a temporary folder)")
    return parser.parse_args(arguments)


def _parts(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    unknown = sorted(set(names) - set(PARTS))
    if unknown:
        raise argparse.ArgumentTypeError(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return names


def _micro(name: str, rounds: int) -> dict[str, Row]:
    """Rows of `python -m benches.NAME`, which ends with a JSON object {row: [value, unit]}."""
    found = []
    for _ in range(rounds):
        done = subprocess.run(
            [sys.executable, "-m", f"benches.{name}"],
            cwd=ROOT,
            check=False,
            stdout=subprocess.PIPE,
            text=True,
            timeout=_MICRO_TIMEOUT_S,
        )
        if done.returncode != 0:
            raise SystemExit(f"benches/{name}.py exited {done.returncode}")
        rows = json.loads(done.stdout[done.stdout.index("{") :])
        found.append({row: Row(float(value), str(unit)) for row, (value, unit) in rows.items()})
    return medians(found)


def _file_systems(options: argparse.Namespace, results: Results) -> None:
    """Rounds alternate between the two, so that neither has the machine's better hour."""
    script = options.shared_bench / "fsbench.py"
    script = script if script.exists() else fs.OWN_FSBENCH
    peers = options.shared_bench / "peers.sh"
    with_peer = not options.no_peer and "fs" in options.only
    if with_peer and not peers.exists():
        raise SystemExit(f"{peers} is not there: give --shared-bench FOLDER, or --no-peer")
    if with_peer:
        fs.check_no_peer()
    folder = Path(tempfile.mkdtemp(prefix="wormfs-bench-", dir=options.folder))
    try:
        tar = fs.make_tar(folder)
        for number in range(options.rounds if "fs" in options.only else 0):
            _console.print(f"round {number + 1} of {options.rounds}")
            work = folder / str(number)
            work.mkdir()
            rows = {"scale": options.scale, "only": options.fsbench_only, "tar": tar}
            with fs.wormfs_mounted(work) as under_test:
                results.wormfs.append(fs.fsbench_rows(under_test, script, **rows))
            if with_peer and not results.problem:
                try:
                    with fs.peer_mounted(peers, options.peer, work) as peer:
                        results.peer.append(fs.fsbench_rows(peer, script, **rows))
                except fs.BenchError as error:  # our own figures are worth having all the same
                    results.problem = str(error)
            shutil.rmtree(work, ignore_errors=True)
        if {"space", "memory"} & set(options.only):
            (folder / "own").mkdir()
            with fs.wormfs_mounted(folder / "own") as under_test:
                # In this order: idle is before any load, and space before there is garbage.
                if "memory" in options.only:
                    results.own["resident_idle_node"] = fs.idle_row(under_test)
                if "space" in options.only:
                    results.own["raw_space_1_gib"] = fs.space_row(under_test)
                if "memory" in options.only:
                    results.own["resident_mount_4_gib"] = fs.mount_memory_row(under_test)
                    results.own["resident_node_after_4_gib"] = fs.idle_row(under_test, patience_s=70)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ratios(results: Results) -> dict[str, float]:
    ours, theirs = medians(results.wormfs), medians(results.peer)
    return {name: row.value / theirs[name].value for name, row in ours.items() if name in theirs}


def _write(options: argparse.Namespace, results: Results) -> Path:
    target = ROOT / "bench-results"
    target.mkdir(exist_ok=True)
    path = target / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    content: dict[str, Any] = {
        "machine": {
            "cpus": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "rounds": options.rounds,
        "scale": options.scale,
        "micro": {part: _plain(rows) for part, rows in results.micro.items()},
        "fs": {
            "wormfs": _plain(medians(results.wormfs)),
            options.peer: _plain(medians(results.peer)),
            "ratio": _ratios(results),
            "rounds": {
                "wormfs": [_plain(rows) for rows in results.wormfs],
                options.peer: [_plain(rows) for rows in results.peer],
            },
        },
        "own": _plain(results.own),
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def _plain(rows: dict[str, Row]) -> dict[str, Any]:
    return {name: asdict(row) for name, row in rows.items()}


def _print(options: argparse.Namespace, results: Results) -> None:
    for part, rows in results.micro.items():
        table = _table(part, "figure", "unit")
        for name, row in rows.items():
            table.add_row(name, f"{row.value:,.1f}", row.unit)
        _console.print(table)
    if results.wormfs:
        _print_file_systems(options.peer, results)
    if results.own:
        table = _table("space and memory", "figure", "unit", "at most", "")
        for name, row in results.own.items():
            table.add_row(name, f"{row.value:,.2f}", row.unit, f"{row.limit:,.2f}", _verdict(row.reached))
        _console.print(table)


def _print_file_systems(peer: str, results: Results) -> None:
    ours, theirs, ratios = medians(results.wormfs), medians(results.peer), _ratios(results)
    table = _table("file system, 4+2 on six nodes", "wormfs", peer, "unit", "ratio", "wanted", "")
    for name, row in ours.items():
        wanted = _WANTED_RATIOS.get(name, 1.0)
        ratio = ratios.get(name)
        table.add_row(
            name,
            f"{row.value:,.1f}",
            f"{theirs[name].value:,.1f}" if name in theirs else "",
            row.unit,
            f"{ratio:.2f}" if ratio is not None else "",
            f"{wanted:.1f}" if wanted else "report",
            _verdict(ratio >= wanted) if ratio is not None else "",
        )
    _console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("row")
    for column in columns:
        table.add_column(column, justify="left" if column == "unit" else "right")
    return table


def _verdict(reached: bool) -> str:
    return "[green]reached[/green]" if reached else "[red]short[/red]"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except fs.BenchError as error:
        sys.exit(f"bench: {error}")
