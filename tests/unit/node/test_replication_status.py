"""What status says of replicas that lack something."""

from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.metadata.etcd_trim import LogTrimmer
from wormfs.metadata.log_port import LogRecord
from wormfs.metadata.replica_table import FRESH_S, LAG_S, ReplicaTable
from wormfs.node.replication_status import ReplicationStatus
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.rpc.etcd_types import EtcdOptions
from wormfs.rpc.v1 import cluster_pb2 as pb

NAMES = ("a", "b", "c", "d")


class Cluster:
    def __init__(self) -> None:
        self.now_s = 100.0
        self.table = ReplicaTable(lambda: self.now_s)
        self.table.set_known(NAMES)
        client = EtcdClient(EtcdOptions(("127.0.0.1:1",)))  # never asked
        trimmer = LogTrimmer(
            client, EtcdKeys("c"), 1, self.table, own=lambda: ("a", 0, 0), members=lambda: NAMES
        )
        trimmer.note([LogRecord(20, bytes(3 << 20))])
        client.close()
        self.status = ReplicationStatus(self.table, trimmer, lambda: 20)

    def tell(self, durable: dict[str, int]) -> None:
        for name, sequence in durable.items():
            self.table.acknowledge(name, applied=20, durable=sequence)

    def after(self, pause_s: float) -> None:
        """The log still ends at 20."""
        self.table.sample(20)
        self.now_s += pause_s

    def reply(self, up: str) -> pb.StatusReply:
        reply = pb.StatusReply()
        for name in NAMES:
            reply.map.nodes.add(name=name, online=name in up)
        self.status.fill(reply)
        return reply

    def warnings(self, *, up: str = "abcd") -> list[str]:
        return self.status.warnings(self.reply(up))


async def test_nothing_is_said_while_all_is_well_or_has_just_begun() -> None:
    cluster = Cluster()
    assert cluster.warnings() == []  # nobody has told anything yet: a new master waits
    cluster.after(LAG_S)
    cluster.tell({"a": 20, "b": 20, "c": 20, "d": 20})
    assert cluster.warnings() == []


async def test_too_few_holders_are_named_with_what_to_do() -> None:
    cluster = Cluster()
    cluster.after(LAG_S)
    cluster.tell({"a": 20, "b": 20})
    assert cluster.warnings(up="ab") == [
        "2 of 4 replicas hold the metadata log durably, 3 should before it is trimmed in etcd, where it "
        "grows (3 MiB now): bring nodes back, or forget the disks of lost ones"
    ]


async def test_one_that_lags_and_one_that_is_silent_are_named() -> None:
    cluster = Cluster()
    cluster.tell({"d": 20})
    cluster.after(FRESH_S + 1)
    cluster.tell({"a": 20, "b": 20, "c": 7})
    lines = cluster.warnings()
    assert lines[0].startswith("2 of 4 replicas hold")
    assert lines[1:] == [
        "the metadata replica of c lags: it holds entry 7 of 20 durably",
        "the metadata replica of d does not report; its node's log says why",
    ]
    assert cluster.warnings(up="abc") == lines[:2]  # its node's own warning says it


async def test_a_replica_is_down_as_soon_as_its_node_is() -> None:
    cluster = Cluster()
    cluster.tell({"a": 20, "b": 20, "c": 7, "d": 7})
    cluster.after(LAG_S)
    cluster.after(0)
    found = cluster.reply("abc").replicas  # d reported less than FRESH_S ago, and its node is silent
    assert [(each.name, each.online, each.lags) for each in found] == [
        ("a", True, False),
        ("b", True, False),
        ("c", True, True),
        ("d", False, False),
    ]
    assert found[3].durable_sequence == 7
