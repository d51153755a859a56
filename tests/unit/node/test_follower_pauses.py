"""A follower that etcd cannot help does not ask it in haste."""

from typing import Any, cast

import trio
import trio.testing

from wormfs.metadata.replica import GapError, Replica
from wormfs.node.follower import GAP_PAUSE_S, Follower


class Stuck:
    """As a replica whose log in etcd has a hole."""

    sequence = 1

    def __init__(self) -> None:
        self.asked = 0

    async def catch_up(self, *_: object) -> None:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        raise GapError("a hole")


async def test_a_hole_that_stays_is_asked_for_with_pauses(autojump_clock: trio.testing.MockClock) -> None:
    replica, none = Stuck(), cast("Any", None)
    follower = Follower(
        "node", cast("Replica", replica), none, none, ["x"], checked=lambda: None, rescue=none
    )
    follower._gap = True
    with trio.move_on_after(10 * GAP_PAUSE_S):
        await follower._apply_pushed()
    assert 5 <= replica.asked <= 11
