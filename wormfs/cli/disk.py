"""`wormfs disk forget`: take a lost disk out of the cluster."""

import argparse

from wormfs.cli.connection import add_cluster_options, call_master, target_of
from wormfs.cli.parsing import Subparsers, command, positive_int
from wormfs.rpc import methods
from wormfs.rpc.v1 import cluster_pb2


def add_parsers(subparsers: Subparsers) -> None:
    """Add `disk forget`."""
    parser = subparsers.add_parser("disk", help="disks of the cluster")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    forget = command(
        actions,
        "forget",
        _forget,
        "take a lost disk out of the cluster; refused while a file needs what it holds",
        examples=["wormfs status", "wormfs disk forget 3"],
    )
    add_cluster_options(forget)
    forget.add_argument(
        "disk", type=positive_int(1 << 32), metavar="NUMBER", help="as `wormfs status` shows it"
    )


def _forget(arguments: argparse.Namespace) -> int:
    request = cluster_pb2.ForgetDiskRequest(disk=arguments.disk)
    call_master(target_of(arguments), methods.CLUSTER_FORGET_DISK, request)
    print(f"disk {arguments.disk} is forgotten")
    return 0
