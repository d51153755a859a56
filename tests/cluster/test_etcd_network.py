"""Five nodes on etcd, two clients, and a network that is hurt while the clients work.

Their history is checked after every fault: one winner per exclusive create and rename, no stale reads,
every fsynced file reads back, records appended to one file are all there, once.
"""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from tests.harness import wait_until
from tests.leftovers import TOKEN_VARIABLE, run_folder
from tests.net_cluster import MEMBERS, NetCluster
from tests.net_work import RecordedWork, synced_write_s
from tests.packet_filter import Way

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.fuse,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces are root's to make"),
]

FAILOVER_MAX_S = 10.0
_numbers = count(1)


@pytest.fixture(scope="module")
def running(short_folder: Callable[[], Path]) -> Iterator[NetCluster]:
    folder = short_folder() / "c"
    folder.mkdir()
    net = NetCluster(folder, prefix=run_folder(os.environ[TOKEN_VARIABLE]).name)
    try:
        net.up()
        for client in net.clients:
            net.mount(client)
        yield net
    finally:
        net.tear_down()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def net(running: NetCluster) -> Iterator[NetCluster]:
    """The cluster, whole again after each test."""
    yield running
    print("\n".join(running.log_tails()))  # pytest shows it when the test failed
    running.mend()


@pytest.fixture
def work(net: NetCluster, tmp_path: Path) -> Callable[[], RecordedWork]:
    """`with work() as done:` the clients work meanwhile; `done.check(...)` after it."""
    return lambda: RecordedWork(net.mounts[:2], f"w{next(_numbers)}", tmp_path)


@contextmanager
def fresh_mount(net: NetCluster) -> Iterator[Path]:
    """A mount that has nothing cached."""
    point = net.mount(2, "fresh")
    yield point
    net.unmount(point)


def check(net: NetCluster, done: RecordedWork) -> None:
    net.heal()
    with fresh_mount(net) as mount:
        done.check(mount)


def next_write_s(net: NetCluster, client: int = 1) -> float:
    return synced_write_s(net.mounts[client - 1] / f"next-{next(_numbers)}")


def fsck(net: NetCluster) -> None:
    wait_until(lambda: net.wormfs("fsck", "--cluster", net.addresses).returncode == 0, "a clean fsck", 60)


@pytest.mark.long
@pytest.mark.parametrize("fault", ["all", "out", "in"])
def test_another_node_becomes_master_when_it_is_cut_off(
    net: NetCluster, work: Callable[[], RecordedWork], rounds: Callable[[int, int], int], fault: str
) -> None:
    if fault != "all" and not rounds(0, 1):
        pytest.skip("a long one")
    ways: dict[str, Way] = {"in": "in", "out": "out"}
    took_s = []
    with work() as done:
        for _ in range(rounds(1, 3)):
            took_s.append(next_write_s(net))
            master = net.master()
            if fault == "all":
                net.isolate(master)
            else:
                net.one_way(master, ways[fault])
            took_s[-1] = next_write_s(net)
            assert net.master() != master
            net.heal()
            net.wait_online()
    print(f"cut off ({fault}): the next write after {[f'{each:.1f}' for each in took_s]} s")
    check(net, done)
    assert max(took_s) < FAILOVER_MAX_S


def test_a_client_that_does_not_reach_the_master_hinders_nobody(
    net: NetCluster, work: Callable[[], RecordedWork]
) -> None:
    master = net.master()
    with work() as done:
        next_write_s(net, 2)
        net.cut(master, others=["client-1"])
        took_s = next_write_s(net, 2)
        begun_s = time.monotonic()
        for _ in range(5):
            took_s = max(took_s, next_write_s(net, 2))
        assert net.master() == master
        net.heal()
        next_write_s(net, 1)
    print(f"the longest write of the other client: {took_s:.1f} s, of {time.monotonic() - begun_s:.1f} s")
    check(net, done)
    assert took_s < FAILOVER_MAX_S
    assert [each for each in done.unknown() if each.client.startswith("2")] == []


def test_one_member_of_etcd_lost_is_not_noticed(
    net: NetCluster, work: Callable[[], RecordedWork], rounds: Callable[[int, int], int]
) -> None:
    took_s = []
    with work() as done:
        for number in range(rounds(1, 2 * MEMBERS)):
            member = number % MEMBERS + 1
            next_write_s(net)
            net.signal_members(signal.SIGKILL, member)
            took_s += [next_write_s(net) for _ in range(5)]
            net.wait_members(member)
    print(f"one member lost: the longest write {max(took_s):.1f} s")
    check(net, done)
    assert done.unknown() == []
    assert max(took_s) < FAILOVER_MAX_S


@pytest.mark.long
def test_every_node_restarted_in_turn(
    net: NetCluster, work: Callable[[], RecordedWork], rounds: Callable[[int, int], int]
) -> None:
    took_s = []
    with work() as done:
        for _ in range(rounds(1, 5)):
            for node in net.nodes if rounds(0, 1) else list(net.nodes)[:1]:
                next_write_s(net)
                net.stop(node)
                took_s.append(next_write_s(net))
                net.start(node)
                net.wait_online()
    print(f"each node restarted: the longest write {max(took_s):.1f} s")
    check(net, done)
    assert done.unknown() == []
    assert max(took_s) < FAILOVER_MAX_S


@pytest.mark.long
def test_all_killed_at_once(
    net: NetCluster, work: Callable[[], RecordedWork], rounds: Callable[[int, int], int]
) -> None:
    with work() as done:
        for _ in range(rounds(1, 10)):
            next_write_s(net)
            net.kill(*net.nodes, members=True)
            net.start(*net.nodes)
            net.wait_online()
            next_write_s(net)
    check(net, done)
    assert done.unknown() == []
    fsck(net)
