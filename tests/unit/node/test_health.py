"""Counting stripes in danger goes on whatever becomes of the metadata's state."""

import logging
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.unit.metadata.test_lost_state import bar, fail_writes, unbar
from tests.unit.node.serving import join, open_machine
from wormfs.core.errors import UnavailableError
from wormfs.node.health import Danger, Health
from wormfs.node.members import Members


async def test_a_count_that_fails_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    """A disk goes while no disk takes the metadata's state: the node serves on, and counts later."""
    machine = open_machine(tmp_path)
    members = Members(machine, silent_after_s=3.0)
    join(members, "a", ["u1"])
    disks = [tmp_path / "disk-1", tmp_path / "disk-2"]
    fail_writes(machine.keeper)
    for disk in disks:
        bar(disk)
    with pytest.raises(UnavailableError):
        machine.open_session("the state is lost")
    await trio.sleep(4.0)
    members.sweep()
    assert not members.is_online(1)
    health = Health(machine, members)
    async with trio.open_nursery() as nursery:
        with caplog.at_level(logging.WARNING, logger="wormfs.node.health"):
            nursery.start_soon(health.run)
            assert await health.counted(60.0) == Danger()  # not counted yet
        told = [record.message for record in caplog.records if record.name == "wormfs.node.health"]
        assert len(told) == 1
        assert told[0].startswith("stripes in danger are not counted: no disk takes the metadata state")
        for disk in disks:
            unbar(disk)
        machine.keeper.rebuild_state("there is room again")
        health.danger = Danger(lost=7)
        await trio.sleep(30.0)
        assert health.danger == Danger()
        nursery.cancel_scope.cancel()
    machine.close()
