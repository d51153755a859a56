"""`wormfs fsck`: metadata against chunks, both ways."""

import argparse
import sys

from wormfs.cli.connection import add_cluster_options, target_of
from wormfs.cli.gateway import open_gateway
from wormfs.cli.output import print_json
from wormfs.cli.parsing import Subparsers, command
from wormfs.cli.progress import Progress
from wormfs.core.errors import UnavailableError
from wormfs.rpc import methods
from wormfs.rpc.v1 import cluster_pb2

FSCK_TIMEOUT_S = 24 * 3600.0


def add_parsers(subparsers: Subparsers) -> None:
    """Add `fsck`."""
    parser = command(
        subparsers,
        "fsck",
        _fsck,
        "check metadata against chunks both ways; exits 0 only when clean",
        examples=[
            "wormfs fsck",
            "wormfs fsck --verify-data --json",
            "wormfs fsck --collect-unknown   # after a restore: gives up what is newer than the backup",
        ],
    )
    add_cluster_options(parser)
    parser.add_argument("--verify-data", action="store_true", help="read every chunk and check its bytes")
    parser.add_argument(
        "--collect-unknown",
        action="store_true",
        help="delete the chunks that no file has: after a restore, those written since the backup",
    )
    parser.add_argument("--json", action="store_true", help="for programs; the fields are in docs/api.md")


def _fsck(arguments: argparse.Namespace) -> int:
    problems: list[dict[str, str]] = []
    collected: list[str] = []
    checked = 0
    ended = False
    request = cluster_pb2.FsckRequest(
        verify_data=arguments.verify_data, collect_unknown=arguments.collect_unknown
    )
    with open_gateway(target_of(arguments)) as gateway, Progress("checking", unit="chunks") as progress:
        for report in gateway.stream(methods.CLUSTER_FSCK, request, timeout_s=FSCK_TIMEOUT_S):
            checked = max(checked, report.checked)
            progress.update(report.checked, report.total or None)
            ended = ended or report.end
            if report.problem:
                if report.kind == "collected":
                    collected.append(report.problem)
                else:
                    problems.append({"kind": report.kind, "problem": report.problem})
                if not arguments.json:
                    print(f"{report.kind}: {report.problem}", flush=True)
    if not ended:
        raise UnavailableError("the check ended before it was through; run it again")
    if arguments.json:
        print_json({"clean": not problems, "checked": checked, "problems": problems, "collected": collected})
    elif problems:
        print(f"{len(problems)} problems, {checked} chunks checked", file=sys.stderr)
    else:
        print(f"clean: {checked} chunks checked")
    return 1 if problems else 0
