"""Which etcd members may be taken out, and how members are called."""

import pytest

from wormfs.core.errors import ConfigError
from wormfs.node.config import MetadataConfig
from wormfs.node.etcd_changes import MemberState, add_member, quorum, removal_problem
from wormfs.rpc.etcd_types import EtcdMember, EtcdStatus


def cluster(pattern: str) -> list[MemberState]:
    """A member for each letter: `h`ealthy, `s`ilent, `l`earner; the first one leads."""
    return [
        MemberState(
            EtcdMember(
                0xA0 + number,
                f"10.0.0.{number}:2379",
                (f"http://10.0.0.{number}:2380",),
                (f"http://10.0.0.{number}:2379",),
                kind == "l",
            ),
            EtcdStatus(f"10.0.0.{number}:2379", leader=0xA0),
            "it does not answer" if kind == "s" else "",
        )
        for number, kind in enumerate(pattern)
    ]


@pytest.mark.parametrize(
    ("pattern", "leaving", "text"),
    [
        ("hhs", 2, ""),  # the lost one
        ("hhs", 0, "of the 2 others only 1 are healthy, and 2 must be"),
        ("hhh", 0, ""),
        ("hh", 1, ""),
        ("hs", 1, "only 1 of 2 members are healthy, and etcd changes nothing without 2"),
        ("hss", 1, "only 1 of 3 members are healthy, and etcd changes nothing without 2"),
        ("h", 0, "it is the only member"),
        ("hl", 0, "it is the only member"),  # a learner keeps nothing going
        ("hl", 1, ""),
        ("hhsl", 3, ""),
        ("hhsl", 1, "of the 2 others only 1 are healthy"),
        ("hhhss", 0, "of the 4 others only 2 are healthy, and 3 must be"),
        ("hhhss", 4, ""),
    ],
)
def test_no_removal_costs_the_quorum(pattern: str, leaving: int, text: str) -> None:
    states = cluster(pattern)
    found = removal_problem(states, states[leaving])
    assert found.startswith(text)
    assert bool(found) == bool(text)


def test_a_quorum_is_more_than_half() -> None:
    assert [quorum(voters) for voters in (1, 2, 3, 4, 5)] == [1, 2, 2, 3, 3]


def test_a_member_is_known_by_name_id_and_addresses() -> None:
    state = cluster("hh")[1]
    assert all(map(state.known_as, ("10.0.0.1:2379", "10.0.0.1:2380", "a1")))
    assert not any(map(state.known_as, ("", "10.0.0.1", "a0", "http://10.0.0.1:2379")))
    assert [each.leads for each in cluster("hh")] == [True, False]


def test_one_that_never_ran_is_called_by_its_peer_address() -> None:
    added = MemberState(EtcdMember(1, "", ("http://10.0.0.9:2380",), (), True), EtcdStatus(""), "new")
    assert added.name == "10.0.0.9:2380"


async def test_only_a_managed_member_among_others_is_added() -> None:
    with pytest.raises(ConfigError, match="no managed etcd member"):
        await add_member(MetadataConfig(engine="etcd", endpoints=("10.0.0.1:2379",)))
