"""Real etcd members on this machine for tests: started, hurt in many ways, and always ended."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

_START_S = 60.0  # the machine may be busy
_STOP_S = 15.0
_CALL_S = 10.0
_STARTS_MAX = 3  # another process may take a port between our choice and the member's start
_LOG_TAIL_BYTES = 2000


def etcd_binary() -> Path:
    """The etcd to test with: beside this Python, else on the PATH."""
    beside = Path(sys.executable).parent / "etcd"
    found = str(beside) if beside.exists() else shutil.which("etcd")
    if found is None:
        raise AssertionError("no etcd: `make setup` puts one beside Python")
    return Path(found)


@dataclass(frozen=True, slots=True)
class EtcdTls:
    """PEM files of a member that speaks TLS to its clients, and demands their certificates."""

    ca_file: Path
    cert_file: Path
    key_file: Path


def make_certificates(folder: Path) -> EtcdTls:
    """An authority and one certificate for 127.0.0.1, good for members and clients."""
    folder.mkdir(exist_ok=True)
    extensions = folder / "extensions"
    extensions.write_text("subjectAltName=IP:127.0.0.1\n", encoding="ascii")
    new_key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    for command in (
        f"req -x509 {new_key} -keyout ca.key -out ca.pem -days 2 -subj /CN=ca",
        f"req {new_key} -keyout node.key -out node.csr -subj /CN=node",
        "x509 -req -in node.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out node.pem -days 2"
        f" -extfile {extensions.name}",
    ):
        subprocess.run(
            ("openssl", *command.split()), cwd=folder, check=True, capture_output=True, timeout=30, text=True
        )
    return EtcdTls(folder / "ca.pem", folder / "node.pem", folder / "node.key")


@dataclass(slots=True)
class _Member:
    name: str
    client_port: int
    peer_port: int
    health_port: int
    process: subprocess.Popen[bytes] | None = None


class EtcdMembers:
    """A cluster of `count` members in a folder, with etcd's default times; `arguments` go to each.

    Its context begins when there is a leader, and ends when no process is left.
    """

    def __init__(
        self, folder: Path, count: int = 1, *, arguments: Sequence[str] = (), tls: EtcdTls | None = None
    ) -> None:
        self.folder = folder
        self._count = count
        self._arguments = tuple(arguments)
        self._tls = tls
        self._members: list[_Member] = []

    @property
    def endpoints(self) -> tuple[str, ...]:
        """host:port of each member, for clients."""
        return tuple(f"127.0.0.1:{member.client_port}" for member in self._members)

    def __enter__(self) -> "EtcdMembers":
        try:
            for left in reversed(range(_STARTS_MAX)):
                self._make()
                try:
                    self.wait_healthy()
                    break
                except MemberEndedError:
                    self._end()
                    if not left:
                        raise
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def kill(self, index: int) -> None:
        """SIGKILL, and wait for the end."""
        process = self._process(index)
        process.kill()
        process.wait(_STOP_S)

    def stop(self, index: int) -> None:
        """SIGTERM, and wait for the end: a leader hands over first."""
        process = self._process(index)
        process.terminate()
        process.wait(_STOP_S)

    def start(self, index: int) -> None:
        """Start a member that ended, with its data; see `wait_healthy`."""
        member = self._members[index]
        if member.process is not None and member.process.poll() is None:
            raise AssertionError(f"member {index} runs")
        with self._log(member) as log:
            member.process = subprocess.Popen(
                self._command(member), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder
            )

    def pause(self, index: int) -> None:
        """SIGSTOP: its connections stay, and nobody answers once this has returned."""
        process = self._process(index)
        process.send_signal(signal.SIGSTOP)
        # A thread of it may run on for a moment, and answer: wait until all have stopped.
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self, index: int) -> None:
        """SIGCONT."""
        self._process(index).send_signal(signal.SIGCONT)

    def mend(self) -> None:
        """Have all members run and be healthy, whatever was done to them."""
        for index, member in enumerate(self._members):
            if member.process is None or member.process.poll() is not None:
                self.start(index)
            else:
                self.resume(index)
        self.wait_healthy()

    def wait_healthy(self, *indexes: int, timeout_s: float = _START_S) -> None:
        """Wait until these members (all, when none is named) have a leader and can read from a quorum."""
        deadline = time.monotonic() + timeout_s
        for member in [self._members[index] for index in indexes] or self._members:
            while not _healthy(member.health_port):
                if member.process is None or member.process.poll() is not None:
                    raise MemberEndedError(f"{member.name} has ended:\n{self._log_tail(member)}")
                if time.monotonic() > deadline:
                    raise AssertionError(f"{member.name} is not healthy:\n{self._log_tail(member)}")
                time.sleep(0.05)

    def leader(self) -> int:
        """The index of the member that leads, by its own word."""
        for index, member in enumerate(self._members):
            if member.process is None or member.process.poll() is not None:
                continue
            with contextlib.suppress(OSError):
                status = self.api("maintenance/status", index=index)
                if status["leader"] == status["header"]["member_id"]:
                    return index
        raise AssertionError("no member leads")

    def api(self, path: str, *, index: int = 0, token: str = "", **body: object) -> Any:
        """A call of etcd's JSON gateway, for what our client has no need of: `auth/enable` and its like."""
        port = self._members[index].client_port
        connection: http.client.HTTPConnection
        if self._tls is None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_CALL_S)
        else:
            context = ssl.create_default_context(cafile=self._tls.ca_file)
            context.load_cert_chain(self._tls.cert_file, self._tls.key_file)
            connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=_CALL_S, context=context)
        with contextlib.closing(connection):
            headers = {"Authorization": token} if token else {}
            connection.request("POST", f"/v3/{path}", json.dumps(body), headers)
            reply = connection.getresponse()
            content = reply.read()
        if reply.status != http.HTTPStatus.OK:
            raise AssertionError(f"{path}: {reply.status} {content.decode()}")
        return json.loads(content)

    def _make(self) -> None:
        shutil.rmtree(self.folder / "data", ignore_errors=True)
        (self.folder / "data").mkdir(parents=True)
        ports = free_ports(self._count * 3)
        self._members = [
            _Member(f"m{index}", ports.pop(), ports.pop(), ports.pop()) for index in range(self._count)
        ]
        for index in range(self._count):
            self.start(index)

    def _command(self, member: _Member) -> list[str]:
        scheme = "http" if self._tls is None else "https"
        client, peer = f"{scheme}://127.0.0.1:{member.client_port}", f"http://127.0.0.1:{member.peer_port}"
        cluster = ",".join(f"{each.name}=http://127.0.0.1:{each.peer_port}" for each in self._members)
        command = [str(etcd_binary()), "--name", member.name]
        command += ["--data-dir", str(self.folder / "data" / member.name)]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        command += ["--listen-metrics-urls", f"http://127.0.0.1:{member.health_port}"]
        command += ["--initial-cluster", cluster, "--initial-cluster-token", str(self._members[0].peer_port)]
        if self._tls is not None:
            command += ["--cert-file", str(self._tls.cert_file), "--key-file", str(self._tls.key_file)]
            command += ["--trusted-ca-file", str(self._tls.ca_file), "--client-cert-auth"]
        return [*command, *self._arguments]

    def _log(self, member: _Member) -> TextIO:
        return (self.folder / f"{member.name}.log").open("a", encoding="utf-8")

    def _log_tail(self, member: _Member) -> str:
        raw = (self.folder / f"{member.name}.log").read_bytes()
        return raw[-_LOG_TAIL_BYTES:].decode(errors="replace")

    def _process(self, index: int) -> subprocess.Popen[bytes]:
        process = self._members[index].process
        if process is None or process.poll() is not None:
            raise AssertionError(f"member {index} does not run")
        return process

    def _end(self) -> None:
        processes = [member.process for member in self._members if member.process is not None]
        for process in processes:
            process.kill()  # ends stopped ones, too
        for process in processes:
            process.wait(_STOP_S)


class MemberEndedError(AssertionError):
    """A member ended that should run."""


def _healthy(port: int) -> bool:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=_CALL_S)) as connection:
        try:
            connection.request("GET", "/health")
            reply: dict[str, str] = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return False
    return reply.get("health") == "true"


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody uses, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
