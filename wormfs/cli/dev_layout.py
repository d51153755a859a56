"""The folder of a `wormfs dev` cluster: what lies where, and which of its nodes run.

DIR/client.yaml           for --config
DIR/node-I/node.yaml      the node's configuration, made once by `dev up`
DIR/node-I/disk-J/        its disks, from 1
DIR/node-I/pid, log, sock
"""

import fcntl
import os
import random
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

from wormfs.cli.processes import Process, command_line, find_process
from wormfs.core.errors import ConfigError, DeadlineError, NotDirectoryError, NotFoundError

_SOCKET_PATH_MAX_BYTES = 107  # sun_path of unix(7), without its NUL
# Below the range of ports that outgoing connections get (ip_local_port_range), so that no
# connection sits on a stopped node's port when it is started again.
_PORTS = range(10_000, 32_000)


ETCD_MEMBERS = 3
"""Nodes that run a member of etcd, with the engine etcd: the first ones."""


class NodeAddresses(NamedTuple):
    """`host:port` of a node's two servers."""

    listen: str
    grpc_listen: str


@dataclass(frozen=True, slots=True)
class DevNode:
    """One node's folder."""

    number: int
    folder: Path

    @property
    def name(self) -> str:
        """The node's name in the cluster."""
        return f"node-{self.number}"

    @property
    def config(self) -> Path:
        """Its node.yaml."""
        return self.folder / "node.yaml"

    @property
    def log(self) -> Path:
        """What it printed since it was made."""
        return self.folder / "log"

    @property
    def pid_file(self) -> Path:
        """Its process id, while it runs; may be stale after a crash."""
        return self.folder / "pid"

    def process(self) -> Process | None:
        """The running process; None when it is down.

        A process id may have been given to a stranger since: only a process that was started with
        this node's configuration counts.
        """
        try:
            pid = int(self.pid_file.read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return None
        process = find_process(pid)
        if process is None:
            return None
        arguments = command_line(pid)
        # A process just executed has no arguments for a moment: the kernel sets them last.
        if arguments and str(self.config) not in arguments:
            return None
        return process if process.running else None

    @property
    def etcd_folder(self) -> Path:
        """Where its member of etcd keeps its data, if it runs one."""
        return self.folder / "etcd"

    def addresses(self) -> NodeAddresses:
        """What its configuration says. Raises ConfigError when that was damaged."""
        try:
            config = yaml.safe_load(self.config.read_text(encoding="utf-8"))
            return NodeAddresses(config["listen"], config["grpc_listen"])
        except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.config} cannot be read as a dev node's: {error}") from error

    def last_words(self) -> str:
        """The last line of its log that is not empty, for an error message."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, self.log.stat().st_size - 4096))
                lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        except FileNotFoundError:
            return ""
        return lines[-1] if lines else ""


@dataclass(frozen=True, slots=True)
class DevSize:
    """What `dev up` makes."""

    nodes: int
    disks: int
    k: int
    m: int
    engine: str


class DevFolder:
    """DIR of a dev cluster."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @property
    def client_config(self) -> Path:
        """DIR/client.yaml; its presence says that the cluster was made."""
        return self.path / "client.yaml"

    def nodes(self) -> list[DevNode]:
        """Every node, in order. Raises NotFoundError when there is no cluster in DIR."""
        if not self.client_config.exists():
            raise NotFoundError(
                f"{self.path} holds no dev cluster; make one with: wormfs dev up --dir {self.path}"
            )
        found = [
            DevNode(int(folder.name.removeprefix("node-")), folder)
            for folder in self.path.glob("node-*")
            if folder.name.removeprefix("node-").isdigit() and (folder / "node.yaml").exists()
        ]
        return sorted(found, key=lambda node: node.number)

    def node(self, number: int) -> DevNode:
        """One node. Raises NotFoundError."""
        nodes = self.nodes()
        for node in nodes:
            if node.number == number:
                return node
        raise NotFoundError(f"{self.path} has no node {number}; it has 1 to {len(nodes)}")

    def engine(self) -> str:
        """Where its metadata lives. Raises ConfigError when the first node's configuration was damaged."""
        return str(self._made_with("metadata")["engine"])

    def policy(self) -> str:
        """The policy it was made with, as K+M. Raises ConfigError as engine()."""
        policy = self._made_with("policy")
        return f"{policy['k']}+{policy['m']}"

    def _made_with(self, key: str) -> dict[str, object]:
        file = self.node(1).config
        try:
            return dict(yaml.safe_load(file.read_text(encoding="utf-8"))[key])
        except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{file} cannot be read as a dev node's: {error}") from error

    def addresses(self) -> tuple[str, ...]:
        """Where clients reach it. Raises ConfigError when client.yaml was damaged."""
        try:
            return tuple(yaml.safe_load(self.client_config.read_text(encoding="utf-8"))["cluster"])
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.client_config} cannot be read as a dev cluster's: {error}") from error

    @contextmanager
    def locked(self, timeout_s: float = 120, *, make: bool = False) -> Iterator[None]:
        """Hold DIR against other `dev` commands; `make` it first. Raises DeadlineError, NotDirectoryError."""
        if self.path.exists() and not self.path.is_dir():
            raise NotDirectoryError(
                f"{self.path} is not a directory; name a new one, or one of a dev cluster"
            )
        if make:
            self.path.mkdir(parents=True, exist_ok=True)
        elif not self.path.exists():
            self.nodes()  # says that there is none, and what to do
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            deadline = time.monotonic() + timeout_s
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise DeadlineError(
                            f"another `wormfs dev` command holds {self.path}; wait for it to end"
                        ) from None
                    time.sleep(0.1)
            yield
        finally:
            os.close(descriptor)

    def make(self, size: DevSize) -> None:
        """Write the folders and configurations of a new cluster; client.yaml last."""
        ports = _free_ports(2 * size.nodes)
        addresses = [f"127.0.0.1:{port}" for port in ports[: size.nodes]]
        members = _etcd_endpoints(min(size.nodes, ETCD_MEMBERS), ports) if size.engine == "etcd" else []
        for number in range(1, size.nodes + 1):
            folder = self.path / f"node-{number}"
            disks = [folder / f"disk-{disk}" for disk in range(1, size.disks + 1)]
            for disk in disks:
                disk.mkdir(parents=True, exist_ok=True)
            config: dict[str, object] = {
                "name": folder.name,
                "listen": addresses[number - 1],
                "grpc_listen": f"127.0.0.1:{ports[size.nodes + number - 1]}",
                "disks": [str(disk) for disk in disks],
            }
            unix_socket = folder / "sock"
            if len(os.fsencode(unix_socket)) <= _SOCKET_PATH_MAX_BYTES:
                config["unix_socket"] = str(unix_socket)
            # More replicas of the metadata than etcd has members would make nothing safer.
            if number > max(1, len(members)):
                config["join"] = addresses[: max(1, len(members))]
            else:
                config["cluster"] = {"name": self.path.name}
                config["policy"] = {"k": size.k, "m": size.m}
                config["metadata"] = {"engine": size.engine}
            if number <= len(members):
                config["metadata"] = {
                    "engine": size.engine,
                    "endpoints": members,
                    "managed": True,
                    "member": members[number - 1],
                    "folder": str(DevNode(number, folder).etcd_folder),
                }
            _write_yaml(folder / "node.yaml", config)
        _write_yaml(self.client_config, {"cluster": addresses})


def _write_yaml(path: Path, content: dict[str, object]) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _etcd_endpoints(count: int, taken: Sequence[int] = ()) -> list[str]:
    """Client addresses of etcd members; each one's peers use the port behind it."""
    return [f"127.0.0.1:{port}" for port in _free_ports(count, width=2, taken=taken)]


def _free_ports(count: int, *, width: int = 1, taken: Sequence[int] = ()) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, nor on the next `width - 1`. Raises NotFoundError.

    `taken`: ports that somebody is about to listen on, and these must not overlap.
    """
    found: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        apart = all(abs(port - other) >= width for other in (*found, *taken))
        if apart and all(_is_free(port + more) for more in range(width)):
            found.append(port)
            if len(found) == count:
                return found
    raise NotFoundError(f"no {count} free ports on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
