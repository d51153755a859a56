"""Metadata operations: the state machine by itself, its log on one disk, without a network.

Prints one JSON object, {row: [rate, unit]}.
"""

import json
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import trio

from wormfs.core.limits import CHUNK_SIZE_DEFAULT_BYTES, ROOT_INODE
from wormfs.core.types import Policy
from wormfs.metadata.machine import Machine
from wormfs.rpc.v1 import filesystem_pb2, types_pb2

_COUNT = 3000
_SYNCS = 300


class Bench:
    """One machine in a folder."""

    def __init__(self, folder: Path) -> None:
        self.machine = Machine.open([folder], copies=1, clock=time.time_ns)
        self.machine.form_cluster("bench", "bench", Policy(4, 2, CHUNK_SIZE_DEFAULT_BYTES))
        self.session = self.machine.open_session("bench")
        self.operation = 0
        self.rows: dict[str, tuple[float, str]] = {}

    def caller(self) -> types_pb2.Caller:
        """The next operation's; everything before it was answered."""
        self.operation += 1
        return types_pb2.Caller(
            session_id=self.session, operation=self.operation, acknowledged=self.operation - 1
        )

    def each(self, name: str, action: Callable[[int], object], count: int = _COUNT) -> None:
        """Note the rate of `action(0)`, `action(1)`, ..."""
        began = time.perf_counter()
        for number in range(count):
            action(number)
        self.rows[name] = (round(count / (time.perf_counter() - began), 1), "op/s")

    def make(self, number: int) -> None:
        """A file."""
        self.machine.execute(
            filesystem_pb2.MakeNodeRequest(
                caller=self.caller(),
                parent=ROOT_INODE,
                name=b"f%06d" % number,
                mode=stat.S_IFREG | 0o644,
                exclusive=True,
            )
        )

    def lookup(self, number: int) -> None:
        """Its inode."""
        self.machine.execute(
            filesystem_pb2.LookupRequest(
                caller=types_pb2.Caller(session_id=self.session), parent=ROOT_INODE, name=b"f%06d" % number
            )
        )

    def rename(self, number: int) -> None:
        """Another name."""
        self.machine.execute(
            filesystem_pb2.RenameRequest(
                caller=self.caller(),
                parent=ROOT_INODE,
                name=b"f%06d" % number,
                new_parent=ROOT_INODE,
                new_name=b"g%06d" % number,
            )
        )

    def unlink(self, number: int) -> None:
        """Gone."""
        self.machine.execute(
            filesystem_pb2.UnlinkRequest(caller=self.caller(), parent=ROOT_INODE, name=b"g%06d" % number)
        )

    async def synced(self) -> None:
        """Make a file and wait until it is durable, again and again."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.machine.run)
            began = time.perf_counter()
            for number in range(_SYNCS):
                self.make(_COUNT + number)
                await self.machine.wait_durable(self.machine.sequence)
            self.rows["make_file_synced"] = (round(_SYNCS / (time.perf_counter() - began), 1), "op/s")
            nursery.cancel_scope.cancel()


def main() -> None:
    """Run all."""
    with tempfile.TemporaryDirectory(prefix="wormfs-bench-") as folder:
        bench = Bench(Path(folder))
        bench.each("make_file", bench.make)
        bench.each("lookup", bench.lookup)
        bench.each("rename", bench.rename)
        bench.each("unlink", bench.unlink)
        trio.run(bench.synced)
        bench.machine.close()
    print(json.dumps(bench.rows))


if __name__ == "__main__":
    main()
