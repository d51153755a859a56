"""Etcd members of real nodes: lost and replaced, kept through an error of the node, listed by the command."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

from tests.cluster.test_etcd_failover import FAILOVER_MAX_S, synced_write_s
from tests.cluster.test_replicas import append_newer
from tests.conftest import ClusterFactory
from tests.harness import WORMFS, Cluster, run, run_well, wait_until
from wormfs.metadata.embedded_log import EmbeddedLog
from wormfs.node.config import load_node_config
from wormfs.node.etcd_command import data_argument
from wormfs.node.etcd_process import EtcdProcess, find_running
from wormfs.rpc.v1 import event_pb2

pytestmark = [pytest.mark.cluster, pytest.mark.fuse, pytest.mark.timeout(180)]

NEWER = "the log holds an event of a newer program: upgrade WormFS"


def config_file(cluster: Cluster, node: int) -> Path:
    return cluster.folder / f"node-{node}" / "node.yaml"


def members(cluster: Cluster, node: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        run_well("members", "list", "--json", "--node-config", config_file(cluster, node))
    )
    return found


def etcd_name(cluster: Cluster, node: int) -> str:
    config = yaml.safe_load(config_file(cluster, node).read_text(encoding="utf-8"))
    return str(config["metadata"]["member"])


def etcd_process(cluster: Cluster, node: int) -> EtcdProcess:
    folder = cluster.folder / f"node-{node}" / "etcd"
    found = find_running(folder / "pid", data_argument(folder / "data"))
    assert found is not None
    return found


def leads(cluster: Cluster, node: int) -> bool:
    done = run("status", "--json", "--cluster", cluster.addresses)
    return done.returncode == 0 and bool(json.loads(done.stdout)["master"] == f"node-{node}")


def log_of(cluster: Cluster, node: int) -> str:
    return (cluster.folder / f"node-{node}" / "log").read_text(encoding="utf-8")


def start_refused(cluster: Cluster, node: int) -> tuple[int, str]:
    """A node that ends by itself: its exit code and its last line."""
    command = [str(Path(sys.executable).parent / "wormfs-node"), "--config", str(config_file(cluster, node))]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    return done.returncode, done.stderr.splitlines()[-1]


def append_newer_locally(cluster: Cluster, node: int) -> None:
    """As if the stopped node had followed a newer master; the others know nothing of it."""
    log = EmbeddedLog.open([cluster.disk(node)], copies=1)
    sequence = log.last_sequence + 1
    entry = event_pb2.LogEntry(sequence=sequence, epoch=1000).SerializeToString()
    log.append(sequence, entry + bytes.fromhex("2205fa3e020801"))  # an event of kind 1007
    log.close()


@pytest.mark.long
def test_etcd_goes_on_when_all_nodes_meet_an_event_of_a_newer_program(
    cluster: ClusterFactory, rounds: Callable[[int, int], int]
) -> None:
    if not rounds(0, 1):
        pytest.skip("a long one: test_replicas.py has one node alone")
    three = cluster(nodes=3, policy="2+1", engine="etcd")
    before = [etcd_process(three, node) for node in (1, 2, 3)]
    trio.run(append_newer, load_node_config(config_file(three, 1), environment={}))
    command = [WORMFS, "mkdir", "/made-by-the-deposed-one", "--cluster", three.addresses]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as maker:  # waits for a master
        try:
            wait_until(
                lambda: all("stands still" in log_of(three, each) for each in (1, 2, 3)), "a standstill"
            )
        finally:
            maker.kill()
    listed = members(three, 1)
    assert (listed["healthy"], listed["voters"], listed["quorum"]) == (3, 3, 2)
    assert sum(member["leader"] for member in listed["members"]) == 1
    assert [etcd_process(three, node) for node in (1, 2, 3)] == before
    assert all(three.running(node) for node in (1, 2, 3))
    assert "Traceback" not in "".join(log_of(three, node) for node in (1, 2, 3))
    three.stop(1)  # a stop that was asked for ends the member too
    assert not before[0].arguments()
    states = {each["name"]: each for each in members(three, 2)["members"]}
    assert not states[etcd_name(three, 1)]["healthy"]
    assert "Connection refused" in states[etcd_name(three, 1)]["problem"]


@pytest.mark.long
def test_a_node_whose_replica_stands_still_serves_chunks(
    cluster: ClusterFactory, rounds: Callable[[int, int], int]
) -> None:
    if not rounds(0, 1):
        pytest.skip("a long one: a failover, and a read without one of three nodes")
    three = cluster(nodes=3, policy="2+1", engine="etcd")
    mount = three.mount()
    data = bytes(range(256)) * 4096 * 3
    (mount / "file").write_bytes(data)
    old, other = [node for node in (1, 2, 3) if node != three.master()]
    three.stop(old)
    append_newer_locally(three, old)
    three.start(old)  # returns when it is online in the master's map
    assert f"{NEWER}: this node's metadata replica stands still" in log_of(three, old)
    assert members(three, old)["healthy"] == 3
    three.stop(other, kill=True)
    three.remount(mount)
    assert (mount / "file").read_bytes() == data  # two chunks of three: one is the old node's
    three.start(other)
    master = three.master()
    three.stop(master)
    wait_until(lambda: leads(three, other), "the other one is master, not the old one")
    three.remount(mount)
    assert (mount / "file").read_bytes() == data


@pytest.mark.long
def test_a_server_that_is_lost_for_good_is_replaced(
    cluster: ClusterFactory, rounds: Callable[[int, int], int]
) -> None:
    if not rounds(0, 1):
        pytest.skip("a long one: etcd changes no members in their first 5 s")
    three = cluster(nodes=3, policy="2+1", engine="etcd")
    mount = three.mount()
    (mount / "file").write_bytes(b"x" * 3_000_000)
    lost = next(node for node in (1, 2, 3) if node != three.master())
    left = next(node for node in (1, 2, 3) if node != lost)
    name, folder = etcd_name(three, lost), three.folder / f"node-{lost}"
    process = etcd_process(three, lost)
    three.stop(lost, kill=True)
    process.send(signal.SIGKILL)
    wait_until(lambda: not process.arguments(), "its member is gone")
    kept = three.folder / "kept"
    shutil.copytree(folder / "etcd", kept)
    shutil.rmtree(folder / "etcd")
    shutil.rmtree(three.disk(lost) / "metadata")

    shown = run("members", "list", "--node-config", config_file(three, left)).stdout
    assert "2 of 3 members are healthy; 2 must be: the loss of one more stops all writing" in shown
    assert f"{name}  SILENT" in shown
    refused = run("members", "remove", etcd_name(three, left), "--node-config", config_file(three, left))
    assert refused.returncode == 3
    assert "others only 1 are healthy" in refused.stderr
    code, line = start_refused(three, lost)
    assert code == 1
    assert f"wormfs members remove {name}" in line
    run_well("members", "remove", name, "--node-config", config_file(three, left))
    kept.rename(folder / "etcd2")
    shutil.rmtree(folder / "etcd", ignore_errors=True)
    (folder / "etcd2").rename(folder / "etcd")
    code, line = start_refused(three, lost)  # the old server, back from the dead
    assert code == 2
    assert "taken out of the etcd cluster" in line
    shutil.rmtree(folder / "etcd" / "data")
    out = run_well("members", "add", "--node-config", config_file(three, lost))
    assert f"etcd member {name} is added: start wormfs-node" in out

    three.start(lost)
    wait_until(lambda: members(three, left)["voters"] == members(three, left)["healthy"] == 3, "three voters")
    wait_until(
        lambda: run("metadata", "verify", "--cluster", three.addresses).returncode == 0, "equal replicas"
    )
    three.stop(left, kill=True)
    etcd_process(three, left).send(signal.SIGKILL)
    began = time.monotonic()
    (mount / "after").write_bytes(b"y")
    assert time.monotonic() - began < 20
    three.remount(mount)
    assert (mount / "file").read_bytes() == b"x" * 3_000_000


@pytest.mark.unsampled
def test_a_server_is_lost_with_the_master_and_its_member(
    cluster: ClusterFactory, rounds: Callable[[int, int], int]
) -> None:
    """Etcd may have to elect, too, before the next master can be elected."""
    six = cluster(engine="etcd")
    mount = six.mount()
    took_s = []
    for number in range(rounds(3, 20)):
        master = six.master()
        process = etcd_process(six, master)
        process.send(signal.SIGKILL)
        os.kill(six.pid(master), signal.SIGKILL)
        took_s.append(synced_write_s(mount, f"after-{number}"))
        assert took_s[-1] < FAILOVER_MAX_S
        six.start(master)
        wait_until(lambda: members(six, 1)["healthy"] == 3, "three members", 60)
    in_order_s = sorted(took_s)
    print(f"server lost: median {in_order_s[len(took_s) // 2]:.2f} s, longest {in_order_s[-1]:.2f} s")
    fresh = six.remount(mount)
    for number in range(len(took_s)):
        assert (fresh / f"after-{number}").read_bytes() == b"after the failover"
    wait_until(lambda: run("fsck", "--cluster", six.addresses).returncode == 0, "a clean fsck")
