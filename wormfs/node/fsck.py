"""fsck: the metadata against the chunks on the disks, both ways, while the cluster works on.

First every disk is listed into a scratch table (SQLite in a temporary file: memory stays bounded
for any number of chunks); then all stripes are paged through and ticked off against it. What
is found to differ may just have changed meanwhile, so each suspicion is looked at again, in the
state and on the disk, before it is a problem.

Chunks that no file has are only told of: the collector deletes what it knows to be garbage, nothing else.
After a restore they are all that is left of what was written since the backup, so it takes an
administrator's word (`collect_unknown`) to delete them.
"""

import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import trio

from wormfs.core.errors import ChunkError, NotFoundError, WormError
from wormfs.core.limits import CHECKSUM_BLOCK_BYTES, NUMBER_MAX
from wormfs.core.records import Stripe
from wormfs.core.types import ChunkKey
from wormfs.metadata.machine import Machine
from wormfs.node.chunk_service import id_from, key_from
from wormfs.node.fsck_names import paths_of, shown
from wormfs.node.links import NodeLinks
from wormfs.node.members import Members
from wormfs.rpc.methods import CHUNKS_DELETE_CHUNKS, CHUNKS_GET_CHUNK, CHUNKS_LIST_CHUNKS
from wormfs.rpc.v1 import chunk_pb2, cluster_pb2

log = logging.getLogger(__name__)

LIST_PAGE = 1000
STRIPE_PAGE = 500
LIST_TIMEOUT_S = 60.0
VERIFY_PAGE = 32
CONFIRM_TIMEOUT_S = 10.0
DELETE_TIMEOUT_S = 60.0
LEFTOVER_PAGE = 500
NAMES_SHOWN = 3
PROGRESS_EVERY = 5000


@dataclass(frozen=True, slots=True)
class _Place:
    disk: int
    key: ChunkKey
    stripe_index: int = 0


@dataclass(slots=True)
class _Gaps:
    """Chunks of a stripe that cannot be had."""

    inode: int
    stripe: Stripe
    missing: int = 0
    damaged: list[int] = field(default_factory=list)  # indexes, as they were listed
    unlisted: int = 0  # on disks that are offline


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
        collect_unknown: bool = False,
    ) -> None:
        self._machine = machine
        self._members = members
        self._links = links
        self._found_damaged = found_damaged  # told of what repair can mend
        self._verify = verify_data
        self._collect = collect_unknown
        self._checked = 0
        self._total = 0
        self._scratch = sqlite3.connect("", isolation_level=None)  # "": a temporary file
        self._scratch.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
            "CREATE TABLE found (stripe_id INTEGER, disk INTEGER, chunk INTEGER, file INTEGER,"
            " damaged INTEGER, wanted INTEGER DEFAULT 0, PRIMARY KEY (stripe_id, disk, chunk)) WITHOUT ROWID;"
            # Files with stripes that cannot be read: for good, or until disks are back.
            "CREATE TABLE unreadable (inode INTEGER PRIMARY KEY, lost INTEGER, waiting INTEGER);"
            # What is on the disks of files (or versions of them) that this metadata does not know.
            "CREATE TABLE unknown (file INTEGER, stripe_id INTEGER, disk INTEGER, chunk INTEGER,"
            " PRIMARY KEY (file, stripe_id, disk, chunk)) WITHOUT ROWID;"
            "CREATE TABLE names (inode INTEGER, path BLOB, PRIMARY KEY (inode, path)) WITHOUT ROWID;"
        )

    async def run(self) -> AsyncIterator[cluster_pb2.FsckReply]:
        """Check everything. Raises WormError only when the metadata itself cannot be read."""
        try:
            for line in await self._machine.check_namespace_apart():
                yield self._problem("namespace", line)
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
            await self._find_names()
            for reply in self._unreadable():
                yield reply
            async for reply in self._unknown():
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
                if max(key.file, key.stripe_id) > NUMBER_MAX:
                    line = f"disk {disk}: {info.path} is named as no chunk can be"
                    yield self._problem("damaged-chunk", line)
                    continue
                rows.append((key.stripe_id, disk, key.index, key.file, bool(info.problem)))
                if info.problem:
                    self._found_damaged(disk, key)
                    yield self._problem("damaged-chunk", f"disk {disk}: {info.problem}")
            self._scratch.executemany(
                "INSERT OR IGNORE INTO found (stripe_id, disk, chunk, file, damaged) VALUES (?, ?, ?, ?, ?)",
                rows,
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
            gaps: dict[int, _Gaps] = {}
            for inode, stripe in page.stripes:
                for index, disk in enumerate(stripe.disks):
                    if disk not in listed:
                        unlisted[disk] = unlisted.get(disk, 0) + 1
                        gaps.setdefault(stripe.stripe_id, _Gaps(inode, stripe)).unlisted += 1
                        continue
                    ticked = self._scratch.execute(
                        "UPDATE found SET wanted = 1 "
                        "WHERE stripe_id = ? AND disk = ? AND chunk = ? AND file = ? RETURNING damaged",
                        (stripe.stripe_id, disk, index, inode),
                    ).fetchall()
                    if not ticked:
                        missing.append(_Place(disk, ChunkKey(inode, stripe.stripe_id, index), stripe.index))
                        gaps.setdefault(stripe.stripe_id, _Gaps(inode, stripe))
                    elif ticked[0][0]:
                        gaps.setdefault(stripe.stripe_id, _Gaps(inode, stripe)).damaged.append(index)
            await trio.lowlevel.checkpoint()
            for place in missing:
                problem = await self._look(place)
                if problem and self._is_committed(place):
                    self._found_damaged(place.disk, place.key)
                    gaps[place.key.stripe_id].missing += 1
                    yield self._problem(
                        "missing-chunk",
                        f"chunk {place.key.index} of stripe {place.key.stripe_id} of inode {place.key.file} "
                        f"is not on disk {place.disk}: {problem.message}",
                    )
            for each in gaps.values():
                await self._note_unreadable(each)
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

    async def _note_unreadable(self, gaps: _Gaps) -> None:
        stripe = gaps.stripe
        if gaps.missing + len(gaps.damaged) + gaps.unlisted <= stripe.m:
            return
        gone = gaps.missing
        for index in gaps.damaged:  # what was wrong with it may not keep it from being read, or be mended
            place = _Place(stripe.disks[index], ChunkKey(gaps.inode, stripe.stripe_id, index), stripe.index)
            problem = await self._look(place, stripe.chunk_length_bytes)
            gone += problem is not None and self._is_committed(place)
        if gone + gaps.unlisted > stripe.m:
            lost = int(gone > stripe.m)
            self._scratch.execute(
                "INSERT INTO unreadable VALUES (?, ?, ?) ON CONFLICT (inode) DO UPDATE SET "
                "lost = lost + excluded.lost, waiting = waiting + excluded.waiting",
                (gaps.inode, lost, 1 - lost),
            )

    # Chunks that no file has

    async def _leftovers(self) -> AsyncIterator[cluster_pb2.FsckReply]:
        """What is on a disk and nobody wants, allocated and garbage chunks apart."""
        last = (-1, -1, -1)
        while rows := self._scratch.execute(
            "SELECT stripe_id, disk, chunk, file FROM found WHERE wanted = 0 "
            "AND (stripe_id, disk, chunk) > (?, ?, ?) ORDER BY stripe_id, disk, chunk LIMIT ?",
            (*last, LEFTOVER_PAGE),
        ).fetchall():
            last = rows[-1][:3]
            leftover = []
            for stripe_id, disk, index, file in rows:
                place = _Place(disk, ChunkKey(file, stripe_id, index))
                if self._has_use(place):
                    continue
                if self._is_of_before(stripe_id):
                    self._scratch.execute(
                        "INSERT INTO unknown VALUES (?, ?, ?, ?)", (file, stripe_id, disk, index)
                    )
                # Deleted since it was listed? And if it is there, damaged or not: still of no use?
                elif not isinstance(await self._look(place), NotFoundError) and not self._has_use(place):
                    leftover.append(place)
                    if not self._collect:
                        yield self._problem(
                            "leftover-chunk",
                            f"chunk {index} of stripe {stripe_id} of inode {file} on disk {disk} "
                            "belongs to no file: nothing needs it; `fsck --collect-unknown` deletes it",
                        )
            if self._collect and leftover:
                async for reply in self._delete(leftover, "that belonged to no file"):
                    yield reply
            await trio.lowlevel.checkpoint()

    def _is_of_before(self, stripe_id: int) -> bool:
        """Whether the chunk may be of a file that this metadata has lost: from before a restore, or newer."""
        return stripe_id <= self._machine.restored.stripe_id or stripe_id >= self._machine.next_stripe_id

    async def _unknown(self) -> AsyncIterator[cluster_pb2.FsckReply]:
        """One line for each file that has chunks which this metadata does not know."""
        restored = self._machine.restored
        last = -1
        while files := self._scratch.execute(
            "SELECT file, count(*), count(DISTINCT stripe_id), group_concat(DISTINCT disk), max(stripe_id) "
            "FROM unknown WHERE file > ? GROUP BY file ORDER BY file LIMIT ?",
            (last, LEFTOVER_PAGE),
        ).fetchall():
            last = files[-1][0]
            for file, chunks, stripes, disks, newest in files:
                which = f"{chunks} chunks of {stripes} stripes on disks {disks.replace(',', ', ')}"
                if newest >= self._machine.next_stripe_id:
                    why = "are newer than the metadata: it was not put back by a restore; they stay"
                elif self._collect:
                    async for reply in self._delete(self._places(file), f"of {self._called(file)}"):
                        yield reply
                    continue
                else:
                    why = (
                        f"were written behind event {restored.sequence}, the backup's that the metadata came "
                        "back from; they stay until `wormfs fsck --collect-unknown`"
                    )
                yield self._problem("unknown-chunks", f"{self._called(file)}: {which} {why}")
            await trio.lowlevel.checkpoint()

    def _places(self, file: int) -> list[_Place]:
        rows = self._scratch.execute("SELECT disk, stripe_id, chunk FROM unknown WHERE file = ?", (file,))
        return [_Place(disk, ChunkKey(file, stripe_id, index)) for disk, stripe_id, index in rows]

    async def _delete(self, places: list[_Place], whose: str) -> AsyncIterator[cluster_pb2.FsckReply]:
        """Delete chunks that no file has; what the metadata knows now must be what it will know."""
        await self._machine.wait_durable(self._machine.sequence)
        await self._machine.confirm()
        by_disk: dict[int, list[ChunkKey]] = {}
        for place in places:
            # A stripe that was never allocated here may be another master's: never to be deleted.
            if place.key.stripe_id < self._machine.next_stripe_id and not self._has_use(place):
                by_disk.setdefault(place.disk, []).append(place.key)
        for disk, keys in by_disk.items():
            for at in range(0, len(keys), LIST_PAGE):
                request = chunk_pb2.DeleteChunksRequest(
                    disk=disk, chunks=[id_from(key) for key in keys[at : at + LIST_PAGE]]
                )
                try:
                    reply = await self._links.of_disk(disk).call(
                        CHUNKS_DELETE_CHUNKS, request, timeout_s=DELETE_TIMEOUT_S
                    )
                except WormError as error:
                    yield self._problem(
                        "leftover-chunk", f"disk {disk}: chunks {whose} were not deleted: {error.message}"
                    )
                    continue
                gone = len(request.chunks) - len(reply.message.failed)
                yield self._problem("collected", f"disk {disk}: {gone} chunks {whose} deleted")

    # Names for people

    async def _find_names(self) -> None:
        """The names of all files that there is something to tell about; none: nothing to do."""
        concerned = "SELECT inode FROM unreadable UNION SELECT file FROM unknown"
        if self._scratch.execute(f"{concerned} LIMIT 1").fetchone() is None:
            return
        query = (
            "SELECT EXISTS (SELECT 1 FROM unreadable WHERE inode = ?1) "
            "OR EXISTS (SELECT 1 FROM unknown WHERE file = ?1)"
        )
        async for inode, path in paths_of(
            self._machine, lambda inode: bool(self._scratch.execute(query, (inode,)).fetchone()[0])
        ):
            self._scratch.execute("INSERT OR IGNORE INTO names VALUES (?, ?)", (inode, path))

    def _called(self, inode: int) -> str:
        rows = self._scratch.execute(
            "SELECT path FROM names WHERE inode = ? ORDER BY path LIMIT ?", (inode, NAMES_SHOWN)
        ).fetchall()
        names = " = ".join(shown(row[0]) for row in rows)
        return f"{names} (inode {inode})" if names else f"inode {inode}, which has no name"

    def _unreadable(self) -> Iterator[cluster_pb2.FsckReply]:
        """One line for each file that cannot be read whole."""
        for inode, lost, waiting in self._scratch.execute(
            "SELECT * FROM unreadable ORDER BY inode"
        ).fetchall():
            if lost:
                rest = f", and {waiting} until disks are back" if waiting else ""
                yield self._problem(
                    "lost-file", f"{self._called(inode)}: {lost} of its stripes are lost for good{rest}"
                )
            else:
                yield self._problem(
                    "unreadable-file",
                    f"{self._called(inode)}: {waiting} of its stripes cannot be read until disks are back",
                )

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

    async def _look(self, place: _Place, length_bytes: int = 1) -> NotFoundError | ChunkError | None:
        """Why the chunk's first bytes cannot be read now; None when they can, or nobody can be asked."""
        request = chunk_pb2.GetChunkRequest(
            disk=place.disk, chunk=id_from(place.key), length_bytes=length_bytes
        )
        buffer = memoryview(bytearray(max(length_bytes, CHECKSUM_BLOCK_BYTES)))
        try:
            await self._links.of_disk(place.disk).call(
                CHUNKS_GET_CHUNK, request, timeout_s=CONFIRM_TIMEOUT_S, into=[buffer]
            )
        except (NotFoundError, ChunkError) as error:
            return error
        except WormError as error:
            log.info("fsck could not look again at %s: %s", place, error.message)
        return None
