"""Replicas on real nodes: they fall behind, lose their disks, and have one state again."""

import json
import os
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
import yaml

from tests.cluster.test_etcd_failover import check_worker, start_worker
from tests.conftest import ClusterFactory
from tests.harness import Cluster, run, wait_until
from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.node.config import NodeConfig, load_node_config
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.rpc.etcd_types import EtcdOptions, put
from wormfs.rpc.v1 import event_pb2, replication_pb2

pytestmark = [pytest.mark.cluster, pytest.mark.fuse, pytest.mark.timeout(300)]

INLINE_BYTES = 60_000  # held inside the metadata log
FILES = 600  # of such: twice the tail that etcd keeps


def status(cluster: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cluster.wormfs("status", "--json"))
    return found


def fill(mount: Path, prefix: str) -> bytes:
    data = os.urandom(INLINE_BYTES)
    for number in range(FILES):
        (mount / f"{prefix}{number}").write_bytes(data)
    return data


def verified(cluster: Cluster) -> bool:
    """Every replica answers, and all are equal."""
    return run("metadata", "verify", "--cluster", cluster.addresses).returncode == 0


def all_hold(cluster: Cluster) -> bool:
    found = status(cluster)
    return bool(found["replicas_holding"] == len(found["replicas"]))


def whole(cluster: Cluster) -> bool:
    return all_hold(cluster) and bool(status(cluster)["health"] == "healthy")


@pytest.fixture
def six(cluster: ClusterFactory) -> Cluster:
    """Six nodes with a replica on each; three of them have no etcd member."""
    made = cluster(engine="etcd")
    first = yaml.safe_load((made.folder / "node-1" / "node.yaml").read_text(encoding="utf-8"))
    metadata = {"engine": "etcd", "endpoints": first["metadata"]["endpoints"]}
    for node in (4, 5, 6):
        made.stop(node)
        file = made.folder / f"node-{node}" / "node.yaml"
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        del config["join"]
        config |= {"cluster": first["cluster"], "policy": first["policy"], "metadata": metadata}
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        made.start(node)
    wait_until(lambda: len(status(made)["replicas"]) == 6, "six replicas")
    return made


@pytest.mark.unsampled
def test_replicas_that_were_away_too_long_take_a_snapshot(six: Cluster) -> None:
    """One was down while the log was trimmed, another one lost its disk besides."""
    mount = six.mount()
    fill(mount, "a")
    away, emptied = [node for node in (4, 5, 6) if node != six.master()][:2]
    for node in (away, emptied):
        six.stop(node, kill=True)
    shutil.rmtree(six.disk(emptied))
    six.disk(emptied).mkdir()
    data = fill(mount, "b")
    wait_until(lambda: status(six)["log_bytes"] < 20 << 20, "the log is trimmed")
    found = status(six)
    assert found["log_floor"] > FILES
    assert (found["replicas_needed"], found["replicas_holding"]) == (3, 4)
    names = {f"node-{away}", f"node-{emptied}"}
    for node in (away, emptied):
        six.start(node)
    wait_until(lambda: all_hold(six), "every replica holds the log", timeout_s=60)
    for name in names:
        text = (six.folder / name / "log").read_text(encoding="utf-8")
        assert "begins anew with the snapshot of" in text
    assert verified(six)

    # The two replicas that were rebuilt, and one more, are enough to go on with.
    for node in [each for each in range(1, 7) if each not in (away, emptied)][-1:]:
        six.stop(node, kill=True)
    six.remount(mount)
    assert (mount / f"b{FILES - 1}").read_bytes() == data


@pytest.mark.unsampled
def test_status_says_when_too_few_replicas_hold_the_log(cluster: ClusterFactory) -> None:
    three = cluster(nodes=3, policy="2+1", engine="etcd")
    mount = three.mount()
    wait_until(lambda: whole(three), "three replicas hold the log")
    other = next(node for node in (1, 2, 3) if node != three.master())
    three.stop(other, kill=True)
    fill(mount, "a")

    def warned() -> bool:
        found = status(three)
        return found["health"] == "degraded" and any(
            "2 of 3 replicas hold the metadata log durably, 3 should" in line for line in found["warnings"]
        )

    wait_until(warned, "the warning")
    found = status(three)
    durable = {replica["name"]: replica["durable_sequence"] for replica in found["replicas"]}
    assert found["log_floor"] <= durable[f"node-{other}"] < FILES  # nothing left etcd that only two hold
    assert found["log_bytes"] > FILES * INLINE_BYTES
    done = run("metadata", "verify", "--cluster", three.addresses)
    assert done.returncode == 3
    assert f"node-{other}" in done.stdout
    assert "2 of 3 replicas have one state" in done.stdout
    three.start(other)
    wait_until(lambda: status(three)["log_floor"] > 0, "the log is trimmed")
    wait_until(lambda: whole(three), "three replicas hold the log")
    assert verified(three)


@pytest.mark.unsampled
def test_replicas_are_equal_after_kills_under_load(six: Cluster) -> None:
    mount = six.mount()
    workers = [start_worker(mount, seed) for seed in (1, 2)]
    random = Random(7)
    equal = 0
    try:
        for number in range(4):
            time.sleep(random.uniform(0.5, 1.5))
            node = six.master() if number % 2 else random.choice([4, 5, 6])
            os.kill(six.pid(node), signal.SIGKILL)
            six.start(node)
            done = run("metadata", "verify", "--cluster", six.addresses)
            assert done.returncode in (0, 3), done.stdout + done.stderr  # 3: one had not come back yet
            equal += done.returncode == 0
    finally:
        (mount / "stop").touch()
    for seed, worker in enumerate(workers, 1):
        check_worker(worker, mount, seed)
    wait_until(lambda: verified(six), "one state everywhere")
    assert equal  # under load too


def test_verify_names_the_replica_that_differs(cluster: ClusterFactory) -> None:
    three = cluster(nodes=3, policy="2+1", engine="etcd")
    mount = three.mount()
    (mount / "file").write_bytes(b"x")
    wait_until(lambda: whole(three), "three replicas hold the log")
    assert verified(three)
    tampered = next(node for node in (1, 2, 3) if node != three.master())
    three.stop(tampered)
    path = three.disk(tampered) / "metadata" / "state" / "state.db"
    with closing(sqlite3.connect(path)) as state:
        state.execute("UPDATE inodes SET uid = 4711 WHERE inode > 1")
        state.commit()
    three.start(tampered)
    wait_until(lambda: whole(three), "three replicas hold the log")
    done = run("metadata", "verify", "--cluster", three.addresses)
    assert done.returncode == 1
    assert f"the state of node-{tampered} differs from the others'" in done.stdout
    done = run("metadata", "verify", "--json", "--cluster", three.addresses)
    found = json.loads(done.stdout)
    assert (found["equal"], found["differing"]) == (False, [f"node-{tampered}"])
    assert len({replica["digest"] for replica in found["replicas"]}) == 2


def test_a_node_stands_still_at_an_event_of_a_newer_program(cluster: ClusterFactory) -> None:
    three = cluster(nodes=3, policy="2+1", engine="etcd")
    older = next(node for node in (1, 2, 3) if node != three.master())
    three.stop(older)
    folder = three.folder / f"node-{older}"
    sequence = trio.run(append_newer, load_node_config(folder / "node.yaml", environment={}))
    three.start(older)  # its chunks are served
    text = (folder / "log").read_text(encoding="utf-8")
    assert (
        f"entry {sequence} of the metadata log: the log holds an event of a newer program: upgrade WormFS: "
        "this node's metadata replica stands still"
    ) in text
    assert "Traceback" not in text


async def append_newer(config: NodeConfig) -> int:
    """As a master of a newer program would: an epoch of its own, and an entry with an unknown event."""
    keys = EtcdKeys(config.cluster.name)
    async with EtcdClient(EtcdOptions(config.metadata.endpoints)) as client:
        head = replication_pb2.LogHead.FromString((await client.range(keys.head)).kvs[0].value)
        sequence, epoch = head.sequence + 1, head.epoch + 1
        entry = event_pb2.LogEntry(sequence=sequence, epoch=epoch).SerializeToString()
        entry += bytes.fromhex("2205fa3e020801")  # an event of kind 1007
        batch = replication_pb2.LogBatch(first_sequence=sequence, entries=[entry])
        newer = replication_pb2.LogHead(sequence=sequence, epoch=epoch)
        await client.txn(
            [],
            [
                put(keys.epoch, str(epoch).encode()),
                put(keys.head, newer.SerializeToString()),
                put(keys.batch(sequence), batch.SerializeToString()),
            ],
        )
    return sequence
