"""Managed etcd members: real etcd processes started, killed, taken over, refused and ended."""

import base64
import contextlib
import json
import logging
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from wormfs.core.errors import (
    ConfigError,
    DataLossError,
    DiskError,
    ExistsError,
    NotFoundError,
    UnavailableError,
    WormError,
)
from wormfs.node import etcd_begin, etcd_command, etcd_process, etcd_queries
from wormfs.node.config import MetadataConfig, peer_address
from wormfs.node.etcd_changes import ELECTION_S, MemberState, add_member, member_states, remove_member
from wormfs.node.etcd_member import EtcdMember
from wormfs.node.etcd_process import EtcdProcess

LIMIT_S = 60.0
PART = "wormfs.node"


@pytest.fixture(scope="module", autouse=True)
def _etcd() -> None:
    try:
        etcd_command.find_binary(None)
    except ConfigError as error:
        pytest.skip(error.message)


@pytest.fixture(autouse=True)
def _infos(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=PART)


def free_endpoints(count: int) -> tuple[str, ...]:
    """Addresses below the ports that the kernel gives away by itself; the next port is free too."""
    found: list[str] = []
    while len(found) < count:
        port = random.randrange(20_000, 32_000, 2)
        try:
            for each in (port, port + 1):
                with socket.socket() as sock:
                    sock.bind(("127.0.0.1", each))
        except OSError:
            continue
        if f"127.0.0.1:{port}" not in found:
            found.append(f"127.0.0.1:{port}")
    return tuple(found)


def settings(folder: Path, endpoints: tuple[str, ...], number: int = 0, **more: Any) -> MetadataConfig:
    return MetadataConfig(
        engine="etcd",
        endpoints=endpoints,
        managed=True,
        member=endpoints[number],
        folder=folder / f"m{number}",
        **more,
    )


class Node:
    """What a wormfs-node does with its member."""

    def __init__(self, metadata: MetadataConfig, **more: Any) -> None:
        self.metadata = metadata
        self.member = EtcdMember(metadata, cluster_name="office", **more)
        self.life = trio.CancelScope()

    async def live(self, task_status: trio.TaskStatus[None]) -> None:
        with self.life:
            await self.member.run(task_status=task_status)

    def die(self) -> None:
        """As by SIGKILL: nobody looks after the member any more."""
        self.life.cancel()

    @property
    def process(self) -> EtcdProcess:
        pid, ticks = self.pid_file.read_text().split()
        return EtcdProcess(int(pid), int(ticks))

    @property
    def pid_file(self) -> Path:
        assert self.metadata.folder is not None
        return self.metadata.folder / "pid"


@asynccontextmanager
async def living(*nodes: Node) -> AsyncIterator[None]:
    """Start them side by side; in the end their members are ended, whatever happened."""
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
            for node in nodes:
                stack.push_async_callback(node.member.end)
            async with trio.open_nursery() as starting:
                for node in nodes:
                    starting.start_soon(nursery.start, node.live)
            yield


async def post(endpoint: str, path: str, **fields: object) -> Any:
    """etcd's JSON gateway."""

    def ask() -> Any:
        data = json.dumps(fields).encode()
        with urllib.request.urlopen(f"http://{endpoint}/v3/{path}", data=data, timeout=10) as answer:
            return json.load(answer)

    return await trio.to_thread.run_sync(ask)


def coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


async def put(endpoint: str, key: str, value: str) -> None:
    await post(endpoint, "kv/put", key=coded(key), value=coded(value))


async def get(endpoint: str, key: str) -> str:
    found = await post(endpoint, "kv/range", key=coded(key))
    return base64.b64decode(found["kvs"][0]["value"]).decode()


async def until(holds: Callable[[], bool]) -> None:
    while True:  # another process's doing: no event tells
        if holds():
            return
        await trio.sleep(0.02)


async def until_well(endpoint: str) -> None:
    while True:
        if await etcd_queries.is_healthy(endpoint, None, timeout_s=2):
            return
        await trio.sleep(0.02)


def is_there(process: EtcdProcess) -> bool:
    return bool(process.arguments())


async def test_three_members_form_a_cluster_and_a_killed_one_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    endpoints = free_endpoints(3)
    nodes = [Node(settings(tmp_path, endpoints, number)) for number in range(3)]
    async with living(*nodes):
        await put(endpoints[0], "a", "one")
        assert await get(endpoints[2], "a") == "one"
        before = nodes[1].process
        before.send(signal.SIGKILL)
        await until(lambda: nodes[1].process != before)
        assert not is_there(before)
        await until_well(endpoints[2])  # the killed one may have been etcd's leader
        await put(endpoints[2], "b", "two")
        await until_well(endpoints[1])
        assert [await get(endpoints[1], key) for key in "ab"] == ["one", "two"]
        processes = [node.process for node in nodes]
        assert all(map(is_there, processes))
        assert len(set(processes)) == 3
        for node in nodes:
            await node.member.end()
            assert not node.pid_file.exists()
        assert not any(map(is_there, processes))
    died = [record.getMessage() for record in caplog.records if "died" in record.getMessage()]
    assert len(died) == 1
    assert died[0].startswith("its etcd member died (signal 9): ")
    assert died[0].endswith("; starting it again in 1 s")
    assert "SIGTERM" not in caplog.text  # nobody had to be killed
    folder = tmp_path / "m0"
    assert [path.stat().st_mode & 0o777 for path in (folder, folder / "data")] == [0o700, 0o700]


@pytest.mark.parametrize("recorded", [True, pytest.param(False, marks=pytest.mark.long)])
async def test_a_node_that_died_leaves_its_member_to_the_next(
    tmp_path: Path, recorded: bool, rounds: Callable[[int, int], int], caplog: pytest.LogCaptureFixture
) -> None:
    if not recorded and not rounds(0, 1):
        pytest.skip("a long one")
    endpoints = free_endpoints(1)
    first, second = Node(settings(tmp_path, endpoints)), Node(settings(tmp_path, endpoints))
    async with living(first):
        process = first.process
        assert os.getsid(process.pid) == process.pid  # no signal of the node's terminal reaches it
        await put(endpoints[0], "a", "one")
        first.die()
        if not recorded:  # the node died between the start of the process and the record of it
            first.pid_file.unlink()
        async with living(second):
            assert second.process == process
            assert is_there(process)
            assert "took over" in caplog.text
            assert "other settings" not in caplog.text
            process.send(signal.SIGKILL)  # a member taken over is watched as one of our own
            await until(lambda: second.process != process)
            await until_well(endpoints[0])
            assert await get(endpoints[0], "a") == "one"
            process = second.process
        assert not is_there(process)


async def test_a_member_taken_over_with_other_settings_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (Node(settings(tmp_path, free_endpoints(1)), start_wait_s=5) for _ in range(2))
    async with living(first):
        process = first.process
        first.die()
        second.member._start_wait_s = 0.1
        async with living(second):
            assert second.process == process
    assert "runs with other settings (--name, --listen-client-urls," in caplog.text


async def test_another_program_is_not_taken_over(tmp_path: Path) -> None:
    node = Node(settings(tmp_path, free_endpoints(1)))
    node.pid_file.parent.mkdir()
    mention = etcd_command.data_argument(tmp_path / "m0/data")
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)", mention]
    stranger = etcd_process.start(sleeper, tmp_path / "log", os.environ)
    try:
        etcd_process.record(node.pid_file, stranger)
        async with living(node):
            assert node.process != stranger
        assert is_there(stranger)
    finally:
        stranger.send(signal.SIGKILL)
        assert await stranger.wait() == "signal 9"


def test_only_the_member_of_the_folder_is_found(tmp_path: Path) -> None:
    """The program is etcd by its name, and its id recorded; its data is another's."""
    program = tmp_path / "etcd"
    program.symlink_to("/bin/sleep")
    file, ours = tmp_path / "pid", etcd_command.data_argument(tmp_path / "data")
    other = etcd_process.start([str(program), "60"], tmp_path / "log", os.environ)
    try:
        etcd_process.record(file, other)
        assert etcd_process.find_running(file, ours) is None
        assert etcd_process.find_running(file, "60") == other
        file.unlink()
        assert etcd_process.find_running(file, "60") == other
        etcd_process.record(file, EtcdProcess(other.pid, other.start_ticks - 1))  # the id was given anew
        assert etcd_process.find_running(file, ours) is None
    finally:
        other.send(signal.SIGKILL)
        os.waitpid(other.pid, 0)


@pytest.mark.long
async def test_a_member_that_ignores_sigterm_is_killed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    rounds: Callable[[int, int], int],
) -> None:
    if not rounds(0, 1):
        pytest.skip("a long one: it is waited for")
    monkeypatch.setattr("wormfs.node.etcd_member.STOP_WAIT_S", 0.2)
    node = Node(settings(tmp_path, free_endpoints(1)))
    async with living(node):
        process = node.process
        process.send(signal.SIGSTOP)
        with trio.CancelScope() as cancelled:
            cancelled.cancel()
            await node.member.end()  # works in a cancelled scope too
        assert not is_there(process)
    assert "did not end by SIGTERM" in caplog.text


async def test_two_nodes_never_look_after_one_member(tmp_path: Path) -> None:
    endpoints = free_endpoints(1)
    async with living(Node(settings(tmp_path, endpoints))):
        with pytest.raises(UnavailableError, match=f"another wormfs-node .* in {tmp_path}/m0"):
            await EtcdMember(settings(tmp_path, endpoints), cluster_name="office").run()


async def test_a_node_goes_on_without_a_majority(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    endpoints = free_endpoints(3)
    early = Node(settings(tmp_path, endpoints, 0), start_wait_s=0.5)
    async with living(early):
        assert "its etcd member is not well after 0.5 s" in caplog.text
        async with living(Node(settings(tmp_path, endpoints, 1))):
            await put(endpoints[0], "a", "one")
            assert await get(endpoints[1], "a") == "one"


@pytest.mark.long
async def test_a_member_that_cannot_begin_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rounds: Callable[[int, int], int]
) -> None:
    if not rounds(0, 1):
        pytest.skip("a long one: pauses between tries")
    endpoints = free_endpoints(1)
    host, _, port = peer_address(endpoints[0]).rpartition(":")
    with socket.socket() as taken:
        taken.bind((host, int(port)))
        taken.listen()
        node = Node(settings(tmp_path, endpoints), start_wait_s=0.1)
        async with living(node):
            with trio.fail_after(LIMIT_S):
                await until(lambda: "died" in caplog.text)
            assert "died (exit code 1): " in caplog.text
            assert "another process listens there" in caplog.text
            taken.close()
            await until_well(endpoints[0])


async def test_the_only_members_lost_data_are_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(DataLossError, match="the only one: what it held is lost"):
        await Node(settings(tmp_path, free_endpoints(1)), has_run=True).member.run()


def member_names(states: list[MemberState]) -> list[str]:
    """Each name, and what is to be said of it."""
    return [f"{state.name}{' learner' * (not state.votes)}{' ill' * bool(state.problem)}" for state in states]


async def until_voting(metadata: MetadataConfig, voters: int) -> None:
    while True:  # another process's doing
        with contextlib.suppress(UnavailableError):
            states = await member_states(metadata)
            if sum(state.votes and not state.problem for state in states) == voters:
                return
        await trio.sleep(0.05)


@pytest.mark.long
@pytest.mark.unsampled
async def test_a_lost_member_is_taken_out_and_another_one_added(
    tmp_path: Path, rounds: Callable[[int, int], int], caplog: pytest.LogCaptureFixture
) -> None:
    if not rounds(0, 1):
        pytest.skip("a long one: etcd changes no members in their first 5 s")
    endpoints = free_endpoints(3)
    nodes = [Node(settings(tmp_path, endpoints, number)) for number in range(3)]
    own, lost = nodes[0].metadata, nodes[2].metadata
    async with living(*nodes):
        await put(endpoints[0], "a", "one")
        with pytest.raises(ExistsError, match=f"{endpoints[2]} is a member .*members remove"):
            await add_member(lost)
        await nodes[2].member.end()
        shutil.copytree(tmp_path / "m2", tmp_path / "old")
        shutil.rmtree(tmp_path / "m2")
        with pytest.raises(DataLossError, match=f"data is lost.*`wormfs members remove {endpoints[2]} "):
            await Node(lost).member.run()
        assert not (tmp_path / "m2/pid").exists()
        with pytest.raises(NotFoundError, match=r"no member m2; it has 127\.0\.0\.1:"):
            await remove_member(own, "m2")
        with pytest.raises(UnavailableError, match=r"stays: of the 2 others only 1 are healthy, and 2 must"):
            await remove_member(own, endpoints[1])

        assert (await remove_member(own, endpoints[2])).name == endpoints[2]
        with pytest.raises(ConfigError, match=r"is no member of the etcd cluster.*`wormfs members add"):
            await Node(lost).member.run()
        shutil.rmtree(tmp_path / "m2")
        (tmp_path / "old").rename(tmp_path / "m2")
        with pytest.raises(ConfigError, match=f"taken out of the etcd cluster.*remove {tmp_path}/m2/data, "):
            await Node(lost).member.run()
        assert not (tmp_path / "m2/pid").exists()
        shutil.rmtree(tmp_path / "m2/data")

        assert await add_member(lost)
        assert not await add_member(lost)
        peer = peer_address(endpoints[2])
        assert f"{peer} learner ill" in member_names(await member_states(own))
        async with living(Node(lost, has_run=True)):
            await until_voting(own, 3)
            assert member_names(await member_states(own)) == sorted(endpoints)
            assert await get(endpoints[2], "a") == "one"
            await nodes[1].member.end()  # the new one counts: two of three go on
            await until_well(endpoints[0])
            await put(endpoints[0], "b", "two")
    assert "has caught up, and has a vote now" in caplog.text


@pytest.mark.long
async def test_one_member_becomes_two_before_the_third_is_there(
    tmp_path: Path, rounds: Callable[[int, int], int]
) -> None:
    """The configuration lists three, the cluster has one."""
    if not rounds(0, 1):
        pytest.skip("a long one: two members, one after the other")
    endpoints = free_endpoints(3)
    first, second = settings(tmp_path, endpoints[:1]), settings(tmp_path, endpoints, 1)
    async with living(Node(first)):
        await put(endpoints[0], "a", "one")
        assert await add_member(second)
        async with living(Node(second)):
            await until_voting(first, 2)
            assert await get(endpoints[1], "a") == "one"


@pytest.mark.long
async def test_a_member_taken_out_while_its_node_runs_is_not_started_again(
    tmp_path: Path, rounds: Callable[[int, int], int], caplog: pytest.LogCaptureFixture
) -> None:
    if not rounds(0, 1):
        pytest.skip("a long one: etcd changes no members in their first 5 s")
    endpoints = free_endpoints(3)
    nodes = [Node(settings(tmp_path, endpoints, number)) for number in range(3)]
    async with living(*nodes):
        process = nodes[1].process
        await remove_member(nodes[0].metadata, endpoints[1])
        await until(lambda: "goes on without its own etcd member" in caplog.text)
        assert not is_there(process)
        assert not nodes[1].pid_file.exists()
        await until_well(endpoints[0])  # the one taken out may have been etcd's leader
        await put(endpoints[0], "a", "one")
    assert "starting it again" not in caplog.text


@pytest.mark.long
async def test_a_change_of_members_waits_for_an_election_and_no_longer(
    tmp_path: Path, rounds: Callable[[int, int], int]
) -> None:
    """Without a leader every member looks ill, and the command came just then."""
    if not rounds(0, 1):
        pytest.skip("a long one: etcd changes no members in their first 5 s")
    endpoints = free_endpoints(3)
    nodes = [Node(settings(tmp_path, endpoints, number)) for number in range(3)]
    own = nodes[0].metadata
    async with living(*nodes), trio.open_nursery() as nursery:
        paused = [nodes[1].process, nodes[2].process]
        for process in paused:
            process.send(signal.SIGSTOP)
        began_s = trio.current_time()
        with pytest.raises(UnavailableError, match=r"only [01] of 3 members are healthy"):
            await remove_member(own, endpoints[2])
        assert trio.current_time() - began_s >= ELECTION_S
        removed = trio.Event()

        async def remove() -> None:
            await remove_member(own, endpoints[2])
            removed.set()

        nursery.start_soon(remove)
        with trio.move_on_after(ELECTION_S / 5):
            await removed.wait()
        assert not removed.is_set()
        for process in paused:
            process.send(signal.SIGCONT)
        await removed.wait()
        assert len(await member_states(own)) == 2


async def test_an_error_of_the_node_leaves_its_member_running(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = Node(settings(tmp_path, free_endpoints(1)))

    async def node_life(*, error: WormError | None) -> None:
        """As a role does."""
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(node.member.run)
                if error is not None:
                    raise error
                nursery.cancel_scope.cancel()
                await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await node.member.stop()

    with trio.fail_after(LIMIT_S):
        try:
            with pytest.raises(ExceptionGroup) as caught:
                await node_life(error=DataLossError("a disk rots"))
            assert caught.group_contains(DataLossError)
            process = node.process
            assert is_there(process)
            assert f"after an error its etcd member (process {process.pid}) goes on" in caplog.text
            node = Node(node.metadata)
            await node_life(error=None)  # takes it over, and ends it: the stop was asked for
            assert not is_there(process)
        finally:
            await node.member.end()


@pytest.mark.long
async def test_a_member_wiped_under_a_running_node_does_not_come_back_by_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rounds: Callable[[int, int], int]
) -> None:
    if not rounds(0, 1):
        pytest.skip("a long one: three members")
    endpoints = free_endpoints(3)
    nodes = [Node(settings(tmp_path, endpoints, number)) for number in range(3)]
    async with living(*nodes):
        process = nodes[2].process
        shutil.rmtree(tmp_path / "m2/data")
        process.send(signal.SIGKILL)
        await until(lambda: "cannot be started" in caplog.text)
        assert "its data is lost" in caplog.text
        assert nodes[2].process == process


@pytest.mark.long
async def test_an_empty_folder_of_a_known_member_waits_for_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rounds: Callable[[int, int], int]
) -> None:
    if not rounds(0, 1):
        pytest.skip("a long one: three members, one of which tries again and again")
    endpoints = free_endpoints(3)
    wiped = Node(settings(tmp_path, endpoints, 2), has_run=True, start_wait_s=0.2)
    async with living(wiped):
        assert "is empty, but this node has been in the cluster before" in caplog.text
        assert not wiped.pid_file.exists()  # nothing that could vote
        # The others form the cluster; they say that this one never ran: it may.
        others = [Node(settings(tmp_path, endpoints, number)) for number in range(2)]
        async with living(*others):
            await put(endpoints[0], "a", "one")
            await until(wiped.pid_file.exists)
            await until_well(endpoints[2])
            assert await get(endpoints[2], "a") == "one"


def fake_etcd(folder: Path, version: str) -> Path:
    program = folder / "etcd"
    program.write_text(
        f"#!/bin/sh\n[ \"$*\" = --version ] && printf '%b' 'etcd Version: {version}\\nGo: 1\\n'\n"
    )
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("version", "text"),
    [
        ("3.5.0", "is etcd 3.5.0, which can lose committed data"),
        ("3.5.1", "use another version"),
        ("3.5.2", "is etcd 3.5.2"),
        ("3.3.27", "is etcd 3.3.27; 3.4 or newer is needed"),
        ("x", "does not answer as etcd does"),
    ],
)
async def test_a_wrong_version_is_refused(tmp_path: Path, version: str, text: str) -> None:
    program = fake_etcd(tmp_path, version)
    metadata = settings(tmp_path, free_endpoints(1), binary=program)
    with pytest.raises(ConfigError, match=text) as caught:
        await EtcdMember(metadata, cluster_name="office").run()
    assert caught.value.message.startswith(str(program))
    assert not (tmp_path / "m0").exists()


@pytest.mark.parametrize("version", ["3.4.0", "3.4.23", "3.5.3", "3.5.16", "3.6.0", "4.0.0"])
async def test_other_versions_are_taken(tmp_path: Path, version: str) -> None:
    await etcd_command.check_version(fake_etcd(tmp_path, version))


def test_etcd_is_found_on_the_path_before_beside_the_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = fake_etcd(tmp_path, "3.4.23")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert etcd_command.find_binary(None) == program
    program.chmod(0o644)
    beside = tmp_path / "venv"
    beside.mkdir()
    monkeypatch.setattr("sys.executable", str(beside / "python"))
    with pytest.raises(ConfigError, match="there is no etcd on PATH"):
        etcd_command.find_binary(None)
    assert etcd_command.find_binary(fake_etcd(beside, "3.4.23")) == beside / "etcd"
    assert etcd_command.find_binary(None) == beside / "etcd"
    with pytest.raises(ConfigError, match=f"{program} is no program"):
        etcd_command.find_binary(program)


async def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    metadata = settings(tmp_path / "file", free_endpoints(1))
    with pytest.raises(DiskError, match=f"{tmp_path}/file/m0: etcd's member cannot keep .*: Not a directory"):
        await EtcdMember(metadata, cluster_name="office").run()


def test_every_server_derives_the_same_cluster(tmp_path: Path) -> None:
    endpoints = ("10.0.0.1:2379", "server-2.example:2379", "[fd00::3]:2379")
    lines = [
        etcd_command.command(
            metadata,
            Path("/bin/etcd"),
            tmp_path,
            token="office",
            state="new",
            cluster=etcd_begin.configured(metadata).cluster,
        )
        for metadata in (settings(tmp_path, endpoints, number) for number in range(3))
    ]
    cluster = (
        "--initial-cluster=10.0.0.1:2379=http://10.0.0.1:2380,"
        "server-2.example:2379=http://server-2.example:2380,[fd00::3]:2379=http://[fd00::3]:2380"
    )
    for line in lines:
        assert cluster in line
        assert "--initial-cluster-token=wormfs-office" in line
    assert "--listen-peer-urls=http://10.0.0.1:2380" in lines[0]
    assert "--listen-client-urls=http://0.0.0.0:2379" in lines[1]
    assert "--advertise-client-urls=http://server-2.example:2379" in lines[1]
    assert "--listen-client-urls=http://[fd00::3]:2379" in lines[2]


async def test_our_environment_does_not_change_the_members_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ETCD_HEARTBEAT_INTERVAL", "nonsense")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    async with living(Node(settings(tmp_path, free_endpoints(1)))):
        pass
    kept = etcd_command.environment(os.environ)
    assert "HTTPS_PROXY" not in kept
    assert kept["PATH"] == os.environ["PATH"]


def make_certificates(folder: Path) -> dict[str, Path]:
    """An authority and one certificate for 127.0.0.1, for servers and clients."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder, timeout=30)

    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(*new, "-x509", "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    openssl(*new, "-subj", "/CN=etcd", "-keyout", "etcd.key", "-out", "etcd.csr")
    sign = ("x509", "-req", "-days", "2", "-in", "etcd.csr", "-CA", "ca.pem", "-CAkey", "ca.key")
    openssl(*sign, "-CAcreateserial", "-extfile", "names", "-out", "etcd.pem")
    return {"ca_file": folder / "ca.pem", "cert_file": folder / "etcd.pem", "key_file": folder / "etcd.key"}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
async def test_members_speak_tls_and_only_with_those_who_show_a_certificate(tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    endpoints = free_endpoints(3)
    nodes = [Node(settings(tmp_path, endpoints, number, **files)) for number in range(3)]
    tls = etcd_queries.tls_context(nodes[0].metadata)
    assert tls is not None
    async with living(*nodes):
        assert await etcd_queries.is_healthy(endpoints[0], tls, timeout_s=5)
        listed = await etcd_queries.members(peer_address(endpoints[1]), tls, timeout_s=5)
        assert sorted(member.name for member in listed or []) == sorted(endpoints)
        without = ssl.create_default_context(cafile=files["ca_file"])
        assert not await etcd_queries.is_healthy(endpoints[0], without, timeout_s=5)
        assert not await etcd_queries.is_healthy(endpoints[0], None, timeout_s=5)
        # A member without data asks the others over TLS too.
        await nodes[2].member.end()
        shutil.rmtree(tmp_path / "m2")
        with pytest.raises(DataLossError, match="members remove"):
            await Node(nodes[2].metadata).member.run()


@pytest.mark.parametrize(("name", "text"), [("ca_file", "cannot be used together"), ("key_file", "be read")])
async def test_certificates_that_cannot_be_used_are_named(tmp_path: Path, name: str, text: str) -> None:
    files: dict[str, Any] = {each: tmp_path / each for each in ("ca_file", "cert_file", "key_file")}
    for path in files.values():
        path.write_text("rubbish\n")
    if name == "key_file":
        files[name].unlink()
    metadata = settings(tmp_path, free_endpoints(1), **files)
    with pytest.raises(ConfigError, match=f"metadata.*{name}.*{text}"):
        await EtcdMember(metadata, cluster_name="office").run()


def test_only_a_managed_member_is_run(tmp_path: Path) -> None:
    with pytest.raises(WormError, match="no managed etcd member"):
        EtcdMember(MetadataConfig(engine="etcd", endpoints=("a:1",)), cluster_name="office")


async def test_a_process_that_is_gone_is_neither_awaited_nor_signalled() -> None:
    gone = EtcdProcess(os.getpid(), 1)  # our id, but started at another time
    with trio.fail_after(5):
        assert await gone.wait() == "it was gone"
    gone.send(signal.SIGKILL)
    assert etcd_process.find_running(Path("/nonexistent/pid"), "--data-dir=/nonexistent/data") is None
