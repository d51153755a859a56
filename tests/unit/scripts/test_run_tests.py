"""scripts/run_tests.py as a user who is not root."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.run_tests import sudo_command

SCRIPT = Path(__file__).parents[3] / "scripts" / "run_tests.py"
NOBODY = 65534


def as_nobody(*command: str | Path, path: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(path), "WORMFS_ROUNDS": "all", "HOME": "/root"}
    return subprocess.run(
        command, user=NOBODY, group=NOBODY, env=environment, capture_output=True, text=True, check=False
    )


def test_wormfs_variables_and_arguments_are_handed_over() -> None:
    command = sudo_command(["--limit", "5", "--", "-k", "a b"], {"WORMFS_SEED": "1 2", "HOME": "/home/u"})
    own = ["sudo", "env", "WORMFS_SEED=1 2", sys.executable, str(SCRIPT)]
    assert command == [*own, "--limit", "5", "--", "-k", "a b"]


def test_a_user_runs_the_tests_with_sudo(short_folder: Callable[[], Path]) -> None:
    folder = short_folder()
    folder.chmod(0o755)
    if as_nobody(sys.executable, "-c", "open(__import__('sys').argv[1])", SCRIPT, path=folder).returncode:
        pytest.skip("nobody but root may read this working copy")
    refused = as_nobody(sys.executable, SCRIPT, path=folder)
    assert refused.returncode == 1
    assert "run the tests as root" in refused.stderr
    assert "Traceback" not in refused.stderr
    sudo = folder / "sudo"
    sudo.write_text('#!/bin/sh\nfor each; do echo "$each"; done\nexit 7\n', encoding="ascii")
    sudo.chmod(0o755)
    done = as_nobody(sys.executable, SCRIPT, "--limit", "5", path=folder)
    assert done.stdout.splitlines() == sudo_command(["--limit", "5"], {"WORMFS_ROUNDS": "all"})[1:]
    assert done.stderr == "the tests need root: running them with sudo\n"
    assert done.returncode == 7
