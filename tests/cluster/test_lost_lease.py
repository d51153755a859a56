"""A mount that is cut off for longer than its lease: others go on, its unsaved bytes are never mixed up."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from tests.conftest import ClusterFactory
from tests.harness import mount_pid

pytestmark = [pytest.mark.cluster, pytest.mark.fuse, pytest.mark.timeout(180)]

LEASE_S = 6


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(False, id="file-untouched", marks=pytest.mark.unsampled),
        pytest.param(True, id="file-changed"),
    ],
)
def test_unsaved_bytes_after_a_lost_lease(cluster: ClusterFactory, changed: bool) -> None:
    one = cluster(nodes=1, disks=6, policy="4+2")
    first, second = one.mount("one"), one.mount("two")
    (first / "f").write_bytes(b"old" * 1000)
    fd = os.open(first / "f", os.O_RDWR)
    os.fsync(fd)
    os.pwrite(fd, b"unsaved", 0)
    pid = mount_pid(first)
    os.kill(pid, signal.SIGSTOP)
    try:  # no child process now: its copy of `fd` could not be closed while the mount is stopped
        begun_s = time.monotonic()
        assert (second / "f").read_bytes()[:7] == b"oldoldo"  # waits for the lease to run out, not longer
        assert time.monotonic() - begun_s < LEASE_S + 3
        if changed:
            with (second / "f").open("r+b") as file:
                file.write(b"changed")
    finally:
        os.kill(pid, signal.SIGCONT)
    if changed:
        with pytest.raises(OSError, match="Input/output") as caught:
            os.fsync(fd)
        assert caught.value.errno == errno.EIO
        expected = b"changed"
    else:
        os.fsync(fd)
        expected = b"unsaved"
    os.close(fd)
    for mount in (first, second):
        assert (mount / "f").read_bytes()[:7] == expected
    (first / "after").write_bytes(b"the mount works again")
    assert (second / "after").read_bytes() == b"the mount works again"
    one.fsck()


# Changes names and files from four threads until told to stop; the first error ends it.
BUSY = """
import os, sys, threading
folder = sys.argv[1]
def work(number):
    n = 0
    while not os.path.exists(folder + "/stop"):
        n += 1
        name = f"{folder}/{number}-{n}"
        with open(name + ".new", "xb") as file:
            file.write(name.encode() * 500)
        os.rename(name + ".new", name)
        with open(name, "r+b") as file:
            file.write(b"again")
        if n % 2:
            os.unlink(name)
    print(number, n)
def guarded(number):
    try:
        work(number)
    except BaseException as error:
        print("failed", repr(error), flush=True)
        os._exit(1)
threads = [threading.Thread(target=guarded, args=(number,)) for number in range(4)]
[thread.start() for thread in threads]
print("ready", flush=True)
[thread.join() for thread in threads]
"""


@pytest.mark.unsampled
def test_work_goes_on_after_a_silence_longer_than_the_lease(
    cluster: ClusterFactory, rounds: Callable[[int, int], int]
) -> None:
    """Nobody touched its files meanwhile: what was under way is done once, and nothing fails."""
    one = cluster(nodes=1, disks=6, policy="4+2")
    mount = one.mount("one")
    worker = subprocess.Popen(
        [sys.executable, "-c", BUSY, str(mount)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    pid = mount_pid(mount)
    for _ in range(rounds(1, 4)):
        time.sleep(1.0)
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(LEASE_S + 2)
        finally:
            os.kill(pid, signal.SIGCONT)
    time.sleep(2.0)
    (mount / "stop").touch()
    out, _ = worker.communicate(timeout=60)
    assert worker.returncode == 0, out
    for number, count in (map(int, line.split()) for line in out.splitlines()):
        for n in range(2, count + 1, 2):
            name = mount / f"{number}-{n}"
            assert name.read_bytes() == b"again" + (str(name).encode() * 500)[5:]
            assert not (mount / f"{number}-{n - 1}").exists()
    one.fsck()


def test_a_killed_mount_holds_nobody_up(cluster: ClusterFactory) -> None:
    one = cluster(nodes=1, disks=6, policy="4+2")
    first, second = one.mount("one"), one.mount("two")
    fd = os.open(first / "f", os.O_CREAT | os.O_RDWR)
    os.pwrite(fd, b"never saved", 0)
    os.kill(mount_pid(first), signal.SIGKILL)
    begun_s = time.monotonic()
    (second / "f").write_bytes(b"new")
    assert time.monotonic() - begun_s < LEASE_S
    with pytest.raises(OSError, match="not connected"):
        os.pwrite(fd, b"x", 0)
    with pytest.raises(OSError, match="not connected"):
        os.close(fd)
    one.unmount(first)
    assert (one.mount("one") / "f").read_bytes() == b"new"
    one.fsck()
