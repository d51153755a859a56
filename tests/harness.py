"""Real clusters and mounts for tests: processes of the installed commands, always taken down."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wormfs.cli.processes import find_process

WORMFS = str(Path(sys.executable).parent / "wormfs")
COMMAND_TIMEOUT_S = 90


def run(*arguments: str | Path, timeout_s: float = COMMAND_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    """A `wormfs` command to its end, whatever its exit code, its output captured."""
    command = [WORMFS, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL
    )


def run_well(*arguments: str | Path, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    """A `wormfs` command that must exit 0; its standard output."""
    done = run(*arguments, timeout_s=timeout_s)
    if done.returncode != 0:
        raise AssertionError(
            f"wormfs {' '.join(map(str, arguments))} exited {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done.stdout


def drop_caches() -> None:
    """Throw the kernel's clean pages, dentries and inodes away, so that reads ask the file system."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 30) -> None:
    """For what only another process's state shows; prefer an event where there is one."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout_s} s still not so: {what}")
        time.sleep(0.05)


def mount_pid(point: Path) -> int:
    """The mount process of a mount point."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
                if b"fuse_client" in arguments and os.fsencode(point) in arguments:
                    return int(entry.name)
    raise AssertionError(f"no mount process serves {point}")


@dataclass(slots=True)
class Cluster:
    """A `wormfs dev` cluster in a folder of its own."""

    folder: Path
    addresses: str = ""
    mounts: list[Path] = field(default_factory=list)

    @property
    def config(self) -> Path:
        """The client's config file, for `--config`."""
        return self.folder / "client.yaml"

    def up(
        self, *, nodes: int = 6, disks: int = 1, policy: str = "4+2", engine: str = "embedded"
    ) -> "Cluster":
        """Make the cluster, or start what is down of it."""
        size: tuple[str | Path, ...] = (
            () if self.config.exists() else ("--nodes", str(nodes), "--disks", str(disks))
        )
        size += () if self.config.exists() else ("--policy", policy, "--engine", engine)
        out = run_well("dev", "up", "--dir", self.folder, *size)
        self.addresses = next(
            line.removeprefix("cluster: ") for line in out.splitlines() if line.startswith("cluster: ")
        )
        return self

    def wormfs(self, command: str, *arguments: str | Path) -> str:
        """A command against this cluster that must succeed; its output."""
        return run_well(command, "--cluster", self.addresses, *arguments)

    def master(self) -> int:
        """The number in the master's name."""
        found = json.loads(self.wormfs("status", "--json"))["master"]
        return int(str(found).removeprefix("node-"))

    def stop(self, node: int, *, kill: bool = False) -> None:
        """Stop one node; returns when its process is gone."""
        run_well("dev", "stop", "--dir", self.folder, "--node", str(node), *(("--kill",) if kill else ()))

    def start(self, node: int) -> None:
        """Start one node; returns when it is online in the cluster map."""
        run_well("dev", "start", "--dir", self.folder, "--node", str(node))

    def pid(self, node: int) -> int:
        """The node's process id."""
        return int((self.folder / f"node-{node}" / "pid").read_text(encoding="ascii"))

    def running(self, node: int) -> bool:
        """Whether the node's process runs."""
        path = self.folder / f"node-{node}" / "pid"
        return path.exists() and find_process(self.pid(node)) is not None

    def disk(self, node: int, disk: int = 1) -> Path:
        """One disk's folder."""
        return self.folder / f"node-{node}" / f"disk-{disk}"

    def mount(self, name: str = "mnt") -> Path:
        """Mount it beside the nodes; the mount point."""
        point = self.folder.parent / f"{self.folder.name}-{name}"
        point.mkdir(exist_ok=True)
        log = self.folder / f"{point.name}.log"
        run_well("mount", str(point), "--cluster", self.addresses, "--log-file", log)
        if point not in self.mounts:
            self.mounts.append(point)
        return point

    def unmount(self, point: Path) -> None:
        """Unmount; returns when all is written."""
        run_well("umount", str(point))
        self.mounts.remove(point)

    def remount(self, point: Path) -> Path:
        """Unmount and mount again: every cache of the client is cold."""
        self.unmount(point)
        drop_caches()
        return self.mount(point.name.removeprefix(f"{self.folder.name}-"))

    def fsck(self) -> None:
        """Fails unless clean."""
        self.wormfs("fsck")

    def tear_down(self) -> None:
        """Unmount and end everything, whatever state it is in."""
        for point in self.mounts:
            done = run("umount", str(point))
            if done.returncode != 0:
                subprocess.run(["umount", "--lazy", str(point)], check=False, capture_output=True, timeout=20)
        self.mounts.clear()
        if self.folder.exists():
            run_well("dev", "down", "--dir", self.folder)

    def log_tails(self, lines: int = 15) -> Sequence[str]:
        """The last lines of each node's and mount's log, for failure reports."""
        tails = []
        for path in [*sorted(self.folder.glob("node-*/log")), *sorted(self.folder.glob("*.log"))]:
            text = path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
            tails += [f"--- {path.relative_to(self.folder)}", *text]
        return tails
