"""One node with six disks, 4+2: each pair of disk folders deleted, running and down."""

import os
import shutil
from itertools import combinations
from random import Random

import pytest

from tests.cluster.files import LONG_BYTES, SHORT_BYTES, SMALL_BYTES, KnownFiles
from tests.conftest import ClusterFactory
from tests.harness import drop_caches

pytestmark = [pytest.mark.cluster, pytest.mark.fuse, pytest.mark.timeout(300)]

PAIRS = list(combinations(range(1, 7), 2))
# The sample of `make test`: metadata copies lie on the first disks, so take some of those and others.
SAMPLE = [(1, 2), (1, 6), (3, 5)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    everything = os.environ.get("WORMFS_ROUNDS") == "all"
    if "pair" in metafunc.fixturenames:
        metafunc.parametrize(
            "pair", PAIRS if everything else SAMPLE, ids=lambda pair: f"disks-{pair[0]}-{pair[1]}"
        )


@pytest.mark.parametrize("down", [False, True], ids=["running", "down"])
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
