"""Stripes kept in memory, under file systems that use the masters of masters.py.

The tests that use them are about the client's bookkeeping: its maps, leases and locks against a real master.
The chunks, and what becomes of them on servers and disks that fail, are tested against real nodes; so only
the calls that move chunk bytes are replaced here, and the master places stripes on disks that nobody serves.
"""

from typing import Any

import trio

from tests.unit.client.masters import Masters
from tests.unit.node.serving import POLICY, join
from wormfs.client.filesystem import FileSystem
from wormfs.client.stripe_writer import _Failures
from wormfs.core.errors import NoSpaceError, TooFewChunksError
from wormfs.rpc.v1 import cluster_pb2, types_pb2

DISKS = POLICY.k + POLICY.m
STRIPE_BYTES = POLICY.k * POLICY.chunk_size_bytes
IN_STRIPES_BYTES = 70_000
"""Part of a stripe, and too much to be kept in the metadata."""


def add_disks(made: Masters) -> None:
    """Tell the master of now of disks for stripes."""
    join(made.service._members, "n", [f"disk-{number}" for number in range(DISKS)])


class Stripes:
    """The stripes of all file systems that `serve` was called with."""

    def __init__(self) -> None:
        self._kept: dict[int, bytes] = {}
        self.full_for: set[int] = set()
        """Inodes whose stripes no disk has room for."""
        self.refusing = False
        """Disks refuse every chunk at once."""
        self.down = False
        """No chunk can be read."""
        self.puts = 0
        """Stripes that were sent."""
        self.asked = trio.Event()
        """A read came while they were held, or down."""
        self._go_on = trio.Event()
        self._go_on.set()

    def hold(self) -> None:
        """Answer reads after `go_on` only."""
        self._go_on = trio.Event()

    def go_on(self) -> None:
        """Answer the reads."""
        self._go_on.set()

    def collect(self, stripe_id: int) -> None:
        """Delete it: no file has it any more."""
        del self._kept[stripe_id]

    def serve(self, *file_systems: FileSystem) -> None:
        """Take their stripes from here on."""
        for fs in file_systems:
            writer: Any = fs._stripe_writer
            reader: Any = fs._reader._stripes
            store = writer.store

            async def checked(inode: int, *args: Any, store: Any = store) -> Any:
                if inode in self.full_for:
                    raise NoSpaceError("the disks are full")
                return await store(inode, *args)

            writer.store, writer._put_all = checked, self._put_all
            reader.read_full = self._read_full
            _show_disks(fs.peers)

    async def _put_all(self, inode: int, stripe: types_pb2.Stripe, _: int, buffer: bytearray) -> _Failures:
        await trio.lowlevel.checkpoint()
        self.puts += 1
        if self.refusing:
            return _Failures(waiting=set(), disks=list(stripe.disks), messages=["refused"])
        self._kept[stripe.stripe_id] = bytes(buffer[: stripe.length_bytes])
        return _Failures(waiting=set())

    async def _read_full(self, inode: int, stripe: types_pb2.Stripe, out: memoryview) -> None:
        await trio.lowlevel.checkpoint()
        if self.down:
            self.asked.set()
            raise TooFewChunksError("0 of the 2 chunks needed can be read")
        if not self._go_on.is_set():
            self.asked.set()
            await self._go_on.wait()
        if stripe.stripe_id not in self._kept:
            raise TooFewChunksError("0 of the 2 chunks needed are there")
        data = self._kept[stripe.stripe_id]
        out[: len(data)] = data
        out[len(data) :] = bytes(len(out) - len(data))


def _show_disks(peers: Any) -> None:
    """Have every map name the disks of `add_disks`: those that the masters tell have none."""
    adopt = peers._adopt

    def adopt_with_disks(found: cluster_pb2.ClusterMap) -> None:
        if not found.disks:
            for number in range(1, DISKS + 1):
                found.disks.add(number=number, node=1, state=cluster_pb2.DISK_STATE_ONLINE)
        adopt(found)

    peers._adopt = adopt_with_disks
    peers._adopt(peers.map)
