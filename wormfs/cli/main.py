"""`wormfs`: one command line for users and administrators. Parsing and exit codes only."""

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence

from wormfs.cli import dev, fsck, locate, mount, names, status, transfer
from wormfs.cli.parsing import Parser
from wormfs.core.errors import WormError

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
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    mount.add_parsers(subparsers)
    transfer.add_parsers(subparsers)
    names.add_parsers(subparsers)
    status.add_parsers(subparsers)
    locate.add_parsers(subparsers)
    fsck.add_parsers(subparsers)
    dev.add_parsers(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Every failure is one line on standard error, never a traceback."""
    try:
        try:
            parsed = build_parser().parse_args(arguments)
            code: int = parsed.run(parsed)
        finally:
            sys.stdout.flush()  # here, where a reader that went away is no traceback
    except BaseException as error:  # the last line of defence: what it was, in one line
        return _report(error)
    return code


def _report(error: BaseException) -> int:
    """Print the errors that a failure is made of; the exit code of the first."""
    leaves = list(_leaves(error))
    if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
        return _fail(["interrupted"], 128 + signal.SIGINT)
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
