"""fsck: the metadata against the chunks on the disks, both ways, while the cluster works on.

First every disk is listed into a scratch table (SQLite in a temporary file: memory stays bounded
for any number of chunks); then all stripes are paged through and ticked off against it. What
is found to differ may just have changed meanwhile, so each suspicion is looked at again, in the
state and on the disk, before it is a problem.
"""

import logging
import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import trio

from wormfs.core.errors import ChunkError, NotFoundError, WormError
from wormfs.core.types import ChunkKey
from wormfs.metadata.machine import Machine
from wormfs.node.chunk_service import id_from, key_from
from wormfs.node.links import NodeLinks
from wormfs.node.members import Members
from wormfs.rpc.methods import CHUNKS_GET_CHUNK, CHUNKS_LIST_CHUNKS
from wormfs.rpc.v1 import chunk_pb2, cluster_pb2

log = logging.getLogger(__name__)

LIST_PAGE = 1000
STRIPE_PAGE = 500
LIST_TIMEOUT_S = 60.0
VERIFY_PAGE = 32
CONFIRM_TIMEOUT_S = 10.0
PROGRESS_EVERY = 5000


@dataclass(frozen=True, slots=True)
class _Place:
    disk: int
    key: ChunkKey
    stripe_index: int = 0


class Fsck:
    """One run. `run` yields problems and progress; the last reply has `end`."""

    def __init__(
        self,
        machine: Machine,
        members: Members,
        links: NodeLinks,
        *,
        found_damaged: Callable[[int, ChunkKey], None],
        verify_data: bool,
    ) -> None:
        self._machine = machine
        self._members = members
        self._links = links
        self._found_damaged = found_damaged  # told of what repair can mend
        self._verify = verify_data
        self._checked = 0
        self._total = 0
        self._scratch = sqlite3.connect("", isolation_level=None)  # "": a temporary file
        self._scratch.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
            "CREATE TABLE found (stripe_id INTEGER, disk INTEGER, chunk INTEGER, file INTEGER,"
            " wanted INTEGER DEFAULT 0, PRIMARY KEY (stripe_id, disk, chunk)) WITHOUT ROWID;"
        )

    async def run(self) -> AsyncIterator[cluster_pb2.FsckReply]:
        """Check everything. Raises WormError only when the metadata itself cannot be read."""
        try:
            for line in self._machine.check_namespace():
                yield self._problem("namespace", line)
            await trio.lowlevel.checkpoint()
            listed: set[int] = set()
            for disk in list(self._members.map().disks):
                where = f"disk {disk.number} ({disk.path})"
                if not self._members.is_online(disk.number):
                    continue
                try:
                    async for reply in self._list(disk.number):
                        yield reply
                    listed.add(disk.number)
                except WormError as error:
                    yield self._problem("unreadable-disk", f"{where} could not be listed: {error.message}")
            async for reply in self._compare(listed):
                yield reply
            async for reply in self._leftovers():
                yield reply
            yield cluster_pb2.FsckReply(checked=self._checked, total=self._checked, end=True)
        finally:
            self._scratch.close()

    def _problem(self, kind: str, line: str) -> cluster_pb2.FsckReply:
        return cluster_pb2.FsckReply(problem=line, kind=kind, checked=self._checked, total=self._total)

    async def _list(self, disk: int) -> AsyncIterator[cluster_pb2.FsckReply]:
        after = b""
        limit = VERIFY_PAGE if self._verify else LIST_PAGE
        while True:
            request = chunk_pb2.ListChunksRequest(disk=disk, after=after, limit=limit, verify=self._verify)
            reply = await self._links.of_disk(disk).call(
                CHUNKS_LIST_CHUNKS, request, timeout_s=LIST_TIMEOUT_S
            )
            rows = []
            for info in reply.message.chunks:
                key = key_from(info.chunk)
                rows.append((key.stripe_id, disk, key.index, key.file))
                if info.problem:
                    self._found_damaged(disk, key)
                    yield self._problem("damaged-chunk", f"disk {disk}: {info.problem}")
            self._scratch.executemany(
                "INSERT OR IGNORE INTO found (stripe_id, disk, chunk, file) VALUES (?, ?, ?, ?)", rows
            )
            self._checked += len(rows)
            self._total = max(self._total, self._checked)
            if self._checked % PROGRESS_EVERY < len(rows):
                yield cluster_pb2.FsckReply(checked=self._checked, total=self._total)
            after = reply.message.next
            if not after:
                return

    async def _compare(self, listed: set[int]) -> AsyncIterator[cluster_pb2.FsckReply]:
        """Tick off what the stripes want; what they miss is a problem if it still is."""
        after = None
        unlisted: dict[int, int] = {}
        while True:
            page = self._machine.stripes_page(after, STRIPE_PAGE)
            missing = []
            for inode, stripe in page.stripes:
                for index, disk in enumerate(stripe.disks):
                    if disk not in listed:
                        unlisted[disk] = unlisted.get(disk, 0) + 1
                        continue
                    ticked = self._scratch.execute(
                        "UPDATE found SET wanted = 1 "
                        "WHERE stripe_id = ? AND disk = ? AND chunk = ? AND file = ?",
                        (stripe.stripe_id, disk, index, inode),
                    )
                    if not ticked.rowcount:
                        missing.append(_Place(disk, ChunkKey(inode, stripe.stripe_id, index), stripe.index))
            await trio.lowlevel.checkpoint()
            for place in missing:
                problem = await self._look(place)
                if problem and self._is_committed(place):
                    self._found_damaged(place.disk, place.key)
                    yield self._problem(
                        "missing-chunk",
                        f"chunk {place.key.index} of stripe {place.key.stripe_id} of inode {place.key.file} "
                        f"is not on disk {place.disk}: {problem}",
                    )
            after = page.next
            if after is None:
                break
        for disk, count in sorted(unlisted.items()):
            yield self._problem(
                "offline-disk", f"disk {disk} is offline: {count} chunks on it could not be checked"
            )

    def _is_committed(self, place: _Place) -> bool:
        stripes = self._machine.file_stripes(place.key.file, place.stripe_index, 1)
        return bool(stripes) and stripes[0].stripe_id == place.key.stripe_id

    async def _leftovers(self) -> AsyncIterator[cluster_pb2.FsckReply]:
        """What is on a disk and nobody wants, allocated and garbage chunks apart."""
        last = (-1, -1, -1)
        while rows := self._scratch.execute(
            "SELECT stripe_id, disk, chunk, file FROM found WHERE wanted = 0 "
            "AND (stripe_id, disk, chunk) > (?, ?, ?) ORDER BY stripe_id, disk, chunk LIMIT 500",
            last,
        ).fetchall():
            last = rows[-1][:3]
            for stripe_id, disk, index, file in rows:
                place = _Place(disk, ChunkKey(file, stripe_id, index))
                if self._has_use(place):
                    continue
                # Deleted since it was listed? And if it is there: still of no use?
                if not await self._look(place) and not self._has_use(place):
                    yield self._problem(
                        "leftover-chunk",
                        f"chunk {index} of stripe {stripe_id} of inode {file} on disk {disk} "
                        "belongs to no file: nothing needs it",
                    )
            await trio.lowlevel.checkpoint()

    def _has_use(self, place: _Place) -> bool:
        """Whether the chunk may be there: being written, to be collected, or committed meanwhile."""
        stripe_id = place.key.stripe_id
        if self._machine.is_allocated(stripe_id):
            return True
        garbage = self._machine.garbage(place.disk, stripe_id - 1, 1)
        if garbage and garbage[0].stripe_id == stripe_id:
            return True
        stripe = self._machine.stripe_by_id(place.key.file, stripe_id)
        return stripe is not None and stripe.disks[place.key.index : place.key.index + 1] == (place.disk,)

    async def _look(self, place: _Place) -> str:
        """Why the chunk cannot be read now; empty when it is there (or its disk cannot be asked)."""
        request = chunk_pb2.GetChunkRequest(disk=place.disk, chunk=id_from(place.key), length_bytes=1)
        buffer = memoryview(bytearray(1 << 17))
        try:
            await self._links.of_disk(place.disk).call(
                CHUNKS_GET_CHUNK, request, timeout_s=CONFIRM_TIMEOUT_S, into=[buffer]
            )
        except (NotFoundError, ChunkError) as error:
            return error.message
        except WormError as error:
            log.info("fsck could not look again at %s: %s", place, error.message)
        return ""
