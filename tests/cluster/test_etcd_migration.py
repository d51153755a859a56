"""A cluster of the embedded engine moves to etcd: every file and name is there."""

import os
import signal

import pytest
import yaml

from tests.conftest import ClusterFactory
from tests.harness import Cluster, run, wait_until
from wormfs.cli.dev import _spawn as spawn
from wormfs.cli.dev_layout import DevFolder, _etcd_endpoints

pytestmark = [pytest.mark.cluster, pytest.mark.fuse, pytest.mark.timeout(180)]

MEMBERS = 3


def set_engine(made: Cluster, nodes: int) -> None:
    """Edit the nodes' configurations as an admin does."""
    endpoints = _etcd_endpoints(MEMBERS)
    for number in range(1, nodes + 1):
        file = made.folder / f"node-{number}" / "node.yaml"
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        config.pop("join", None)
        config["cluster"] = {"name": "moved"}
        config["policy"] = {"k": 2, "m": 1}
        config["metadata"] = {"engine": "etcd", "endpoints": endpoints}
        if number <= MEMBERS:
            own = {"managed": True, "member": endpoints[number - 1]}
            config["metadata"] |= own | {"folder": str(file.parent / "etcd")}
        file.write_text(yaml.safe_dump(config), encoding="utf-8")


def node_log(made: Cluster, node: int) -> str:
    return (made.folder / f"node-{node}" / "log").read_text(encoding="utf-8")


@pytest.mark.unsampled
def test_an_embedded_cluster_moves_to_etcd(cluster: ClusterFactory) -> None:
    made = cluster(nodes=4, policy="2+1")
    mount = made.mount()
    data = os.urandom(5_000_000)
    (mount / "big").write_bytes(data)
    (mount / "folder").mkdir()
    (mount / "folder" / "small").write_bytes(b"small")
    os.link(mount / "big", mount / "folder" / "link")
    made.unmount(mount)
    first = made.folder / "node-1" / "node.yaml"
    refused = run("metadata", "migrate", "--node-config", first)
    assert refused.returncode != 0
    assert "engine is not etcd" in refused.stderr
    for node in (4, 3, 2, 1):
        made.stop(node)
    set_engine(made, 4)
    for node in (2, 3, 4):
        spawn(DevFolder(made.folder).node(node))  # not to be waited for: they do not serve yet
    # They belong to a cluster whose metadata is not in etcd: nobody forms a new one.
    wait_until(lambda: all("wormfs metadata migrate" in node_log(made, node) for node in (2, 3, 4)), "a wait")
    moved = run("metadata", "migrate", "--node-config", first)
    assert moved.returncode == 0, moved.stderr
    assert "the metadata is in etcd" in moved.stdout
    made.start(1)
    busy = run("metadata", "migrate", "--node-config", first)
    assert busy.returncode != 0
    assert "in use by another process" in busy.stderr
    made.up()
    mount = made.mount()
    assert (mount / "big").read_bytes() == data
    assert (mount / "folder" / "small").read_bytes() == b"small"
    assert (mount / "folder" / "link").stat().st_nlink == 2
    (mount / "later").write_bytes(b"after the move")
    os.kill(made.pid(made.master()), signal.SIGKILL)
    (mount / "more").write_bytes(b"after a failover")
    made.up()
    fresh = made.remount(mount)
    assert (fresh / "later").read_bytes() == b"after the move"
    assert (fresh / "more").read_bytes() == b"after a failover"
    wait_until(
        lambda: run("metadata", "verify", "--cluster", made.addresses).returncode == 0, "equal replicas"
    )
    wait_until(lambda: run("fsck", "--cluster", made.addresses).returncode == 0, "a clean fsck")
