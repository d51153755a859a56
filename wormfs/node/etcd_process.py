"""One etcd process that outlives the node which started it: found, started, signalled, awaited.

A process is known by its id and its start time (field 22 of /proc/PID/stat, proc(5)); the pair is
never given twice between two boots. It need not be our child: its end is awaited by a pidfd.
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio


@dataclass(frozen=True, slots=True)
class EtcdProcess:
    """A process that is, or was, an etcd member; `start_ticks` are clock ticks since boot."""

    pid: int
    start_ticks: int

    def send(self, number: signal.Signals) -> None:
        """Signal it, unless it is gone."""
        descriptor = self._open()
        if descriptor is None:
            return
        try:
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            pass
        finally:
            os.close(descriptor)

    async def wait(self) -> str:
        """Wait for its end; how it ended in words, as far as that can be known of a stranger's child."""
        descriptor = self._open()
        if descriptor is None:
            return "it was gone"
        try:
            await trio.lowlevel.wait_readable(descriptor)
            return _reap(descriptor)
        finally:
            os.close(descriptor)

    def arguments(self) -> list[str]:
        """Its command line; empty when it is gone."""
        try:
            raw = Path(f"/proc/{self.pid}/cmdline").read_bytes()
        except OSError:
            return []
        return [os.fsdecode(part) for part in raw.split(b"\0")[:-1]]

    def _open(self) -> int | None:
        """A pidfd of this very process: identified while the pidfd keeps its id from being another's."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            return None
        if _start_ticks(self.pid) == self.start_ticks:
            return descriptor
        os.close(descriptor)
        return None


def _reap(descriptor: int) -> str:
    try:
        ended = os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return "it ended"  # adopted: its parent knows how
    if ended is None:
        return "it ended"
    if ended.si_code == os.CLD_EXITED:
        return f"exit code {ended.si_status}"
    return f"signal {ended.si_status}"


def _start_ticks(pid: int) -> int | None:
    """None when there is no such process. A zombie has one too: its pidfd says that it ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return int(text[text.rindex(")") + 2 :].split()[19])  # the name, in brackets, may hold anything


def start(command: Sequence[str], log_file: Path, environment: Mapping[str, str]) -> EtcdProcess:
    """Start etcd in a session of its own, its output appended to `log_file`. Raises OSError."""
    with log_file.open("ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=dict(environment),
            start_new_session=True,
        )
    child.returncode = 0  # detached on purpose: it is awaited by pidfd, and may outlive us
    ticks = _start_ticks(child.pid)
    return EtcdProcess(child.pid, ticks if ticks is not None else -1)


def record(file: Path, process: EtcdProcess) -> None:
    """Write down who runs, for `find_running` of the next node. Raises OSError."""
    new = file.with_name(f".{file.name}.new")
    new.write_text(f"{process.pid} {process.start_ticks}\n", encoding="ascii")
    new.rename(file)


def find_running(file: Path, data_argument: str) -> EtcdProcess | None:
    """The etcd that has `data_argument` on its command line: the recorded one, else any of this user's.

    The search closes the gap between the start of a process and its record.
    """
    recorded = _recorded(file)
    if recorded is not None and _is_member(recorded, data_argument):
        return recorded
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        ticks = _start_ticks(int(name))
        if ticks is None:
            continue
        process = EtcdProcess(int(name), ticks)
        if _is_member(process, data_argument) and Path("/proc", name).stat().st_uid == os.geteuid():
            return process
    return None


def _recorded(file: Path) -> EtcdProcess | None:
    try:
        pid, ticks = file.read_text(encoding="ascii").split()
        return EtcdProcess(int(pid), int(ticks))
    except (OSError, ValueError):
        return None


def _is_member(process: EtcdProcess, data_argument: str) -> bool:
    arguments = process.arguments()  # of a zombie: none
    return (
        bool(arguments)
        and "etcd" in Path(arguments[0]).name
        and data_argument in arguments[1:]
        and _start_ticks(process.pid) == process.start_ticks
    )
