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

from wormfs.client.options import ClientOptions
from wormfs.client.peers import PeerTable
from wormfs.core.errors import NotMasterError, UnavailableError
from wormfs.rpc import methods
from wormfs.rpc.methods import Method
from wormfs.rpc.stream_client import open_connection
from wormfs.rpc.v1 import cluster_pb2
from wormfs.settings.client import load_client_config

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)

SEARCH_S = 5.0
"""So long a master is looked for while any node answers: another one is elected in less."""
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


def master_map(target: Target) -> cluster_pb2.ClusterMap:
    """The cluster map of the master itself. Raises UnavailableError."""
    return call_master(target, methods.CLUSTER_GET_CLUSTER_MAP, cluster_pb2.GetClusterMapRequest())


def node_map(address: str, limit_s: float) -> cluster_pb2.ClusterMap:
    """The cluster map as one node has it; it may be old. Raises UnavailableError."""
    return trio.run(_node_map, address, limit_s)


def call_master(target: Target, method: Method[Request, Reply], request: Request) -> Reply:
    """One unary call to the master, wherever it is now. Raises what the master does, UnavailableError.

    It may be done twice, when a master fails before it answers and the next one is asked.
    """
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


async def _node_map(address: str, limit_s: float) -> cluster_pb2.ClusterMap:
    request = cluster_pb2.GetClusterMapRequest()
    async with open_connection([address], timeout_s=limit_s) as connection:
        return (await connection.call(methods.CLUSTER_GET_CLUSTER_MAP, request, timeout_s=limit_s)).message


async def _call_master(target: Target, method: Method[Request, Reply], request: Request) -> Reply:
    """Find the master and ask it; again when the mastership moved, or the master failed, meanwhile."""
    search_s = min(SEARCH_S, target.deadline_s)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            peers = PeerTable(target.addresses, nursery, ClientOptions(connect_s=search_s))
            return await _ask_masters(peers, method, request, trio.current_time() + target.deadline_s)
        except Exception as error:  # raised as it is, not within a nursery's group
            failure = error
    raise failure


async def _ask_masters(
    peers: PeerTable, method: Method[Request, Reply], request: Request, deadline: float
) -> Reply:
    while True:
        connection = await peers.reach_master()
        try:
            left_s = max(0.01, deadline - trio.current_time())
            return (await connection.call(method, request, timeout_s=left_s)).message
        except UnavailableError as error:
            moved = isinstance(error, NotMasterError) or connection.closed.is_set()
            if not moved or trio.current_time() + _RETRY_PAUSE_S > deadline:
                raise
        finally:
            connection.close()
        await trio.sleep(_RETRY_PAUSE_S)
