"""Fixtures every test may use, and the guard that no run leaves anything behind."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import sampling
from tests.harness import Cluster
from tests.leftovers import TOKEN_VARIABLE, Leftovers, run_folder

ClusterFactory = Callable[..., Cluster]
_RUN = pytest.StashKey[Leftovers]()


def pytest_configure(config: pytest.Config) -> None:
    token = os.environ.setdefault(TOKEN_VARIABLE, uuid.uuid4().hex)
    folder = run_folder(token)
    folder.mkdir(mode=0o755, exist_ok=True)
    config.stash[_RUN] = Leftovers(token, (folder,))
    if config.option.basetemp is None:
        config.option.basetemp = str(folder / "t")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what `make test` leaves out, before any fixture of it is made."""
    if sampling.runs_unsampled():
        return
    for item in items:
        if item.get_closest_marker("unsampled"):
            item.add_marker(pytest.mark.skip(reason="a long one: WORMFS_ROUNDS=1, or make test-all"))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    leftovers = session.config.stash[_RUN]
    leftovers.sweep()
    for folder in leftovers.folders:
        shutil.rmtree(folder, ignore_errors=True)
    if leftovers.found and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash[_RUN].found
    if found:
        terminalreporter.section("left behind (killed and unmounted now; the run fails)", red=True)
        for line in found:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def short_folder(pytestconfig: pytest.Config) -> Iterator[Callable[[], Path]]:
    """Makes folders with paths short enough for unix sockets."""
    base = pytestconfig.stash[_RUN].folders[0]
    made: list[Path] = []

    def make() -> Path:
        folder = base / f"c{len(made)}"
        folder.mkdir()
        made.append(folder)
        return folder

    yield make
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)


def _clusters(make_folder: Callable[[], Path]) -> Iterator[ClusterFactory]:
    made: list[Cluster] = []

    def make(**size: object) -> Cluster:
        made.append(Cluster(make_folder() / "c"))
        return made[-1].up(**size)  # type: ignore[arg-type]  # the keywords of Cluster.up

    yield make
    for cluster in made:
        for line in cluster.log_tails():
            print(line)  # pytest shows it when the test failed
        cluster.tear_down()
        shutil.rmtree(cluster.folder, ignore_errors=True)


@pytest.fixture
def cluster(short_folder: Callable[[], Path]) -> Iterator[ClusterFactory]:
    """Factory: `cluster(nodes=6, disks=1, policy="4+2")` is a running cluster; gone after the test."""
    yield from _clusters(short_folder)


@pytest.fixture(scope="module")
def module_cluster(short_folder: Callable[[], Path]) -> Iterator[ClusterFactory]:
    """As `cluster`, for all tests of one module."""
    yield from _clusters(short_folder)


@pytest.fixture(scope="module")
def mounted(module_cluster: ClusterFactory) -> Path:
    """A real mount of one node with six disks (4+2), shared by the tests of one module."""
    return module_cluster(nodes=1, disks=6).mount()


@pytest.fixture(scope="session")
def rounds() -> Callable[[int, int], int]:
    """`rounds(sample, whole)` of tests/sampling.py."""
    return sampling.rounds
