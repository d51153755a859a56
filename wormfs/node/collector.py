"""Collects garbage: deletes the chunks no file needs, and frees orphans nobody holds open.

A chunk is deleted only after the event that made it garbage is durable (else a crash could bring
back a file that needs it) and a little later, so that reads under way with the map from before
can end. What was deleted is then logged; a crash in between deletes again, which is harmless.
"""

import logging

import trio

from wormfs.core.errors import WormError
from wormfs.core.leases import LeaseTable
from wormfs.core.types import ChunkKey
from wormfs.metadata.machine import Machine
from wormfs.node.chunk_service import id_from
from wormfs.node.links import NodeLinks
from wormfs.node.master_service import MasterService
from wormfs.node.members import Members
from wormfs.rpc.methods import CHUNKS_DELETE_CHUNKS
from wormfs.rpc.v1 import chunk_pb2

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
DELAY_S = 1.0
BATCH = 256
DELETE_TIMEOUT_S = 20.0


def opens_are_known(leases: LeaseTable) -> bool:
    """Whether every session that may come back has said what it holds open.

    Those known from before a restart say it as they resume. One that was silent for longer than its lease
    ends the grace, and may still resume until it is given up.
    """
    return not leases.in_grace and all(session.resumed for session in leases.sessions.values())


async def free_orphans(machine: Machine, leases: LeaseTable) -> None:
    """Free every inode that has no name and that nobody holds open, as soon as that is known.

    Raises UnavailableError, NoSpaceError.
    """
    if not opens_are_known(leases):
        return
    after = 0
    while page := machine.orphans(after, BATCH):
        after = page[-1]
        for inode in page:
            # A long file is freed in steps; an open one is not begun with.
            while not leases.is_open(inode) and not machine.free_orphan(inode):
                await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()


class Collector:
    """Works in rounds, all disks side by side."""

    def __init__(self, machine: Machine, members: Members, links: NodeLinks, master: MasterService) -> None:
        self._machine = machine
        self._members = members
        self._links = links
        self._master = master
        self._busy: set[int] = set()  # disks

    async def run(self) -> None:
        """Collect until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(INTERVAL_S)
                try:
                    await free_orphans(self._machine, self._master.leases)
                except WormError as error:
                    log.warning("orphans were not freed: %s", error.message)
                for disk in self._machine.garbage_disks():
                    if disk not in self._busy and self._members.is_online(disk):
                        self._busy.add(disk)
                        nursery.start_soon(self._collect, disk)

    async def _collect(self, disk: int) -> None:
        try:
            after = 0
            while page := self._machine.garbage(disk, after, BATCH):
                after = page[-1].stripe_id
                await self._machine.wait_durable(self._machine.sequence)
                await trio.sleep(DELAY_S if len(page) < BATCH else DELAY_S / 4)
                request = chunk_pb2.DeleteChunksRequest(
                    disk=disk,
                    chunks=[id_from(ChunkKey(each.file, each.stripe_id, each.index)) for each in page],
                )
                reply = await self._links.of_disk(disk).call(
                    CHUNKS_DELETE_CHUNKS, request, timeout_s=DELETE_TIMEOUT_S
                )
                failed = {chunk.stripe_id for chunk in reply.message.failed}
                done = [each.stripe_id for each in page if each.stripe_id not in failed]
                if done:
                    self._machine.chunks_collected(disk, done)
        except WormError as error:
            log.info("garbage on disk %d stays for now: %s", disk, error.message)
        finally:
            self._busy.discard(disk)
