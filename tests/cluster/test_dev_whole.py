"""The whole way a stranger goes: up, mount, copy, lose nodes, compare, fsck, down."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import ClusterFactory
from tests.harness import Cluster, drop_caches, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.fuse]


def _digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.blake2b(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def _offline(cluster: Cluster) -> list[str]:
    status = json.loads(cluster.wormfs("status", "--json"))
    return sorted(node["name"] for node in status["nodes"] if not node["online"])


@pytest.mark.unsampled
def test_six_nodes_lose_two_and_keep_every_byte(cluster: ClusterFactory, tmp_path: Path) -> None:
    made = cluster()
    point = made.mount()
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    for number, size in enumerate((0, 1, 4096, 70_000, 5_000_000, 20_000_001)):
        (source / "deep" / f"f{number}").write_bytes(os.urandom(size))
    want = _digests(source)
    shutil.copytree(source, point / "tree")
    assert _digests(point / "tree") == want

    made.stop(3, kill=True)
    made.stop(5, kill=True)
    made.remount(point)
    assert _digests(point / "tree") == want
    (point / "degraded").write_bytes(b"d" * 3_000_000)
    wait_until(lambda: _offline(made) == ["node-3", "node-5"], "the master knows that the two are away")
    assert json.loads(made.wormfs("status", "--json"))["health"] == "degraded"

    made.start(3)
    made.start(5)
    made.remount(point)
    drop_caches()
    assert _digests(point / "tree") == want
    assert (point / "degraded").read_bytes() == b"d" * 3_000_000
    made.unmount(point)
    made.fsck()


def test_mount_and_cli_see_one_truth(cluster: ClusterFactory, tmp_path: Path) -> None:
    made = cluster(nodes=1, disks=3, policy="2+1")
    point = made.mount()
    (point / "by-mount").write_bytes(b"m" * 100_000)
    assert made.wormfs("get", "/by-mount", "-") == "m" * 100_000
    (tmp_path / "f").write_bytes(b"c" * 100_000)
    made.wormfs("put", tmp_path / "f", "/by-cli")
    assert (point / "by-cli").read_bytes() == b"c" * 100_000
    made.wormfs("rm", "/by-mount")
    assert not (point / "by-mount").exists()
