"""What a test run left behind: processes, mounts, network namespaces.

Each run has a token in its environment; all it starts inherits it, however detached, together with
PYTEST_CURRENT_TEST, which names the test at fault.
"""

import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

TOKEN_VARIABLE = "WORMFS_TEST_RUN"
_NAMESPACES = Path("/run/netns")
_ROUNDS = 5
_EXEC_S = 0.5
_KILL_S = 10.0
_PF_KTHREAD = 0x00200000


@dataclass(slots=True)
class Leftovers:
    """What is there now that must not be; `found` has one line each."""

    token: str
    folders: tuple[Path, ...]
    found: list[str] = field(default_factory=list)

    def sweep(self) -> None:
        """Kill and unmount everything of this run, and note it in `found`."""
        for _ in range(_ROUNDS):  # what is killed may have started something since
            processes = list(_processes_with(self.token))
            for pid, what in processes:
                self.found.append(f"process {pid}: {what}")
                _kill(pid)
            if not processes:
                break
        for mount in mounts_under(self.folders):
            self.found.append(f"mount {mount}")
            subprocess.run(["umount", "--lazy", str(mount)], check=False, capture_output=True, timeout=20)
        for name in sorted(namespaces(run_folder(self.token).name)):
            self.found.append(f"network namespace {name}")
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True, timeout=20)


def run_folder(token: str) -> Path:
    """Where the run keeps its temporary files: short, because unix socket paths are (108 bytes)."""
    return Path(tempfile.gettempdir(), f"wt-{token[:8]}")


def namespaces(prefix: str) -> list[str]:
    """The named network namespaces of this machine that begin so: a run names its own after its folder.

    Others' are none of our business: several runs, and benches, may share a machine.
    """
    if not _NAMESPACES.is_dir():
        return []
    return [name for name in os.listdir(_NAMESPACES) if name.startswith(prefix)]


def mounts_under(folders: tuple[Path, ...]) -> list[Path]:
    """Mount points within the folders, innermost first. Asks the kernel's table, never the mounts."""
    points = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        point = Path(line.split(" ")[4].encode().decode("unicode_escape"))
        if any(point.is_relative_to(folder) for folder in folders):
            points.append(point)
    return sorted(points, key=lambda point: len(point.parts), reverse=True)


def _processes_with(token: str) -> Iterator[tuple[int, str]]:
    wanted = f"{TOKEN_VARIABLE}={token}".encode()
    own = {os.getpid(), os.getppid()}
    deadline = time.monotonic() + _EXEC_S
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in own:
            continue
        try:
            variables = _environment(int(name), deadline).split(b"\0")
            command = Path("/proc", name, "cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue  # gone, or another user's: not ours
        if wanted not in variables:
            continue
        test = next((v for v in variables if v.startswith(b"PYTEST_CURRENT_TEST=")), b"=no test")
        yield int(name), f"{os.fsdecode(command.strip())} (of {os.fsdecode(test.partition(b'=')[2])})"


def _environment(pid: int, deadline: float) -> bytes:
    """A process's variables. While it is in execve(2), after its close-on-exec, the kernel shows none."""
    while True:
        shown = Path(f"/proc/{pid}/environ").read_bytes()
        if shown or not _is_live_program(pid) or time.monotonic() > deadline:
            return shown
        time.sleep(0.005)


def _is_live_program(pid: int) -> bool:
    """No zombie, no thread of the kernel (proc(5), stat: state, flags)."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return fields[0] not in (b"Z", b"X") and not int(fields[6]) & _PF_KTHREAD


def _kill(pid: int) -> None:
    """SIGKILL, and wait until it is gone, so that what it holds can be taken away."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        os.kill(pid, signal.SIGKILL)
        select.select([descriptor], [], [], _KILL_S)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)
