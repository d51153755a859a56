"""The life of a mount: up and down by every way there is, and what a dead one leaves."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ClusterFactory
from tests.harness import WORMFS, Cluster, run, wait_until
from wormfs.cli.mounts import MountRecord, find_kernel_mount, kernel_mounts, read_record


@pytest.fixture(scope="module")
def served(module_cluster: ClusterFactory) -> Cluster:
    return module_cluster(nodes=1, disks=3, policy="2+1")


@pytest.fixture
def point(served: Cluster) -> Iterator[Path]:
    yield served.mount()
    if find_kernel_mount(served.mounts[0]) is None:
        served.mounts.clear()
    else:
        served.unmount(served.mounts[0])


def _record(point: Path) -> MountRecord:
    record = read_record(point)
    assert record is not None
    return record


def _ended(record: MountRecord) -> None:
    assert record.process.wait_gone(40)
    assert find_kernel_mount(Path(record.point)) is None


def test_umount_command_ends_the_process(served: Cluster, point: Path) -> None:
    record = _record(point)
    (point / "a").write_bytes(b"kept")
    assert run("umount", point).returncode == 0
    _ended(record)
    assert not record.process.running
    assert (served.mount() / "a").read_bytes() == b"kept"


def test_umount_says_who_else_has_it_mounted(served: Cluster, point: Path) -> None:
    """A container that was started while it was mounted keeps its copy: no hang, and no false "written"."""
    record = _record(point)
    (point / "kept").write_bytes(b"kept")
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as container:
        assert container.stdout is not None
        assert container.stdin is not None
        assert container.stdout.readline() == b"ready\n"
        done = run("umount", point)
        assert done.returncode == 3
        assert f"process {container.pid} in another mount namespace" in done.stderr
        assert record.process.running
        container.stdin.close()
    _ended(record)
    assert (served.mount() / "kept").read_bytes() == b"kept"


def test_umount_by_hand_ends_the_process(point: Path) -> None:
    record = _record(point)
    subprocess.run(["umount", point], check=True, timeout=30)
    _ended(record)
    wait_until(lambda: read_record(point) is None, "the record is gone")


def test_sigterm_writes_back_and_unmounts(served: Cluster, point: Path) -> None:
    record = _record(point)
    opened = os.open(point / "b", os.O_CREAT | os.O_WRONLY)
    os.write(opened, b"not closed")
    record.process.send(signal.SIGTERM)
    _ended(record)
    with pytest.raises(OSError, match="not connected"):
        os.close(opened)
    assert (served.mount() / "b").read_bytes() == b"not closed"


def test_busy_mount_is_refused_and_stays(point: Path) -> None:
    with (point / "c").open("wb"):
        done = run("umount", point)
        assert done.returncode == 1
        assert "in use" in done.stderr
    assert find_kernel_mount(point) is not None


def test_dead_mount_is_cleared_by_umount(point: Path) -> None:
    record = _record(point)
    record.process.send(signal.SIGKILL)
    assert record.process.wait_gone(20)
    assert run("umount", point).returncode == 0
    assert find_kernel_mount(point) is None


def test_dead_mount_is_replaced_by_mount(served: Cluster, point: Path) -> None:
    record = _record(point)
    record.process.send(signal.SIGKILL)
    assert record.process.wait_gone(20)
    served.mount()
    assert os.listdir(point) is not None


def test_second_mount_is_refused(served: Cluster, point: Path) -> None:
    done = run("mount", point, "--cluster", served.addresses)
    assert done.returncode == 2
    assert "already" in done.stderr


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_wrong_mount_point_is_one_line(served: Cluster, tmp_path: Path, kind: str) -> None:
    wrong = tmp_path / "x"
    if kind == "file":
        wrong.touch()
    done = run("mount", wrong, "--cluster", served.addresses)
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1


def test_unreachable_cluster_is_one_line(tmp_path: Path) -> None:
    done = run("mount", tmp_path, "--cluster", "127.0.0.1:1")
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
    assert find_kernel_mount(tmp_path) is None


def test_of_two_mounts_at_once_one_is_refused(served: Cluster, tmp_path: Path) -> None:
    log_file = str(tmp_path.parent / "l")
    command = [WORMFS, "mount", str(tmp_path), "--cluster", served.addresses, "--log-file", log_file]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        told = [each.communicate(timeout=60)[1] for each in both]
        assert sorted(each.returncode for each in both) == [0, 2]
        assert any("is under way" in line or "already a WormFS mount" in line for line in told)
        assert [mount.point for mount in kernel_mounts()].count(tmp_path) == 1
    finally:
        while find_kernel_mount(tmp_path) is not None:
            run("umount", tmp_path)


def test_umount_of_something_else_is_an_error(tmp_path: Path) -> None:
    done = run("umount", tmp_path)
    assert done.returncode == 2
    assert "not a WormFS mount" in done.stderr
