"""scripts/demo.py, however it ends: everything is taken down, and what went wrong is one line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# The demo itself, with a `run` that goes wrong in the way its argument says.
PROGRAM = """
import signal, sys
from pathlib import Path
from scripts import demo

class Failing(demo.Demo):
    def run(self):
        (self.folder / "data").write_text("x")
        if sys.argv[2] == "wait":
            print("waits", flush=True)
            signal.pause()
        exec(sys.argv[2])

for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, demo._stop)
sys.exit(demo.run_and_take_down(Failing(Path(sys.argv[1]), files=1, big_bytes=1, engine="embedded")))
"""


def command(folder: Path, how: str) -> list[str | Path]:
    folder.mkdir()
    return [sys.executable, "-c", PROGRAM, folder, how]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raise ValueError('two\\nlines')", "FAILED ValueError: two lines"),
        ("raise demo.DemoError('cp exited 1')", "FAILED cp exited 1"),
        ("{}['nodes']", "FAILED KeyError: 'nodes'"),
        ("sys.exit(0)", "FAILED SystemExit: 0"),
    ],
)
def test_whatever_is_raised_is_a_line_and_all_is_taken_down(tmp_path: Path, how: str, said: str) -> None:
    done = subprocess.run(
        command(tmp_path / "demo", how), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    lines = done.stdout.splitlines()
    assert lines[0] == said
    assert lines[1].startswith("ok unmount, stop the nodes, remove the folder")
    assert (len(lines), done.stderr, done.returncode) == (2, "", 1)
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("reads", [True, False])
def test_a_signal_takes_all_down(tmp_path: Path, number: signal.Signals, reads: bool) -> None:
    """Also when nobody reads any more: the terminal was closed."""
    folder = tmp_path / "demo"
    began = command(folder, "wait")
    with subprocess.Popen(
        began,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"waits\n"
            if not reads:
                child.stdout.close()
            child.send_signal(number)
            assert child.wait(30) == 130
            assert child.stderr is not None
            assert child.stderr.read() == b""
            if reads:
                assert child.stdout.readline() == b"interrupted\n"
        finally:
            child.kill()
    assert not folder.exists()
