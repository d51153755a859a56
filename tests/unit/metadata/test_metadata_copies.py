"""Copies of the metadata that come, go and come back: what was synced outlives every crash between."""

import errno
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio

from wormfs.core.errors import DataLossError, NoSpaceError
from wormfs.core.types import Policy
from wormfs.metadata import keeper as keeper_module
from wormfs.metadata.embedded_log import SEGMENT_BYTES, EmbeddedLog
from wormfs.metadata.machine import Machine
from wormfs.metadata.members import Member
from wormfs.metadata.snapshots import Taken, take
from wormfs.rpc.v1 import filesystem_pb2 as fs

pytestmark = pytest.mark.timeout(30)


def folders(tmp_path: Path, names: str) -> list[Path]:
    """One disk for each letter."""
    made = [tmp_path / name for name in names]
    for disk in made:
        disk.mkdir()
    return made


def formed(disks: Sequence[Path], copies: int, segment_bytes: int = SEGMENT_BYTES) -> Machine:
    machine = Machine.open(disks, copies=copies, segment_bytes=segment_bytes)
    machine.form_cluster("cluster", "test", Policy(2, 1, 65536))
    return machine


def make(machine: Machine, name: bytes) -> None:
    machine.execute(fs.MakeNodeRequest(parent=1, name=name, mode=0o100644, exclusive=True))


def names_on(*disks: Path) -> list[bytes]:
    """What a start with these disks finds."""
    machine = Machine.open(disks, copies=len(disks), create=False)
    reply = machine.execute(fs.ReadDirRequest(inode=1, limit=5000)).reply
    machine.close()
    assert isinstance(reply, fs.ReadDirReply)
    return [entry.name for entry in reply.entries]


def fill(monkeypatch: pytest.MonkeyPatch, disk: Path) -> None:
    """The disk takes no new segment any more."""
    real = Member.open_segment

    def full(member: Member, first_sequence: int, length_bytes: int) -> None:
        if member.disk == disk:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(member, first_sequence, length_bytes)

    monkeypatch.setattr(Member, "open_segment", full)


async def test_what_was_synced_is_on_a_disk_that_joined_while_the_other_filled_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The joining disk begins its segment again and again, as no disk that counts can begin one."""
    a, c = folders(tmp_path, "ac")
    c.rmdir()
    machine = formed([a], 2, segment_bytes=64 * 1024)
    made: list[bytes] = []

    def make_next() -> None:
        name = b"%03d" % len(made) + b"x" * 200
        make(machine, name)
        made.append(name)

    def make_many() -> None:
        for _ in range(1000):
            make_next()

    def take_while_full(file: Path, into: Sequence[Path], log_end: Callable[[], int]) -> Taken:
        fill(monkeypatch, a)
        taken = take(file, into, log_end)
        for _ in range(3):
            with pytest.raises(NoSpaceError):
                make_many()
        return taken

    monkeypatch.setattr(keeper_module, "take", take_while_full)
    make_next()
    c.mkdir()
    machine.disk_usable(c)
    await machine.keeper.care()
    assert machine.metadata_disks() == [a, c]
    for _ in range(20):
        make_next()  # the first one drops the full disk
    assert machine.metadata_disks() == [c]
    with trio.fail_after(10):
        await machine.wait_durable(machine.sequence)
    crashed = shutil.copytree(c, tmp_path / "crashed")
    monkeypatch.undo()
    machine.close()
    assert names_on(crashed) == made


@pytest.mark.parametrize("names", ["a", "ab"])
async def test_a_crash_while_the_last_copies_join_again_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str
) -> None:
    disks = folders(tmp_path, names)
    machine = formed(disks, len(disks))
    make(machine, b"synced")
    with trio.fail_after(10):
        await machine.wait_durable(machine.sequence)
    for disk in disks:
        machine.disk_failed(disk)  # as by a health check, for a moment
    assert machine.metadata_disks() == []
    for disk in disks:
        machine.disk_usable(disk)
    crashed: list[Path] = []

    def crash(file: Path, into: Sequence[Path], log_end: Callable[[], int]) -> Taken:
        crashed.extend(shutil.copytree(disk, tmp_path / f"crashed-{disk.name}") for disk in disks)
        raise OSError(errno.EIO, "crash")

    with monkeypatch.context() as patched:
        patched.setattr(keeper_module, "take", crash)
        with pytest.raises(OSError, match="crash"):
            await machine.keeper.care()
    assert names_on(*crashed) == [b"synced"]
    await machine.keeper.care()  # without a crash it goes on, and every copy is whole
    assert machine.metadata_disks() == disks
    make(machine, b"later")
    machine.close()
    for disk in disks:
        alone = shutil.copytree(disk, tmp_path / f"alone-{disk.name}")
        assert names_on(alone) == [b"later", b"synced"]


async def test_a_full_spare_disk_does_not_keep_another_from_taking_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c, d = folders(tmp_path, "abcd")
    machine = formed([a, b, c, d], 2)
    assert machine.metadata_disks() == [a, b]
    fill(monkeypatch, a)
    machine.keeper.log.begin_segment()  # as at any rotation: its copy is dropped
    assert machine.metadata_disks() == [b]
    await machine.keeper.care()
    found = machine.metadata_disks()
    machine.close()
    assert found in ([b, c], [b, d])


@pytest.mark.parametrize("order", [1, -1], ids=["the dropped one first", "the other one first"])
async def test_two_disks_that_went_on_alone_are_refused(tmp_path: Path, order: int) -> None:
    """A dropped disk alone serves its older state; what it is told then is not what the other holds."""
    a, b = folders(tmp_path, "ab")
    log = EmbeddedLog.open([a, b], copies=2)
    log.append(1, b"one")
    log.drop([a], "its disk failed")
    await append_synced(log, b"two")
    assert payloads([a, b][::order]) == [b"one", b"two"]  # beside the one that went on it does not count
    log = EmbeddedLog.open([a], copies=2, create=False)
    assert [entry.payload for entry in log.read(0)] == [b"one"]
    await append_synced(log, b"another two")
    with pytest.raises(DataLossError, match="went on without the other disks"):
        EmbeddedLog.open([a, b][::order], copies=2, create=False)
    assert payloads([a]) == [b"one", b"another two"]  # whichever is wanted is whole
    assert payloads([b]) == [b"one", b"two"]


async def append_synced(log: EmbeddedLog, payload: bytes) -> None:
    log.append(2, payload)
    with trio.fail_after(10):
        await log.wait_durable(2)
    log.close()


def payloads(disks: Sequence[Path]) -> list[bytes]:
    """What a start with these disks reads."""
    log = EmbeddedLog.open(disks, copies=2, create=False)
    found = [entry.payload for entry in log.read(0)]
    log.close()
    return found
