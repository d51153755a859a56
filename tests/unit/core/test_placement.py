"""Placement keeps its rules for every set of disks."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wormfs.core.errors import NoSpaceError, UnavailableError
from wormfs.core.placement import FREE_RESERVE_BYTES, DiskView, place_stripes
from wormfs.core.types import Policy

GIB = 1 << 30


@st.composite
def clusters(draw: st.DrawFn) -> list[DiskView]:
    count = draw(st.integers(0, 24))
    return [
        DiskView(
            number=number + 1,
            node=draw(st.integers(1, 6)),
            free_bytes=draw(st.sampled_from([0, FREE_RESERVE_BYTES + (1 << 20), GIB, 100 * GIB])),
            online=draw(st.booleans()),
            suspect=draw(st.sampled_from([False, False, True])),
        )
        for number in range(count)
    ]


policies = st.builds(Policy, st.integers(1, 8), st.integers(0, 4), st.just(1 << 20))


@given(clusters(), policies, st.integers(1, 8), st.integers(0, 2**32))
def test_every_placement_keeps_the_rules(
    disks: list[DiskView], policy: Policy, count: int, seed: int
) -> None:
    online = [disk for disk in disks if disk.online]
    roomy = [disk for disk in online if disk.free_bytes >= FREE_RESERVE_BYTES + policy.chunk_size_bytes]
    if len(online) < policy.m + 1:
        with pytest.raises(UnavailableError):
            place_stripes(disks, policy, count, Random(seed))
        return
    if len(roomy) < policy.m + 1:
        with pytest.raises(NoSpaceError):
            place_stripes(disks, policy, count, Random(seed))
        return
    placements = place_stripes(disks, policy, count, Random(seed))
    trusted = [disk for disk in roomy if not disk.suspect]
    usable = trusted if len(trusted) > policy.m else roomy
    nodes = {disk.number: disk.node for disk in usable}
    capacity = Counter(nodes.values())
    assert len(placements) == count
    for placement in placements:
        assert placement.m == policy.m
        assert placement.k == min(policy.k, len(usable) - policy.m)
        assert len(placement.disks) == placement.k + placement.m == len(set(placement.disks))
        assert set(placement.disks) <= set(nodes)
        held = Counter(nodes[disk] for disk in placement.disks)
        # No node holds two chunks more than another that had a disk left.
        for node, spare in capacity.items():
            if held[node] < spare:
                assert max(held.values()) <= held[node] + 1


@given(clusters(), policies, st.integers(0, 2**32))
def test_equal_seeds_give_equal_placements(disks: list[DiskView], policy: Policy, seed: int) -> None:
    try:
        first = place_stripes(disks, policy, 5, Random(seed))
    except (UnavailableError, NoSpaceError):
        return
    assert first == place_stripes(disks, policy, 5, Random(seed))


def test_disks_with_more_free_space_get_more_chunks() -> None:
    disks = [DiskView(number, number, (1 if number <= 4 else 10) * 100 * GIB) for number in range(1, 9)]
    used = Counter[int]()
    for placement in place_stripes(disks, Policy(2, 1, 1 << 20), 2000, Random(1)):
        used.update(placement.disks)
    assert sum(used[number] for number in range(5, 9)) > 2 * sum(used[number] for number in range(1, 5))


def test_data_and_parity_are_spread_over_all_disks_alike() -> None:
    disks = [DiskView(number, number, number * GIB) for number in range(1, 7)]
    first = Counter(
        placement.disks[0] for placement in place_stripes(disks, Policy(4, 2, 1 << 20), 6000, Random(2))
    )
    assert all(800 < first[number] < 1200 for number in range(1, 7))
