"""What docs/durability.md promises of close, of changes of names, and of an fsync that fails.

Six nodes, 4+2. Nothing here is synced but where a test says so.
"""

import errno
import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from io import FileIO
from pathlib import Path
from random import Random

import pytest

from tests.cluster.files import LONG_BYTES, SHORT_BYTES, SMALL_BYTES, digest
from tests.conftest import ClusterFactory
from tests.harness import Cluster, mount_pid, run_well, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.fuse, pytest.mark.timeout(180)]

NODES = range(1, 7)
DEADLINE_S = 1


@pytest.fixture(scope="module")
def six(module_cluster: ClusterFactory) -> Iterator[Cluster]:
    made = module_cluster(nodes=6, policy="4+2")
    yield made
    made.fsck()


@pytest.fixture(scope="module")
def other(six: Cluster) -> Path:
    """A mount that stays."""
    return six.mount("other")


def kill_at_once(cluster: Cluster, nodes: tuple[int, ...] | range, *others: int) -> None:
    """SIGKILL nodes and other processes, one right after the other."""
    for pid in [*others, *(cluster.pid(node) for node in nodes)]:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(cluster.running, nodes)), "the nodes are gone")


def write_and_change(folder: Path) -> dict[str, str]:
    """Files of all kinds and changes of names, nothing synced: what `seen` must tell from now on."""
    folder.mkdir()
    random = Random(11)
    expected = {}
    for size in (0, SMALL_BYTES, SHORT_BYTES, LONG_BYTES):
        data = random.randbytes(size)
        (folder / f"closed-{size}").write_bytes(data)
        expected[f"closed-{size}"] = hashlib.sha256(data).hexdigest()
    patch = random.randbytes(5000)
    descriptor = os.open(folder / f"closed-{LONG_BYTES}", os.O_RDWR)
    whole = bytearray(os.pread(descriptor, LONG_BYTES, 0))
    whole[5_000_000 : 5_000_000 + len(patch)] = patch
    os.pwrite(descriptor, patch, 5_000_000)
    os.close(descriptor)
    expected[f"closed-{LONG_BYTES}"] = hashlib.sha256(whole).hexdigest()
    (folder / "sub").mkdir(mode=0o711)
    expected["sub"] = "folder 711"
    for name in ("old", "over", "gone", "linked"):
        (folder / name).write_bytes(name.encode())
    (folder / "old").rename(folder / "sub" / "new")
    expected["sub/new"] = hashlib.sha256(b"old").hexdigest()
    (folder / "over").replace(folder / f"closed-{SHORT_BYTES}")
    expected[f"closed-{SHORT_BYTES}"] = hashlib.sha256(b"over").hexdigest()
    (folder / "gone").unlink()
    os.link(folder / "linked", folder / "sub" / "link")
    expected["linked"] = expected["sub/link"] = hashlib.sha256(b"linked").hexdigest()
    (folder / "symbolic").symlink_to("sub/new")
    expected["symbolic"] = "to sub/new"
    (folder / "empty").mkdir()
    (folder / "empty").rmdir()
    (folder / "sub" / "new").chmod(0o640)
    os.truncate(folder / f"closed-{SMALL_BYTES}", 0)
    expected[f"closed-{SMALL_BYTES}"] = hashlib.sha256().hexdigest()
    return expected


def seen(folder: Path) -> dict[str, str]:
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"to {path.readlink()}"
        elif path.is_dir():
            found[name] = f"folder {path.stat().st_mode & 0o777:o}"
        else:
            found[name] = digest(path)
    return found


@pytest.mark.parametrize(
    ("mount_dies", "nodes_die"),
    [
        pytest.param(True, False, id="mount"),
        pytest.param(False, True, id="all-nodes", marks=pytest.mark.unsampled),
        pytest.param(True, True, id="mount-and-all-nodes", marks=pytest.mark.unsampled),
    ],
)
def test_what_was_closed_or_renamed_and_never_synced_survives_sigkill(
    six: Cluster, other: Path, mount_dies: bool, nodes_die: bool
) -> None:
    mount = six.mount("dies")
    folder = mount / f"{mount_dies}-{nodes_die}"
    dying = [mount_pid(mount)] if mount_dies else []
    expected = write_and_change(folder)
    kill_at_once(six, NODES if nodes_die else (), *dying)
    six.up()
    if not mount_dies:
        assert seen(folder) == expected
    assert seen(other / folder.name) == expected
    assert (other / folder.name / "sub" / "new").stat().st_mode & 0o777 == 0o640
    assert (other / folder.name / "linked").stat().st_nlink == 2
    six.unmount(mount)


def mount_with_deadline(cluster: Cluster) -> Path:
    """A mount that gives an operation up soon."""
    config = cluster.folder / "hasty.yaml"
    config.write_text(
        f"cluster: [{', '.join(cluster.addresses.split(','))}]\noptions: {{deadline: {DEADLINE_S}s}}\n",
        encoding="utf-8",
    )
    point = cluster.folder.parent / f"{cluster.folder.name}-hasty"
    point.mkdir(exist_ok=True)
    log = cluster.folder / f"{point.name}.log"
    run_well("mount", point, "--config", config, "--log-file", log)
    cluster.mounts.append(point)
    return point


def refused(function: Callable[[], object]) -> None:
    """It fails with EIO."""
    with pytest.raises(OSError, match="Input/output") as caught:
        function()
    assert caught.value.errno == errno.EIO


def synced(file: FileIO) -> bool:
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno == errno.EIO:
            return False
        raise
    return True


def close_if_open(file: FileIO) -> None:
    with suppress(OSError):
        file.close()


@pytest.mark.parametrize(
    ("lost", "size"),
    [
        pytest.param((2, 3, 4, 5), LONG_BYTES, id="chunks"),
        pytest.param((1,), SMALL_BYTES, id="metadata", marks=pytest.mark.unsampled),
    ],
)
def test_an_fsync_that_failed_tries_again_until_the_last_close(
    six: Cluster, other: Path, lost: tuple[int, ...], size: int
) -> None:
    mount = mount_with_deadline(six)
    log = six.folder / f"{mount.name}.log"
    data = Random(12).randbytes(size)
    with ExitStack() as closing:
        kept, given_up = (FileIO(mount / f"{name}-{size}", "x+") for name in ("kept", "given-up"))
        for file in (kept, given_up):
            closing.callback(close_if_open, file)
            file.write(b"before")
            os.fsync(file.fileno())
        kill_at_once(six, lost)
        for file in (kept, given_up):
            os.pwrite(file.fileno(), data, 0)
        for _ in range(2):
            refused(lambda: os.fsync(kept.fileno()))
            assert os.pread(kept.fileno(), size, 0) == data
        refused(given_up.close)
        wait_until(lambda: "was closed with" in log.read_text("utf-8"), "the log tells what is given up")
        six.up()
        wait_until(lambda: synced(kept), "an fsync brought the bytes to the disks")  # some come too early
        os.pwrite(kept.fileno(), b"after", size)
        os.fsync(kept.fileno())
        os.kill(mount_pid(mount), signal.SIGKILL)
    assert digest(other / f"kept-{size}") == hashlib.sha256(data + b"after").hexdigest()
    assert (other / f"given-up-{size}").read_bytes() == b"before"
    six.unmount(mount)
