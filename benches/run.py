"""`make bench`: every figure in one run, as JSON and as a readable table.

usage: python -m benches.run [--rounds N] [--only PART,...] [--no-peer] [--scale S] ...

Parts: codec, store, streams, metadata (this repository's own), fs (fsbench beside a peer), space,
memory. Everything that is compared is measured in this one run, on this one machine. Exits 1 when the
peer could not be measured, or a median falls short of what is wanted. The peer is brought up by
peers.sh of a folder that is no part of this repository; where that is not there, WormFS is measured alone.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benches import fs
from benches import results as files
from benches.rows import Row, medians

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
    """Exit code 0 when everything was measured and reaches what is wanted."""
    options = read_options(arguments)
    if _wants_peer(options):
        fs.check_no_peer()
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
    short = short_rows(results)
    if short:
        print(f"bench: short of what is wanted: {'; '.join(short)}", file=sys.stderr)
    return 1 if results.problem or short else 0


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; says so, and goes on without it, when the peer is not there."""
    parser = argparse.ArgumentParser(
        prog="python -m benches.run", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    shared = Path(os.environ.get("WORMFS_SHARED_BENCH", files.ROOT.parent / "shared" / "bench"))
    parser.add_argument("--rounds", type=int, default=3, help="runs to take the median of (3)")
    parser.add_argument("--only", type=_parts, default=list(PARTS), help=f"parts: {','.join(PARTS)}")
    parser.add_argument("--fsbench-only", default="", help=f"parts of fsbench: {','.join(FSBENCH_PARTS)}")
    parser.add_argument("--scale", type=float, default=1.0, help="size of fsbench's work (1.0)")
    parser.add_argument("--no-peer", action="store_true", help="WormFS alone")
    parser.add_argument("--peer", default="gluster", help="a peer that peers.sh knows (gluster)")
    parser.add_argument("--shared-bench", type=Path, default=shared, help="folder of fsbench.py and peers.sh")
    parser.add_argument("--folder", type=Path, help="where clusters and peers lie (a temporary folder)")
    options = parser.parse_args(arguments)
    peers = options.shared_bench / "peers.sh"
    if _wants_peer(options) and not peers.exists():
        options.no_peer = True
        print(
            f"bench: the peer is not there ({peers}), WormFS is measured alone: give --shared-bench FOLDER "
            "to compare, or --no-peer",
            file=sys.stderr,
        )
    return options


def _wants_peer(options: argparse.Namespace) -> bool:
    return not options.no_peer and "fs" in options.only


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
            cwd=files.ROOT,
            check=False,
            stdout=subprocess.PIPE,
            text=True,
            timeout=_MICRO_TIMEOUT_S,
        )
        if done.returncode != 0:
            raise fs.BenchError(f"benches/{name}.py exited {done.returncode}")
        rows = json.loads(done.stdout[done.stdout.index("{") :])
        found.append({row: Row(float(value), str(unit)) for row, (value, unit) in rows.items()})
    return medians(found)


def _file_systems(options: argparse.Namespace, results: Results) -> None:
    """Rounds alternate between the two, so that neither has the machine's better hour."""
    script = options.shared_bench / "fsbench.py"
    script = script if script.exists() else fs.OWN_FSBENCH
    peers = options.shared_bench / "peers.sh"
    with_peer = _wants_peer(options)
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


def short_rows(results: Results) -> list[str]:
    """A line for each median that is not what it should be."""
    ratios = _ratios(results)
    short = files.short_ratios(ratios, {name: _wanted(name) for name in ratios})
    return short + [
        f"{name}: {row.value:.2f} {row.unit}, at most {row.limit:.2f}"
        for name, row in results.own.items()
        if not row.reached
    ]


def _wanted(name: str) -> float:
    return _WANTED_RATIOS.get(name, 1.0)


def _write(options: argparse.Namespace, results: Results) -> Path:
    content: dict[str, Any] = {
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
    return files.write(content)


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
        wanted = _wanted(name)
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
