"""What repair plans for a stripe, for every combination of lost, offline and damaged chunks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wormfs.core.records import Stripe
from wormfs.core.repair import URGENCY, Need, Situation, need_of, readable_chunks, target_policy
from wormfs.core.types import Policy

POLICY = Policy(4, 2, 1 << 20)


def stripe_of(k: int = 4, m: int = 2) -> Stripe:
    return Stripe(0, 1, 1, k, m, 64, 64 * k, 64 * k, tuple(range(1, k + m + 1)))


def situation(offline: set[int], gone: set[int], usable: int = 8, *, widen: bool = True) -> Situation:
    return Situation(POLICY, frozenset(offline | gone), frozenset(gone), usable, widen)


@pytest.mark.parametrize(
    ("offline", "gone", "damaged", "usable", "need"),
    [
        (set(), set(), set(), 8, Need.NOTHING),
        ({1}, set(), set(), 7, Need.NOTHING),  # it may come back yet
        ({9}, {10}, set(), 8, Need.NOTHING),  # not a disk of this stripe
        (set(), {1}, set(), 7, Need.REBUILD),
        (set(), set(), {5}, 8, Need.REBUILD),
        (set(), {1, 2}, set(), 6, Need.REBUILD_NOW),
        ({2}, {1}, set(), 6, Need.REBUILD_NOW),  # what is away for a while cannot be read either
        ({1, 2}, set(), {3}, 6, Need.REBUILD_NOW),  # the damage may be less than was said: it is tried
        ({1, 2, 3}, set(), {3}, 6, Need.CHUNKS),
        (set(), {1, 2, 3}, set(), 5, Need.CHUNKS),
        (set(), {1}, set(), 2, Need.DISKS),
        (set(), {1}, set(), 3, Need.REBUILD),  # 1+2 is better than 4+2 with one gone
    ],
)
def test_needs(offline: set[int], gone: set[int], damaged: set[int], usable: int, need: Need) -> None:
    assert need_of(stripe_of(), situation(offline, gone, usable), damaged) is need


@pytest.mark.parametrize(
    ("k", "m", "usable", "need"),
    [
        (2, 2, 6, Need.WIDEN),
        (2, 2, 5, Need.WIDEN),  # to 3+2
        (2, 2, 4, Need.NOTHING),
        (2, 1, 8, Need.NOTHING),  # written under another policy
        (8, 2, 8, Need.NOTHING),
    ],
)
def test_narrow_stripes_are_widened(k: int, m: int, usable: int, need: Need) -> None:
    assert need_of(stripe_of(k, m), situation(set(), set(), usable)) is need
    assert need_of(stripe_of(k, m), situation(set(), set(), usable, widen=False)) is Need.NOTHING
    assert need_of(stripe_of(k, m), situation({1}, set(), usable)) is Need.NOTHING  # first let it return


def test_a_stripe_keeps_its_own_m() -> None:
    assert target_policy(stripe_of(2, 2), POLICY) == Policy(4, 2, 64)
    assert target_policy(stripe_of(6, 3), POLICY) == Policy(6, 3, 64)


DISKS = st.sets(st.integers(1, 6))


@given(DISKS, DISKS, st.sets(st.integers(0, 5)), st.integers(0, 9))
def test_what_is_planned_can_be_done(
    offline: set[int], gone: set[int], damaged: set[int], usable: int
) -> None:
    stripe = stripe_of()
    now = situation(offline, gone, usable)
    need = need_of(stripe, now, damaged)
    readable = readable_chunks(stripe, now.offline, damaged)
    lost = bool(gone or damaged)
    assert readable == sorted(readable, key=lambda index: (index in damaged, index))
    if need in URGENCY:
        assert lost
        assert len(readable) >= stripe.k
        assert usable > stripe.m
    else:
        assert need is not Need.NOTHING or not lost
        assert need is not Need.CHUNKS or len(readable) < stripe.k
