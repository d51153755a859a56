"""Pieces of argument parsing that every command shares."""

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Subparsers = argparse._SubParsersAction


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what was wrong and where help is; exit code 2."""
        self.exit(2, f"{self.prog.partition(' ')[0]}: {message} (see {self.prog} --help)\n")


def command(
    subparsers: Subparsers,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    *,
    examples: Sequence[str] = (),
    aliases: Sequence[str] = (),
) -> argparse.ArgumentParser:
    """Add one command; `run` gets the parsed arguments and returns the exit code."""
    epilog = "examples:\n" + "\n".join(f"  {example}" for example in examples) if examples else None
    parser = subparsers.add_parser(
        name,
        help=summary,
        description=summary[:1].upper() + summary[1:] + ".",
        epilog=epilog,
        aliases=list(aliases),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def positive_int(most: int) -> Callable[[str], int]:
    """An argument type: a whole number from 1 to `most`."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"expected a whole number from 1 to {most}, not {text!r}")
        return int(text)

    return parse
