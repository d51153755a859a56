"""What a node that is not master says of who is."""

from wormfs.node.replica_role import naming
from wormfs.rpc.v1 import cluster_pb2


def test_a_map_seen_before_names_the_new_master_alone() -> None:
    seen = cluster_pb2.ClusterMap(version=7, name="c")
    for number, name in enumerate(("one", "two", "three"), 1):
        seen.nodes.add(number=number, name=name, master=name == "one", online=True)
    named = naming(seen, "three")
    assert [node.name for node in named.nodes if node.master] == ["three"]
    assert (named.version, len(named.nodes)) == (7, 3)
    assert seen.nodes[0].master


def test_a_master_that_was_not_seen_before_is_not_made_up() -> None:
    seen = cluster_pb2.ClusterMap(nodes=[cluster_pb2.NodeInfo(name="one", master=True)])
    assert not naming(seen, "two").nodes
