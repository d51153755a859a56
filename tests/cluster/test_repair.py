"""Repair: what lost or damaged disks took is rebuilt by itself, and then more may be lost."""

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.cluster.files import LONG_BYTES, SHORT_BYTES, SMALL_BYTES, KnownFiles
from tests.cluster.test_damage import damage
from tests.cluster.test_node import status_of
from tests.conftest import ClusterFactory
from tests.harness import Cluster, drop_caches, run, wait_until
from wormfs.rpc.v1 import cluster_pb2

pytestmark = [pytest.mark.cluster, pytest.mark.fuse, pytest.mark.timeout(300)]

SIZES = {SMALL_BYTES: 5, SHORT_BYTES: 6, LONG_BYTES: 3}


@pytest.fixture
def impatient(cluster: ClusterFactory) -> ClusterFactory:
    """Clusters that give a disk up after a second."""

    def make(**size: object) -> Cluster:
        made = cluster(**size)
        made.stop(1)
        with (made.folder / "node-1" / "node.yaml").open("a", encoding="utf-8") as config:
            config.write("repair_after: 1s\n")
        made.start(1)
        wait_until(lambda: status_of(made).health == "healthy", "every node found the master again")
        return made

    return make


def whole(cluster: Cluster, offline: int) -> Callable[[], bool]:
    """The loss of `offline` disks was seen, and nothing is left to repair."""

    def check() -> bool:
        status = status_of(cluster)
        lost = sum(disk.state == cluster_pb2.DISK_STATE_OFFLINE for disk in status.map.disks)
        return (
            lost == offline == len(status.repair.empty_disks)
            and not status.missing_chunk_count
            and not status.repair.waiting_stripes
            and not status.repair.stuck_stripes
        )

    return check


def test_a_lost_node_is_rebuilt_and_then_two_more_may_go(impatient: ClusterFactory) -> None:
    random = Random(21)
    eight = impatient(nodes=8, policy="4+2")
    mount = eight.mount()
    known = KnownFiles.write(mount, random, SIZES)
    eight.stop(8, kill=True)
    wait_until(whole(eight, 1), "what node 8 held is rebuilt", timeout_s=60)
    status = status_of(eight)
    assert status.health == "healthy", list(status.warnings)
    assert status.repair.rebuilt_stripes > 0
    assert any("wormfs disk forget" in line for line in status.warnings)
    known.check()  # with the maps this mount had before
    eight.fsck()
    for node in (6, 7):  # at once: this is what m = 2 is for
        eight.stop(node, kill=True)
    drop_caches()
    known.check()
    eight.remount(mount)
    known.check()
    wait_until(whole(eight, 3), "the second loss is rebuilt, narrower", timeout_s=60)
    eight.fsck()
    for node in (6, 7, 8):
        eight.start(node)
    wait_until(lambda: status_of(eight).health == "healthy", "stripes are as wide as before", timeout_s=60)
    wait_until(lambda: status_of(eight).repair.widened_stripes > 0, "they were widened")
    eight.remount(mount)
    known.check()
    wait_until(lambda: status_of(eight).garbage_chunk_count == 0, "old chunks are collected", timeout_s=60)
    eight.fsck()


@pytest.mark.unsampled
def test_files_are_written_and_read_while_repair_moves_them(impatient: ClusterFactory) -> None:
    random = Random(22)
    seven = impatient(nodes=7, policy="4+2")
    mount = seven.mount()
    known = KnownFiles.write(mount, random, SIZES)
    path = mount / "busy"
    content = bytearray(random.randbytes(LONG_BYTES))
    path.write_bytes(content)
    with path.open("r+b", buffering=0) as file:
        seven.stop(7, kill=True)
        done = whole(seven, 1)
        for _ in range(1000):  # overwrites of some bytes, so that stripes are read, merged and written
            at = random.randrange(LONG_BYTES - 200_000)
            piece = random.randbytes(random.choice([100, 5000, 150_000]))
            file.seek(at)
            file.write(piece)
            content[at : at + len(piece)] = piece
            if random.random() < 0.3:
                os.fsync(file.fileno())
            file.seek(at)
            assert file.read(len(piece)) == piece
            if done():
                break
        else:
            raise AssertionError("repair did not end while the file was written")
    known.check()
    assert path.read_bytes() == content
    seven.remount(mount)
    known.check()
    assert path.read_bytes() == content
    seven.fsck()


def test_damaged_and_missing_chunks_are_rebuilt_once_found(impatient: ClusterFactory) -> None:
    random = Random(23)
    six = impatient(nodes=1, disks=7, policy="4+2")
    mount = six.mount()
    known = KnownFiles.write(mount, random, SIZES)
    paths: list[Path] = [
        path for disk in (2, 5) for path in (six.disk(1, disk) / "chunks").rglob("*") if path.is_file()
    ]
    for number, path in enumerate(sorted(paths)):
        if number % 3:
            damage(path, random)
        else:
            path.unlink()
    found = run("fsck", "--cluster", six.addresses, "--verify-data")
    assert found.returncode == 1
    # Repair begins with the first chunk that is found, so fsck may not meet both kinds any more.
    kinds = {line.partition(":")[0] for line in found.stdout.splitlines()}
    assert kinds & {"missing-chunk", "damaged-chunk"}, found.stdout

    def clean() -> bool:
        return run("fsck", "--cluster", six.addresses, "--verify-data").returncode == 0

    wait_until(clean, "everything found is mended", timeout_s=60)
    assert status_of(six).health == "healthy"
    six.remount(mount)
    known.check()


@pytest.mark.unsampled
def test_a_lost_disk_is_forgotten_only_when_empty(impatient: ClusterFactory, tmp_path: Path) -> None:
    four = impatient(nodes=4, policy="2+1")
    (tmp_path / "data").write_bytes(os.urandom(5_000_000))
    four.wormfs("put", tmp_path / "data", "/data")
    number = next(disk.number for disk in status_of(four).map.disks if disk.path == str(four.disk(4)))
    online = run("disk", "forget", str(number), "--cluster", four.addresses)
    assert online.returncode != 0
    assert "is online" in online.stderr
    four.stop(4, kill=True)
    wait_until(whole(four, 1), "what it held is rebuilt", timeout_s=60)
    run("disk", "forget", str(number), "--cluster", four.addresses).check_returncode()
    status = status_of(four)
    assert number not in [disk.number for disk in status.map.disks]
    assert "node-4" not in [node.name for node in status.map.nodes]
    assert status.health == "healthy"
    wait_until(lambda: not status_of(four).garbage_chunk_count, "its garbage is forgotten with it")
    four.wormfs("get", "/data", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "data").read_bytes()
    four.fsck()
