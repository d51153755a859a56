"""Processes of this machine, told apart from strangers that got the same process id.

A process is known by its id and its start time (field 22 of /proc/PID/stat, proc(5)): the pair is
never given twice between two boots. A zombie counts as gone: nobody may be there to reap it.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wormfs.core.errors import DeadlineError, NotPermittedError

_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Process:
    """One running process; `start_ticks` are clock ticks since boot."""

    pid: int
    start_ticks: int

    @property
    def running(self) -> bool:
        """Whether this very process is still there and no zombie."""
        return find_process(self.pid) == self

    def send(self, number: signal.Signals) -> None:
        """Signal it, unless it is gone; the id cannot be another's, for a pidfd is held meanwhile.

        Raises NotPermittedError when it runs as another user.
        """
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.running:
                signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            pass
        except PermissionError:
            raise NotPermittedError(f"process {self.pid} is another user's: be that user, or root") from None
        finally:
            os.close(descriptor)

    def wait_gone(self, timeout_s: float) -> bool:
        """Wait until it ended; False when it still runs after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while self.running:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def end(self, *, timeout_s: float, kill: bool = False) -> None:
        """SIGTERM (or at once SIGKILL), then SIGKILL after `timeout_s`; waits until it is gone.

        Raises DeadlineError when even SIGKILL does not end it within 10 s (stuck in the kernel).
        """
        if not kill:
            self.send(signal.SIGTERM)
            if self.wait_gone(timeout_s):
                return
        self.send(signal.SIGKILL)
        if not self.wait_gone(10):
            raise DeadlineError(f"process {self.pid} does not end, not even by SIGKILL; look at its stack")


def _stat_fields(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()  # the name, in brackets, may hold anything


def find_process(pid: int) -> Process | None:
    """The process that has this id now; None when there is none but a zombie."""
    fields = _stat_fields(pid)
    if fields is None or fields[0] in {"Z", "X"}:
        return None
    return Process(pid, int(fields[19]))


def command_line(pid: int) -> list[str]:
    """The arguments the process was started with; empty when it is gone."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [os.fsdecode(part) for part in raw.split(b"\0")[:-1]]


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def spawn_detached(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
    """Start a process of its own session, its output appended to `log`; its process id.

    It outlives us and our terminal: no controlling terminal, nothing on standard input.
    """
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=dict(environment),
            start_new_session=True,
        )
    child.returncode = 0  # detached on purpose: its end is watched by process id, not by this object
    return child.pid
