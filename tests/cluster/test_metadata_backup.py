"""Backups of the metadata on real nodes: all of it is lost, comes back, and fsck tells what is missing."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from random import Random
from threading import Event, Thread
from typing import Any

import pytest

from tests.cluster.files import LONG_BYTES, SHORT_BYTES, SMALL_BYTES, KnownFiles
from tests.cluster.test_etcd_migration import node_log
from tests.conftest import ClusterFactory
from tests.harness import WORMFS, Cluster, drop_caches, run, run_well, wait_until
from wormfs.cli.dev import _spawn as spawn
from wormfs.cli.dev_layout import DevFolder

pytestmark = [pytest.mark.cluster, pytest.mark.fuse, pytest.mark.timeout(240)]

STEP = 1 << 40  # numbers given out after a restore are beyond any given out before
DOOMED_BYTES = SHORT_BYTES  # one stripe


def status(made: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(made.wormfs("status", "--json"))
    return found


def problems(made: Cluster, *options: str) -> list[tuple[str, str]]:
    """Kind and text of all that fsck finds."""
    found = json.loads(run("fsck", "--json", *options, "--cluster", made.addresses).stdout)
    return [(each["kind"], each["problem"]) for each in found["problems"]]


def texts(found: list[tuple[str, str]], kind: str) -> list[str]:
    return [text for each, text in found if each == kind]


def backup(made: Cluster, file: Path) -> dict[str, Any]:
    out = run_well("metadata", "backup", file, "--json", "--cluster", made.addresses)
    found: dict[str, Any] = json.loads(out)
    return found


def node_config(made: Cluster, node: int) -> Path:
    return made.folder / f"node-{node}" / "node.yaml"


def restore(made: Cluster, file: Path, node: int = 1) -> subprocess.CompletedProcess[str]:
    return run("metadata", "restore", file, "--node-config", node_config(made, node))


def refused(done: subprocess.CompletedProcess[str], text: str) -> None:
    """The command failed with one line that says so."""
    assert done.returncode != 0
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def chunks_of(made: Cluster, inode: int) -> list[Path]:
    """Chunk files of an inode on all disks."""
    return list(made.folder.glob(f"node-*/disk-*/chunks/*/{inode:016x}/*"))


def no_garbage(made: Cluster) -> bool:
    return bool(status(made)["garbage_chunk_count"] == 0)


def lose(made: Cluster, *parts: str) -> None:
    """Delete these parts of every node's folder."""
    for part in parts:
        for path in made.folder.glob(f"node-*/{part}"):
            shutil.rmtree(path)


class Story:
    """Files before the backup, and what happens behind it: `doomed` goes, `later` comes."""

    def __init__(self, made: Cluster, counts: dict[int, int]) -> None:
        self.made = made
        self.mount = made.mount()
        self.known = KnownFiles.write(self.mount, Random(7), counts)
        doomed = self.mount / "doomed"
        self.known.add(doomed, os.urandom(DOOMED_BYTES))
        self.doomed = doomed.stat().st_ino

    def go_on(self) -> None:
        del self.known.digests[self.mount / "doomed"]
        (self.mount / "doomed").unlink()
        later = self.mount / "later"
        KnownFiles({}).add(later, os.urandom(LONG_BYTES))
        self.later = later.stat().st_ino
        self.made.unmount(self.mount)
        wait_until(lambda: no_garbage(self.made) and not chunks_of(self.made, self.doomed), "doomed is gone")

    def check(self, sequence: int) -> None:
        """The backup's files are served; fsck tells exactly what is not as it was, and collects if it may."""
        made = self.made
        made.mount()
        drop_caches()
        self.known.check()
        assert (self.mount / "doomed").stat().st_size == DOOMED_BYTES
        assert not (self.mount / "later").exists()
        kept = chunks_of(made, self.later)
        assert kept
        found = problems(made)
        assert {kind for kind, _ in found} == {"missing-chunk", "lost-file", "unknown-chunks"}
        assert texts(found, "lost-file") == [
            f"/doomed (inode {self.doomed}): 1 of its stripes are lost for good"
        ]
        (unknown,) = [text for text in texts(found, "unknown-chunks") if f"inode {self.later}," in text]
        assert unknown.startswith(f"inode {self.later}, which has no name: {len(kept)} chunks of ")
        assert f"behind event {sequence}" in unknown
        with pytest.raises(OSError, match="Input/output"):
            (self.mount / "doomed").read_bytes()

        # Nothing of what is written now takes a number of the time before.
        self.known.add(self.mount / "new", Random(8).randbytes(LONG_BYTES))
        assert (self.mount / "new").stat().st_ino > STEP
        (self.mount / "doomed").unlink()
        wait_until(lambda: not texts(problems(made), "lost-file"), "the mount has let go of doomed")
        wait_until(lambda: no_garbage(made), "garbage is collected as ever")
        assert chunks_of(made, self.later) == kept
        collected = json.loads(made.wormfs("fsck", "--collect-unknown", "--json"))
        assert collected["clean"]
        assert sum("chunks of" in line for line in collected["collected"]) == len(collected["collected"]) > 0
        assert chunks_of(made, self.later) == []
        drop_caches()
        self.known.check()


def test_an_embedded_cluster_comes_back_from_a_backup(cluster: ClusterFactory, tmp_path: Path) -> None:
    made = cluster(nodes=1, disks=3, policy="2+1")
    file = tmp_path / "b"
    story = Story(made, {SMALL_BYTES: 2, SHORT_BYTES: 1, LONG_BYTES: 1})
    taken = backup(made, file)
    assert list(tmp_path.iterdir()) == [file]  # no temporary file beside it
    story.go_on()
    made.stop(1)
    lose(made, "disk-*/metadata")
    done = restore(made, file)
    assert done.returncode == 0, done.stderr
    assert f"as of event {taken['sequence']}" in done.stdout
    made.up()
    story.check(taken["sequence"])


@pytest.mark.long
def test_backup_and_restore_refuse_where_something_would_be_lost(
    cluster: ClusterFactory, tmp_path: Path, rounds: Callable[[int, int], int]
) -> None:
    if not rounds(0, 1):
        pytest.skip("a long one")
    made = cluster(nodes=3, policy="2+1")
    other = cluster(nodes=1, policy="1+0")
    file, foreign = tmp_path / "b", tmp_path / "foreign"
    story = Story(made, {SMALL_BYTES: 2, SHORT_BYTES: 1, LONG_BYTES: 1})
    taken = backup(made, file)
    backup(other, foreign)
    again = run("metadata", "backup", file, "--cluster", made.addresses)
    refused(again, f"{file} exists already; --force replaces it")
    assert backup(made, tmp_path / "b2")["cluster_id"] == taken["cluster_id"]
    forced = run_well("metadata", "backup", file, "--force", "--json", "--cluster", made.addresses)
    taken = json.loads(forced)
    checked = json.loads(run_well("metadata", "check", file, "--json"))
    assert {key: checked[key] for key in ("sequence", "cluster_id", "checksum", "file_bytes")} == {
        key: taken[key] for key in ("sequence", "cluster_id", "checksum", "file_bytes")
    }
    piped = subprocess.run(
        [WORMFS, "metadata", "backup", "-", "--cluster", made.addresses],
        capture_output=True,
        check=True,
        timeout=60,
    )
    (tmp_path / "piped").write_bytes(piped.stdout)
    assert run_well("metadata", "check", tmp_path / "piped").startswith(
        f"sound: cluster {taken['cluster_id']}"
    )
    story.go_on()
    refused(restore(made, file), "in use by another process")
    for node in (3, 2, 1):
        made.stop(node)
    refused(restore(made, file), "metadata holds metadata already")
    refused(restore(made, file, node=2), "another one keeps the metadata")
    lose(made, "disk-*/metadata")
    refused(restore(made, foreign), f"is a disk of cluster {taken['cluster_id']}, the backup is of cluster")
    whole = file.read_bytes()
    (tmp_path / "short").write_bytes(whole[:-1])
    refused(restore(made, tmp_path / "short"), "cut short")
    (tmp_path / "rotten").write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    refused(restore(made, tmp_path / "rotten"), "checksum does not match")
    assert not list(made.folder.glob("node-*/disk-*/metadata"))
    assert restore(made, file).returncode == 0
    refused(restore(made, file), "metadata holds metadata already")  # not a second time
    made.up()
    story.check(taken["sequence"])
    made.fsck()


@contextmanager
def load(folder: Path) -> Any:
    """Files written and fsynced one after the other; yields what is acknowledged so far."""
    acknowledged: dict[Path, bytes] = {}
    stop = Event()

    def work() -> None:
        random = Random(9)
        while not stop.is_set():
            path = folder / f"load-{len(acknowledged)}"
            data = random.randbytes(random.choice([1000, 150_000]))
            KnownFiles({}).add(path, data)
            acknowledged[path] = data

    thread = Thread(target=work)
    thread.start()
    try:
        yield acknowledged
    finally:
        stop.set()
        thread.join()


@pytest.mark.long
def test_a_cluster_on_etcd_comes_back_from_a_backup_made_under_load(
    cluster: ClusterFactory, tmp_path: Path, rounds: Callable[[int, int], int]
) -> None:
    """One node's replica is left. It is newer than the backup: the node refuses to mix them."""
    if not rounds(0, 1):
        pytest.skip("a long one")
    made = cluster(nodes=3, policy="2+1", engine="etcd")
    file = tmp_path / "b"
    story = Story(made, {SMALL_BYTES: 2, SHORT_BYTES: 1, LONG_BYTES: 1})
    with load(story.mount) as acknowledged:
        wait_until(lambda: len(acknowledged) > 20, "work is under way")
        before = dict(acknowledged)
        taken = backup(made, file)
        since = len(acknowledged)
        wait_until(lambda: len(acknowledged) > since + 20, "work goes on behind the backup")
        while_backed_up = dict(acknowledged)
    story.go_on()
    for node in (1, 2, 3):
        made.stop(node)
    left = made.disk(3) / "metadata"
    left.rename(tmp_path / "left")
    lose(made, "disk-*/metadata", "etcd")
    (tmp_path / "left").rename(left)

    refused(restore(made, file), "etcd")  # no majority of its members
    assert not (made.disk(1) / "metadata").exists()
    spawn(DevFolder(made.folder).node(2))  # not to be waited for: it does not serve yet
    wait_until(lambda: "wormfs metadata migrate" in node_log(made, 2), "node 2 waits for the metadata")
    done = restore(made, file)
    assert done.returncode == 0, done.stderr
    made.start(1)
    made.start(2)
    spawn(DevFolder(made.folder).node(3))
    wait_until(lambda: "they are not mixed" in node_log(made, 3), "node 3 refuses")
    wait_until(lambda: not made.running(3), "node 3 has ended")
    refused(restore(made, file, node=3), "metadata holds metadata already")
    shutil.rmtree(left)
    refused(restore(made, file, node=3), "etcd holds the metadata log of a cluster named")
    assert not left.exists()
    made.start(3)

    made.mount()
    for path, data in before.items():
        assert path.read_bytes() == data, path
    for path, data in while_backed_up.items():
        assert not path.exists() or path.read_bytes() in (b"", data), path
    made.unmount(story.mount)
    story.check(taken["sequence"])
    made.fsck()
    wait_until(
        lambda: run("metadata", "verify", "--cluster", made.addresses).returncode == 0, "equal replicas"
    )


@pytest.mark.long
def test_on_fresh_nodes_with_fresh_disks_every_file_is_named(
    cluster: ClusterFactory, tmp_path: Path, rounds: Callable[[int, int], int]
) -> None:
    if not rounds(0, 1):
        pytest.skip("a long one")
    made = cluster(nodes=3, policy="2+1", engine="etcd")
    file = tmp_path / "b"
    story = Story(made, {SMALL_BYTES: 2, SHORT_BYTES: 2, LONG_BYTES: 1})
    backup(made, file)
    made.unmount(story.mount)
    for node in (1, 2, 3):
        made.stop(node)
    lose(made, "disk-*", "etcd")
    command = [WORMFS, "metadata", "start-etcd", "--node-config"]
    starts = [subprocess.Popen([*command, str(node_config(made, node))]) for node in (2, 3)]
    assert [each.wait(60) for each in starts] == [0, 0]
    done = restore(made, file)
    assert done.returncode == 0, done.stderr
    made.up()
    made.mount()
    striped = [path for path in story.known.digests if path.stat().st_size > SMALL_BYTES]
    assert len(striped) == 4
    found = problems(made)
    assert {kind for kind, _ in found} == {"offline-disk", "unreadable-file"}
    named = sorted(text.partition(" ")[0] for text in texts(found, "unreadable-file"))
    assert named == sorted(f"/{path.name}" for path in striped)
    for path in striped:
        del story.known.digests[path]
    story.known.add(story.mount / "new", os.urandom(LONG_BYTES))
    made.remount(story.mount)
    story.known.check()  # small files are inside the metadata


@pytest.mark.long
def test_etcd_begins_again_behind_the_newest_replica(
    cluster: ClusterFactory, tmp_path: Path, rounds: Callable[[int, int], int]
) -> None:
    """All of etcd's data is lost: one replica is kept, and nothing is lost."""
    if not rounds(0, 1):
        pytest.skip("a long one")
    made = cluster(nodes=3, policy="2+1", engine="etcd")
    story = Story(made, {SMALL_BYTES: 2, SHORT_BYTES: 1})
    made.unmount(story.mount)
    for node in (1, 2, 3):
        made.stop(node)
    lose(made, "etcd")
    start = ("metadata", "start-etcd", "--node-config", node_config(made, 2))
    refused(run(*start), "metadata holds metadata already")
    for node in (2, 3):
        (made.disk(node) / "metadata").rename(tmp_path / f"moved-{node}")
        spawn(DevFolder(made.folder).node(node))
    for node in (2, 3):
        wait_until(lambda: "wormfs metadata migrate" in node_log(made, node), "it waits")  # noqa: B023
    run_well("metadata", "migrate", "--node-config", node_config(made, 1))
    made.up()
    made.mount()
    story.known.check()
    made.fsck()
    wait_until(
        lambda: run("metadata", "verify", "--cluster", made.addresses).returncode == 0, "equal replicas"
    )
