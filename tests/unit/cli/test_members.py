"""`wormfs members`: what it shows, and what it says when it cannot."""

from pathlib import Path
from typing import Any

import pytest

from wormfs.cli.main import main
from wormfs.cli.members import members_json, members_text
from wormfs.node.etcd_changes import MemberState
from wormfs.rpc.etcd_types import EtcdMember, EtcdStatus


def write_config(folder: Path, metadata: str) -> str:
    file = folder / "node.yaml"
    file.write_text(f"name: one\ndisks: [{folder}/d]\nmetadata: {metadata}\n", encoding="utf-8")
    return str(file)


def state(number: int, problem: str = "", *, leads: bool = False, learner: bool = False) -> MemberState:
    address = f"10.0.0.{number}:2379"
    status = EtcdStatus(address, problem=problem, member_id=number, leader=number if leads else 99)
    if not problem:
        status = EtcdStatus(
            address, member_id=number, version="3.4.23", db_size_bytes=3 << 20, leader=status.leader
        )
    peers, clients = (f"http://10.0.0.{number}:2380",), (f"http://{address}",)
    return MemberState(EtcdMember(number, address, peers, clients, learner), status, problem)


STATES = [
    state(1, leads=True),
    state(2, "etcd at 10.0.0.2:2379: failed to connect: Connection refused"),
    state(3),
    state(4, learner=True),
]


def test_the_table_names_leader_learner_and_the_silent_one() -> None:
    assert members_text(STATES).splitlines() == [
        "MEMBER         STATE    ROLE     DATABASE  CLIENTS               PEERS",
        "10.0.0.1:2379  healthy  leader    3.0 MiB  http://10.0.0.1:2379  http://10.0.0.1:2380",
        "10.0.0.2:2379  SILENT                      http://10.0.0.2:2379  http://10.0.0.2:2380",
        "10.0.0.3:2379  healthy            3.0 MiB  http://10.0.0.3:2379  http://10.0.0.3:2380",
        "10.0.0.4:2379  healthy  learner   3.0 MiB  http://10.0.0.4:2379  http://10.0.0.4:2380",
        "10.0.0.2:2379: Connection refused",
        "2 of 3 members are healthy; 2 must be: the loss of one more stops all writing",
    ]


def test_the_same_for_programs() -> None:
    found: dict[str, Any] = members_json(STATES)
    assert (found["healthy"], found["voters"], found["quorum"]) == (2, 3, 2)
    assert found["members"][0] == {
        "id": "1",
        "name": "10.0.0.1:2379",
        "client_urls": ["http://10.0.0.1:2379"],
        "peer_urls": ["http://10.0.0.1:2380"],
        "healthy": True,
        "problem": "",
        "leader": True,
        "learner": False,
        "db_size_bytes": 3 << 20,
        "version": "3.4.23",
    }
    assert [each["learner"] for each in found["members"]] == [False, False, False, True]
    assert [each["healthy"] for each in found["members"]] == [True, False, True, True]


@pytest.mark.parametrize(
    ("action", "metadata", "code", "text"),
    [
        (["list"], "{engine: embedded}", 2, "node.yaml: metadata.engine is not etcd: there are no members"),
        (["list"], "{engine: etcd, endpoints: ['127.0.0.1:9']}", 3, "are most of its members up?"),
        (["add"], "{engine: etcd, endpoints: ['127.0.0.1:9']}", 2, "no managed etcd member to be added"),
        (
            ["add"],
            "{engine: etcd, endpoints: ['127.0.0.1:9'], managed: true, member: '127.0.0.1:9', folder: /e}",
            2,
            "names no other member",
        ),
    ],
)
def test_what_cannot_be_done_is_said(
    action: list[str],
    metadata: str,
    code: int,
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["members", *action, "--node-config", write_config(tmp_path, metadata)]) == code
    said = capsys.readouterr().err
    assert text in said
    assert said.startswith("wormfs: ")
    assert said.count("\n") == 1
