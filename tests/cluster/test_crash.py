"""SIGKILL of any node or the mount at random moments: all that was fsynced reads back."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.cluster.files import digest
from tests.conftest import ClusterFactory
from tests.harness import Cluster, drop_caches, mount_pid

pytestmark = [pytest.mark.cluster, pytest.mark.fuse, pytest.mark.timeout(3600)]

# Writes and overwrites files until it fails or is killed; one line for each fsync that returned 0.
WORKER = """
import hashlib, os, random, sys
folder, seed = sys.argv[1], int(sys.argv[2])
r = random.Random(seed)
n = 0
while True:
    n += 1
    name = f"file-{r.randrange(40)}"
    data = r.randbytes(r.choice([10, 3000, 60_000, 70_000, 500_000, 5_000_000]))
    print("begin", name, hashlib.sha256(data).hexdigest(), flush=True)
    fd = os.open(f"{folder}/{name}.new", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view[:131072]):]
    os.fsync(fd)
    os.close(fd)
    os.rename(f"{folder}/{name}.new", f"{folder}/{name}")
    dirfd = os.open(folder, os.O_RDONLY)
    os.fsync(dirfd)
    os.close(dirfd)
    print("synced", name, hashlib.sha256(data).hexdigest(), flush=True)
"""


class Ledger:
    """What must read back: the last fsynced digest of each name, or any begun after it."""

    def __init__(self) -> None:
        self.synced: dict[str, str] = {}
        self.in_doubt: dict[str, str] = {}  # begun and not known to have ended

    def take(self, lines: list[str]) -> None:
        """Read a worker's report."""
        for line in lines:
            match line.split():
                case ["begin", name, sha256]:
                    self.in_doubt[name] = sha256
                case ["synced", name, sha256]:
                    self.synced[name] = sha256
                    self.in_doubt.pop(name, None)

    def check(self, folder: Path) -> None:
        """Every fsynced file is there, byte for byte; one in doubt may be newer, whole."""
        for name, expected in self.synced.items():
            found = digest(folder / name)
            if found != expected and found == self.in_doubt.get(name):
                self.synced[name] = found  # the rename was done, its fsync was not answered
                continue
            assert found == expected, f"{name} lost its fsynced bytes"
        self.in_doubt.clear()


def one_round(cluster: Cluster, mount: Path, random: Random, number: int, ledger: Ledger) -> None:
    """Write under load, kill one process somewhere in it, mount afresh, compare."""
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(mount), str(number)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    victim = random.randrange(0, 7)
    time.sleep(random.uniform(0.05, 1.2))  # the moment of the crash is what this test varies
    if victim == 0:
        os.kill(mount_pid(mount), signal.SIGKILL)
    else:
        cluster.stop(victim, kill=True)
    time.sleep(random.uniform(0.0, 0.3))
    if random.random() < 0.5:
        worker.kill()  # else it writes on over the victim's return
    if victim:
        cluster.start(victim)
    worker.kill()
    report, _ = worker.communicate(timeout=60)
    ledger.take(report.splitlines())
    cluster.remount(mount)
    ledger.check(mount)


@pytest.mark.long
def test_everything_fsynced_survives_sigkill(
    cluster: ClusterFactory, rounds: Callable[[int, int], int]
) -> None:
    seed = int(os.environ.get("WORMFS_SEED", str(time.time_ns() % 1_000_000)))
    print(f"seed {seed}: repeat with WORMFS_SEED={seed}")
    random = Random(seed)
    six = cluster(nodes=6, policy="4+2")
    mount = six.mount()
    ledger = Ledger()
    for number in range(rounds(3, 200)):
        one_round(six, mount, random, number, ledger)
        six.fsck()
    six.fsck()
    drop_caches()
    assert ledger.synced, "the worker never got as far as an fsync"
    assert all(
        hashlib.sha256((mount / name).read_bytes()).hexdigest() == sha for name, sha in ledger.synced.items()
    )
