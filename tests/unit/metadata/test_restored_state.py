"""Backups: what is sound is told from what is not; a restored state goes on without taking a number twice."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from wormfs.core import errors as er
from wormfs.core.records import Restored
from wormfs.core.types import Policy
from wormfs.metadata.machine import Machine
from wormfs.metadata.restored_state import (
    EPOCH_STEP,
    NUMBERS_STEP,
    STAGE_NAME,
    check_backup,
    install,
)
from wormfs.metadata.snapshots import HEADER_BYTES
from wormfs.metadata.sqlite_state import SqliteState
from wormfs.rpc.v1 import filesystem_pb2 as fs
from wormfs.rpc.v1 import metadata_pb2, types_pb2

POLICY = Policy(2, 1, 65536)


def folders(base: Path, name: str, count: int) -> list[Path]:
    made = [base / f"{name}-{number}" for number in range(count)]
    for disk in made:
        disk.mkdir()
    return made


def names_of(machine: Machine) -> list[bytes]:
    reply = machine.execute(fs.ReadDirRequest(inode=1, limit=1000)).reply
    assert isinstance(reply, fs.ReadDirReply)
    return [entry.name for entry in reply.entries]


def make_file(machine: Machine, name: bytes) -> int:
    reply = machine.execute(fs.MakeNodeRequest(parent=1, name=name, mode=0o100644)).reply
    inode: int = reply.attributes.inode  # type: ignore[attr-defined]
    return inode


def allocate(machine: Machine, session: int, inode: int) -> int:
    request = metadata_pb2.AllocateStripesRequest(inode=inode, count=1)
    request.caller.session_id = session
    chosen = types_pb2.Stripe(codec="CODEC_ZFEC", k=2, m=1, disks=[1, 2, 3])
    reply = machine.allocate(request, [chosen]).reply
    assert isinstance(reply, metadata_pb2.AllocateStripesReply)
    return reply.stripes[0].stripe_id


@pytest.fixture
async def machine(tmp_path: Path) -> Machine:
    made = Machine.open(folders(tmp_path, "lost", 2), copies=2)
    made.form_cluster("c1", "one", POLICY)
    make_file(made, b"a")
    return made


async def snapshot_of(machine: Machine, target: Path) -> Path:
    await machine.snapshot()
    (disk, *_) = machine.metadata_disks()
    found = max((disk / "metadata" / "snapshots").iterdir())
    shutil.copyfile(found, target)
    return target


async def test_a_backup_tells_what_it_holds(machine: Machine, tmp_path: Path) -> None:
    file = await snapshot_of(machine, tmp_path / "b")
    found = check_backup(file)
    assert (found.sequence, found.cluster_id, found.cluster_name) == (machine.sequence, "c1", "one")
    assert (found.counts, found.file_bytes) == (machine.counts(), file.stat().st_size)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda data: data[:-1], "cut short"),
        (lambda data: data[: HEADER_BYTES - 1], "header is damaged"),
        (lambda data: b"", "header is damaged"),
        (lambda data: data + b"\0", "checksum does not match"),
        (lambda data: data[:9] + b"\xff" + data[10:], "header is damaged"),
        (lambda data: data[:-7] + bytes([data[-7] ^ 4]) + data[-6:], "checksum does not match"),
        (lambda data: os.urandom(len(data)), "header is damaged"),
    ],
)
async def test_a_damaged_backup_is_refused(
    machine: Machine, tmp_path: Path, damage: Callable[[bytes], bytes], told: str
) -> None:
    file = await snapshot_of(machine, tmp_path / "b")
    file.write_bytes(damage(file.read_bytes()))
    disks = folders(tmp_path, "new", 2)
    for refuse in (lambda: check_backup(file), lambda: install(file, disks, copies=2)):
        with pytest.raises(er.DataLossError, match=told):
            refuse()
    assert [list(disk.iterdir()) for disk in disks] == [[], []]


async def test_a_backup_of_a_newer_program_or_of_no_cluster_is_refused(
    machine: Machine, tmp_path: Path
) -> None:
    state = machine.keeper.state
    state.commit()
    state.connection.execute("INSERT INTO migrations VALUES (99)")
    file = await snapshot_of(machine, tmp_path / "newer")
    with pytest.raises(er.NewerProgramError, match=r"schema 99 is newer.*upgrade"):
        check_backup(file)
    empty = Machine.open(folders(tmp_path, "empty", 1), copies=1)
    file = await snapshot_of(empty, tmp_path / "none")
    with pytest.raises(er.DataLossError, match="not the metadata of a cluster"):
        check_backup(file)
    with pytest.raises(er.DiskError, match="cannot be read"):
        check_backup(tmp_path / "missing")


async def test_a_restored_state_takes_no_number_twice(machine: Machine, tmp_path: Path) -> None:
    """Nor does it make garbage of what was allocated then: it may have become part of a file since."""
    session = machine.open_session("a mount")
    inode = make_file(machine, b"b")
    stripe = allocate(machine, session, inode)
    file = await snapshot_of(machine, tmp_path / "b")
    last, epoch = machine.sequence, machine.epoch
    disks = folders(tmp_path, "new", 3)
    backup, used = install(file, disks, copies=2)
    assert backup.sequence == last
    assert used == disks[:2]
    assert not any((disk / STAGE_NAME).exists() for disk in disks)

    restored = Machine.open(disks, copies=2, create=False)
    assert names_of(restored) == [b"a", b"b"]
    assert (restored.cluster_id, restored.cluster_name, restored.policy) == ("c1", "one", POLICY)
    assert restored.restored == Restored(last, stripe + 1 + NUMBERS_STEP)
    assert restored.sequence == last + 2  # the restore, and the new mastership
    assert restored.epoch == epoch + EPOCH_STEP + 1
    assert restored.sessions() == []
    assert restored.counts().allocations == restored.counts().garbage_chunks == 0
    assert list(restored.check_namespace()) == []
    again = restored.open_session("a mount")
    assert again > session + NUMBERS_STEP
    assert make_file(restored, b"c") > inode + NUMBERS_STEP
    assert allocate(restored, again, inode) > restored.restored.stripe_id > stripe + NUMBERS_STEP
    with pytest.raises(er.SessionExpiredError):
        allocate(restored, session, inode)
    restored.close()
    assert Machine.open(disks, copies=2).restored == restored.restored  # it is remembered


async def test_a_restore_refuses_disks_with_metadata(machine: Machine, tmp_path: Path) -> None:
    file = await snapshot_of(machine, tmp_path / "b")
    disks = folders(tmp_path, "new", 2)
    (disks[1] / "metadata" / "log").mkdir(parents=True)
    (disks[1] / "metadata" / "log" / "torn").touch()
    with pytest.raises(er.ExistsError, match="new-1/metadata holds metadata already"):
        install(file, disks, copies=2)
    assert list(disks[0].iterdir()) == []
    (disks[1] / "metadata" / "log" / "torn").unlink()
    (disks[0] / STAGE_NAME).mkdir()  # a try before was killed
    (disks[0] / STAGE_NAME / "metadata").touch()
    install(file, disks, copies=2)
    with pytest.raises(er.ExistsError):
        install(file, disks, copies=2)


async def test_one_copy_is_enough_to_go_on_with(machine: Machine, tmp_path: Path) -> None:
    """A restore that was killed between its copies: the first one in place counts."""
    file = await snapshot_of(machine, tmp_path / "b")
    disks = folders(tmp_path, "new", 2)
    install(file, disks, copies=2)
    shutil.rmtree(disks[1] / "metadata")
    restored = Machine.open(disks, copies=2, create=False)
    assert names_of(restored) == [b"a"]
    assert restored.metadata_disks() == disks


async def test_disks_of_the_lost_metadata_are_not_taken_for_the_restored(
    machine: Machine, tmp_path: Path
) -> None:
    file = await snapshot_of(machine, tmp_path / "b")
    lost = machine.metadata_disks()
    machine.close()
    disks = folders(tmp_path, "new", 1)
    install(file, disks, copies=1)
    with pytest.raises(er.WrongClusterError, match="remove one of them"):
        Machine.open([*disks, *lost], copies=1)


def test_the_state_of_a_cluster_never_restored_says_so(tmp_path: Path) -> None:
    assert SqliteState.at(tmp_path / "state.db").restored == Restored(0, 0)
