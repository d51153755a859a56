"""How near the stripes are to loss, counted in the background.

With every disk online nothing is counted. Otherwise all stripes are paged through, a page at a
time with others' work in between, when a disk comes or goes and every `AGAIN_S` while one is
missing (stripes come and go too). While the stripes cannot be read, the counts stay as they were.
"""

import logging
from dataclasses import dataclass

import trio

from wormfs.core.errors import WormError
from wormfs.metadata.machine import Machine
from wormfs.node.members import Members
from wormfs.rpc.v1 import cluster_pb2

log = logging.getLogger(__name__)

AGAIN_S = 5.0
PAUSE_S = 0.5
"""After what failed, however many disks come and go."""
PAGE = 500


@dataclass(frozen=True, slots=True)
class Danger:
    """Counts over all stripes: chunks on offline disks; stripes that survive no further loss; lost ones."""

    missing_chunks: int = 0
    at_the_edge: int = 0
    lost: int = 0


class Health:
    """The newest counts, in `danger`."""

    def __init__(self, machine: Machine, members: Members) -> None:
        self._machine = machine
        self._members = members
        self._changed = trio.Event()
        self._counted = trio.Event()
        self.danger = Danger()
        members.listen(self.note_change)

    def note_change(self) -> None:
        """Count anew: a disk came or went, or stripes moved."""
        self._changed.set()
        if self._counted.is_set():
            self._counted = trio.Event()

    async def counted(self, patience_s: float) -> Danger:
        """The counts as of the last change, or older ones when counting takes longer than that."""
        with trio.move_on_after(patience_s):
            await self._counted.wait()
        return self.danger

    async def run(self) -> None:
        """Count whenever something changed, until cancelled."""
        silent = False
        while True:
            self._changed = trio.Event()
            offline = self._offline()
            started_s = trio.current_time()
            try:
                self.danger = await self._count(offline)
            except WormError as error:
                if not silent:
                    log.warning("stripes in danger are not counted: %s", error.message)
                silent = True
                with trio.move_on_after(AGAIN_S):
                    await self._changed.wait()
                await trio.sleep(PAUSE_S)
                continue
            silent = False
            took_s = trio.current_time() - started_s
            if not self._changed.is_set():
                self._counted.set()
            with trio.move_on_after(max(AGAIN_S, 20 * took_s) if offline else float("inf")):
                await self._changed.wait()
                await trio.sleep(min(20 * took_s, AGAIN_S))  # disks that flap must not keep us counting

    def _offline(self) -> frozenset[int]:
        return frozenset(
            disk.number for disk in self._members.map().disks if disk.state != cluster_pb2.DISK_STATE_ONLINE
        )

    async def _count(self, offline: frozenset[int]) -> Danger:
        if not offline:
            every = self._machine.policy.m == 0
            return Danger(at_the_edge=self._machine.counts().stripes if every else 0)
        missing_chunks = at_the_edge = lost = 0
        after = None
        while True:
            page = self._machine.stripes_page(after, PAGE)
            for _, stripe in page.stripes:
                missing = len(offline.intersection(stripe.disks))
                missing_chunks += missing
                at_the_edge += missing == stripe.m
                lost += missing > stripe.m
            after = page.next
            if after is None:
                return Danger(missing_chunks, at_the_edge, lost)
            await trio.lowlevel.checkpoint()
