"""One node with six disks, 4+2: each pair of disk folders deleted, running and down."""

import shutil
from itertools import combinations, product
from random import Random

import pytest

from tests.cluster.files import LONG_BYTES, SHORT_BYTES, SMALL_BYTES, KnownFiles
from tests.conftest import ClusterFactory
from tests.harness import drop_caches

pytestmark = [pytest.mark.cluster, pytest.mark.fuse, pytest.mark.timeout(300)]

PAIRS = list(combinations(range(1, 7), 2))
SAMPLE = [((1, 2), True), ((3, 5), False)]
"""Metadata copies lie on the first disks: both of them, found lost at the start; and disks of one or none."""


@pytest.mark.parametrize(
    ("pair", "down"),
    [
        pytest.param(
            pair,
            down,
            id=f"disks-{pair[0]}-{pair[1]}-{'down' if down else 'running'}",
            marks=() if (pair, down) in SAMPLE else pytest.mark.unsampled,
        )
        for pair, down in product(PAIRS, (False, True))
    ],
)
def test_two_disks_lost_lose_nothing(cluster: ClusterFactory, pair: tuple[int, int], down: bool) -> None:
    random = Random(hash(pair))
    one = cluster(nodes=1, disks=6, policy="4+2")
    mount = one.mount()
    known = KnownFiles.write(mount, random, {SMALL_BYTES: 20, SHORT_BYTES: 4, LONG_BYTES: 2})
    if down:
        one.stop(1, kill=True)
    for disk in pair:
        shutil.rmtree(one.disk(1, disk))
    if down:
        one.start(1)
    drop_caches()
    known.check()
    known.add(mount / "written-after-the-loss", random.randbytes(LONG_BYTES))
    (mount / "f-3000-0").rename(mount / "renamed")
    known.digests[mount / "renamed"] = known.digests.pop(mount / "f-3000-0")
    one.stop(1, kill=True)
    one.start(1)
    one.remount(mount)
    known.check()
    assert sorted(path.name for path in mount.iterdir()) == sorted(path.name for path in known.digests)
