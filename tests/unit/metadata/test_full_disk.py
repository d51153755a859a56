"""The metadata on a real file system that fills up: a clear error, nothing lost, and on it goes."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from wormfs.core.errors import NoSpaceError, UnavailableError
from wormfs.core.types import Policy
from wormfs.metadata.machine import Machine
from wormfs.rpc.v1 import filesystem_pb2 as fs
from wormfs.rpc.v1 import types_pb2

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems"),
    pytest.mark.timeout(120),
]
SEGMENT = 256 * 1024


def small_disk(folder: Path, name: str, size: str) -> Path:
    """An ext4 file system of its own."""
    image, point = folder / f"{name}.img", folder / name
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(int(size.removesuffix("M")) << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, timeout=30)
    subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=True, timeout=30)
    return point


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[list[Path]]:
    made: list[Path] = []
    try:
        made.extend(small_disk(tmp_path, name, "32M") for name in ("one", "two"))
        yield made
    finally:
        for point in made:
            subprocess.run(["umount", str(point)], check=True, timeout=30)


def fill_up(disk: Path, leave_bytes: int = 0) -> Path:
    """Take all its space but `leave_bytes`; the file to delete."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for step in (1 << 20, 4096):
            try:
                while True:
                    file.write(bytes(step))
            except OSError:
                continue
        file.truncate(max(0, ballast.stat().st_size - leave_bytes))
        os.fsync(file.fileno())
    return ballast


class Writer:
    """Makes files and knows which were answered."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.session = machine.open_session("test")
        self.operation = 0
        self.made: list[bytes] = []

    def make(self) -> None:
        self.operation += 1
        name = b"file-%06d" % self.operation
        caller = types_pb2.Caller(
            session_id=self.session, operation=self.operation, acknowledged=max(0, self.operation - 10)
        )
        self.machine.execute(
            fs.MakeNodeRequest(caller=caller, parent=1, name=name, mode=0o100644, exclusive=True)
        )
        self.made.append(name)

    async def until_refused(self) -> str:
        """Go on until an error; its message."""
        with trio.fail_after(30):
            while True:
                await trio.sleep(0.001)
                try:
                    self.make()
                except (NoSpaceError, UnavailableError) as error:
                    return error.message

    async def until_served(self) -> None:
        with trio.fail_after(30):
            while True:
                await trio.sleep(0.05)
                try:
                    self.make()
                except (NoSpaceError, UnavailableError):
                    continue
                return


async def left(folder: Path) -> None:
    """The state is there no more."""
    for _ in range(600):
        if not os.access(folder, os.F_OK):
            return
        await trio.sleep(0.05)
    raise AssertionError(f"{folder} is still there")


def names(machine: Machine) -> list[bytes]:
    found: list[bytes] = []
    while True:
        reply = machine.execute(
            fs.ReadDirRequest(inode=1, limit=10_000, after=found[-1] if found else b"")
        ).reply
        assert isinstance(reply, fs.ReadDirReply)
        found += [entry.name for entry in reply.entries]
        if reply.end:
            return found


@pytest.mark.parametrize("leave_bytes", [600 * 1024, 0], ids=["nearly", "wholly"])
async def test_full_disks_refuse_until_there_is_space(disks: list[Path], leave_bytes: int) -> None:
    machine = Machine.open(disks, copies=2, segment_bytes=SEGMENT)
    machine.form_cluster("cluster", "test", Policy(2, 1, 65536))
    writer = Writer(machine)
    async with trio.open_nursery() as nursery:
        await nursery.start(machine.run)
        for _ in range(300):
            writer.make()
        ballast = [fill_up(disk, leave_bytes) for disk in disks]
        message = await writer.until_refused()
        if leave_bytes:
            assert "nearly full: free some space" in message
            assert len(names(machine)) == len(writer.made)  # queries are served on
            machine.execute(fs.UnlinkRequest(parent=1, name=writer.made.pop()))
        for path in ballast:
            path.unlink()
        await writer.until_served()
        for _ in range(300):
            writer.make()
        assert names(machine) == writer.made
        nursery.cancel_scope.cancel()
    machine.close()
    machine = Machine.open(disks, copies=2, segment_bytes=SEGMENT)
    assert names(machine) == writer.made
    assert list(machine.check_namespace()) == []
    machine.close()


async def test_the_state_leaves_a_full_disk_for_one_with_room(disks: list[Path]) -> None:
    machine = Machine.open(disks, copies=2, segment_bytes=SEGMENT)
    machine.form_cluster("cluster", "test", Policy(2, 1, 65536))
    writer = Writer(machine)
    async with trio.open_nursery() as nursery:
        await nursery.start(machine.run)
        for _ in range(300):
            writer.make()
        fill_up(disks[0], 600 * 1024)
        await left(disks[0] / "metadata" / "state")
        for _ in range(300):
            await trio.sleep(0.001)
            writer.make()
        assert names(machine) == writer.made
        nursery.cancel_scope.cancel()
    machine.close()
    machine = Machine.open(disks, copies=2, segment_bytes=SEGMENT)
    assert names(machine) == writer.made
    machine.close()
