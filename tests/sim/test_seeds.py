"""Simulated clusters under faults: fixed seeds, a fresh batch, replays, and bugs that must be found."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sim.planted import FIRST_SEED, PLANTED

ROOT = Path(__file__).parents[2]
FIXED = "1-20"
FRESH_S, FRESH_ALL_S = "4", "240"
PLANTED_SEEDS = 60
pytestmark = pytest.mark.timeout(300)


def run(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_the_fixed_seeds_keep_every_promise() -> None:
    done = run("wormfs.sim", "--seeds", FIXED)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.match(r"20 seeds, \d{4} commands, \d{3} faults,", done.stdout)
    assert re.search(r"\n\d{3} entries answered early, [1-9]\d? of them ordered anew; [1-9]", done.stdout)


def test_fresh_seeds_keep_every_promise() -> None:
    seconds = FRESH_ALL_S if os.environ.get("WORMFS_ROUNDS") == "all" else FRESH_S
    done = run("wormfs.sim", "--seconds", seconds)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("seed", ["3", pytest.param("29", marks=pytest.mark.long)])
def test_a_seed_is_one_run(seed: str, rounds: Callable[[int, int], int]) -> None:
    if seed != "3" and not rounds(0, 1):
        pytest.skip("one seed is enough of a sample")
    first, again = (run("wormfs.sim", "--seed", seed, hash_seed=hash_seed) for hash_seed in ("1", "2"))
    assert first.returncode == 0, first.stdout + first.stderr
    assert len(first.stdout.splitlines()) > 150
    assert first.stdout == again.stdout


def test_a_run_knows_nothing_of_those_before_it() -> None:
    code = "from wormfs.sim.world import simulate\nfor seed in (7, 8, 7): print(simulate(seed).trace_digest)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    first, other, again = done.stdout.split()
    assert first == again
    assert first != other


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    """What was found of each planted bug, all in one process: starting one takes longer than most."""
    done = run("tests.sim.planted", str(PLANTED_SEEDS))
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(line.split("\t", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str, found: dict[str, str]) -> None:
    assert re.match(r"seed \d+: \S+", found[name])


def test_a_failing_seed_is_told_with_its_replay() -> None:
    first = FIRST_SEED["reads after the lease"]
    code = (
        "import sys\n"
        "from tests.sim.planted import planted\n"
        "from wormfs.sim.__main__ import main\n"
        f"sys.argv = ['sim', '--seeds', '{first - 1}-{first + 1}']\n"
        "with planted('reads after the lease'): sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert re.search(r"seed (\d+) FAILED; replay it with: make sim SIM='--seed \1'", done.stdout)
