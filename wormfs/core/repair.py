"""What repair does about a stripe: a pure function of its record and of which disks are there.

A stripe is *rebuilt* when a chunk of it is gone for good (its disk is gone) or found missing or
damaged, and *widened* when it was written narrower than the policy while disks were missing. Both
are the same work: read any k chunks, encode anew, put k+m chunks under a new stripe id, switch.
A rebuilt stripe keeps its own m; its k follows the policy where their m agree, and narrows where
disks are few, so that it survives m losses again wherever that can be had.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum

from wormfs.core.records import Stripe
from wormfs.core.types import Policy


class Need(IntEnum):
    """What a stripe needs, most urgent first."""

    REBUILD_NOW = 1  # one more loss loses it
    REBUILD = 2
    WIDEN = 3
    NOTHING = 4
    DISKS = 5  # to be rebuilt, but too few disks are there to write it to
    CHUNKS = 6  # fewer than k chunks are on disks online: it waits for disks to come back


URGENCY = (Need.REBUILD_NOW, Need.REBUILD, Need.WIDEN)
"""What can be worked at, in this order."""


@dataclass(frozen=True, slots=True)
class Situation:
    """Which disks are there. `gone` (given up) is a part of `offline`; `usable_count` take new chunks."""

    policy: Policy
    offline: frozenset[int]
    gone: frozenset[int]
    usable_count: int
    widen: bool = True  # the disks have been as they are long enough
    registered: frozenset[int] | None = None  # a disk that was forgotten is gone; None: none was


def target_policy(stripe: Stripe, policy: Policy) -> Policy:
    """How the stripe should be spread when every disk is there."""
    k = policy.k if stripe.m == policy.m else stripe.k
    return Policy(k, stripe.m, stripe.chunk_length_bytes, policy.codec)


def readable_chunks(stripe: Stripe, offline: Collection[int], damaged: Collection[int]) -> list[int]:
    """Indexes of the chunks worth reading, data chunks first.

    Those reported damaged come last: what was said of them may be over.
    """
    there = [index for index, disk in enumerate(stripe.disks) if disk not in offline]
    return sorted(there, key=lambda index: index in damaged)


def need_of(stripe: Stripe, situation: Situation, damaged: Collection[int] = ()) -> Need:
    """What to do about a stripe; `damaged`: indexes of chunks known to be missing or damaged."""
    gone = situation.gone
    if situation.registered is not None and not situation.registered.issuperset(stripe.disks):
        gone |= frozenset(stripe.disks) - situation.registered  # forgotten while the stripe was written
    lost = sum(disk in gone or index in damaged for index, disk in enumerate(stripe.disks))
    wanted = target_policy(stripe, situation.policy)
    k = min(wanted.k, situation.usable_count - wanted.m)
    if not lost:
        if situation.widen and not situation.offline.intersection(stripe.disks) and stripe.k < k:
            return Need.WIDEN
        return Need.NOTHING
    there = readable_chunks(stripe, situation.offline | gone, damaged)
    if len(there) < stripe.k:
        return Need.CHUNKS
    if k < 1:
        return Need.DISKS
    sound = sum(index not in damaged for index in there)
    return Need.REBUILD_NOW if sound <= stripe.k else Need.REBUILD
