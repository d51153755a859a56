"""The file system's own figures: fsbench rows beside a peer, raw space, resident memory."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benches.rows import Row
from wormfs.cli.processes import resident_bytes

WORMFS = Path(sys.executable).parent / "wormfs"
OWN_FSBENCH = Path(__file__).with_name("fsbench.py")
_PHASE_TIMEOUT_S = 1800.0
_MIB = 1 << 20
_GLUSTER_STATE = Path("/var/lib/glusterd")
_PEER_ADDRESS = "10.77.0.1"


class BenchError(Exception):
    """Something could not be measured."""


@dataclass(frozen=True, slots=True)
class Mounted:
    """A file system under test; `cluster` is a dev cluster's folder, None for a peer."""

    mount: Path
    cluster: Path | None = None


def wormfs(*arguments: str | Path) -> str:
    """A `wormfs` command that must succeed; its output."""
    done = subprocess.run(
        [WORMFS, *arguments],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )
    if done.returncode != 0:
        raise BenchError(f"wormfs {' '.join(map(str, arguments))}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def wormfs_mounted(folder: Path) -> Iterator[Mounted]:
    """A fresh six-node 4+2 cluster, mounted; gone afterwards."""
    cluster, mount = folder / "wormfs", folder / "wormfs-mnt"
    mount.mkdir(parents=True)
    try:
        wormfs("dev", "up", "--dir", cluster)
        wormfs("mount", mount, "--config", cluster / "client.yaml")
        yield Mounted(mount, cluster)
    finally:
        if os.path.ismount(mount):
            wormfs("umount", mount)
        if cluster.exists():
            wormfs("dev", "down", "--dir", cluster)


@contextmanager
def peer_mounted(script: Path, peer: str, folder: Path) -> Iterator[Mounted]:
    """A peer by `peers.sh`; gone afterwards, the network namespace it made too. Raises BenchError."""
    check_no_peer()
    _clear_stale_volume()
    before = _namespaces()
    log = folder / "peer.log"
    made: frozenset[str] = frozenset()
    try:
        _peers(script, "up", peer, folder)
        made = _namespaces() - before
        if not os.path.ismount(folder / peer / "mnt"):
            raise BenchError(f"{peer} did not come up: {log.read_text(errors='replace')[-500:]}")
        yield Mounted(folder / peer / "mnt")
    finally:
        for name in made - _namespaces():  # somebody cleaned up too much: peers.sh could not go in
            _name_namespace(name, folder / peer / "pids")
        _peers(script, "down", peer, folder)
        for name in _namespaces() - before:
            _end_namespace(name)


def check_no_peer() -> None:
    """Raises BenchError when a peer is up that somebody else started.

    Peers have fixed names: taking ours down would take down theirs.
    """
    others = [name for name in _namespaces() if _processes_in(name)]
    if others:
        raise BenchError(
            f"another peer runs in network namespace {', '.join(others)}: take it down (peers.sh down), "
            "or use --no-peer"
        )


def _clear_stale_volume() -> None:
    """Forget the volume of a run that was cut short: glusterd would refuse to make it again.

    Its bricks have the address that peers.sh gives its own namespace, so it is nobody else's.
    """
    for info in _GLUSTER_STATE.glob("vols/*/info"):
        bricks = re.findall(r"^brick-\d+=(.*)", info.read_text(encoding="utf-8"), re.MULTILINE)
        if bricks and all(brick.startswith(_PEER_ADDRESS + ":") for brick in bricks):
            shutil.rmtree(info.parent)


def _peers(script: Path, verb: str, peer: str, folder: Path) -> None:
    """Run peers.sh. Its daemons keep its pipes open, so its output goes to a file."""
    with (folder / "peer.log").open("ab") as log:
        subprocess.run(
            ["bash", script, verb, peer, folder / peer],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            timeout=600,
        )


def _namespaces() -> frozenset[str]:
    folder = Path("/run/netns")
    return frozenset(os.listdir(folder)) if folder.is_dir() else frozenset()


def _processes_in(namespace: str) -> list[str]:
    listed = subprocess.run(["ip", "netns", "pids", namespace], check=False, capture_output=True, text=True)
    return listed.stdout.split()


def _name_namespace(name: str, pids: Path) -> None:
    """Give the network namespace of the peer's first daemon its name back."""
    for pid in pids.read_text(encoding="ascii").split()[:1] if pids.exists() else ():
        subprocess.run(["ip", "netns", "attach", name, pid], check=False, capture_output=True)


def _end_namespace(name: str) -> None:
    """Peers leave daemons in the namespace they made: end those, then the namespace."""
    for pid in _processes_in(name):
        subprocess.run(["kill", "-9", pid], check=False, capture_output=True)
    subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def fsbench_rows(under_test: Mounted, script: Path, *, scale: float, only: str, tar: Path) -> dict[str, Row]:
    """One run of fsbench; its rows by name."""
    command: list[str | Path] = [
        sys.executable,
        script,
        under_test.mount,
        "--scale",
        str(scale),
        "--tar",
        tar,
    ]
    command += ["--only", only] if only else []
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, timeout=_PHASE_TIMEOUT_S)
    if done.returncode != 0:
        raise BenchError(f"fsbench on {under_test.mount} exited {done.returncode}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {name: Row(float(value), unit) for name, (value, unit) in found.items()}


def make_tar(folder: Path, *, files: int = 2000) -> Path:
    """A tar of a real tree, for the untar rows."""
    path = folder / "tree.tar"
    source = Path(os.__file__).parent
    count = 0
    with tarfile.open(path, "w") as tar:
        for file in sorted(source.rglob("*.py")):
            if count == files:
                break
            tar.add(file, arcname=str(file.relative_to(source)), recursive=False)
            count += 1
    return path


def space_row(under_test: Mounted) -> Row:
    """Raw bytes of a 1 GiB file on all disks, as a multiple of its size."""
    if under_test.cluster is None:
        raise ValueError("only a dev cluster's disks can be looked at")
    before = _raw_bytes(under_test.cluster)
    _write_file(under_test.mount / "space", 1024)
    ratio = (_raw_bytes(under_test.cluster) - before) / (1024 * _MIB)
    (under_test.mount / "space").unlink()
    return Row(ratio, "times its size", higher_is_better=False, limit=1.52)


def _raw_bytes(cluster: Path) -> int:
    """Blocks held below every disk folder, chunks and metadata alike."""
    os.sync()
    total = 0
    for disk in cluster.glob("node-*/disk-*"):
        for folder, _, files in os.walk(disk):
            for name in files:
                total += os.stat(os.path.join(folder, name)).st_blocks * 512
    return total


def _write_file(path: Path, mib: int) -> None:
    piece = os.urandom(_MIB)
    with path.open("wb", buffering=0) as file:
        for number in range(mib):
            file.write(number.to_bytes(8, "big") + piece[8:])
        os.fsync(file.fileno())


def idle_row(under_test: Mounted, *, patience_s: float = 0.0) -> Row:
    """Resident memory of the largest node.

    A node that has worked gives its buffers back only when they stay unused: so it is asked again
    for `patience_s` until it is below the limit.
    """
    if under_test.cluster is None:
        raise ValueError("only a dev cluster's processes can be looked at")
    pids = [int(path.read_text(encoding="ascii")) for path in under_test.cluster.glob("node-*/pid")]
    give_up_at = time.monotonic() + patience_s
    while True:
        row = Row(max(map(resident_bytes, pids)) / _MIB, "MiB", higher_is_better=False, limit=150)
        if row.reached or time.monotonic() >= give_up_at:
            return row
        time.sleep(1)


def mount_memory_row(under_test: Mounted) -> Row:
    """The most resident memory of the mount while it copies 4 GiB."""
    pid = _mount_process(under_test.mount)
    _write_file(under_test.mount / "source", 1024)
    for number in range(4):
        copy = under_test.mount / f"copy-{number}"
        with (under_test.mount / "source").open("rb") as source, copy.open("wb") as target:
            while piece := source.read(_MIB):
                target.write(piece)
    most = _peak_bytes(pid)
    for name in ("source", *(f"copy-{number}" for number in range(4))):
        (under_test.mount / name).unlink()
    return Row(most / _MIB, "MiB", higher_is_better=False, limit=400)


def _mount_process(mount: Path) -> int:
    """The process that serves a mount: its command line names the mount point."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(b"fuse_client" in word for word in words) and os.fsencode(mount) in words:
            return int(folder.name)
    raise BenchError(f"no process serves {mount}")


def _peak_bytes(pid: int) -> int:
    """The most memory that was ever resident (VmHWM)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    if found is None:
        raise BenchError(f"process {pid} has no VmHWM")
    return int(found[1]) * 1024
