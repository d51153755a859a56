"""`wormfs dev`: a whole cluster on this machine, for trying, tests and demos."""

import argparse
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import trio

from wormfs.cli.connection import node_map
from wormfs.cli.dev_layout import DevFolder, DevNode, DevSize
from wormfs.cli.parsing import Subparsers, command, positive_int
from wormfs.cli.processes import Process, spawn_detached
from wormfs.core.errors import DeadlineError, InvalidError, UnavailableError, WormError
from wormfs.core.limits import CHUNK_SIZE_DEFAULT_BYTES
from wormfs.core.types import Policy
from wormfs.node.config import policy_problem
from wormfs.node.etcd_command import data_argument
from wormfs.node.etcd_process import find_running
from wormfs.rpc.v1 import cluster_pb2

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
_POLL_S = 0.05
_MAP_S = 2.0  # a node on this machine that has a map tells it in less
_DEFAULT = DevSize(nodes=6, disks=1, k=4, m=2, engine="embedded")


def add_parsers(subparsers: Subparsers) -> None:
    """Add `dev up|stop|start|down`."""
    parser = subparsers.add_parser(
        "dev",
        help="a whole cluster on this machine, for trying and tests",
        description="A whole cluster on this machine, in one folder, for trying and tests.",
        epilog="examples:\n  wormfs dev up --dir /tmp/worm\n"
        "  wormfs dev stop --dir /tmp/worm --node 3 --kill\n"
        "  wormfs dev start --dir /tmp/worm --node 3\n  wormfs dev down --dir /tmp/worm",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    up = command(
        actions,
        "up",
        _up,
        "make a cluster in DIR and start it, or start what is down of the one there",
        examples=["wormfs dev up --dir /tmp/worm", "wormfs dev up --dir /tmp/one --nodes 1 --disks 6"],
    )
    _add_folder(up)
    up.add_argument("--nodes", type=positive_int(100), metavar="N", help="nodes (6)")
    up.add_argument("--disks", type=positive_int(100), metavar="N", help="disks of each node (1)")
    up.add_argument("--policy", type=_policy, metavar="K+M", help="data and parity chunks of a stripe (4+2)")
    up.add_argument(
        "--engine",
        choices=["embedded", "etcd"],
        help="where the metadata lives (embedded: in node 1; etcd: in members that nodes 1 to 3 run)",
    )
    stop = command(
        actions,
        "stop",
        _stop,
        "stop one node; returns when it is gone",
        examples=[
            "wormfs dev stop --dir /tmp/worm --node 3",
            "wormfs dev stop --dir /tmp/worm --node 5 --kill",
        ],
    )
    _add_folder(stop)
    _add_node(stop)
    stop.add_argument("--kill", action="store_true", help="SIGKILL instead of a clean stop")
    start = command(
        actions,
        "start",
        _start,
        "start one node; returns when it is online",
        examples=["wormfs dev start --dir /tmp/worm --node 3"],
    )
    _add_folder(start)
    _add_node(start)
    down = command(
        actions,
        "down",
        _down,
        "stop every node; the data stays in DIR",
        examples=["wormfs dev down --dir /tmp/worm"],
    )
    _add_folder(down)
    down.add_argument("--kill", action="store_true", help="SIGKILL instead of a clean stop")


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", type=Path, required=True, metavar="DIR", help="the cluster's folder")


def _add_node(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--node", type=positive_int(100), required=True, metavar="I", help="the node, from 1")


def _policy(text: str) -> tuple[int, int]:
    k, plus, m = text.partition("+")
    if not (plus and k.isascii() and k.isdigit() and m.isascii() and m.isdigit() and int(k) > 0):
        raise argparse.ArgumentTypeError(f"expected K+M such as 4+2, not {text!r}")
    problem = policy_problem(Policy(int(k), int(m), CHUNK_SIZE_DEFAULT_BYTES))
    if problem:
        raise argparse.ArgumentTypeError(f"{text}: {problem}")
    return int(k), int(m)


def _up(arguments: argparse.Namespace) -> int:
    folder = DevFolder(arguments.dir)
    with folder.locked(make=True):
        if folder.client_config.exists():
            _check_same(folder, arguments)
        else:
            folder.make(_wanted_size(arguments))
        nodes = folder.nodes()
        down = [node for node in nodes if node.process() is None]
        try:
            _start_nodes(folder, down, nodes)
        except BaseException:
            _end(down, kill=False)  # as it was before: nothing half-started stays behind
            raise
    print(f"cluster: {','.join(folder.addresses())}", flush=True)
    return 0


def _wanted_size(arguments: argparse.Namespace) -> DevSize:
    k, m = arguments.policy or (_DEFAULT.k, _DEFAULT.m)
    size = DevSize(
        nodes=arguments.nodes or _DEFAULT.nodes,
        disks=arguments.disks or _DEFAULT.disks,
        k=k,
        m=m,
        engine=arguments.engine or _DEFAULT.engine,
    )
    if k + m > size.nodes * size.disks:
        have = size.nodes * size.disks
        print(
            f"wormfs: warning: {k}+{m} wants {k + m} disks and there are {have}: stripes will be narrower",
            file=sys.stderr,
        )
    return size


def _check_same(folder: DevFolder, arguments: argparse.Namespace) -> None:
    """An existing cluster is started as it is; options that say otherwise are refused, not ignored."""
    nodes = folder.nodes()
    disks = len(list(nodes[0].folder.glob("disk-*"))) if nodes else 0
    # Disk folders may have been lost; the configuration still names them.
    wanted_disks = None if arguments.disks is not None and arguments.disks > disks else arguments.disks
    policy = "+".join(map(str, arguments.policy)) if arguments.policy else None
    for name, given, have in (
        ("--nodes", arguments.nodes, len(nodes)),
        ("--disks", wanted_disks, disks),
        ("--policy", policy, folder.policy()),
        ("--engine", arguments.engine, folder.engine()),
    ):
        if given is not None and given != have:
            raise InvalidError(
                f"{folder.path} has a cluster already, made with {name} {have}; leave {name} out"
            )


def _stop(arguments: argparse.Namespace) -> int:
    folder = DevFolder(arguments.dir)
    with folder.locked():
        _end([folder.node(arguments.node)], kill=arguments.kill)
    return 0


def _start(arguments: argparse.Namespace) -> int:
    folder = DevFolder(arguments.dir)
    with folder.locked():
        node = folder.node(arguments.node)
        nodes = folder.nodes()
        started = [node] if node.process() is None else []
        if node.number != 1 and folder.engine() == "embedded" and nodes[0].process() is None:
            if started:
                _spawn(node)
            print(
                f"wormfs: {node.name} is started, but node-1, which holds the metadata, is down",
                file=sys.stderr,
            )
            return 0
        _start_nodes(folder, started, [node])
    return 0


def _down(arguments: argparse.Namespace) -> int:
    folder = DevFolder(arguments.dir)
    if not folder.path.exists():
        return 0
    with folder.locked():
        # The master last: while it is there the others' goodbyes are heard.
        if folder.client_config.exists():
            nodes = folder.nodes()
            _end(nodes[1:], kill=arguments.kill)
            _end(nodes[:1], kill=arguments.kill)
            _end_members(nodes)
    return 0


def _end(nodes: Sequence[DevNode], *, kill: bool) -> None:
    """Stop nodes side by side; returns when all are gone."""
    running = [(node, process) for node in nodes if (process := node.process()) is not None]
    if not kill:
        for _, process in running:
            process.send(signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for node, process in running:
        if kill or not process.wait_gone(max(0.0, deadline - time.monotonic())):
            process.end(timeout_s=0, kill=True)
        with contextlib.suppress(FileNotFoundError):
            node.pid_file.unlink()


def _end_members(nodes: Sequence[DevNode]) -> None:
    """Members of etcd outlive a node that was killed, but not the cluster."""
    for node in nodes:
        folder = node.etcd_folder
        found = find_running(folder / "pid", data_argument(folder / "data")) if folder.exists() else None
        if found is not None:
            found.send(signal.SIGTERM)
            trio.run(found.wait)


def _spawn(node: DevNode) -> None:
    command_line = [*_node_command(), "--config", str(node.config)]
    # WORMFS_ variables are the caller's own settings; the node has its file.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("WORMFS_") or name.startswith("WORMFS_TEST")
    }
    pid = spawn_detached(command_line, node.log, environment)
    temporary = node.pid_file.with_suffix(".new")
    temporary.write_text(f"{pid}\n", encoding="ascii")
    temporary.replace(node.pid_file)


def _node_command() -> list[str]:
    script = Path(sys.executable).parent / "wormfs-node"
    return [sys.executable, str(script)] if script.exists() else [sys.executable, "-m", "wormfs.cli.node"]


def _start_nodes(folder: DevFolder, down: Sequence[DevNode], awaited: Sequence[DevNode]) -> None:
    """Start nodes and wait until all of `awaited` serve and are online in the master's map.

    Raises UnavailableError with a node's last words when one ends, DeadlineError when it takes too long.
    """
    for node in down:
        _spawn(node)
    processes = {node: _running(node) for node in down}
    deadline = time.monotonic() + START_TIMEOUT_S
    waiting = list(awaited)
    while waiting:
        for node, process in processes.items():
            if not process.running:
                raise UnavailableError(
                    f"{node.name} ended while starting: {node.last_words()} (see {node.log})"
                )
        if time.monotonic() > deadline:
            raise DeadlineError(
                f"not online after {START_TIMEOUT_S:.0f} s: {', '.join(node.name for node in waiting)};"
                f" see {folder.path}/node-*/log"
            )
        waiting = _not_ready(folder.nodes(), awaited)
        if waiting:
            time.sleep(_POLL_S)


def _not_ready(nodes: Sequence[DevNode], awaited: Sequence[DevNode]) -> list[DevNode]:
    """Those that do not serve yet, or that the master does not know to be online.

    Each is asked itself: the map of another may still show it as it was before it was stopped.
    """
    online = _online_names(_master(nodes))
    return [
        node
        for node in awaited
        if node.name not in online or node.name not in _online_names(node) or not _listens(node)
    ]


def _master(nodes: Sequence[DevNode]) -> DevNode | None:
    """The node that says itself that it is the master."""
    for node in nodes:
        if node.process() is not None:
            found = _map(node)
            if any(each.master and each.name == node.name for each in found.nodes):
                return node
    return None


def _online_names(node: DevNode | None) -> set[str]:
    """The nodes online in one node's own map; none while it has no map."""
    return {each.name for each in _map(node).nodes if each.online} if node is not None else set()


def _map(node: DevNode) -> cluster_pb2.ClusterMap:
    try:
        return node_map(node.addresses().listen, _MAP_S)
    except WormError:
        return cluster_pb2.ClusterMap()


def _listens(node: DevNode) -> bool:
    """Whether its gRPC server is there."""
    host, _, port = node.addresses().grpc_listen.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return False
    return True


def _running(node: DevNode) -> Process:
    process = node.process()
    if process is None:
        raise UnavailableError(f"{node.name} ended at once: {node.last_words()} (see {node.log})")
    return process
