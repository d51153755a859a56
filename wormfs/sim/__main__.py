"""`python -m wormfs.sim`: run seeds for a time, print the one that fails; replay it with --seed."""

import argparse
import os
import sys
import time
from collections.abc import Iterable
from itertools import count
from random import SystemRandom

from wormfs.sim.world import Report, Size, simulate

_FRESH_MAX = 1 << 31


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="wormfs.sim", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to go on with new seeds")
    parser.add_argument("--seed", type=int, help="replay this one and print what happened")
    parser.add_argument("--seeds", type=_seeds, metavar="A-B", help="these ones, however long it takes")
    return parser.parse_args()


def _run(seeds: Iterable[int], size: Size, until_s: float) -> int:
    """Run seeds up to the first that fails; answers the exit code."""
    begun_s = time.monotonic()
    ran = commands = faults = undecided = early = adopted = losses = cached = 0
    simulated_s = 0.0
    failed: Report | None = None
    for seed in seeds:
        if time.monotonic() - begun_s >= until_s:
            break
        report = guarded(seed, size)
        ran += 1
        commands += report.commands
        faults += report.faults
        simulated_s += report.simulated_s
        undecided += report.undecided
        early += report.early
        adopted += report.adopted
        losses += report.losses
        cached += report.cached
        if report.problems:
            failed = report
            break
    took_s = time.monotonic() - begun_s
    print(
        f"{ran} seeds, {commands} commands, {faults} faults, {simulated_s / 3600:.1f} simulated hours "
        f"in {took_s:.0f} s ({ran / max(took_s, 1e-9):.1f} seeds/s); {undecided} undecided\n"
        f"{early} entries answered early, {adopted} of them ordered anew; {losses} clients lost answers; "
        f"{cached} answers from caches"
    )
    if failed is None:
        return 0
    print(f"seed {failed.seed} FAILED; replay it with: make sim SIM='--seed {failed.seed}'")
    _print_problems(failed)
    return 1


def guarded(seed: int, size: Size) -> Report:
    """A run that dies of an error has failed, too, and its seed must be told."""
    try:
        return simulate(seed, size)
    except Exception as error:  # whatever it is, it is the finding
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        return Report(seed, [f"the run ended with {type(error).__name__}: {error}"])


def _print_problems(report: Report) -> None:
    for problem in report.problems[:20]:
        print(f"  {problem}")


def _replay(seed: int, size: Size) -> int:
    report = simulate(seed, size, keep_trace=True)
    print("\n".join(report.trace))
    print(f"seed {seed}: trace {report.trace_digest}, {report.commands} commands, {report.faults} faults")
    _print_problems(report)
    return 1 if report.problems else 0


def main() -> int:
    """Exit code 0: every seed kept every promise."""
    if os.environ.get("PYTHONHASHSEED") != "0":  # str hashes order sets: a seed must mean one run
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "wormfs.sim", *sys.argv[1:]])
    arguments = _arguments()
    size = Size()
    if arguments.seed is not None:
        return _replay(arguments.seed, size)
    if arguments.seeds is not None:
        return _run(arguments.seeds, size, float("inf"))
    first = SystemRandom().randrange(_FRESH_MAX)
    print(f"seeds from {first} on")
    return _run(count(first), size, arguments.seconds)


if __name__ == "__main__":
    sys.exit(main())
