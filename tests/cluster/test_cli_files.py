"""put, get, ls, stat, rm, mkdir, mv, locate, status, fsck against a real cluster over gRPC."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ClusterFactory
from tests.harness import WORMFS, Cluster, run, wait_until

pytestmark = pytest.mark.cluster

_BIG_BYTES = 9_000_017  # three stripes of 2+1, the last one short


@pytest.fixture(scope="module")
def shared(module_cluster: ClusterFactory) -> Cluster:
    return module_cluster(nodes=1, disks=3, policy="2+1")


@pytest.fixture
def place(shared: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A directory in the cluster for one test."""
    path = f"/{request.node.name[:60]}"
    shared.wormfs("mkdir", path)
    yield path
    shared.wormfs("rm", "-r", path)


def _failing(cluster: Cluster, *arguments: str | Path) -> str:
    done = run(*arguments, "--cluster", cluster.addresses)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("wormfs: ")
    return done.stderr


@pytest.mark.parametrize("size", [0, 1, 70_000, _BIG_BYTES])
def test_put_and_get_give_the_same_bytes(shared: Cluster, place: str, tmp_path: Path, size: int) -> None:
    (tmp_path / "in").write_bytes(os.urandom(size))
    (tmp_path / "in").chmod(0o640)
    shared.wormfs("put", tmp_path / "in", f"{place}/f")
    shared.wormfs("get", f"{place}/f", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_put_replaces_whole_files(shared: Cluster, place: str, tmp_path: Path) -> None:
    for payload in (b"long" * 50_000, b"short"):
        (tmp_path / "f").write_bytes(payload)
        shared.wormfs("put", tmp_path / "f", place)
    assert shared.wormfs("get", f"{place}/f", "-") == "short"
    assert shared.wormfs("ls", place) == "f\n"


def test_pipes_in_and_out(shared: Cluster, place: str) -> None:
    payload = os.urandom(3_000_000)
    target = ["--cluster", shared.addresses]
    subprocess.run([WORMFS, "put", "-", f"{place}/p", *target], input=payload, check=True, timeout=60)
    done = subprocess.run(
        [WORMFS, "get", f"{place}/p", "-", *target], capture_output=True, check=True, timeout=60
    )
    assert done.stdout == payload


def test_get_into_a_closed_pipe_is_quiet(shared: Cluster, place: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(bytes(8 << 20))
    shared.wormfs("put", tmp_path / "in", f"{place}/f")
    with subprocess.Popen(
        [WORMFS, "get", f"{place}/f", "-", "--cluster", shared.addresses],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as getting:
        assert getting.stdout is not None
        assert getting.stderr is not None
        getting.stdout.read(10)
        getting.stdout.close()
        assert getting.wait(60) != 0
        assert getting.stderr.read() == b""


def test_trees_go_in_and_out(shared: Cluster, place: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep" / "er").mkdir(parents=True)
    (tree / "a").write_bytes(b"a" * 100)
    (tree / "deep" / "er" / "b").write_bytes(os.urandom(200_000))
    (tree / "link").symlink_to("deep/er/b")
    (tree / os.fsdecode(b"not-utf8-\xff")).write_bytes(b"x")
    shared.wormfs("put", "-r", tree, place)
    (tmp_path / "back").mkdir()
    shared.wormfs("get", "-r", f"{place}/tree", tmp_path / "back")
    subprocess.run(["diff", "-r", "--no-dereference", tree, tmp_path / "back" / "tree"], check=True)


def _facts(root: Path) -> dict[str, tuple[int, int, int, int]]:
    """Mode, owner, group and mtime of everything in a tree."""
    found = [root, *root.rglob("*")]
    return {
        str(path.relative_to(root)): (has.st_mode, has.st_uid, has.st_gid, has.st_mtime_ns)
        for path in found
        for has in [path.lstat()]
    }


def test_trees_keep_modes_times_and_owners(shared: Cluster, place: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "inner" / "tool").write_bytes(b"#!/bin/true")
    (tree / "link").symlink_to("inner/tool")
    if os.getuid() == 0:
        os.chown(tree / "inner" / "tool", 1234, 4321)
        os.chown(tree / "link", 5, 6, follow_symlinks=False)
    (tree / "inner" / "tool").chmod(0o4751 if os.getuid() == 0 else 0o751)
    for number, path in enumerate([tree / "inner" / "tool", tree / "link", tree / "inner", tree]):
        os.utime(path, ns=(10**18, 10**18 + number), follow_symlinks=False)
    shared.wormfs("put", "-r", tree, place)
    shared.wormfs("get", "-r", f"{place}/tree", tmp_path / "back")
    assert _facts(tmp_path / "back") == _facts(tree)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_put_leaves_nothing(shared: Cluster, place: str, number: signal.Signals) -> None:
    with subprocess.Popen(
        [WORMFS, "put", "-", f"{place}/f", "--cluster", shared.addresses],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as putting:
        assert putting.stderr is not None
        wait_until(lambda: ".wormfs-put-" in shared.wormfs("ls", place), "the file is begun")
        putting.send_signal(number)
        assert putting.wait(60) == 128 + number
        assert putting.stderr.read().count(b"\n") == 1
    assert shared.wormfs("ls", place) == ""


def test_a_move_that_cannot_be_names_the_paths(shared: Cluster, place: str) -> None:
    shared.wormfs("mkdir", f"{place}/a")
    shared.wormfs("mkdir", f"{place}/a/b")
    done = run("mv", f"{place}/a", f"{place}/a/b", "--cluster", shared.addresses)
    assert done.returncode == 2
    assert f"{place}/a cannot become {place}/a/b" in done.stderr
    assert f"{place}/a/b" in _failing(shared, "mv", "-n", f"{place}/a/b", f"{place}/a")


def test_directories_want_r(shared: Cluster, place: str, tmp_path: Path) -> None:
    assert "-r" in _failing(shared, "put", tmp_path, place)
    assert "-r" in _failing(shared, "get", place, tmp_path / "x")
    assert "-r" in _failing(shared, "rm", place)


def test_names(shared: Cluster, place: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    shared.wormfs("mkdir", "-p", f"{place}/x/y/z")
    shared.wormfs("mkdir", "-p", f"{place}/x/y/z")
    shared.wormfs("put", tmp_path / "f", f"{place}/x/f")
    shared.wormfs("mv", f"{place}/x/f", f"{place}/x/g")
    shared.wormfs("mv", f"{place}/x/g", f"{place}/x/y")
    assert shared.wormfs("ls", f"{place}/x/y").split() == ["g", "z"]
    found = json.loads(shared.wormfs("stat", "--json", f"{place}/x/y/g"))
    assert found["size_bytes"] == 5
    assert found["path"] == f"{place}/x/y/g"
    (entry,) = json.loads(shared.wormfs("ls", "--json", f"{place}/x/y/g"))
    assert (entry["name"], entry["inode"]) == ("g", found["inode"])
    assert " g\n" in shared.wormfs("ls", "-l", f"{place}/x/y")
    shared.wormfs("rm", f"{place}/x/y/g")
    shared.wormfs("rm", "-f", f"{place}/x/y/g")
    shared.wormfs("rm", "-r", f"{place}/x")
    assert shared.wormfs("ls", place) == ""


def test_missing_paths_are_named(shared: Cluster, place: str, tmp_path: Path) -> None:
    for arguments in (
        ("get", f"{place}/no", tmp_path / "x"),
        ("rm", f"{place}/no"),
        ("ls", f"{place}/no"),
        ("stat", f"{place}/no"),
        ("mv", f"{place}/no", f"{place}/x"),
        ("put", tmp_path / "no", place),
        ("locate", f"{place}/no"),
    ):
        assert "no" in _failing(shared, *arguments)
    assert not (tmp_path / "x").exists()


def test_locate_names_chunk_files_that_are_there(shared: Cluster, place: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(os.urandom(_BIG_BYTES))
    shared.wormfs("put", tmp_path / "in", f"{place}/f")
    found = json.loads(shared.wormfs("locate", "--json", f"{place}/f"))
    assert found["attributes"]["size_bytes"] == _BIG_BYTES
    assert len(found["stripes"]) == 5  # of 2 MiB
    for stripe in found["stripes"]:
        assert [chunk["index"] for chunk in stripe["chunks"]] == [0, 1, 2]
        assert len({chunk["disk"] for chunk in stripe["chunks"]}) == 3
        for chunk in stripe["chunks"]:
            assert chunk["node"] == "node-1"
            assert Path(chunk["path"]).is_file()


def test_fsck_is_clean_and_says_how_much_it_looked_at(shared: Cluster, place: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(os.urandom(_BIG_BYTES))
    shared.wormfs("put", tmp_path / "in", f"{place}/f")
    found = json.loads(shared.wormfs("fsck", "--json", "--verify-data"))
    assert found["clean"] is True
    assert found["checked"] >= 15
    assert found["problems"] == []


def test_fsck_names_a_lost_chunk(cluster: ClusterFactory, tmp_path: Path) -> None:
    made = cluster(nodes=1, disks=3, policy="2+1")
    (tmp_path / "in").write_bytes(os.urandom(1_000_000))
    made.wormfs("put", tmp_path / "in", "/f")
    located = json.loads(made.wormfs("locate", "--json", "/f"))
    Path(located["stripes"][0]["chunks"][1]["path"]).unlink()
    done = run("fsck", "--json", "--cluster", made.addresses)
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["clean"] is False
    assert [problem["kind"] for problem in found["problems"]] == ["missing-chunk"]


def test_the_example_of_the_api_page_runs(shared: Cluster, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    example = tmp_path / "example.py"
    example.write_text(page.split("```python\n")[1].split("```")[0], encoding="utf-8")
    status = json.loads(shared.wormfs("status", "--json"))
    done = subprocess.run(
        [sys.executable, example, status["nodes"][0]["grpc_address"]],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "hello, worms\n" in done.stdout
    assert "hello.txt" in done.stdout
    assert "NotFoundError" in done.stdout
