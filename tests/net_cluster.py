"""A real cluster on etcd whose nodes and clients are hosts of a network that can be hurt.

Every host is a network namespace of this machine. The first three nodes run members of etcd. Mounts are
seen by the test as any other. `tear_down` ends and removes everything, whatever state it is in.
"""

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.harness import COMMAND_TIMEOUT_S, WORMFS, wait_until
from tests.net_hosts import BRIDGE, NetHosts
from tests.packet_filter import Drop, Way
from wormfs.node.etcd_command import data_argument
from wormfs.node.etcd_process import EtcdProcess, find_running

STREAM_PORT, GRPC_PORT, ETCD_PORT, ETCD_PEER_PORT = 7400, 7401, 2379, 2380
ETCD_PORTS = (ETCD_PORT, ETCD_PEER_PORT)
MEMBERS = 3
START_S = 120.0  # the machine may be busy
_END_S = 20.0
_ASK_HEALTH = """
import sys, urllib.request
try:
    sys.exit(b"true" not in urllib.request.urlopen(sys.argv[1], timeout=5).read())
except OSError:
    sys.exit(1)
"""
_WORMFS_NODE = str(Path(WORMFS).parent / "wormfs-node")


class NetCluster:
    """Nodes are numbers from 1, clients too: hosts `node-I` (10.99.0.I) and `client-I` (10.99.0.100+I)."""

    def __init__(
        self, folder: Path, *, prefix: str, nodes: int = 5, clients: int = 2, policy: tuple[int, int] = (2, 1)
    ) -> None:
        """`prefix` begins the namespaces' names; `policy` is k and m."""
        self.folder = folder
        self.nodes = tuple(range(1, nodes + 1))
        self.clients = tuple(range(1, clients + 1))
        self._policy = policy
        hosts = {f"node-{number}": f"10.99.0.{number}" for number in self.nodes}
        hosts |= {f"client-{number}": f"10.99.0.{100 + number}" for number in self.clients}
        self.hosts = NetHosts(prefix, hosts, "10.99.0.254")
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self.mounts: list[Path] = []
        self._drops: dict[str, list[Drop]] = {}
        self._changing = threading.Lock()
        self.addresses = ",".join(f"{self._address(number)}:{STREAM_PORT}" for number in self.nodes)

    # --- life ---------------------------------------------------------------------------------

    def up(self) -> "NetCluster":
        """Make it, and wait until all nodes are online."""
        self.hosts.make()
        for number in self.nodes:
            self._configure(number)
        for number in self.nodes:
            self.start(number)
        self.wait_online()
        return self

    def tear_down(self) -> None:
        """End and remove all of it."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.hosts.remove)
            stack.callback(self._end_members)
            stack.callback(self.kill, *self.nodes)
            for point in list(self.mounts):
                stack.callback(self._unmount_anyhow, point)
            stack.callback(self.heal)

    def start(self, *nodes: int) -> None:
        """Start nodes; see `wait_online`."""
        for number in nodes:
            with self._log(number).open("ab") as log:
                self._processes[number] = subprocess.Popen(
                    [
                        *self.hosts.within(f"node-{number}"),
                        _WORMFS_NODE,
                        "--config",
                        str(self._config(number)),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )

    def kill(self, *nodes: int, members: bool = False) -> None:
        """SIGKILL nodes at once, with their members of etcd too if told; returns when they are gone."""
        running = [self._processes[number] for number in nodes if number in self._processes]
        for process in running:
            process.kill()
        if members:
            self.signal_members(signal.SIGKILL, *nodes)
        for process in running:
            process.wait(_END_S)

    def stop(self, node: int) -> None:
        """A clean stop; returns when it is gone."""
        process = self._processes[node]
        process.terminate()
        assert process.wait(_END_S * 3) == 0

    def signal_members(self, number: signal.Signals, *nodes: int) -> None:
        """Signal the members of etcd of these nodes."""
        for process in self._members(nodes):
            process.send(number)

    def mend(self) -> None:
        """Heal the network, have everything run that should, and unmount what a test mounted."""
        self.heal()
        self.signal_members(signal.SIGCONT, *self.nodes)
        for point in self.mounts[len(self.clients) :]:
            self._unmount_anyhow(point)
        self.start(*(number for number in self.nodes if self._processes[number].poll() is not None))
        self.wait_online()

    def wait_members(self, *nodes: int) -> None:
        """Wait until these nodes' members of etcd answer, which takes most of them all."""
        for number in nodes:
            url = f"http://{self._address(number)}:{ETCD_PORT}/health"
            ask = [*self.hosts.within(BRIDGE), sys.executable, "-c", _ASK_HEALTH, url]
            wait_until(
                lambda ask=ask: subprocess.run(ask, check=False, timeout=_END_S).returncode == 0,  # type: ignore[misc]
                f"the member of node {number} is well",
                START_S,
            )

    def wait_online(self) -> None:
        """Wait until every node is online in the master's map."""

        def online() -> bool:
            dead = [number for number in self.nodes if self._processes[number].poll() is not None]
            assert not dead, f"nodes {dead} ended:\n" + "\n".join(self.log_tails())
            found = self._status()
            disks = found["disks"] if found is not None else []
            return [disk["state"] for disk in disks] == ["online"] * len(self.nodes)

        wait_until(online, "all nodes are online", START_S)

    def master(self) -> int:
        """The master's number; waits until there is one that answers."""
        found: list[int] = []

        def ask() -> bool:
            status = self._status()
            if status is not None and status["master"]:
                found.append(int(str(status["master"]).removeprefix("node-")))
            return bool(found)

        wait_until(ask, "there is a master", START_S)
        return found[0]

    def _status(self) -> dict[str, Any] | None:
        done = self.wormfs("status", "--cluster", self.addresses, "--json")
        return json.loads(done.stdout) if done.returncode == 0 else None

    # --- clients ------------------------------------------------------------------------------

    def wormfs(self, *arguments: str | Path, host: str = BRIDGE) -> subprocess.CompletedProcess[str]:
        """A `wormfs` command on a host."""
        return subprocess.run(
            [*self.hosts.within(host), WORMFS, *map(str, arguments)],
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=COMMAND_TIMEOUT_S,
        )

    def mount(self, client: int, name: str = "mnt", **options: object) -> Path:
        """Mount it on a client; the mount point. `options` as in client.yaml."""
        point = self.folder.parent / f"{self.folder.name}-{name}-{client}"
        point.mkdir(exist_ok=True)
        config = self.folder / f"{point.name}.yaml"
        config.write_text(yaml.safe_dump({"cluster": self.addresses.split(","), "options": options}))
        log = self.folder / f"{point.name}.log"
        self.mounts.append(point)
        done = self.wormfs("mount", point, "--config", config, "--log-file", log, host=f"client-{client}")
        assert done.returncode == 0, done.stderr
        return point

    def unmount(self, point: Path) -> None:
        """Unmount; returns when all is written."""
        done = self.wormfs("umount", point)
        assert done.returncode == 0, done.stderr
        self.mounts.remove(point)

    def _unmount_anyhow(self, point: Path) -> None:
        if self.wormfs("umount", point).returncode != 0:
            subprocess.run(["umount", "--lazy", point], check=False, capture_output=True, timeout=_END_S)
        self.mounts.remove(point)

    # --- faults -------------------------------------------------------------------------------

    def isolate(self, *nodes: int) -> None:
        """Nobody reaches these nodes, nor they anybody; not even each other."""
        for number in nodes:
            self._lose(f"node-{number}", [Drop("in"), Drop("out")])

    def cut(self, node: int, others: Sequence[str] = (), ports: Sequence[int] = ()) -> None:
        """Nothing passes between a node and `others` (none: all hosts) on these TCP ports (none: all)."""
        ways: tuple[Way, ...] = ("in", "out")
        peers = [self.hosts.addresses[other] for other in others] or [""]
        drops = [Drop(way, peer, port) for way in ways for peer in peers for port in ports or [0]]
        self._lose(f"node-{node}", drops)

    def one_way(self, node: int, way: Way) -> None:
        """Nothing of this direction passes: "in", what is sent to the node; "out", what it sends."""
        self._lose(f"node-{node}", [Drop(way)])

    def loss(self, share: float) -> None:
        """Every packet between any two hosts is lost with this probability."""
        for host in self.hosts.addresses:
            self._lose(host, [Drop("out", share=share)])

    @contextlib.contextmanager
    def flap(self, node: int, *, down_s: float, up_s: float) -> Iterator[None]:
        """While it runs, a node's link goes down and up again and again; in the end it is up."""
        ended = threading.Event()

        def work() -> None:
            while not ended.is_set():
                self.isolate(node)
                ended.wait(down_s)
                self._lose(f"node-{node}", [])
                ended.wait(up_s)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(_END_S)

    def heal(self) -> None:
        """No packet is lost any more."""
        for host in [host for host, drops in self._drops.items() if drops]:
            self._lose(host, [])

    def _lose(self, host: str, drops: Sequence[Drop]) -> None:
        with self._changing:
            self.hosts.lose(host, drops)
            self._drops[host] = list(drops)

    # --- files --------------------------------------------------------------------------------

    def log_tails(self, lines: int = 25) -> Sequence[str]:
        """The last lines of each node's and mount's log, for failure reports."""
        tails = []
        for path in sorted([*self.folder.glob("node-*/log"), *self.folder.glob("*.log")]):
            text = path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
            tails += [f"--- {path.relative_to(self.folder)}", *text]
        return tails

    def _configure(self, number: int) -> None:
        folder = self.folder / f"node-{number}"
        (folder / "disk").mkdir(parents=True)
        address, (k, m) = self._address(number), self._policy
        metadata: dict[str, object] = {
            "engine": "etcd",
            "endpoints": [f"{self._address(member)}:{ETCD_PORT}" for member in self.nodes[:MEMBERS]],
        }
        if number in self.nodes[:MEMBERS]:
            own = {"member": f"{address}:{ETCD_PORT}", "folder": str(folder / "etcd")}
            metadata |= {"managed": True, **own}
        config = {
            "name": f"node-{number}",
            "listen": f"{address}:{STREAM_PORT}",
            "grpc_listen": f"{address}:{GRPC_PORT}",
            "disks": [str(folder / "disk")],
            "cluster": {"name": self.folder.name},
            "policy": {"k": k, "m": m},
            "metadata": metadata,
        }
        self._config(number).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")

    def _address(self, number: int) -> str:
        return self.hosts.addresses[f"node-{number}"]

    def _config(self, number: int) -> Path:
        return self.folder / f"node-{number}" / "node.yaml"

    def _log(self, number: int) -> Path:
        return self.folder / f"node-{number}" / "log"

    def _members(self, nodes: Sequence[int]) -> list[EtcdProcess]:
        folders = [self.folder / f"node-{number}" / "etcd" for number in nodes if number <= MEMBERS]
        found = [find_running(each / "pid", data_argument(each.absolute() / "data")) for each in folders]
        return [process for process in found if process is not None]

    def _end_members(self) -> None:
        """They outlive their nodes."""
        for process in self._members(self.nodes):
            process.send(signal.SIGKILL)
            wait_until(lambda process=process: not process.arguments(), "etcd has ended", _END_S)  # type: ignore[misc]
