"""Numbers that a power cut of the master's server took out of its log are not given out again.

A mount on another server was told of them, and goes on to use them.
"""

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.unit.client.test_power_cut import Harshest
from tests.unit.node.serving import FILE, join, open_machine, serving
from wormfs.core.errors import StaleError
from wormfs.metadata import keeper
from wormfs.metadata.machine import Machine
from wormfs.rpc import methods as m
from wormfs.rpc.v1 import filesystem_pb2, metadata_pb2, types_pb2
from wormfs.sim.disk import SimDisk, faked_disks

pytestmark = pytest.mark.timeout(30)
PLACE = types_pb2.Stripe(codec=types_pb2.CODEC_ZFEC, k=2, m=1, disks=[1, 2, 3])


class Told(NamedTuple):
    """What a mount was told before the cut; the stripe and the file `lost` are in no log."""

    session: int
    inode: int
    stripe_id: int
    lost: int


def create(machine: Machine, name: bytes) -> int:
    made: Any = machine.execute(
        filesystem_pb2.MakeNodeRequest(parent=1, name=name, mode=FILE, exclusive=True)
    ).reply
    return int(made.attributes.inode)


def allocate(machine: Machine, session: int, inode: int) -> int:
    asked = metadata_pb2.AllocateStripesRequest(inode=inode, count=1)
    asked.caller.session_id = session
    reply: Any = machine.allocate(asked, [PLACE]).reply
    return int(reply.stripes[0].stripe_id)


def lose_power(disks: list[SimDisk], after: Path) -> None:
    after.mkdir()
    for disk in disks:
        image = disk.image()
        disk.lose_power(image)
        image.rename(after / disk.folder.name)


async def cut(folder: Path, after: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    """A power cut of a machine in `folder`; `after` has what the disks kept."""
    monkeypatch.setattr(keeper, "SYNC_INTERVAL_S", 3600)  # none but the one that is asked for
    disks = [SimDisk(folder / f"disk-{number}", Harshest()) for number in (1, 2)]
    with faked_disks(disks):
        for disk in disks:
            disk.begin_life()
        machine = open_machine(folder)
        session = machine.open_session("a mount on another server")
        inode = create(machine, b"synced")
        await machine.wait_durable(machine.sequence)
        told = Told(session, inode, allocate(machine, session, inode), create(machine, b"lost"))
        lose_power(disks, after)
        machine.close()
    return told


async def test_a_stripe_id_is_not_told_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = await cut(tmp_path, tmp_path / "after", monkeypatch)
    async with serving(tmp_path / "after") as served, served.mount(session=False) as mine:
        join(served.members, "node-1", ["a", "b", "c"])
        opened = await mine.open_session(told.session, open_inodes=[told.inode], write_leases=[told.inode])
        assert opened.resumed
        garbage = served.machine.counts().garbage_chunks
        request = metadata_pb2.AllocateStripesRequest(inode=told.inode, count=1)
        reply = await mine.command(m.METADATA_ALLOCATE_STRIPES, request)
        assert reply.stripes[0].stripe_id > told.stripe_id
        assert served.machine.counts().garbage_chunks == garbage  # what is skipped has no chunks
        assert list(served.machine.check_namespace()) == []


async def test_what_is_written_to_a_lost_file_goes_into_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = await cut(tmp_path, tmp_path / "after", monkeypatch)
    async with (
        serving(tmp_path / "after") as served,
        served.mount(session=False) as mine,
        served.mount(session=False) as theirs,
    ):
        opened = await mine.open_session(told.session, open_inodes=[told.lost], write_leases=[told.lost])
        assert opened.resumed
        await theirs.open_session()
        made = await theirs.create(b"theirs")
        assert made.attributes.inode > told.lost
        with pytest.raises(StaleError, match=f"inode {told.lost} does not exist any more"):
            await mine.commit(told.lost, b"what my program wrote into its own file")
        assert (await theirs.getattr(made.attributes.inode)).size_bytes == 0


async def test_a_machine_skips_them_when_it_begins_to_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = await cut(tmp_path, tmp_path / "after", monkeypatch)
    machine = open_machine(tmp_path / "after")
    try:
        assert [each.session_id for each in machine.sessions()] == [told.session]
        machine.begin_serving(stripes=True)
        assert allocate(machine, told.session, told.inode) > told.stripe_id
        assert create(machine, b"another") > told.lost
        assert list(machine.check_namespace()) == []
    finally:
        machine.close()
