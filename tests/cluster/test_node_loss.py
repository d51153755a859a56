"""Six nodes, 4+2: any two lost change nothing but speed, a third costs EIO until it is back."""

import errno
import time
from collections.abc import Callable
from itertools import combinations
from random import Random

import pytest

from tests.cluster.files import LONG_BYTES, SHORT_BYTES, SMALL_BYTES, KnownFiles, digest
from tests.conftest import ClusterFactory
from tests.harness import drop_caches

pytestmark = [pytest.mark.cluster, pytest.mark.fuse, pytest.mark.timeout(600)]

PAIRS = list(combinations(range(2, 7), 2))


@pytest.mark.long
def test_any_two_nodes_lost_change_nothing(
    cluster: ClusterFactory, rounds: Callable[[int, int], int]
) -> None:
    random = Random(5)
    six = cluster(nodes=6, policy="4+2")
    mount = six.mount()
    known = KnownFiles.write(mount, random, {SMALL_BYTES: 5, SHORT_BYTES: 5, LONG_BYTES: 3})
    assert len(PAIRS) == 10
    pairs = random.sample(PAIRS, min(rounds(3, 10), 10))
    for number, pair in enumerate(pairs):
        for node in pair:
            six.stop(node, kill=number % 2 == 0)
        drop_caches()
        known.check()
        known.add(mount / f"written-without-{pair[0]}-{pair[1]}", random.randbytes(LONG_BYTES))
        drop_caches()
        known.check()
        for node in pair:
            six.start(node)
    six.remount(mount)
    known.check()
    six.fsck()


def test_a_third_lost_node_costs_eio_within_ten_seconds_until_it_returns(cluster: ClusterFactory) -> None:
    six = cluster(nodes=6, policy="4+2")
    mount = six.mount()
    known = KnownFiles.write(mount, Random(6), {LONG_BYTES: 2, SMALL_BYTES: 1})
    for node in (2, 4, 6):
        six.stop(node, kill=True)
    drop_caches()
    for path in known.digests:
        if path.stat().st_size <= SMALL_BYTES:
            continue  # lives inside the metadata, which node 1 still serves
        begun = time.monotonic()
        with pytest.raises(OSError, match="Input/output") as caught:
            digest(path)
        assert caught.value.errno == errno.EIO
        assert time.monotonic() - begun < 10
    six.start(4)
    drop_caches()
    known.check()
    six.start(2)
    six.start(6)
    known.check()
    six.fsck()
