"""`wormfs status`: nodes, disks, space, policy, health, and what is one failure from loss."""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import trio

from wormfs.cli.connection import add_cluster_options, target_of
from wormfs.cli.output import human_bytes, print_json, table, to_plain
from wormfs.cli.parsing import Subparsers, command
from wormfs.client.master_search import MasterSearch
from wormfs.client.peers import machine_id
from wormfs.core.errors import NotMasterError, UnavailableError
from wormfs.rpc import methods
from wormfs.rpc.v1 import cluster_pb2

STATUS_LIMIT_S = 10.0
"""Of the whole command."""
ELECTION_S = 5.0
"""So long a cluster without a master is asked again: the next one is elected in less."""
_VERSION_MIN = 10**12  # a moment of this century


def add_parsers(subparsers: Subparsers) -> None:
    """Add `status`."""
    parser = command(
        subparsers,
        "status",
        _status,
        "show nodes, disks, space, policy and health",
        examples=["wormfs status", "wormfs status --json | jq .health"],
    )
    add_cluster_options(parser)
    parser.add_argument("--json", action="store_true", help="for programs; the fields are in docs/api.md")


def _status(arguments: argparse.Namespace) -> int:
    target = target_of(arguments)
    reply = trio.run(ask_status, target.addresses, min(target.deadline_s, STATUS_LIMIT_S))
    if arguments.json:
        print_json(status_json(reply))
    else:
        print(status_text(reply))
    return 0 if reply.master else UnavailableError.exit_code


async def ask_status(addresses: Sequence[str], limit_s: float) -> cluster_pb2.StatusReply:
    """The master's answer within `limit_s`; one without a master's name when there is none, or it is silent.

    That one holds the newest map that another node has. Raises UnavailableError when none has one.
    """
    deadline_s = trio.current_time() + limit_s
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        search = MasterSearch(nursery, machine_id(), limit_s=min(ELECTION_S, limit_s))
        try:
            return await _ask_master(search, addresses, deadline_s)
        except UnavailableError as error:
            if search.map is not None:
                return _without_master(search.map, error)
            failure = error
        finally:
            nursery.cancel_scope.cancel()
    raise failure


async def _ask_master(
    search: MasterSearch, addresses: Sequence[str], deadline_s: float
) -> cluster_pb2.StatusReply:
    while True:
        await search.run([[address] for address in addresses])
        if search.connection is None:
            raise search.explain()
        left_s = deadline_s - trio.current_time()
        try:
            request = cluster_pb2.GetStatusRequest()
            return (
                await search.connection.call(methods.CLUSTER_GET_STATUS, request, timeout_s=left_s)
            ).message
        except NotMasterError:  # it was until now
            if trio.current_time() + ELECTION_S > deadline_s:
                raise
            search.connection = None


def _without_master(known: cluster_pb2.ClusterMap, why: UnavailableError) -> cluster_pb2.StatusReply:
    """What another node last heard. Nobody is master."""
    reply = cluster_pb2.StatusReply(map=known, health="failed")
    for node in reply.map.nodes:
        node.master = False
    since = _begun(known)
    shown = "no master answers now; nodes and disks are shown as they last were known"
    reply.warnings.extend([shown + (f", under the master that began {since}" if since else ""), why.message])
    return reply


def _begun(known: cluster_pb2.ClusterMap) -> str:
    """When the map's master began: versions are counted from that moment, in milliseconds. Empty: unknown."""
    if known.version < _VERSION_MIN:
        return ""
    return datetime.fromtimestamp(known.version / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def status_json(reply: cluster_pb2.StatusReply) -> dict[str, Any]:
    """The fields of StatusReply with those of its map beside them; disks name their node.

    `map_is_old`: there is no master, so nodes and disks are as they last were known.
    """
    plain = to_plain(reply)
    found: dict[str, Any] = plain.pop("map")
    names = {node.number: node.name for node in reply.map.nodes}
    for disk in found["disks"]:
        disk["node_number"] = disk["node"]
        disk["node"] = names.get(disk["node"], "")
    total, free = _space(reply)
    return found | plain | {"total_bytes": total, "free_bytes": free, "map_is_old": not reply.master}


def _online(disk: cluster_pb2.DiskInfo) -> bool:
    return disk.state == cluster_pb2.DISK_STATE_ONLINE


def _space(reply: cluster_pb2.StatusReply) -> tuple[int, int]:
    """Raw total and free bytes of the disks online."""
    disks = [disk for disk in reply.map.disks if _online(disk)]
    return sum(disk.total_bytes for disk in disks), sum(disk.free_bytes for disk in disks)


def status_text(reply: cluster_pb2.StatusReply) -> str:
    """The same for people."""
    found = reply.map
    total, free = _space(reply)
    policy = found.policy
    usable = policy.k / (policy.k + policy.m) if policy.k else 1.0
    online = sum(node.online for node in found.nodes)
    suspected = sum(node.suspected for node in found.nodes)
    disks_online = sum(_online(disk) for disk in found.disks)
    head = [
        f"cluster  {found.name} ({found.cluster_id})",
        f"health   {reply.health}",
    ]
    policy_line = f"policy   {policy.k}+{policy.m}, chunks of {human_bytes(policy.chunk_size_bytes)}"
    if not reply.master:
        return "\n".join(
            [
                *head,
                "master   none answers now",
                policy_line,
                f"nodes    {len(found.nodes)}, {online} were online",
                f"disks    {len(found.disks)}, {disks_online} were online",
                *(f"WARNING  {warning}" for warning in reply.warnings),
                "",
                _node_table(found, old=True),
                "",
                _disk_table(found, old=True),
            ]
        )
    lines = [
        *head,
        f"master   {reply.master} ({reply.engine} engine, event {reply.sequence})",
        policy_line,
        f"nodes    {online} of {len(found.nodes)} online" + (f", {suspected} suspected" if suspected else ""),
        f"disks    {disks_online} of {len(found.disks)} online",
        f"space    {human_bytes(free)} free of {human_bytes(total)} raw;"
        f" room for {human_bytes(int(free * usable))} of files",
        f"files    {reply.inode_count} inodes, {reply.stripe_count} stripes, {reply.session_count} sessions",
        f"at risk  {reply.stripes_lost} stripes lost,"
        f" {reply.stripes_one_loss_from_loss} one failure from loss,"
        f" {reply.missing_chunk_count} chunks missing, {reply.garbage_chunk_count} to collect",
        f"repair   {_repair_text(reply.repair)}",
        f"metadata {len(reply.metadata_disks)} of {reply.metadata_copies_wanted} copies:"
        f" {', '.join(reply.metadata_disks)}",
        *([f"replicas {_replicas_text(reply)}"] if reply.replicas else []),
        *(f"WARNING  {warning}" for warning in reply.warnings),
        "",
        _node_table(found),
        "",
        _disk_table(found),
        *(["", _replica_table(reply)] if reply.replicas else []),
    ]
    return "\n".join(lines)


def _replicas_text(reply: cluster_pb2.StatusReply) -> str:
    kept = human_bytes(reply.log_bytes)
    return (
        f"{reply.replicas_holding} of {len(reply.replicas)} hold the log durably"
        f" ({reply.replicas_needed} must); etcd has it behind event {reply.log_floor}: {kept}"
    )


def _repair_text(repair: cluster_pb2.RepairStatus) -> str:
    done = f"{repair.rebuilt_stripes} stripes ({human_bytes(repair.rebuilt_bytes)}) rebuilt"
    if repair.widened_stripes:
        done += f", {repair.widened_stripes} widened"
    if repair.waiting_stripes:
        left = f"{repair.waiting_stripes} stripes ({human_bytes(repair.waiting_bytes)}) left"
    elif repair.pending_disks:
        left = f"{repair.pending_disks} disks offline, not given up yet"
    else:
        left = "nothing left to do"
    stuck = f", {repair.stuck_stripes} cannot be repaired now" if repair.stuck_stripes else ""
    return f"{left}{stuck}; {done}"


def _node_table(found: cluster_pb2.ClusterMap, *, old: bool = False) -> str:
    rows = [
        [
            node.name,
            "SUSPECTED" if node.suspected else "online" if node.online else "OFFLINE",
            "master" if node.master else "",
            f"{node.load:.2f}" if node.online and not old else "",
            next((address for address in node.addresses if not address.startswith("unix:")), ""),
            node.grpc_address,
            node.version,
        ]
        for node in sorted(found.nodes, key=lambda node: node.number)
    ]
    header = ["NODE", _state(old), "ROLE", "LOAD", "STREAMS", "GRPC", "VERSION"]
    return table(header, rows, right=frozenset({3}))


def _state(old: bool) -> str:
    return "WAS" if old else "STATE"


def _disk_table(found: cluster_pb2.ClusterMap, *, old: bool = False) -> str:
    names = {node.number: node.name for node in found.nodes}
    rows = [
        [
            str(disk.number),
            names.get(disk.node, "?"),
            "online" if _online(disk) else "OFFLINE",
            human_bytes(disk.free_bytes),
            human_bytes(disk.total_bytes),
            disk.path + (f"  ({disk.problem})" if disk.problem else ""),
        ]
        for disk in sorted(found.disks, key=lambda disk: disk.number)
    ]
    return table(["DISK", "NODE", _state(old), "FREE", "SIZE", "PATH"], rows, right=frozenset({0, 3, 4}))


def _replica_table(reply: cluster_pb2.StatusReply) -> str:
    rows = [
        [
            replica.name,
            "LAGS" if replica.lags else "online" if replica.online else "SILENT",
            str(replica.applied_sequence),
            str(replica.durable_sequence),
        ]
        for replica in reply.replicas
    ]
    return table(["REPLICA", "STATE", "APPLIED", "DURABLE"], rows, right=frozenset({2, 3}))
