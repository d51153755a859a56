"""Where the chunks of new stripes go. A pure function of disks, policy and injected randomness.

Rules, in order: never two chunks of a stripe on one disk; as few chunks of a stripe on one node
as the live disks allow; disks with more free space are drawn more often (weighted sampling
without replacement by exponential keys, Efraimidis and Spirakis 2006). With fewer than k+m usable
disks stripes are written narrower: k' = min(k, usable - m), m the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from wormfs.core.errors import NoSpaceError, UnavailableError
from wormfs.core.types import Policy

FREE_RESERVE_BYTES = 64 << 20
"""A disk with less free space than this gets no new chunks: room for metadata and deletes."""


@dataclass(frozen=True, slots=True)
class DiskView:
    """What placement knows of a disk.

    `suspect`: a write to it just failed, or its node is late with its heartbeats.
    """

    number: int
    node: int
    free_bytes: int
    online: bool = True
    suspect: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """A stripe's width and the disk of each chunk, all different; `len(disks) == k + m`."""

    k: int
    m: int
    disks: tuple[int, ...]


def place_stripes(
    disks: Sequence[DiskView],
    policy: Policy,
    count: int,
    random: Random,
    *,
    reserve_bytes: int = FREE_RESERVE_BYTES,
) -> list[Placement]:
    """Placements for `count` new full stripes.

    Suspect disks are used only when the others cannot hold even the narrowest stripe.
    Raises UnavailableError with fewer than m+1 disks online, NoSpaceError when fewer than that
    have room.
    """
    online = [disk for disk in disks if disk.online]
    least = policy.m + 1
    if len(online) < least:
        raise UnavailableError(
            f"{len(online)} of {len(disks)} disks are online, a write with policy {policy} needs {least}: "
            "start the nodes that are down"
        )
    needed = reserve_bytes + policy.chunk_size_bytes
    roomy = [disk for disk in online if disk.free_bytes >= needed]
    if len(roomy) < least:
        raise NoSpaceError(
            f"{len(roomy)} of {len(online)} online disks have {needed >> 20} MiB free, "
            f"a write with policy {policy} needs {least}: free space or add disks"
        )
    trusted = [disk for disk in roomy if not disk.suspect]
    usable = trusted if len(trusted) >= least else roomy
    k = min(policy.k, len(usable) - policy.m)
    free = {disk.number: float(disk.free_bytes - reserve_bytes) for disk in usable}
    nodes = {disk.number: disk.node for disk in usable}
    placements = []
    for _ in range(count):
        chosen = _draw(free, nodes, k + policy.m, random)
        for number in chosen:  # later stripes of this call see the space as taken
            free[number] = max(free[number] - policy.chunk_size_bytes, 1.0)
        placements.append(Placement(k, policy.m, chosen))
    return placements


def _draw(free: dict[int, float], nodes: dict[int, int], width: int, random: Random) -> tuple[int, ...]:
    """`width` different disks, over as many nodes as possible, in random order."""
    keyed = sorted(free, key=lambda number: random.expovariate(1.0) / free[number])
    if width < len(keyed):
        # Deal in rounds: the r-th best disk of every node comes before any (r+1)-th best.
        dealt: dict[int, int] = {}
        ranked = []
        for place, number in enumerate(keyed):
            node = nodes[number]
            turn = dealt.get(node, 0)
            dealt[node] = turn + 1
            ranked.append((turn, place, number))
        ranked.sort()
        keyed = [number for _, _, number in ranked[:width]]
    # Shuffled: which disk holds data and which parity must not follow from its free space.
    random.shuffle(keyed)
    return tuple(keyed)
