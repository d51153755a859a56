"""The guard of tests/conftest.py, on a pytest run of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.leftovers import TOKEN_VARIABLE, mounts_under
from wormfs.cli.processes import find_process

_ROOT = Path(__file__).parents[2]
_LEAVES_A_PROCESS = """
import pathlib, subprocess
def test_bad():
    child = subprocess.Popen(["sleep", "300"], start_new_session=True, stdout=subprocess.DEVNULL)
    child.returncode = 0
    pathlib.Path({path!r}).write_text(str(child.pid))
"""
_LEAVES_A_MOUNT = """
import pathlib, subprocess
def test_bad(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True)
    pathlib.Path({path!r}).write_text(str(tmp_path))
"""


def _run_pytest(folder: Path, content: str) -> "subprocess.CompletedProcess[str]":
    test = folder / "test_inner.py"
    test.write_text(content.format(path=str(folder / "told")), encoding="utf-8")
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.conftest",
        "-c",
        _ROOT / "pyproject.toml",
        test,
    ]
    environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
    return subprocess.run(
        command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_a_process_left_behind_fails_the_run_and_is_killed(tmp_path: Path) -> None:
    done = _run_pytest(tmp_path, _LEAVES_A_PROCESS)
    assert done.returncode == 1, done.stdout
    assert "1 passed" in done.stdout
    assert "sleep 300 (of " in done.stdout
    assert "::test_bad" in done.stdout
    assert find_process(int((tmp_path / "told").read_text(encoding="ascii"))) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount tmpfs")
def test_a_mount_left_behind_fails_the_run_and_is_unmounted(tmp_path: Path) -> None:
    done = _run_pytest(tmp_path, _LEAVES_A_MOUNT)
    assert done.returncode == 1, done.stdout
    assert "left behind" in done.stdout
    assert mounts_under((Path((tmp_path / "told").read_text(encoding="utf-8")),)) == []


def test_a_clean_run_passes(tmp_path: Path) -> None:
    done = _run_pytest(tmp_path, "def test_good(): pass")
    assert done.returncode == 0, done.stdout
