"""Real node processes: they join, die, come back, refuse strangers, and stop when asked."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ClusterFactory
from tests.harness import Cluster, run, wait_until
from wormfs.rpc import methods as m
from wormfs.rpc.grpc_client import call
from wormfs.rpc.v1 import cluster_pb2, filesystem_pb2

NODE = str(Path(sys.executable).parent / "wormfs-node")


def status_of(cluster: Cluster) -> cluster_pb2.StatusReply:
    """What the master says, over gRPC."""
    config = (cluster.folder / "node-1" / "node.yaml").read_text(encoding="utf-8")
    address = next(line.split(": ")[1] for line in config.splitlines() if line.startswith("grpc_listen"))
    return call(address, m.CLUSTER_GET_STATUS, cluster_pb2.GetStatusRequest(), timeout_s=10)


def end(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit code and log of a node that ends by itself."""
    _, errors = process.communicate(timeout=30)
    return process.returncode, errors


def start_node(*arguments: str | Path) -> "subprocess.Popen[str]":
    return subprocess.Popen([NODE, *map(str, arguments)], stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def three(module_cluster: ClusterFactory) -> Cluster:
    return module_cluster(nodes=3, policy="2+1")


def test_three_nodes_register_and_are_healthy(three: Cluster) -> None:
    status = status_of(three)
    assert sorted(node.name for node in status.map.nodes if node.online) == ["node-1", "node-2", "node-3"]
    assert [node.name for node in status.map.nodes if node.master] == ["node-1"] == [status.master]
    assert len({disk.uuid for disk in status.map.disks}) == 3
    assert (status.health, status.engine, status.missing_chunk_count) == ("healthy", "embedded", 0)
    assert any("the metadata is on 1 disk(s), 2 are wanted" in line for line in status.warnings)


@pytest.mark.unsampled
def test_a_killed_node_goes_offline_and_comes_back_as_itself(three: Cluster, tmp_path: Path) -> None:
    before = {node.name: node.number for node in status_of(three).map.nodes}
    content = os.urandom(5_000_000)
    (tmp_path / "data").write_bytes(content)
    three.wormfs("put", tmp_path / "data", "/data")
    three.stop(3, kill=True)
    wait_until(lambda: status_of(three).health == "degraded", "the loss is seen")
    status = status_of(three)
    assert status.missing_chunk_count == status.stripe_count == status.stripes_one_loss_from_loss > 0
    three.wormfs("get", "/data", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    done = run("fsck", "--cluster", three.addresses)
    assert done.returncode == 1
    assert "offline-disk" in done.stdout + done.stderr
    three.start(3)
    assert {node.name: node.number for node in status_of(three).map.nodes} == before
    wait_until(lambda: status_of(three).health == "healthy", "all is well again")
    three.fsck()


def test_a_killed_master_comes_back_with_everything(three: Cluster, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"small" * 1000)
    three.wormfs("put", tmp_path / "data", "/kept")
    sequence = status_of(three).sequence
    three.stop(1, kill=True)
    three.start(1)
    assert status_of(three).sequence >= sequence
    three.wormfs("get", "/kept", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"small" * 1000
    wait_until(lambda: status_of(three).health == "healthy", "every node found the master again")
    three.fsck()


def test_lost_and_forgotten_chunks_are_named_by_fsck(three: Cluster, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(os.urandom(3_000_000))
    three.wormfs("put", tmp_path / "data", "/checked")
    three.fsck()
    disk = three.disk(2)
    chunk = next(iter(disk.glob("chunks/*/*/*")))
    hidden = chunk.with_suffix(".hidden")
    chunk.rename(hidden)
    done = run("fsck", "--cluster", three.addresses)
    assert done.returncode == 1
    assert "missing-chunk" in done.stdout + done.stderr
    hidden.rename(chunk)
    three.fsck()


def test_garbage_is_collected(three: Cluster, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(os.urandom(3_000_000))
    three.wormfs("put", tmp_path / "data", "/gone")
    count = status_of(three).stripe_count
    three.wormfs("rm", "/gone")

    def collected() -> bool:
        status = status_of(three)
        return status.stripe_count < count and status.garbage_chunk_count == 0

    wait_until(collected, "the chunks are deleted")
    three.fsck()


def test_a_disk_of_another_cluster_is_refused_by_name(
    three: Cluster, short_folder: Callable[[], Path]
) -> None:
    folder = short_folder()
    own = start_node(
        "--disk", folder / "d", "--listen", "127.0.0.1:0", "--name", "other", "--set", "policy.m=0"
    )
    assert own.stderr is not None
    try:
        for line in own.stderr:
            if "serves 1 disks" in line:
                break
        own.send_signal(signal.SIGTERM)
        code, _ = end(own)
        assert code == 0
    finally:
        own.kill()
    address = three.addresses.split(",")[0]
    stranger = start_node(
        "--disk", folder / "d", "--listen", "127.0.0.1:0", "--name", "other", "--join", address
    )
    try:
        code, errors = end(stranger)
    finally:
        stranger.kill()
    assert code == 1
    last = errors.strip().splitlines()[-1]
    assert last.startswith("wormfs-node: node other belongs to cluster ")
    assert "Traceback" not in errors


def test_sigterm_stops_a_node_cleanly_and_the_master_knows_at_once(three: Cluster) -> None:
    pid = three.pid(2)
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not three.running(2), "the node has ended", timeout_s=15)
    offline = [disk for disk in status_of(three).map.disks if disk.state == cluster_pb2.DISK_STATE_OFFLINE]
    assert [disk.problem for disk in offline] == ["its node was stopped"]
    three.start(2)


@pytest.mark.parametrize("number", [1, 2], ids=["master", "member"])
def test_a_node_that_is_stopped_commits_what_was_written_through_it(
    three: Cluster, tmp_path: Path, number: int
) -> None:
    """Over gRPC, and neither flushed nor closed: a piece, and a stripe that is not full."""
    node = next(each for each in status_of(three).map.nodes if each.name == f"node-{number}")
    contents = {f"stopped-{number}-small": os.urandom(1000), f"stopped-{number}-large": os.urandom(1_500_000)}
    for name, content in contents.items():
        create = filesystem_pb2.CreateRequest(parent=1, name=name.encode(), mode=0o644, flags=os.O_WRONLY)
        handle = call(node.grpc_address, m.FILESYSTEM_CREATE, create, timeout_s=30).handle
        write = filesystem_pb2.WriteRequest(handle=handle, data=content)
        call(node.grpc_address, m.FILESYSTEM_WRITE, write, timeout_s=30)
    three.stop(number)
    three.start(number)
    for name, content in contents.items():
        three.wormfs("get", f"/{name}", tmp_path / name)
        assert (tmp_path / name).read_bytes() == content
    assert "may be lost" not in (three.folder / f"node-{number}" / "log").read_text(encoding="utf-8")


def test_metadata_survives_the_loss_of_m_of_the_masters_disks(
    cluster: ClusterFactory, tmp_path: Path
) -> None:
    single = cluster(nodes=1, disks=4, policy="2+2")
    content = os.urandom(2_000_000)
    (tmp_path / "data").write_bytes(content)
    single.wormfs("put", tmp_path / "data", "/data")
    before = list(status_of(single).metadata_disks)
    assert len(before) == 3
    for path in before[:2]:
        shutil.rmtree(path)
    single.wormfs("get", "/data", tmp_path / "while-running")
    assert (tmp_path / "while-running").read_bytes() == content
    single.stop(1, kill=True)
    single.start(1)
    single.wormfs("get", "/data", tmp_path / "after")
    assert (tmp_path / "after").read_bytes() == content


def test_a_taken_address_is_one_clear_line(three: Cluster, tmp_path: Path) -> None:
    address = three.addresses.split(",")[0]
    node = start_node("--disk", tmp_path / "d", "--listen", address, "--set", "policy.m=0")
    try:
        code, errors = end(node)
    finally:
        node.kill()
    assert code == 2
    assert errors.strip().splitlines()[-1].startswith(f"wormfs-node: cannot listen on {address}")
    assert "Traceback" not in errors
