"""`wormfs status`: who is believed, and what is said when nobody is master or nobody answers."""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import pytest
import trio

from wormfs.cli import status as status_module
from wormfs.cli.main import main
from wormfs.cli.status import ask_status, status_json, status_text
from wormfs.client.peers import machine_id
from wormfs.core.errors import NotMasterError, UnavailableError
from wormfs.rpc import methods as m
from wormfs.rpc.registry import DataBuffer, Registry, RequestContext
from wormfs.rpc.stream_server import serve_streams
from wormfs.rpc.v1 import cluster_pb2 as pb

BEGAN_MS = 1_795_280_412_345  # 2026-11-21 17:00:12 UTC


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_module, "ELECTION_S", 0.5)


def cluster_map(addresses: Sequence[str], *, master: int, online: Sequence[int] = (1, 2, 3)) -> pb.ClusterMap:
    found = pb.ClusterMap(name="c", version=BEGAN_MS)
    for number, address in enumerate(addresses, 1):
        found.nodes.add(
            number=number,
            name=f"node-{number}",
            addresses=[address],
            machine_id=machine_id(),
            master=number == master,
            online=number in online,
        )
        state = pb.DISK_STATE_ONLINE if number in online else pb.DISK_STATE_OFFLINE
        found.disks.add(number=number, node=number, state=state, total_bytes=9, free_bytes=5)
    return found


@asynccontextmanager
async def nodes(folder: Path, count: int, *, master: int, up: Sequence[int]) -> AsyncIterator[list[str]]:
    """Nodes whose map names `master`; only those `up` listen, and only the master answers GetStatus."""
    addresses = [f"unix:{folder}/{number}" for number in range(1, count + 1)]
    found = cluster_map(addresses, master=master)

    async def get_map(
        _: RequestContext, __: pb.GetClusterMapRequest, ___: DataBuffer | None
    ) -> pb.ClusterMap:
        return found

    async def answer(_: RequestContext, __: pb.GetStatusRequest, ___: DataBuffer | None) -> pb.StatusReply:
        return pb.StatusReply(map=found, master=f"node-{master}", health="healthy")

    async def refuse(_: RequestContext, __: pb.GetStatusRequest, ___: DataBuffer | None) -> NoReturn:
        raise NotMasterError("not the metadata master")

    async with trio.open_nursery() as nursery:
        for number in up:
            registry = Registry()
            registry.add(m.CLUSTER_GET_CLUSTER_MAP, get_map)
            registry.add(m.CLUSTER_GET_STATUS, answer if number == master else refuse)
            await nursery.start(serve_streams, registry, [addresses[number - 1]])
        yield addresses
        nursery.cancel_scope.cancel()


async def test_the_master_is_found_through_another_node(tmp_path: Path) -> None:
    async with nodes(tmp_path, 3, master=3, up=(1, 2, 3)) as addresses:
        reply = await ask_status(addresses[:1], 5)
    assert (reply.master, reply.health) == ("node-3", "healthy")
    assert not status_json(reply)["map_is_old"]
    assert "nodes    3 of 3 online" in status_text(reply)


async def test_without_a_master_the_map_is_called_old(tmp_path: Path) -> None:
    async with nodes(tmp_path, 3, master=3, up=(1, 2)) as addresses:
        reply = await ask_status(addresses[:2], 5)
    assert (reply.master, reply.health) == ("", "failed")
    text = status_text(reply)
    assert "master   none answers now\n" in text
    assert "nodes    3, 3 were online\n" in text
    assert "NODE    WAS     ROLE" in text
    assert "of 3 online" not in text
    assert "engine" not in text
    assert reply.warnings[0] == (
        "no master answers now; nodes and disks are shown as they last were known, "
        "under the master that began 2026-11-21 17:00:12 UTC"
    )
    assert reply.warnings[1].startswith("the metadata master does not answer, and no other is known: ")
    plain = status_json(reply)
    assert plain["map_is_old"]
    assert not any(node["master"] for node in plain["nodes"])


async def test_a_master_that_hangs_is_waited_for_once(tmp_path: Path) -> None:
    """It takes connections and never answers; the others name it."""
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{tmp_path}/3")
        silent.listen()
        async with nodes(tmp_path, 3, master=3, up=(1,)) as addresses:
            began_s = trio.current_time()
            reply = await ask_status([addresses[2], addresses[0]], 1)
            assert trio.current_time() - began_s < 3
    assert reply.master == ""


def test_a_port_that_never_answers_ends_it_in_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(status_module, "STATUS_LIMIT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UnavailableError, match="no node of the cluster answers"):
            trio.run(ask_status, [address], 0.5)
        assert main(["status", "--cluster", address]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1


def test_the_exit_code_tells_that_there_is_no_master(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reply = pb.StatusReply(map=cluster_map(["x:1"], master=0), health="failed")

    async def no_master(addresses: Sequence[str], limit_s: float) -> pb.StatusReply:
        assert limit_s <= 10
        return reply

    monkeypatch.setattr(status_module, "ask_status", no_master)
    assert main(["status", "--cluster", "x:1"]) == 3
    assert "none answers now" in capsys.readouterr().out
    reply.master = "node-1"
    assert main(["status", "--cluster", "x:1"]) == 0


def test_a_suspected_node_is_shown_with_every_load() -> None:
    found = cluster_map(["x:1", "x:2", "x:3"], master=1, online=(1, 2))
    found.nodes[0].load = 0.25
    found.nodes[1].load = 12.5
    found.nodes[1].suspected = True
    reply = pb.StatusReply(map=found, master="node-1", health="healthy")
    text = status_text(reply)
    assert "nodes    2 of 3 online, 1 suspected\n" in text
    rows = [line.split() for line in text.splitlines() if line.startswith("node-")]
    assert rows == [
        ["node-1", "online", "master", "0.25", "x:1"],
        ["node-2", "SUSPECTED", "12.50", "x:2"],
        ["node-3", "OFFLINE", "x:3"],
    ]
    reply.master = ""
    assert "0.25" not in status_text(reply)  # what it was once says nothing
    plain = status_json(reply)
    assert [node["suspected"] for node in plain["nodes"]] == [False, True, False]
    assert [node["load"] for node in plain["nodes"]] == [0.25, 12.5, 0.0]


def test_a_map_of_unknown_age_says_nothing_of_it() -> None:
    found = cluster_map(["x:1"], master=1)
    found.version = 7
    reply = status_module._without_master(found, UnavailableError("why"))
    assert reply.warnings == [
        "no master answers now; nodes and disks are shown as they last were known",
        "why",
    ]
