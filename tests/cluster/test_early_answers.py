"""Answers a mount got before etcd had what they tell: they hold through the loss of the master."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from tests.conftest import ClusterFactory
from tests.harness import Cluster, mount_pid, run, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.fuse, pytest.mark.timeout(240)]


@pytest.fixture
def etcd_cluster(cluster: ClusterFactory) -> Cluster:
    return cluster(engine="etcd")


def member_pids(cluster: Cluster) -> list[int]:
    """The processes of the cluster's etcd members."""
    return [
        int(path.read_text(encoding="ascii").split()[0]) for path in cluster.folder.glob("node-*/etcd/*pid*")
    ]


@contextmanager
def etcd_stopped(cluster: Cluster) -> Iterator[None]:
    """Nothing that is ordered gets into etcd meanwhile."""
    pids = member_pids(cluster)
    assert len(pids) == 3
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def serving(mount: Path) -> None:
    """A new master answers early from its second command on; and its claim was renewed just now."""
    for number in range(3):
        (mount / f"warm-{number}").mkdir()


def change_much(folder: Path, answered: list[int]) -> None:
    """Five changes; the inode number of `made` after each."""
    made = folder / "made"
    made.mkdir()
    answered.append(made.stat().st_ino)
    (made / "file").write_bytes(b"few bytes")
    answered.append(made.stat().st_ino)
    (folder / "old").rename(made / "new")
    answered.append(made.stat().st_ino)
    (made / "link").symlink_to("file")
    answered.append(made.stat().st_ino)
    (folder / "warm-0").rmdir()
    answered.append(made.stat().st_ino)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_what_was_answered_before_the_master_died_is_there_afterwards(
    etcd_cluster: Cluster, rounds: Callable[[int, int], int]
) -> None:
    mount, other = etcd_cluster.mount(), etcd_cluster.mount("other")
    for number in range(rounds(1, 10)):
        folder = mount / f"round-{number}"
        folder.mkdir()
        (folder / "old").write_bytes(b"old")
        serving(folder)
        master = etcd_cluster.master()
        early: list[int] = []
        thread = Thread(target=change_much, args=(folder, early))
        with etcd_stopped(etcd_cluster):
            thread.start()
            thread.join(1.0)  # on a busy machine the rest is answered late
            answered = list(early)
            kill(etcd_cluster.pid(master))
        thread.join(60)
        assert len(early) == 5
        assert answered
        print(f"{len(answered)} of 5 changes answered while etcd stood still")
        assert {each.lstat().st_ino for each in (folder / "made", other / f"round-{number}/made")} == {
            early[0]
        }
        for seen in (folder, other / f"round-{number}"):
            assert {each.name for each in seen.iterdir()} == {"made", "warm-1", "warm-2"}
            assert (seen / "made" / "file").read_bytes() == b"few bytes"
            assert (seen / "made" / "new").read_bytes() == b"old"
            assert (seen / "made" / "link").readlink() == Path("file")
        (folder / "made" / "after").write_bytes(b"after")
        etcd_cluster.start(master)
    wait_until(lambda: run("fsck", "--cluster", etcd_cluster.addresses).returncode == 0, "a clean fsck")


def test_fsync_waits_for_what_was_answered_early(etcd_cluster: Cluster) -> None:
    mount = etcd_cluster.mount()
    serving(mount)
    synced_s: list[float] = []
    with (mount / "file").open("wb", buffering=0) as file:

        def sync() -> None:
            os.fsync(file.fileno())
            synced_s.append(time.monotonic())

        thread = Thread(target=sync)
        with etcd_stopped(etcd_cluster):
            file.write(b"synced")
            thread.start()
            thread.join(1.0)
            assert not synced_s
            continued_s = time.monotonic()
        thread.join(30)
    assert synced_s
    assert synced_s[0] > continued_s


def test_nothing_synced_is_lost_with_master_and_mount(etcd_cluster: Cluster) -> None:
    """Both are killed at once: what was answered early may go, in order, and nothing that was synced."""
    mount = etcd_cluster.mount()
    (mount / "synced").mkdir()
    descriptor = os.open(mount, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    serving(mount)
    master = etcd_cluster.master()
    with etcd_stopped(etcd_cluster):
        for number in range(4):
            (mount / f"early-{number}").mkdir()
        kill(mount_pid(mount))
        kill(etcd_cluster.pid(master))
    names = {each.name for each in etcd_cluster.remount(mount).iterdir()}
    early = [f"early-{number}" in names for number in range(4)]
    assert "synced" in names
    assert early == sorted(early, reverse=True)
    wait_until(lambda: run("fsck", "--cluster", etcd_cluster.addresses).returncode == 0, "a clean fsck")


def test_another_mount_never_sees_what_may_be_lost(etcd_cluster: Cluster) -> None:
    mount, other = etcd_cluster.mount(), etcd_cluster.mount("other")
    serving(mount)
    os.listdir(other)
    seen: list[bool] = []
    with etcd_stopped(etcd_cluster):
        (mount / "early").mkdir()
        thread = Thread(target=lambda: seen.append((other / "early").exists()))
        thread.start()
        thread.join(0.5)
        assert not seen  # the question waits until the answer cannot be taken back
    thread.join(30)
    assert seen == [True]
