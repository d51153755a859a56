"""A whole cluster on members of etcd that others run, with TLS and users: all goes on over both."""

import base64
import contextlib
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.etcd_members import EtcdMembers, EtcdTls, free_ports, make_certificates
from tests.harness import WORMFS, drop_caches, run, run_well, wait_until
from wormfs.rpc.etcd_types import prefix_end

pytestmark = [pytest.mark.cluster, pytest.mark.fuse, pytest.mark.timeout(300), pytest.mark.unsampled]

NODES = 3
NAME = "guarded"
PASSWORD = "pass-word-8264"
WORMFS_NODE = str(Path(WORMFS).parent / "wormfs-node")
STOP_S = 60.0


@dataclass(slots=True)
class Guarded:
    """Nodes 1 to 3, as an admin starts them: a configuration each."""

    folder: Path
    tls: EtcdTls
    endpoints: tuple[str, ...]
    ports: list[int]
    grpc_ports: list[int]
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def addresses(self) -> str:
        return ",".join(f"127.0.0.1:{port}" for port in self.ports[:NODES])

    def config(self, name: str, port: int, **changes: object) -> Path:
        """Write the configuration of a node; `changes` are to its `metadata`."""
        folder = self.folder / f"{name}-{port}"
        (folder / "disk").mkdir(parents=True, exist_ok=True)
        password = self.folder / "password"
        password.write_text(f"{PASSWORD}\n", encoding="ascii")
        metadata: dict[str, object] = {
            "engine": "etcd",
            "endpoints": list(self.endpoints),
            "ca_file": str(self.tls.ca_file),
            "cert_file": str(self.tls.cert_file),
            "key_file": str(self.tls.key_file),
            "user": "worm",
            "password_file": str(password),
        }
        content = {
            "name": name,
            "disks": [str(folder / "disk")],
            "listen": f"127.0.0.1:{port}",
            "grpc_listen": f"127.0.0.1:{self.grpc_ports[self.ports.index(port)]}",
            "cluster": {"name": NAME},
            "policy": {"k": 2, "m": 1},
            "metadata": metadata | changes,
        }
        file = folder / "node.yaml"
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        return file

    def log(self, file: Path) -> str:
        return (file.parent / "log").read_text(encoding="utf-8")

    def launch(self, file: Path) -> subprocess.Popen[bytes]:
        with (file.parent / "log").open("ab") as log:
            return subprocess.Popen([WORMFS_NODE, "--config", file], stdout=log, stderr=log)

    def start(self, node: int) -> None:
        self.processes[node] = self.launch(self.config(f"node-{node}", self.ports[node - 1]))

    def kill(self, node: int) -> None:
        process = self.processes.pop(node)
        process.kill()
        process.wait(STOP_S)

    def status(self) -> subprocess.CompletedProcess[str]:
        return run("status", "--cluster", self.addresses)

    def wait_online(self) -> None:
        wait_until(lambda: f"{NODES} of {NODES} online" in self.status().stdout, "all nodes are online", 60)

    def master(self) -> int:
        line = next(each for each in self.status().stdout.splitlines() if each.startswith("master"))
        return int(line.split()[1].removeprefix("node-"))


def enable_users(members: EtcdMembers) -> None:
    """`worm` may use the cluster's keys, and nothing else."""
    prefix = f"wormfs/{NAME}/".encode()
    key, end = (base64.b64encode(each).decode() for each in (prefix, prefix_end(prefix)))
    for user, role in (("root", "root"), ("worm", "worm")):
        members.api("auth/user/add", name=user, password=PASSWORD)
        if role == "worm":
            members.api("auth/role/add", name=role)
            members.api(
                "auth/role/grant", name=role, perm={"permType": "READWRITE", "key": key, "range_end": end}
            )
        members.api("auth/user/grant", user=user, role=role)
    members.api("auth/enable")


@pytest.fixture
def guarded(short_folder: Callable[[], Path]) -> Iterator[Guarded]:
    folder = short_folder()
    tls = make_certificates(folder / "tls")
    with EtcdMembers(folder / "etcd", 3, tls=tls, arguments=("--bcrypt-cost", "4")) as members:
        enable_users(members)
        ports = free_ports(2 * (NODES + 1))
        made = Guarded(folder, tls, members.endpoints, ports[: NODES + 1], ports[NODES + 1 :])
        try:
            for node in range(1, NODES + 1):
                made.start(node)
            made.wait_online()
            yield made
        finally:
            for process in made.processes.values():
                process.terminate()
            for process in made.processes.values():
                process.wait(STOP_S)
            for each in sorted(folder.glob("*/log")):
                print(
                    f"--- {each.parent.name}", *each.read_text(encoding="utf-8").splitlines()[-15:], sep="\n"
                )


@contextlib.contextmanager
def mounted(made: Guarded) -> Iterator[Path]:
    point = made.folder / "mnt"
    point.mkdir(exist_ok=True)
    run_well("mount", point, "--cluster", made.addresses, "--log-file", made.folder / "mount.log")
    try:
        yield point
    finally:
        run_well("umount", point)


def test_a_cluster_works_over_tls_and_with_a_password(guarded: Guarded) -> None:
    content = {f"file-{number}": bytes([number]) * (number * 40_000 + 1) for number in range(20)}
    with mounted(guarded) as point:
        for name, data in content.items():
            (point / name).write_bytes(data)
        master = guarded.master()
        guarded.kill(master)
        (point / "while-away").write_bytes(b"written on")
        assert guarded.master() != master
        guarded.start(master)
        guarded.wait_online()
    drop_caches()
    with mounted(guarded) as point:
        assert {each: (point / each).read_bytes() for each in content} == content
        assert (point / "while-away").read_bytes() == b"written on"
    wait_until(lambda: run("fsck", "--cluster", guarded.addresses).returncode == 0, "fsck is clean", 60)
    wait_until(
        lambda: f"{NODES} of {NODES}" in run("metadata", "verify", "--cluster", guarded.addresses).stdout,
        "the replicas have one state",
        60,
    )
    run_well("metadata", "backup", guarded.folder / "backup", "--cluster", guarded.addresses)
    run_well("metadata", "check", guarded.folder / "backup")
    for log in [*guarded.folder.glob("*/log"), guarded.folder / "mount.log"]:
        text = log.read_text(encoding="utf-8")
        assert PASSWORD not in text
        assert "Traceback" not in text


def test_a_wrong_file_or_name_is_one_clear_line(guarded: Guarded) -> None:
    other = make_certificates(guarded.folder / "other")
    wrong = guarded.folder / "wrong"
    wrong.write_text("another-word\n", encoding="ascii")
    port = guarded.ports[NODES]
    for changes, line in (
        ({"password_file": str(wrong)}, "check the user and its password and roles"),
        ({"ca_file": str(other.ca_file)}, "its certificate is not accepted"),
        (
            {"cert_file": str(other.cert_file), "key_file": str(other.key_file)},
            "it does not take the certificate in cert_file",
        ),
        ({"ca_file": "", "cert_file": "", "key_file": ""}, "it speaks TLS, and no ca_file is given"),
    ):
        done = run("members", "list", "--node-config", guarded.config("stranger", port, **changes))
        assert done.returncode != 0
        assert line in done.stderr
        assert done.stderr.count("\n") == 1
        assert "another-word" not in done.stderr


def test_a_node_with_the_masters_name_is_told_so_and_takes_nothing_over(guarded: Guarded) -> None:
    master = guarded.master()
    file = guarded.config(f"node-{master}", guarded.ports[NODES])
    process = guarded.launch(file)
    try:
        wait_until(lambda: "give this one another name" in guarded.log(file), "the namesake is told so", 60)
    finally:
        process.terminate()
        process.wait(STOP_S)
    assert guarded.master() == master
    verified = run_well("metadata", "verify", "--cluster", guarded.addresses)
    assert f"{NODES} of {NODES}" in verified  # asked at the addresses that the replicas gave etcd
