"""Exit codes and one-line errors of the command line, without a cluster."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from wormfs.cli import main as main_module
from wormfs.cli.main import build_parser, main
from wormfs.core.errors import ConfigError, DataLossError, UnavailableError

_COMMANDS = (
    "mount", "umount", "put", "get", "ls", "stat", "rm", "mkdir", "mv", "status", "locate", "fsck", "dev",
)  # fmt: skip


@pytest.mark.parametrize("command", _COMMANDS)
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert command in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["ls", "--nonsense"],
        ["dev", "up"],
        ["dev", "up", "--dir", "/x", "--policy", "4"],
        ["dev", "up", "--dir", "/x", "--nodes", "0"],
        ["mkdir", "-m", "9", "/x"],
    ],
)
def test_wrong_usage_is_one_line_and_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("wormfs: ")
    assert error.count("\n") == 1


def _run_raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def parse() -> object:
        parser = build_parser()

        def run(arguments: object) -> int:
            raise error

        parser.set_defaults(run=run)
        parsed = parser.parse_args(["status"])
        parsed.run = run
        parser.parse_args = lambda arguments=None: parsed  # type: ignore[method-assign,assignment]
        return parser

    monkeypatch.setattr(main_module, "build_parser", parse)
    return main(["status"])


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (
            ConfigError("a.yaml:1: wrong\na.yaml:2: too"),
            2,
            "wormfs: a.yaml:1: wrong\nwormfs: a.yaml:2: too\n",
        ),
        (UnavailableError("nobody answers"), 3, "wormfs: nobody answers\n"),
        (ExceptionGroup("x", [ExceptionGroup("y", [DataLossError("lost")])]), 1, "wormfs: lost\n"),
        (FileNotFoundError(2, "No such file", "/x"), 1, "wormfs: /x: No such file\n"),
        (KeyboardInterrupt(), 130, "wormfs: interrupted\n"),
        (BaseExceptionGroup("x", [KeyboardInterrupt()]), 130, "wormfs: interrupted\n"),
    ],
)
def test_errors_are_lines_and_codes(
    error: BaseException,
    code: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _run_raising(error, monkeypatch) == code
    assert capsys.readouterr().err == text


def test_a_bug_is_one_line_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("WORMFS_DEBUG", raising=False)
    assert _run_raising(ZeroDivisionError("a\nb"), monkeypatch) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "ZeroDivisionError: a b" in error


def _environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "WORMFS_CLUSTER"}
    return kept | {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    def start(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "wormfs.cli.main", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=60, env=_environment(tmp_path)
        )

    return start


@pytest.mark.parametrize("command", [["ls"], ["status"], ["fsck"], ["get", "/a", "b"], ["locate", "/a"]])
def test_no_cluster_named_is_said_with_what_to_do(
    command: list[str], run: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    done = run(*command)
    assert done.returncode == 2
    assert "--cluster" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_cluster_that_is_not_there_is_code_3(
    run: Callable[..., "subprocess.CompletedProcess[str]"],
) -> None:
    done = run("ls", "--cluster", "127.0.0.1:1")
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("wormfs: ")
    assert done.stderr.count("\n") == 1


def test_a_closed_pipe_leaves_no_traceback(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "wormfs.cli.main", "--help"],
            stdout=closed,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
            env=_environment(tmp_path),
        )
    assert b"Traceback" not in done.stderr


def test_closed_standard_streams_are_no_traceback(tmp_path: Path) -> None:
    shell = 'exec "$0" -m wormfs.cli.main "$@" <&- >&-'
    command = ["/bin/sh", "-c", shell, sys.executable, "ls", "--cluster", "127.0.0.1:1"]
    done = subprocess.run(
        command, stderr=subprocess.PIPE, check=False, timeout=60, env=_environment(tmp_path)
    )
    assert done.returncode == 3
    assert done.stderr.count(b"\n") == 1


def test_a_policy_that_cannot_be_makes_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["dev", "up", "--dir", str(tmp_path / "c"), "--policy", "30+3"])
    assert ended.value.code == 2
    assert "at most 32" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_stop_makes_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dev", "stop", "--dir", str(tmp_path / "c"), "--node", "1"]) == 1
    assert "holds no dev cluster" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
