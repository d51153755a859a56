"""How a command reaches a cluster: its options, and one-shot calls over streams.

A command opens a connection, asks, and ends; nothing is kept. The cluster map tells the master and
each node's gRPC address.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import trio
from google.protobuf.message import Message

from wormfs.core.errors import NotMasterError, UnavailableError
from wormfs.rpc import methods
from wormfs.rpc.methods import Method
from wormfs.rpc.stream_client import open_connection
from wormfs.rpc.v1 import cluster_pb2
from wormfs.settings.client import load_client_config

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)

_RETRY_PAUSE_S = 0.2


@dataclass(frozen=True, slots=True)
class Target:
    """A cluster as the user named it; `deadline_s` bounds each call."""

    addresses: tuple[str, ...]
    deadline_s: float


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """Give a command `--cluster` and `--config`."""
    group = parser.add_argument_group(
        "the cluster (else WORMFS_CLUSTER, or the user's or system's client.yaml)"
    )
    group.add_argument("--cluster", metavar="ADDR[,ADDR]", help="host:port or unix:/path of one node or more")
    group.add_argument("--config", metavar="FILE", type=Path, help="a client.yaml")


def target_of(arguments: argparse.Namespace) -> Target:
    """The cluster that the options, the environment or a config file name. Raises ConfigError."""
    config = load_client_config(cluster=arguments.cluster, config=arguments.config)
    return Target(tuple(config.cluster), config.options.deadline_s)


def cluster_map(target: Target) -> cluster_pb2.ClusterMap:
    """The cluster map, of whichever node answers first. Raises UnavailableError."""
    return trio.run(
        _call, target.addresses, methods.CLUSTER_GET_CLUSTER_MAP, _map_request(), target.deadline_s
    )


def call_master(target: Target, method: Method[Request, Reply], request: Request) -> Reply:
    """One unary call to the master, wherever it is now. Raises what the master does, UnavailableError."""
    return trio.run(_call_master, target, method, request)


def master_of(found: cluster_pb2.ClusterMap) -> cluster_pb2.NodeInfo:
    """The master's record. Raises UnavailableError when the map names none that is online."""
    for node in found.nodes:
        if node.master:
            return node
    raise UnavailableError(f"cluster {found.name or found.cluster_id} has no master now; start its node")


def usable_addresses(node: cluster_pb2.NodeInfo) -> tuple[str, ...]:
    """The node's stream addresses that can work from here: a unix socket only when it exists here."""
    return tuple(
        address
        for address in node.addresses
        if not address.startswith("unix:") or os.path.exists(address.removeprefix("unix:"))
    )


def _map_request() -> cluster_pb2.GetClusterMapRequest:
    return cluster_pb2.GetClusterMapRequest()


async def _call(
    addresses: tuple[str, ...], method: Method[Request, Reply], request: Request, timeout_s: float
) -> Reply:
    async with open_connection(addresses, timeout_s=timeout_s) as connection:
        reply = await connection.call(method, request, timeout_s=timeout_s)
        return reply.message


async def _call_master(target: Target, method: Method[Request, Reply], request: Request) -> Reply:
    """Ask for the map, then the master; again when the mastership moved meanwhile."""
    deadline = trio.current_time() + target.deadline_s
    while True:
        found = await _call(
            target.addresses, methods.CLUSTER_GET_CLUSTER_MAP, _map_request(), target.deadline_s
        )
        try:
            return await _call(usable_addresses(master_of(found)), method, request, target.deadline_s)
        except NotMasterError:
            if trio.current_time() > deadline:
                raise
            await trio.sleep(_RETRY_PAUSE_S)
