"""umount, and dead mounts, where no record of the mount process can be read."""

import argparse
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wormfs.cli import mount, mounts
from wormfs.cli.mounts import KernelMount, clear_dead_mount, record_of_process

pytestmark = pytest.mark.timeout(30)

# Stands for a mount process: once unmounted it is busy writing back, and says when it is done.
_WRITES_BACK = """
import sys, time
from pathlib import Path
print("ready", flush=True)
sys.stdin.read()
time.sleep(0.3)
Path("written").touch()
"""


@pytest.fixture
def point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mount point whose record is in somebody else's folder."""
    monkeypatch.setattr(mounts, "runtime_folder", lambda: tmp_path / "other-runtime")
    made = tmp_path / "mnt"
    made.mkdir()
    return made


@pytest.fixture
def mounted(point: Path, monkeypatch: pytest.MonkeyPatch) -> list[KernelMount]:
    """The kernel's table, with that mount in it."""
    table = [KernelMount(point, "0:0")]
    monkeypatch.setattr(mounts, "kernel_mounts", lambda *_: list(table))
    monkeypatch.setattr(mounts, "unmount", lambda *_, **__: table.clear())
    return table


@pytest.fixture
def process(point: Path, tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """`python -m fuse_client POINT --log-file ...`, in a folder with a `fuse_client` of its own."""
    package = tmp_path / "fuse_client"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(_WRITES_BACK)
    command = [sys.executable, "-m", "fuse_client", str(point), "--log-file", "/var/log/of-mount"]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as made:
        assert made.stdout is not None
        assert made.stdout.readline() == b"ready\n"
        yield made
        made.kill()


def test_umount_waits_for_a_process_without_a_record(
    point: Path,
    mounted: list[KernelMount],
    process: "subprocess.Popen[bytes]",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another user's, say: it says done only when that has written everything."""

    def unmount(*_: object, **__: object) -> None:
        mounted.clear()
        assert process.stdin is not None
        process.stdin.close()

    monkeypatch.setattr(mount, "unmount", unmount)
    assert mount.run_umount(argparse.Namespace(mountpoint=str(point))) == 0
    assert (tmp_path / "written").exists()
    assert process.wait(10) == 0


def test_a_process_is_found_by_its_mount_point(point: Path, process: "subprocess.Popen[bytes]") -> None:
    """Its log too; no other mount point's process is taken for it."""
    record = record_of_process(point)
    assert record is not None
    assert (record.pid, record.log_file) == (process.pid, "/var/log/of-mount")
    assert record.process.running
    assert record_of_process(point.parent) is None
    assert record_of_process(point / "below") is None
    process.kill()
    process.wait(10)
    assert record_of_process(point) is None


@pytest.mark.usefixtures("process")
def test_a_mount_with_a_process_is_not_dead(
    point: Path, mounted: list[KernelMount], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though nobody answers for now."""
    monkeypatch.setattr(os, "statvfs", _failing(errno.ENOTCONN))
    assert not clear_dead_mount(point)
    assert mounted


@pytest.mark.parametrize(
    ("number", "dead"),
    [(errno.ENOTCONN, True), (errno.EIO, False), (errno.EACCES, False), (errno.ETIMEDOUT, False)],
)
def test_only_a_mount_that_nobody_serves_is_dead(
    point: Path, mounted: list[KernelMount], monkeypatch: pytest.MonkeyPatch, number: int, dead: bool
) -> None:
    """An error that a live mount answers in an outage does not cost it."""
    monkeypatch.setattr(os, "statvfs", _failing(number))
    assert clear_dead_mount(point) == dead
    assert bool(mounted) != dead


def _failing(number: int) -> Callable[[object], None]:
    def fail(_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail
