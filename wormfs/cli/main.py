"""`wormfs`: one command line for users and administrators. Parsing and exit codes only."""

import sys

try:  # Ctrl-C may come before main() is there to answer it
    import argparse
    import logging
    import os
    import signal
    from collections.abc import Iterator, Sequence
    from contextlib import contextmanager
    from importlib import metadata
    from types import FrameType
    from typing import NoReturn

    from wormfs.cli import dev, disk, fsck, locate, members, mount, names, status, transfer
    from wormfs.cli import metadata as metadata_commands
    from wormfs.cli.parsing import Parser
    from wormfs.core.errors import WormError
except KeyboardInterrupt:
    sys.exit(130)

_DESCRIPTION = "WormFS: a distributed, erasure-coded file system."
_EPILOG = """\
examples:
  wormfs dev up --dir /tmp/worm          a cluster of six nodes on this machine
  export WORMFS_CLUSTER=127.0.0.1:7400   the address it printed
  wormfs mount /mnt/wormfs               use it with cp, tar, git, ...
  wormfs put -r photos /                 ... or without a mount
  wormfs status
exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 cluster not reachable, 130 interrupted"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser: argparse.ArgumentParser = Parser(
        prog="wormfs",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"wormfs {metadata.version('wormfs')}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    mount.add_parsers(subparsers)
    transfer.add_parsers(subparsers)
    names.add_parsers(subparsers)
    status.add_parsers(subparsers)
    locate.add_parsers(subparsers)
    fsck.add_parsers(subparsers)
    disk.add_parsers(subparsers)
    metadata_commands.add_parsers(subparsers)
    members.add_parsers(subparsers)
    dev.add_parsers(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Every failure is one line on standard error, never a traceback."""
    try:
        with _process_set_up():
            try:
                parsed = build_parser().parse_args(arguments)
                code: int = parsed.run(parsed)
            finally:
                sys.stdout.flush()  # here, where a reader that went away is no traceback
    except BaseException as error:  # the last line of defence: what it was, in one line
        return _report(error)
    return code


class _TerminatedError(BaseException):
    """SIGTERM or SIGHUP: leave as with Ctrl-C, so that nothing half-done stays behind."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise _TerminatedError(number)


@contextmanager
def _process_set_up() -> Iterator[None]:
    """Signals, logs and standard streams as a command line needs them."""
    # One that is not at its default is as someone, such as nohup, wants it.
    ours = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _terminated)
    logging.getLogger().addHandler(logging.NullHandler())  # what matters comes as an error, in one line
    # A closed standard descriptor would be given to the next file or socket that is opened.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the process's life
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _report(error: BaseException) -> int:
    """Print the errors that a failure is made of; the exit code of the first."""
    leaves = list(_leaves(error))
    if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
        return _fail(["interrupted"], 128 + signal.SIGINT)
    for leaf in leaves:
        if isinstance(leaf, _TerminatedError):
            return _fail([f"ended by {signal.Signals(leaf.number).name}"], 128 + leaf.number)
    if any(isinstance(leaf, BrokenPipeError) for leaf in leaves):
        _silence_stdout()
        return 128 + signal.SIGPIPE
    leaf = leaves[0]
    if isinstance(leaf, SystemExit):
        raise leaf
    if isinstance(leaf, WormError):
        return _fail(leaf.message.splitlines() or [type(leaf).__name__], leaf.exit_code)
    if isinstance(leaf, OSError):
        where = f"{leaf.filename}: " if leaf.filename is not None else ""
        return _fail([f"{where}{leaf.strerror or leaf}"], 1)
    if os.environ.get("WORMFS_DEBUG"):
        raise error
    text = " ".join(str(leaf).split())
    return _fail(
        [f"internal error, please report it: {type(leaf).__name__}: {text} (WORMFS_DEBUG=1 shows where)"], 1
    )


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


def _fail(lines: Sequence[str], code: int) -> int:
    for line in lines:
        print(f"wormfs: {line}", file=sys.stderr)
    return code


def _silence_stdout() -> None:
    """Nobody reads our output any more: keep the interpreter's last flush from complaining."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
