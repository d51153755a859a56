"""`wormfs members list|remove|add`: the members of etcd that keep a cluster's metadata log."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import trio

from wormfs.cli.output import human_bytes, print_json, table
from wormfs.cli.parsing import Subparsers, command
from wormfs.core.errors import ConfigError
from wormfs.node.config import MetadataConfig, load_node_config
from wormfs.node.etcd_changes import (
    MemberState,
    add_member,
    healthy_voters,
    member_states,
    quorum,
    remove_member,
)

_FILE = "/etc/wormfs/node.yaml"


def add_parsers(subparsers: Subparsers) -> None:
    """Add `members list|remove|add`."""
    parser = subparsers.add_parser("members", help="the etcd members that keep the metadata log")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listed = command(
        actions,
        "list",
        _list,
        "show etcd's members: addresses, health, leader, size",
        examples=[f"wormfs members list --node-config {_FILE}"],
    )
    listed.add_argument("--json", action="store_true", help="for programs")
    removed = command(
        actions,
        "remove",
        _remove,
        "take a lost etcd member out for good; refused when that would cost the quorum",
        examples=[f"wormfs members remove 10.0.0.2:2379 --node-config {_FILE}"],
    )
    removed.add_argument("name", metavar="NAME", help="as `wormfs members list` shows it")
    added = command(
        actions,
        "add",
        _add,
        "make room for the etcd member of a new server, before its node is started",
        examples=[f"wormfs members add --node-config {_FILE}   # on the new server"],
    )
    for each in (listed, removed, added):
        each.add_argument(
            "--node-config",
            type=Path,
            required=True,
            metavar="FILE",
            help="a node's configuration: etcd's endpoints, TLS files and user",
        )


def _metadata(arguments: argparse.Namespace) -> MetadataConfig:
    config = load_node_config(arguments.node_config)
    if config.metadata.engine != "etcd":
        raise ConfigError(f"{arguments.node_config}: metadata.engine is not etcd: there are no members")
    return config.metadata


def _list(arguments: argparse.Namespace) -> int:
    states = trio.run(member_states, _metadata(arguments))
    if arguments.json:
        print_json(members_json(states))
    else:
        print(members_text(states))
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    gone = trio.run(remove_member, _metadata(arguments), arguments.name)
    print(f"etcd member {gone.name} is taken out; it cannot come back as what it was")
    return 0


def _add(arguments: argparse.Namespace) -> int:
    metadata = _metadata(arguments)
    if trio.run(add_member, metadata):
        print(
            f"etcd member {metadata.member} is added: start wormfs-node on its server; it gets its vote "
            "when it has caught up"
        )
    else:
        print(f"etcd member {metadata.member} was added before: start wormfs-node on its server")
    return 0


def members_json(states: Sequence[MemberState]) -> dict[str, object]:
    """What `list --json` prints."""
    healthy, voters = healthy_voters(states)
    return {
        "healthy": healthy,
        "voters": voters,
        "quorum": quorum(voters),
        "members": [
            {
                "id": f"{state.member.id:x}",
                "name": state.name,
                "client_urls": list(state.member.client_urls),
                "peer_urls": list(state.member.peer_urls),
                "healthy": not state.problem,
                "problem": state.problem,
                "leader": state.leads,
                "learner": state.member.is_learner,
                "db_size_bytes": state.status.db_size_bytes,
                "version": state.status.version,
            }
            for state in states
        ],
    }


def members_text(states: Sequence[MemberState]) -> str:
    """The same for people."""
    rows = [
        [
            state.name,
            "healthy" if not state.problem else "SILENT" if state.status.problem else "NOT WELL",
            "leader" if state.leads else "learner" if state.member.is_learner else "",
            human_bytes(state.status.db_size_bytes) if state.status.version else "",
            " ".join(state.member.client_urls),
            " ".join(state.member.peer_urls),
        ]
        for state in states
    ]
    lines = [table(["MEMBER", "STATE", "ROLE", "DATABASE", "CLIENTS", "PEERS"], rows, right=frozenset({3}))]
    # gRPC's own words are long; how they end is what happened.
    lines += [f"{state.name}: {state.problem.rpartition(': ')[2]}" for state in states if state.problem]
    healthy, voters = healthy_voters(states)
    need = quorum(voters)
    verdict = f"{healthy} of {voters} members are healthy; {need} must be"
    if healthy < need:
        verdict += ": NO QUORUM, nothing can be written until a member is back"
    elif healthy == need:
        verdict += ": the loss of one more stops all writing"
    lines.append(verdict)
    return "\n".join(lines)
