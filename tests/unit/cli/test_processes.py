"""Processes told apart by id and start time."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from wormfs.cli.dev_layout import DevNode
from wormfs.cli.processes import (
    Process,
    command_line,
    find_process,
    resident_bytes,
    spawn_detached,
)

_IGNORE_TERM = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);print('ready', flush=True); signal.pause()"
)


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-c", _IGNORE_TERM], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


def test_process_is_found_and_runs(child: "subprocess.Popen[bytes]") -> None:
    process = find_process(child.pid)
    assert process is not None
    assert process.running
    assert command_line(child.pid)[1:] == ["-c", _IGNORE_TERM]
    assert resident_bytes(child.pid) > 0


def test_another_start_time_is_another_process(child: "subprocess.Popen[bytes]") -> None:
    stranger = Process(child.pid, start_ticks=1)
    assert not stranger.running
    stranger.send(signal.SIGKILL)
    assert child.poll() is None


def test_end_kills_what_ignores_sigterm(child: "subprocess.Popen[bytes]") -> None:
    process = find_process(child.pid)
    assert process is not None
    process.end(timeout_s=0.1)
    assert child.wait(10) == -signal.SIGKILL


def test_a_zombie_counts_as_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert find_process(child.pid) is None
    child.wait()


def test_spawned_process_has_its_own_session_and_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    pid = spawn_detached([sys.executable, "-c", "print('hello')"], log, os.environ)
    os.waitpid(pid, 0)
    assert log.read_text(encoding="utf-8") == "hello\n"


def test_pid_file_of_a_stranger_is_no_node(tmp_path: Path, child: "subprocess.Popen[bytes]") -> None:
    node = DevNode(1, tmp_path)
    node.pid_file.write_text(f"{child.pid}\n", encoding="ascii")
    assert node.process() is None


@pytest.mark.parametrize("content", ["", "nonsense", "99999999\n"])
def test_pid_file_of_nobody_is_no_node(tmp_path: Path, content: str) -> None:
    node = DevNode(1, tmp_path)
    node.pid_file.write_text(content, encoding="ascii")
    assert node.process() is None
