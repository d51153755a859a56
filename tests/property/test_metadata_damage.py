"""Random damage to the metadata folders of m of m+1 disks: all is there."""

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import trio

from wormfs.core.types import Policy
from wormfs.metadata.machine import Machine
from wormfs.rpc.v1 import filesystem_pb2 as fs
from wormfs.rpc.v1 import types_pb2

SEGMENT = 8 * 1024
COPIES = 3


def make_files(machine: Machine, session: int, first: int, count: int) -> None:
    for number in range(first, first + count):
        caller = types_pb2.Caller(session_id=session, operation=number + 1, acknowledged=max(0, number - 5))
        request = fs.MakeNodeRequest(caller=caller, parent=1, name=b"%06d" % number, mode=0o100644)
        machine.execute(request)


def names(machine: Machine) -> list[bytes]:
    reply = machine.execute(fs.ReadDirRequest(inode=1, limit=10_000)).reply
    assert isinstance(reply, fs.ReadDirReply)
    return [entry.name for entry in reply.entries]


def damage(path: Path, random: Random) -> str:
    """What disks and people do to files."""
    data = path.read_bytes()
    kind = random.choice(["empty", "gone", "cut", "flip", "garbage", "zeros", "longer"])
    if kind == "gone":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        path.write_bytes(data[: random.randrange(len(data) + 1)])
    elif kind == "flip":
        changed = bytearray(data)
        for _ in range(random.choice([1, 20])):
            if changed:
                changed[random.randrange(len(changed))] ^= random.randrange(1, 256)
        path.write_bytes(changed)
    elif kind == "garbage":
        path.write_bytes(random.randbytes(random.choice([1, 100, len(data)])))
    elif kind == "zeros":
        path.write_bytes(bytes(len(data)))
    else:
        path.write_bytes(data + random.randbytes(500))
    return f"{path.name}: {kind}"


def damage_disk(disk: Path, random: Random) -> list[str]:
    files = sorted(path for path in (disk / "metadata").rglob("*") if path.is_file())
    return [damage(path, random) for path in files if random.random() < random.choice([0.2, 0.6, 1.0])]


async def made(folder: Path, random: Random) -> tuple[list[Path], int]:
    """A log with segments and maybe a snapshot, left as by a clean end or by a kill; its files' count."""
    disks = [folder / f"disk-{number}" for number in range(COPIES)]
    for disk in disks:
        disk.mkdir(parents=True)
    machine = Machine.open(disks, copies=COPIES, segment_bytes=SEGMENT)
    machine.form_cluster("cluster", "test", Policy(4, 2, 65536))
    session = machine.open_session("test")
    count = random.choice([3, 60, 200])
    make_files(machine, session, 0, count)
    if random.random() < 0.5:
        await machine.snapshot()
        more = random.choice([0, 40])
        make_files(machine, session, count, more)
        count += more
    await machine.wait_durable(machine.sequence)
    machine.close()
    return disks, count


@pytest.mark.timeout(600)
async def test_damage_to_two_of_three_copies_loses_nothing(
    tmp_path: Path, rounds: Callable[[int, int], int]
) -> None:
    for number in range(rounds(25, 1000)):
        random = Random(number)
        folder = tmp_path / str(number)
        disks, count = await made(folder, random)
        done = [damage_disk(disk, random) for disk in random.sample(disks, COPIES - 1)]
        machine = Machine.open(disks, copies=COPIES, segment_bytes=SEGMENT, create=False)
        assert names(machine) == [b"%06d" % each for each in range(count)], (number, done)
        assert list(machine.check_namespace()) == []
        session = machine.open_session("again")
        make_files(machine, session, count, 30)
        machine.close()
        machine = Machine.open(disks, copies=COPIES, segment_bytes=SEGMENT, create=False)
        assert len(names(machine)) == count + 30, (number, done)
        machine.close()
        shutil.rmtree(folder)
        await trio.lowlevel.checkpoint()
