"""JSON and text of messages."""

import json

import pytest

from wormfs.cli.locate import locate_json, locate_text
from wormfs.cli.output import human_bytes, print_json, printable, table, to_plain
from wormfs.cli.status import status_json, status_text
from wormfs.rpc.v1 import cluster_pb2, filesystem_pb2, types_pb2


def _status() -> cluster_pb2.StatusReply:
    found = cluster_pb2.ClusterMap(
        cluster_id="c1",
        name="test",
        nodes=[
            cluster_pb2.NodeInfo(number=1, name="node-1", online=True, master=True),
            cluster_pb2.NodeInfo(number=2, name="node-2"),
        ],
        disks=[
            cluster_pb2.DiskInfo(
                number=1,
                node=1,
                path="/d1",
                state=cluster_pb2.DISK_STATE_ONLINE,
                total_bytes=1 << 40,
                free_bytes=1 << 39,
            ),
            cluster_pb2.DiskInfo(
                number=2, node=2, path="/d2", state=cluster_pb2.DISK_STATE_OFFLINE, total_bytes=1 << 40
            ),
        ],
        policy=types_pb2.Policy(k=4, m=2, chunk_size_bytes=1 << 20),
    )
    return cluster_pb2.StatusReply(
        map=found, master="node-1", health="degraded", warnings=["one copy"], stripe_count=1 << 40
    )


def test_status_json_has_the_map_beside_the_rest() -> None:
    plain = status_json(_status())
    assert "map" not in plain
    assert plain["master"] == "node-1"
    assert plain["health"] == "degraded"
    assert [node["name"] for node in plain["nodes"]] == ["node-1", "node-2"]
    assert [(disk["node"], disk["node_number"], disk["state"]) for disk in plain["disks"]] == [
        ("node-1", 1, "online"),
        ("node-2", 2, "offline"),
    ]
    assert plain["policy"]["k"] == 4
    assert plain["total_bytes"] == 1 << 40
    assert plain["free_bytes"] == 1 << 39


def test_numbers_past_32_bits_are_json_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(status_json(_status()))
    assert json.loads(capsys.readouterr().out)["stripe_count"] == 1 << 40


def test_status_text_names_what_is_wrong() -> None:
    text = status_text(_status())
    assert "health   degraded" in text
    assert "WARNING  one copy" in text
    assert "OFFLINE" in text


def test_unset_fields_are_there_with_their_defaults() -> None:
    assert to_plain(types_pb2.Policy()) == {"k": 0, "m": 0, "chunk_size_bytes": 0, "codec": "unspecified"}


def test_names_that_are_no_utf8_survive_json(capsys: pytest.CaptureFixture[str]) -> None:
    name = b"caf\xe9 \xff\n"
    print_json(to_plain(filesystem_pb2.DirEntry(name=name)))
    text = json.loads(capsys.readouterr().out)["name"]
    assert text.encode("utf-8", "surrogateescape") == name


def test_names_for_terminals_have_no_control_characters() -> None:
    assert printable(b"a\x1b[2Jb\n\xff") == "a\\x1b[2Jb\\x0a\\xff"
    assert printable("grün".encode()) == "grün"


def test_locate_joins_stripe_and_chunks() -> None:
    place = cluster_pb2.StripePlace(
        stripe=types_pb2.Stripe(index=3, stripe_id=9, k=4, m=2, length_bytes=100),
        chunks=[cluster_pb2.ChunkPlace(index=5, node="node-2", disk=2, path="/d2/chunks/x", online=False)],
    )
    reply = cluster_pb2.LocateReply(stripes=[place], end=True)
    (stripe,) = locate_json(reply)["stripes"]
    assert (stripe["index"], stripe["stripe_id"], stripe["k"]) == (3, 9, 4)
    assert stripe["chunks"][0]["path"] == "/d2/chunks/x"
    assert "parity  5  node-2  disk 2  /d2/chunks/x  OFFLINE" in locate_text(reply, "/a")


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 30, "1.0 GiB")]
)
def test_sizes_for_people(size_bytes: int, text: str) -> None:
    assert human_bytes(size_bytes) == text


def test_table_pads_to_the_widest_cell() -> None:
    assert table(["A", "LONG"], [["wide", "1"]], right=frozenset({1})) == "A     LONG\nwide     1"
