"""Run pytest bounded in time, and leave nothing behind, however it ends.

usage: run_tests.py [--limit SECONDS] [-- PYTEST ARGUMENTS]
tests/conftest.py sweeps and fails the run itself; this is for a pytest that hung or was killed.
The tests drop the kernel's caches and make namespaces: who is not root runs them with sudo.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.leftovers import TOKEN_VARIABLE, Leftovers, run_folder  # noqa: E402


def main() -> int:
    """Pytest's exit code, 1 when anything was left behind, 124 past the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=1500, metavar="SECONDS")
    parser.add_argument("pytest", nargs="*")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        _become_root()
    token = uuid.uuid4().hex
    folder = run_folder(token)
    leftovers = Leftovers(token, (folder,))
    environment = os.environ | {TOKEN_VARIABLE: token}
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _interrupted)
    # A process group of its own: Ctrl-C reaches it through us, once, so that its teardown is not cut short.
    child = subprocess.Popen(
        [sys.executable, "-m", "pytest", *arguments.pytest], cwd=ROOT, env=environment, process_group=0
    )
    code = _wait(child, arguments.limit)
    leftovers.sweep()
    shutil.rmtree(folder, ignore_errors=True)
    for line in leftovers.found:
        print(f"left behind: {line}", file=sys.stderr)
    return code or (1 if leftovers.found else 0)


def sudo_command(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The same run as root. sudo clears the environment: what is WormFS's own is handed over."""
    own = [f"{name}={value}" for name, value in environment.items() if name.startswith("WORMFS_")]
    return ["sudo", "env", *own, sys.executable, str(Path(__file__).resolve()), *arguments]


def _become_root() -> NoReturn:
    print("the tests need root: running them with sudo", file=sys.stderr, flush=True)
    command = sudo_command(sys.argv[1:], os.environ)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"sudo cannot be run ({error.strerror}): run the tests as root")


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _wait(child: "subprocess.Popen[bytes]", limit_s: float) -> int:
    """Its exit code; past the limit it is interrupted (so that it prints where it stood), then killed."""
    try:
        return _shell_code(child.wait(limit_s))
    except subprocess.TimeoutExpired:
        print(f"the tests still run after {limit_s:.0f} s: stopping them", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted: stopping the tests, which takes their clusters down", file=sys.stderr)
        limit_s = 0
    child.send_signal(signal.SIGINT)
    try:
        child.wait(60)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        child.kill()
        child.wait()
    return 124 if limit_s else 130


def _shell_code(code: int) -> int:
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
