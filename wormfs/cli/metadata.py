"""`wormfs metadata verify|migrate` : are all replicas equal; from one engine to etcd."""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from wormfs.cli.connection import add_cluster_options, call_master, target_of, usable_addresses
from wormfs.cli.metadata_backup import add_backup_parsers
from wormfs.cli.output import print_json, table
from wormfs.cli.parsing import Subparsers, command
from wormfs.core.errors import ConfigError, StaleError, UnavailableError, WormError
from wormfs.node.config import load_node_config
from wormfs.node.migration import migrate_metadata
from wormfs.rpc import methods
from wormfs.rpc.stream_client import open_connection
from wormfs.rpc.v1 import cluster_pb2, replication_pb2

CONNECT_S = 5.0
DIGEST_S = 300.0
"""Copying or digesting a state of some GiB."""
_TRIES = 3
_AGAIN = "its copy was gone before it was compared; try again"


@dataclass(slots=True)
class Verified:
    """A replica and its digest, or why there is none."""

    name: str
    addresses: tuple[str, ...]
    copy_id: int = 0
    sequence: int = 0
    digest: str = ""
    problem: str = ""


def add_parsers(subparsers: Subparsers) -> None:
    """Add `metadata verify|migrate|backup|check|restore`."""
    parser = subparsers.add_parser("metadata", help="the metadata: its replicas, backups, a move to etcd")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    verify = command(
        actions,
        "verify",
        _verify,
        "compare the state of all replicas at one event; exit code 0 when all are equal",
        examples=["wormfs metadata verify", "wormfs metadata verify --json"],
    )
    add_cluster_options(verify)
    verify.add_argument("--json", action="store_true", help="for programs")

    migrate = command(
        actions,
        "migrate",
        _migrate,
        "let the metadata of an embedded cluster go on in etcd; on its first node, which is stopped",
        examples=[
            "systemctl stop wormfs-node",
            "wormfs metadata migrate --node-config /etc/wormfs/node.yaml   # says engine: etcd now",
            "systemctl start wormfs-node",
        ],
    )
    migrate.add_argument(
        "--node-config", type=Path, required=True, metavar="FILE", help="the node's configuration, for etcd"
    )
    add_backup_parsers(actions)


def _migrate(arguments: argparse.Namespace) -> int:
    config = load_node_config(arguments.node_config)
    if config.metadata.engine != "etcd":
        raise ConfigError(f"{arguments.node_config}: metadata.engine is not etcd: there is nowhere to go")
    sequence = trio.run(migrate_metadata, config)
    print(f"the metadata is in etcd, up to event {sequence}: start the node")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    status = call_master(target_of(arguments), methods.CLUSTER_GET_STATUS, cluster_pb2.GetStatusRequest())
    nodes = {node.name: node for node in status.map.nodes}
    names = [replica.name for replica in status.replicas] or [status.master]
    if status.replicas:
        known = [Verified(name, usable_addresses(nodes[name])) for name in names if name in nodes]
        replicas = trio.run(digests, known)
    else:  # the embedded engine: the master's copies on its disks are fsck's
        replicas = [Verified(status.master, (), sequence=status.sequence)]
    different = differing(replicas, status.master)
    silent = [replica for replica in replicas if replica.problem]
    if arguments.json:
        print_json(
            {
                "sequence": max((each.sequence for each in replicas), default=0),
                "equal": not different and not silent,
                "differing": different,
                "replicas": [
                    {"name": each.name, "digest": each.digest, "problem": each.problem} for each in replicas
                ],
            }
        )
    else:
        print(_text(replicas, different))
    return 1 if different else UnavailableError.exit_code if silent else 0


def differing(replicas: Sequence[Verified], master: str) -> list[str]:
    """Names of those that are not as most are; of a tie, as the master is not."""
    found = [replica for replica in replicas if not replica.problem]
    counts = Counter(replica.digest for replica in found)
    masters = next((replica.digest for replica in found if replica.name == master), "")
    common = max(counts, key=lambda digest: (counts[digest], digest == masters), default="")
    return [replica.name for replica in found if replica.digest != common]


def _text(replicas: Sequence[Verified], different: Sequence[str]) -> str:
    rows = [
        [each.name, each.problem or ("DIFFERS" if each.name in different else "equal"), each.digest]
        for each in replicas
    ]
    sequence = max((each.sequence for each in replicas), default=0)
    if different:
        verdict = f"at event {sequence} the state of {', '.join(different)} differs from the others'"
    elif len(replicas) == 1:
        verdict = f"{replicas[0].name} has the only replica: nothing to compare"
    else:
        equal = sum(not each.problem for each in replicas)
        verdict = f"{equal} of {len(replicas)} replicas have one state at event {sequence}"
    return f"{table(['REPLICA', 'STATE', 'DIGEST'], rows)}\n{verdict}"


async def digests(replicas: list[Verified]) -> list[Verified]:
    """Digest every replica that can be reached at one sequence."""
    for _ in range(_TRIES):
        for each in replicas:
            each.problem = each.digest = ""
            each.copy_id = 0
        await _ask_each(replicas, 0)
        copied = [each for each in replicas if not each.problem]
        await _ask_each(copied, max((each.sequence for each in copied), default=0))
        if not any(each.problem == _AGAIN for each in replicas):
            break
    return replicas


async def _ask_each(replicas: Sequence[Verified], sequence: int) -> None:
    async with trio.open_nursery() as nursery:
        for replica in replicas:
            nursery.start_soon(_ask, replica, sequence)


async def _ask(replica: Verified, sequence: int) -> None:
    """Have a copy made, or the one made before digested at `sequence`."""
    request = replication_pb2.DigestRequest(copy_id=replica.copy_id, at_sequence=sequence)
    try:
        async with open_connection(replica.addresses, timeout_s=CONNECT_S) as connection:
            reply = (await connection.call(methods.REPLICATION_DIGEST, request, timeout_s=DIGEST_S)).message
    except StaleError:
        replica.problem = _AGAIN
    except WormError as error:
        replica.problem = error.message
    else:
        replica.copy_id, replica.sequence, replica.digest = reply.copy_id, reply.sequence, reply.digest
