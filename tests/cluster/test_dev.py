"""`wormfs dev` on real processes."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ClusterFactory
from tests.harness import Cluster, run, wait_until
from wormfs.cli.processes import command_line, find_process

pytestmark = pytest.mark.cluster


def _status(cluster: Cluster) -> dict[str, object]:
    found: dict[str, object] = json.loads(cluster.wormfs("status", "--json"))
    return found


def _online(cluster: Cluster) -> list[str]:
    nodes = _status(cluster)["nodes"]
    assert isinstance(nodes, list)
    return sorted(node["name"] for node in nodes if node["online"])


def test_up_makes_the_layout_and_serves(cluster: ClusterFactory) -> None:
    made = cluster(nodes=2, disks=3)
    for number in (1, 2):
        folder = made.folder / f"node-{number}"
        assert {path.name for path in folder.iterdir()} >= {"disk-1", "disk-2", "disk-3", "pid", "log"}
        assert str(folder / "node.yaml") in command_line(made.pid(number))
    assert made.config.exists()
    assert len(made.addresses.split(",")) == 2
    status = _status(made)
    assert status["master"] == "node-1"
    assert status["health"] == "healthy"
    assert _online(made) == ["node-1", "node-2"]


def test_up_refuses_what_the_cluster_there_is_not(cluster: ClusterFactory) -> None:
    made = cluster(nodes=1, disks=3, policy="2+1")
    for option, value in (("--nodes", "3"), ("--policy", "2+2"), ("--engine", "etcd")):
        done = run("dev", "up", "--dir", made.folder, option, value)
        assert done.returncode != 0
        assert f"made with {option}" in done.stderr
    assert run("dev", "up", "--dir", made.folder, "--policy", "2+1", "--engine", "embedded").returncode == 0


def test_nodes_have_no_terminal(cluster: ClusterFactory) -> None:
    made = cluster(nodes=1, disks=3, policy="2+1")
    assert os.getsid(made.pid(1)) == made.pid(1)


def test_stop_start_kill_keep_the_data(cluster: ClusterFactory, tmp_path: Path) -> None:
    made = cluster(nodes=4, disks=1, policy="2+1")
    (tmp_path / "in").write_bytes(os.urandom(300_000))
    made.wormfs("put", str(tmp_path / "in"), "/a")
    made.stop(2)
    assert not made.running(2)
    made.stop(2)  # once more is fine
    made.start(2)
    before = made.pid(3)
    made.stop(3, kill=True)
    made.start(3)
    assert made.pid(3) != before
    made.start(3)  # it runs: nothing to do
    made.wormfs("get", "/a", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()
    assert _online(made) == ["node-1", "node-2", "node-3", "node-4"]


@pytest.mark.unsampled
def test_up_again_starts_what_is_down(cluster: ClusterFactory) -> None:
    made = cluster(nodes=3, disks=1, policy="2+1")
    made.wormfs("mkdir", "/kept")
    made.stop(1)
    made.stop(3, kill=True)
    addresses, second = made.addresses, made.pid(2)
    made.up()
    assert made.addresses == addresses
    assert made.pid(2) == second
    assert made.wormfs("ls") == "kept\n"


def test_down_ends_all_and_up_brings_the_data_back(cluster: ClusterFactory) -> None:
    made = cluster(nodes=3, disks=1, policy="2+1")
    made.wormfs("mkdir", "/kept")
    pids = [made.pid(number) for number in (1, 2, 3)]
    assert run("dev", "down", "--dir", made.folder).returncode == 0
    assert [find_process(pid) for pid in pids] == [None, None, None]
    assert run("dev", "down", "--dir", made.folder).returncode == 0
    assert run("ls", "--config", made.config).returncode == 3
    made.up()
    assert made.wormfs("ls") == "kept\n"


def test_a_recycled_process_id_is_never_killed(cluster: ClusterFactory) -> None:
    made = cluster(nodes=1, disks=3, policy="2+1")
    made.stop(1, kill=True)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (made.folder / "node-1" / "pid").write_text(f"{stranger.pid}\n", encoding="ascii")
        made.stop(1, kill=True)
        assert run("dev", "down", "--dir", made.folder).returncode == 0
        assert stranger.poll() is None
        made.up()
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.unsampled
def test_sigterm_of_a_node_exits_cleanly(cluster: ClusterFactory) -> None:
    made = cluster(nodes=3, disks=1, policy="2+1")
    process = find_process(made.pid(2))
    assert process is not None
    process.send(signal.SIGTERM)
    assert process.wait_gone(30)
    wait_until(lambda: _online(made) == ["node-1", "node-3"], "node-2 is known to be away")


def test_a_node_that_cannot_start_is_named_with_its_reason(short_folder: Callable[[], Path]) -> None:
    made = Cluster(short_folder() / "c")
    try:
        made.up(nodes=1, disks=3, policy="2+1")
        made.stop(1)
        with (made.folder / "node-1" / "node.yaml").open("a", encoding="utf-8") as config:
            config.write("nonsense: 1\n")
        done = run("dev", "up", "--dir", made.folder)
        assert done.returncode == 3
        assert "node-1" in done.stderr
        assert "nonsense" in done.stderr
        assert done.stderr.count("\n") == 1
        assert not made.running(1)
    finally:
        made.tear_down()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("stop", "--node", "1"), "no dev cluster"), (("start", "--node", "1"), "no dev cluster")],
)
def test_a_folder_without_a_cluster_is_said(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = run("dev", *arguments, "--dir", tmp_path)
    assert done.returncode == 1
    assert says in done.stderr


def test_another_size_for_an_existing_cluster_is_refused(cluster: ClusterFactory) -> None:
    made = cluster(nodes=1, disks=3, policy="2+1")
    done = run("dev", "up", "--dir", made.folder, "--nodes", "4")
    assert done.returncode == 2
    assert "made with --nodes 1" in done.stderr
