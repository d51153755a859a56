"""`wormfs locate`: where each chunk of a file lies."""

import argparse
import os
from typing import Any

from wormfs.cli.connection import Target, add_cluster_options, call_master, target_of
from wormfs.cli.output import human_bytes, print_json, to_plain
from wormfs.cli.parsing import Subparsers, command
from wormfs.rpc import methods
from wormfs.rpc.v1 import cluster_pb2


def add_parsers(subparsers: Subparsers) -> None:
    """Add `locate`."""
    parser = command(
        subparsers,
        "locate",
        _locate,
        "show each stripe's chunks: node, disk and the chunk file's path",
        examples=["wormfs locate /videos/a.mp4", "wormfs locate --json /videos/a.mp4"],
    )
    parser.add_argument("path", metavar="PATH", help="of a file, from the file system's root")
    add_cluster_options(parser)
    parser.add_argument("--json", action="store_true", help="for programs; the fields are in docs/api.md")


def _locate(arguments: argparse.Namespace) -> int:
    reply = _all_pages(target_of(arguments), os.fsencode(arguments.path))
    if arguments.json:
        print_json(locate_json(reply))
    else:
        print(locate_text(reply, arguments.path))
    return 0


def _all_pages(target: Target, path: bytes) -> cluster_pb2.LocateReply:
    """All stripes of the file in one reply; pages are of stripe indexes."""
    whole = call_master(target, methods.CLUSTER_LOCATE, cluster_pb2.LocateRequest(path=path))
    end = whole.end
    while not end and whole.stripes:
        following = whole.stripes[-1].stripe.index + 1
        page = call_master(
            target, methods.CLUSTER_LOCATE, cluster_pb2.LocateRequest(path=path, after_index=following)
        )
        whole.stripes.extend(page.stripes)
        end = page.end or not page.stripes
    whole.end = True
    return whole


def locate_json(reply: cluster_pb2.LocateReply) -> dict[str, Any]:
    """`attributes`, `inline_bytes`, and `stripes`, each the fields of Stripe with its `chunks`."""
    plain = to_plain(reply)
    plain.pop("end")
    plain["stripes"] = [place["stripe"] | {"chunks": place["chunks"]} for place in plain["stripes"]]
    return plain


def locate_text(reply: cluster_pb2.LocateReply, path: str) -> str:
    """The same for people."""
    lines = [
        f"{path}: {human_bytes(reply.attributes.size_bytes)}, {len(reply.stripes)} stripes,"
        f" {human_bytes(reply.inline_bytes)} inside the metadata"
    ]
    for place in reply.stripes:
        stripe = place.stripe
        lines.append(
            f"stripe {stripe.index} (id {stripe.stripe_id}, {stripe.k}+{stripe.m},"
            f" {human_bytes(stripe.length_bytes)})"
        )
        for chunk in place.chunks:
            kind = "data  " if chunk.index < stripe.k else "parity"
            state = "" if chunk.online else "  OFFLINE"
            lines.append(f"  {kind} {chunk.index:2d}  {chunk.node}  disk {chunk.disk}  {chunk.path}{state}")
    return "\n".join(lines)
