"""The state port on SQLite: one connection, one thread, an open transaction committed in batches.

Inode rows, replies and the head are written back: kept in Python and flushed before a commit or a
query that joins them, so that a hot directory costs one row per batch. The head holds the applied
sequence, so a commit is atomic with it. The file is a cache of log and snapshots; losing it, or
the last batches, loses nothing.
"""

import sqlite3
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from wormfs.core.limits import NUMBER_MAX
from wormfs.core.ordering import Place
from wormfs.core.records import (
    Allocation,
    Counts,
    DiskRecord,
    Extent,
    FileStripe,
    GarbageChunk,
    Inode,
    NodeRecord,
    Restored,
    Session,
    Span,
    Stripe,
)
from wormfs.core.types import Codec, Policy
from wormfs.metadata.schema import migrate

INODES_CACHED = 16_384  # about 10 MiB
_DEFAULT_POLICY = Policy(1, 0, 1 << 20)

_INODE_COLUMNS = ", ".join(Inode._fields)
_STRIPE_COLUMNS = "stripe_index, stripe_id, codec, k, m, chunk_length_bytes, length_bytes, valid_bytes, disks"
# What states of equal logs may hold differently: a state that an older program began knows the highest
# numbers only of nodes and disks that are still there.
_APART = frozenset({"log_id", "last_node", "last_disk"})
_HEAD: Final[dict[str, int | str]] = {
    "applied": 0,  # sequence of the last entry applied
    "applied_epoch": 0,  # its epoch: tells a state of another history from this one
    "tail_epoch": 0,  # core.ordering.Place of the last entry that matters to it
    "tail_sequence": 0,
    "epoch": 0,  # the last mastership
    "master": 0,  # its node
    "log_id": "",  # the log this state belongs to
    "cluster_id": "",
    "cluster_name": "",
    "policy": "1 0 1048576 0",  # k, m, chunk size, codec
    "last_inode": 0,
    "last_stripe_id": 0,
    "last_session_id": 0,
    "last_node": 0,  # the highest number given to any: a forgotten one's is never another's
    "last_disk": 0,
    "restored_sequence": 0,  # the backup's event, when the metadata came back from one; else 0
    "restored_stripe_id": 0,  # no stripe up to this one was allocated since: see restored_state.py
    "inodes": 0,  # counts, see core.records.Counts
    "stripes": 0,
    "extents": 0,
    "inline_bytes": 0,
    "garbage_chunks": 0,
    "sessions": 0,
    "orphans": 0,
    "allocations": 0,
}


def pack_disks(disks: tuple[int, ...]) -> bytes:
    """Disk numbers as the schema keeps them."""
    return struct.pack(f">{len(disks)}I", *disks)


def unpack_disks(data: bytes) -> tuple[int, ...]:
    """Disk numbers from their column."""
    return struct.unpack(f">{len(data) // 4}I", data)


def set_up(connection: sqlite3.Connection) -> None:
    """Our settings, for writing."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    # Checkpoints fsync: they are made in a thread, by checkpoint().
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("PRAGMA cache_size=-16384")
    connection.execute("PRAGMA temp_store=MEMORY")


class SqliteState:
    """Implements wormfs.core.state.State. Not thread safe. Raises sqlite3.Error when the disk fails."""

    @classmethod
    def at(cls, path: Path) -> "SqliteState":
        """The state in a file, which is made if need be."""
        connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        try:
            set_up(connection)
            return cls(connection)
        except BaseException:
            connection.close()
            raise

    def __init__(self, connection: sqlite3.Connection) -> None:
        migrate(connection)
        self.connection = connection
        self._execute = connection.execute
        self._inodes: dict[int, Inode | None] = {}
        self._dirty: set[int] = set()
        self._head: dict[str, int] = {}
        self._texts: dict[str, str] = {}
        self._head_dirty = False
        self._open = False
        self._policy = _DEFAULT_POLICY
        self._sessions: dict[int, int] = {}  # session -> acknowledged
        self._session_dirty: set[int] = set()
        self._new_replies: dict[tuple[int, int], bytes] = {}
        self._highest: dict[int, int] = {}  # session -> highest operation remembered
        self.reload()

    # --- transactions -------------------------------------------------------------------------

    def reload(self) -> None:
        """Read the head and the sessions from the database."""
        stored = dict(self._execute("SELECT key, value FROM head").fetchall())
        for key, default in _HEAD.items():
            if isinstance(default, int):
                self._head[key] = int(stored.get(key, default))
            else:
                self._texts[key] = str(stored.get(key, default))
        for table in ("node", "disk"):
            (last,) = self._execute(f"SELECT coalesce(max(number), 0) FROM {table}s").fetchone()
            self._head[f"last_{table}"] = max(self._head[f"last_{table}"], last)
        k, m, chunk_size, codec = map(int, self._texts["policy"].split())
        self._policy = Policy(k, m, chunk_size, Codec(codec))
        self._sessions = dict(self._execute("SELECT session_id, acknowledged FROM sessions").fetchall())
        rows = self._execute("SELECT session_id, max(operation) FROM replies GROUP BY session_id")
        self._highest = dict(rows.fetchall())

    def begin(self) -> None:
        """Open a transaction unless one is open."""
        if not self._open:
            self._execute("BEGIN")
            self._open = True

    def flush(self) -> None:
        """Write back what is kept in Python, so that queries over tables see it."""
        if self._dirty:
            rows = []
            gone = []
            for number in self._dirty:
                row = self._inodes[number]
                if row is None:
                    gone.append((number,))
                else:
                    rows.append(row)
            marks = ",".join("?" * len(Inode._fields))
            self.connection.executemany(f"INSERT OR REPLACE INTO inodes VALUES ({marks})", rows)
            if gone:
                self.connection.executemany("DELETE FROM inodes WHERE inode = ?", gone)
            self._dirty.clear()
        if len(self._inodes) > INODES_CACHED:
            self._inodes.clear()
        if self._new_replies:
            floors = self._sessions
            self.connection.executemany(
                "INSERT OR REPLACE INTO replies VALUES (?, ?, ?)",
                # Most are acknowledged by now, and need not be remembered at all.
                [
                    (session, operation, reply)
                    for (session, operation), reply in self._new_replies.items()
                    if operation > floors.get(session, 0)
                ],
            )
            self._new_replies.clear()
        if self._session_dirty:
            self._flush_sessions()
        if self._head_dirty:
            self.connection.executemany(
                "INSERT OR REPLACE INTO head VALUES (?, ?)", [*self._head.items(), *self._texts.items()]
            )
            self._head_dirty = False

    def _flush_sessions(self) -> None:
        rows = [(self._sessions[session], session) for session in self._session_dirty]
        self.connection.executemany("UPDATE sessions SET acknowledged = ? WHERE session_id = ?", rows)
        self.connection.executemany("DELETE FROM replies WHERE operation <= ? AND session_id = ?", rows)
        self._session_dirty.clear()

    def commit(self) -> None:
        """Flush and commit the open transaction, if one is."""
        if self._open:
            self.flush()
            self._execute("COMMIT")
            self._open = False

    def rollback(self) -> None:
        """Go back to what was committed last."""
        if self._open:
            self._execute("ROLLBACK")
            self._open = False
        self._forget()

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Take back what the body changed when it raises, and no more. Nothing is committed."""
        self.begin()
        self.flush()
        self._execute("SAVEPOINT body")
        try:
            yield
        except BaseException:
            self._execute("ROLLBACK TO body")
            self._execute("RELEASE body")
            self._forget()
            raise
        self._execute("RELEASE body")

    def _forget(self) -> None:
        """Drop what is kept in Python and not written back, and read it again."""
        self._inodes.clear()
        self._dirty.clear()
        self._new_replies.clear()
        self._session_dirty.clear()
        self._head_dirty = False
        self.reload()

    def close(self) -> None:
        """Close the connection without committing."""
        with suppress(sqlite3.Error):
            self.connection.close()

    # --- head ---------------------------------------------------------------------------------

    @property
    def applied(self) -> int:
        """Sequence of the last entry applied."""
        return self._head["applied"]

    @property
    def applied_epoch(self) -> int:
        """Epoch of the last entry applied."""
        return self._head["applied_epoch"]

    @property
    def tail(self) -> Place:
        """See core.ordering."""
        return Place(self._head["tail_epoch"], self._head["tail_sequence"])

    def set_applied(self, sequence: int, epoch: int, tail: Place) -> None:
        """An entry was applied whole."""
        head = self._head
        head["applied"] = sequence
        head["applied_epoch"] = epoch
        head["tail_epoch"], head["tail_sequence"] = tail
        self._head_dirty = True

    @property
    def epoch(self) -> int:
        """The last mastership's number."""
        return self._head["epoch"]

    @property
    def log_id(self) -> str:
        """The log this state belongs to."""
        return self._texts["log_id"]

    def set_log_id(self, log_id: str) -> None:
        """Bind the state to a log."""
        self._texts["log_id"] = log_id
        self._head_dirty = True

    @property
    def cluster_id(self) -> str:
        """Empty until the cluster is formed."""
        return self._texts["cluster_id"]

    @property
    def cluster_name(self) -> str:
        """For people."""
        return self._texts["cluster_name"]

    @property
    def restored(self) -> Restored:
        """The backup that this metadata came back from."""
        return Restored(self._head["restored_sequence"], self._head["restored_stripe_id"])

    def set_restored(self, restored: Restored) -> None:
        """Remember the backup that this metadata came back from."""
        self._head["restored_sequence"], self._head["restored_stripe_id"] = restored
        self._head_dirty = True

    def counts(self) -> Counts:
        """The maintained counts."""
        head = self._head
        return Counts(*(head[field] for field in Counts._fields))

    def head_items(self) -> list[tuple[str, int | str]]:
        """Every head value that equal logs make equal."""
        items: list[tuple[str, int | str]] = [*self._head.items(), *self._texts.items()]
        return sorted(item for item in items if item[0] not in _APART)

    @property
    def policy(self) -> Policy:
        """The policy for new files."""
        return self._policy

    @property
    def next_inode(self) -> int:
        """The next inode's number."""
        return self._head["last_inode"] + 1

    @property
    def next_stripe_id(self) -> int:
        """The next stripe's id."""
        return self._head["last_stripe_id"] + 1

    @property
    def next_session_id(self) -> int:
        """The next session's id."""
        return self._head["last_session_id"] + 1

    @property
    def next_node(self) -> int:
        """The next node's number."""
        return self._head["last_node"] + 1

    @property
    def next_disk(self) -> int:
        """The next disk's number."""
        return self._head["last_disk"] + 1

    def _use(self, key: str, number: int) -> None:
        if number > self._head[key]:
            self._head[key] = number
            self._head_dirty = True

    def use_inode(self, inode: int) -> None:
        """Never give out this number or a lower one again."""
        self._use("last_inode", inode)

    def use_stripe_id(self, stripe_id: int) -> None:
        """Never give out this id or a lower one again."""
        self._use("last_stripe_id", stripe_id)

    def use_session_id(self, session_id: int) -> None:
        """Never give out this id or a lower one again."""
        self._use("last_session_id", session_id)

    def set_cluster(self, cluster_id: str, name: str) -> None:
        """Set the cluster's identity."""
        self._texts["cluster_id"] = cluster_id
        self._texts["cluster_name"] = name
        self._head_dirty = True

    def set_policy(self, policy: Policy) -> None:
        """Set the policy for new files."""
        self._policy = policy
        self._texts["policy"] = f"{policy.k} {policy.m} {policy.chunk_size_bytes} {int(policy.codec)}"
        self._head_dirty = True

    def set_epoch(self, epoch: int, node: int) -> None:
        """Set the mastership."""
        self._head["epoch"] = epoch
        self._head["master"] = node
        self._head_dirty = True

    def _count(self, key: str, delta: int) -> None:
        self._head[key] += delta
        self._head_dirty = True

    # --- inodes and entries -------------------------------------------------------------------

    def inode(self, inode: int) -> Inode | None:
        """The inode's row."""
        try:
            return self._inodes[inode]
        except KeyError:
            pass
        found = self._execute(f"SELECT {_INODE_COLUMNS} FROM inodes WHERE inode = ?", (inode,)).fetchone()
        if found is None:
            return None
        row = Inode._make(found)
        if len(self._inodes) >= INODES_CACHED:
            self._inodes = {number: self._inodes[number] for number in self._dirty}
        self._inodes[inode] = row
        return row

    def put_inode(self, inode: Inode) -> None:
        """Make or replace."""
        number = inode.inode
        # A number above the last one used is new for certain: no need to ask the table.
        if number > self._head["last_inode"] or (number not in self._inodes and self.inode(number) is None):
            self._count("inodes", 1)
        self._inodes[number] = inode
        self._dirty.add(number)

    def delete_inode(self, inode: int) -> None:
        """Remove the row."""
        self._inodes[inode] = None
        self._dirty.add(inode)
        self._count("inodes", -1)

    def entry(self, parent: int, name: bytes) -> int | None:
        """The inode behind a name."""
        row = self._execute(
            "SELECT inode FROM entries WHERE parent = ? AND name = ?", (parent, name)
        ).fetchone()
        return None if row is None else row[0]

    def has_entries(self, parent: int) -> bool:
        """Whether a directory has any entry."""
        found = self._execute("SELECT 1 FROM entries WHERE parent = ? LIMIT 1", (parent,)).fetchone()
        return found is not None

    def put_entry(self, parent: int, name: bytes, inode: int) -> None:
        """Make or replace."""
        self._execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", (parent, name, inode))

    def delete_entry(self, parent: int, name: bytes) -> None:
        """Remove the name."""
        self._execute("DELETE FROM entries WHERE parent = ? AND name = ?", (parent, name))

    def entry_page(self, parent: int, after: bytes, limit: int) -> list[tuple[bytes, int]]:
        """Names behind `after` in byte order, with their inodes."""
        return self._execute(
            "SELECT name, inode FROM entries WHERE parent = ? AND name > ? ORDER BY name LIMIT ?",
            (parent, after, limit),
        ).fetchall()

    def listing(self, parent: int, after: bytes, limit: int) -> list[tuple[bytes, Inode]]:
        """Names behind `after` in byte order, with their inodes' rows."""
        self.flush()
        rows = self._execute(
            f"SELECT e.name, i.{_INODE_COLUMNS.replace(', ', ', i.')} FROM entries e "
            "JOIN inodes i ON i.inode = e.inode "
            "WHERE e.parent = ? AND e.name > ? ORDER BY e.name LIMIT ?",
            (parent, after, limit),
        )
        return [(row[0], Inode._make(row[1:])) for row in rows]

    # --- extended attributes, orphans ---------------------------------------------------------

    def xattr(self, inode: int, name: bytes) -> bytes | None:
        """An extended attribute's value."""
        row = self._execute("SELECT value FROM xattrs WHERE inode = ? AND name = ?", (inode, name)).fetchone()
        return None if row is None else row[0]

    def xattr_names(self, inode: int) -> list[bytes]:
        """Names in byte order."""
        rows = self._execute("SELECT name FROM xattrs WHERE inode = ? ORDER BY name", (inode,))
        return [row[0] for row in rows]

    def put_xattr(self, inode: int, name: bytes, value: bytes) -> None:
        """Make or replace."""
        self._execute("INSERT OR REPLACE INTO xattrs VALUES (?, ?, ?)", (inode, name, value))

    def delete_xattr(self, inode: int, name: bytes) -> None:
        """Remove one."""
        self._execute("DELETE FROM xattrs WHERE inode = ? AND name = ?", (inode, name))

    def delete_xattrs(self, inode: int) -> None:
        """Remove all of an inode."""
        self._execute("DELETE FROM xattrs WHERE inode = ?", (inode,))

    def add_orphan(self, inode: int) -> None:
        """Remember an inode out of the namespace."""
        self._execute("INSERT INTO orphans VALUES (?)", (inode,))
        self._count("orphans", 1)

    def delete_orphan(self, inode: int) -> None:
        """Forget one."""
        self._count("orphans", -self._execute("DELETE FROM orphans WHERE inode = ?", (inode,)).rowcount)

    def orphans(self, after: int, limit: int) -> list[int]:
        """Orphans with numbers above `after`, in order."""
        rows = self._execute(
            "SELECT inode FROM orphans WHERE inode > ? ORDER BY inode LIMIT ?", (after, limit)
        )
        return [row[0] for row in rows]

    # --- content ------------------------------------------------------------------------------

    def stripe(self, inode: int, index: int) -> Stripe | None:
        """The stripe at an index."""
        row = self._execute(
            f"SELECT {_STRIPE_COLUMNS} FROM stripes WHERE inode = ? AND stripe_index = ?", (inode, index)
        ).fetchone()
        return None if row is None else Stripe._make((*row[:8], unpack_disks(row[8])))

    def stripes_from(self, inode: int, first_index: int, limit: int = -1) -> Iterator[Stripe]:
        """Stripes at `first_index` and beyond, in order."""
        rows = self._execute(
            f"SELECT {_STRIPE_COLUMNS} FROM stripes WHERE inode = ? AND stripe_index >= ? "
            "ORDER BY stripe_index LIMIT ?",
            (inode, first_index, limit),
        )
        for row in rows:
            yield Stripe._make((*row[:8], unpack_disks(row[8])))

    def stripe_by_id(self, inode: int, stripe_id: int) -> Stripe | None:
        """A file's stripe of that id; looks at every stripe of the file."""
        row = self._execute(
            f"SELECT {_STRIPE_COLUMNS} FROM stripes WHERE inode = ? AND stripe_id = ?", (inode, stripe_id)
        ).fetchone()
        return None if row is None else Stripe._make((*row[:8], unpack_disks(row[8])))

    def stripes_after(self, after: tuple[int, int], limit: int) -> list[FileStripe]:
        """Every file's stripes behind (inode, index), in that order."""
        rows = self._execute(
            f"SELECT inode, {_STRIPE_COLUMNS} FROM stripes WHERE (inode, stripe_index) > (?, ?) "
            "ORDER BY inode, stripe_index LIMIT ?",
            (*after, limit),
        )
        return [FileStripe(row[0], Stripe._make((*row[1:9], unpack_disks(row[9])))) for row in rows]

    def put_stripe(self, inode: int, stripe: Stripe) -> None:
        """Make or replace the stripe at its index."""
        values = (inode, *stripe[:8], pack_disks(stripe.disks))
        done = self._execute("INSERT OR IGNORE INTO stripes VALUES (?,?,?,?,?,?,?,?,?,?)", values).rowcount
        if done:
            self._count("stripes", 1)
        else:
            self._execute("INSERT OR REPLACE INTO stripes VALUES (?,?,?,?,?,?,?,?,?,?)", values)

    def delete_stripes(self, inode: int, indexes: Iterable[int]) -> None:
        """Remove stripes that exist."""
        rows = [(inode, index) for index in indexes]
        self.connection.executemany("DELETE FROM stripes WHERE inode = ? AND stripe_index = ?", rows)
        self._count("stripes", -len(rows))

    def extent_spans(self, inode: int, start_bytes: int, end_bytes: int) -> list[Span]:
        """Extents that begin in [start, end), in order."""
        rows = self._execute(
            "SELECT offset_bytes, length_bytes FROM extents "
            "WHERE inode = ? AND offset_bytes >= ? AND offset_bytes < ? ORDER BY offset_bytes",
            (inode, start_bytes, end_bytes),
        )
        return [Span._make(row) for row in rows]

    def extent_spans_from(self, inode: int, start_bytes: int) -> Iterator[Span]:
        """Extents that begin at `start_bytes` or beyond, in order."""
        rows = self._execute(
            "SELECT offset_bytes, length_bytes FROM extents "
            "WHERE inode = ? AND offset_bytes >= ? ORDER BY offset_bytes",
            (inode, start_bytes),
        )
        for row in rows:
            yield Span._make(row)

    def extents(self, inode: int, start_bytes: int, end_bytes: int) -> list[Extent]:
        """Extents that begin in [start, end), in order, with their bytes."""
        rows = self._execute(
            "SELECT offset_bytes, data FROM extents "
            "WHERE inode = ? AND offset_bytes >= ? AND offset_bytes < ? ORDER BY offset_bytes",
            (inode, start_bytes, end_bytes),
        )
        return [Extent._make(row) for row in rows]

    def extent_data(self, inode: int, offset_bytes: int) -> bytes:
        """The bytes of the extent that begins there."""
        row = self._execute(
            "SELECT data FROM extents WHERE inode = ? AND offset_bytes = ?", (inode, offset_bytes)
        ).fetchone()
        return bytes(row[0])

    def put_extent(self, inode: int, offset_bytes: int, data: bytes) -> None:
        """Make; none begins there."""
        self._execute("INSERT INTO extents VALUES (?, ?, ?, ?)", (inode, offset_bytes, len(data), data))
        self._count("extents", 1)
        self._count("inline_bytes", len(data))

    def delete_extents(self, inode: int, spans: Iterable[Span]) -> None:
        """Remove extents that exist."""
        gone = list(spans)
        rows = [(inode, span.offset_bytes) for span in gone]
        self.connection.executemany("DELETE FROM extents WHERE inode = ? AND offset_bytes = ?", rows)
        self._count("extents", -len(rows))
        self._count("inline_bytes", -sum(span.length_bytes for span in gone))

    def tail_offset(self, inode: int, rows: int) -> int:
        """The lowest file offset from which on at most `rows` stripes and `rows` extents begin."""
        row = self.inode(inode)
        size = 0 if row is None else row.stripe_size_bytes
        # One row more than fits is the first that must stay: cut just behind its start.
        stripe = self._execute(
            "SELECT stripe_index FROM stripes WHERE inode = ? ORDER BY stripe_index DESC LIMIT 1 OFFSET ?",
            (inode, rows),
        ).fetchone()
        extent = self._execute(
            "SELECT offset_bytes FROM extents WHERE inode = ? ORDER BY offset_bytes DESC LIMIT 1 OFFSET ?",
            (inode, rows),
        ).fetchone()
        return max(0 if stripe is None else (stripe[0] + 1) * size, 0 if extent is None else extent[0] + 1)

    # --- allocations, garbage, sessions, nodes ------------------------------------------------

    def allocation(self, stripe_id: int) -> Allocation | None:
        """An allocated, uncommitted stripe."""
        row = self._execute("SELECT * FROM allocations WHERE stripe_id = ?", (stripe_id,)).fetchone()
        return None if row is None else Allocation._make((*row[:6], unpack_disks(row[6])))

    def allocations_of(self, session_id: int) -> list[Allocation]:
        """A session's uncommitted stripes, by id."""
        rows = self._execute(
            "SELECT * FROM allocations WHERE session_id = ? ORDER BY stripe_id", (session_id,)
        )
        return [Allocation._make((*row[:6], unpack_disks(row[6]))) for row in rows]

    def put_allocation(self, allocation: Allocation) -> None:
        """Remember an allocated stripe."""
        self._execute(
            "INSERT INTO allocations VALUES (?,?,?,?,?,?,?)", (*allocation[:6], pack_disks(allocation.disks))
        )
        self._count("allocations", 1)

    def delete_allocation(self, stripe_id: int) -> None:
        """Forget one."""
        done = self._execute("DELETE FROM allocations WHERE stripe_id = ?", (stripe_id,)).rowcount
        self._count("allocations", -done)

    def add_garbage(self, file: int, stripe_id: int, disks: tuple[int, ...]) -> None:
        """Every chunk of a stripe is garbage now."""
        rows = [(disk, stripe_id, file, index) for index, disk in enumerate(disks)]
        self.connection.executemany("INSERT INTO garbage VALUES (?, ?, ?, ?)", rows)
        self._count("garbage_chunks", len(rows))

    def delete_garbage(self, disk: int, stripe_ids: Iterable[int]) -> None:
        """Chunks were deleted from a disk."""
        cursor = self.connection.executemany(
            "DELETE FROM garbage WHERE disk = ? AND stripe_id = ?", [(disk, number) for number in stripe_ids]
        )
        self._count("garbage_chunks", -cursor.rowcount)

    def garbage(self, disk: int, after: int, limit: int) -> list[GarbageChunk]:
        """A disk's garbage with stripe ids above `after`, in order."""
        rows = self._execute(
            "SELECT file, stripe_id, chunk_index FROM garbage "
            "WHERE disk = ? AND stripe_id > ? ORDER BY stripe_id LIMIT ?",
            (disk, after, limit),
        )
        return [GarbageChunk._make(row) for row in rows]

    def garbage_disks(self) -> list[int]:
        """Disks that have garbage, by number: one index seek for each."""
        found: list[int] = []
        while True:
            row = self._execute(
                "SELECT min(disk) FROM garbage WHERE disk > ?", (found[-1] if found else -1,)
            ).fetchone()
            if row[0] is None:
                return found
            found.append(row[0])

    def has_session(self, session_id: int) -> bool:
        """Whether the session lives."""
        return session_id in self._sessions

    def acknowledged(self, session_id: int) -> int:
        """Operations of a session up to this one are forgotten."""
        return self._sessions.get(session_id, 0)

    def put_session(self, session_id: int, label: str) -> None:
        """Make a session."""
        self._execute("INSERT INTO sessions VALUES (?, ?, 0)", (session_id, label))
        self._sessions[session_id] = 0
        self._count("sessions", 1)

    def delete_session(self, session_id: int) -> None:
        """Remove a session and its remembered replies."""
        self.flush()
        self._execute("DELETE FROM sessions WHERE session_id = ?", (session_id,))
        self._execute("DELETE FROM replies WHERE session_id = ?", (session_id,))
        self._sessions.pop(session_id, None)
        self._highest.pop(session_id, None)
        self._count("sessions", -1)

    def sessions(self) -> list[Session]:
        """All sessions, by id."""
        self.flush()
        rows = self._execute("SELECT session_id, label, acknowledged FROM sessions ORDER BY session_id")
        return [Session._make(row) for row in rows]

    def put_reply(self, session_id: int, operation: int, acknowledged: int, reply: bytes) -> None:
        """Remember an operation's reply, and forget those acknowledged."""
        floor = self._sessions.get(session_id)
        if floor is None:
            return
        acknowledged = min(acknowledged, NUMBER_MAX)
        if floor < operation <= NUMBER_MAX:
            self._new_replies[session_id, operation] = reply
            if operation > self._highest.get(session_id, 0):
                self._highest[session_id] = operation
        if acknowledged > floor:
            self._sessions[session_id] = acknowledged
            self._session_dirty.add(session_id)

    def reply(self, session_id: int, operation: int) -> bytes | None:
        """The remembered reply of an operation."""
        if operation > self._highest.get(session_id, 0):
            return None
        fresh = self._new_replies.get((session_id, operation))
        if fresh is not None:
            return fresh
        row = self._execute(
            "SELECT reply FROM replies WHERE session_id = ? AND operation = ?", (session_id, operation)
        ).fetchone()
        return None if row is None else row[0]

    def put_node(self, node: NodeRecord) -> None:
        """Make or replace."""
        self._use("last_node", node.number)
        values = (node.number, node.name, "\n".join(node.addresses), node.grpc_address, node.machine_id)
        self._execute("INSERT OR REPLACE INTO nodes VALUES (?, ?, ?, ?, ?)", values)

    def put_disk(self, disk: DiskRecord) -> None:
        """Make or replace."""
        self._use("last_disk", disk.number)
        self._execute("INSERT OR REPLACE INTO disks VALUES (?, ?, ?, ?)", disk)

    def delete_disk(self, disk: int) -> None:
        """Remove a disk's row and all of its garbage."""
        self._execute("DELETE FROM disks WHERE number = ?", (disk,))
        gone = self._execute("DELETE FROM garbage WHERE disk = ?", (disk,)).rowcount
        self._count("garbage_chunks", -gone)

    def delete_node(self, node: int) -> None:
        """Remove a node's row."""
        self._execute("DELETE FROM nodes WHERE number = ?", (node,))

    def nodes(self) -> list[NodeRecord]:
        """All nodes, by number."""
        rows = self._execute("SELECT * FROM nodes ORDER BY number")
        return [NodeRecord(row[0], row[1], tuple(row[2].splitlines()), row[3], row[4]) for row in rows]

    def disks(self) -> list[DiskRecord]:
        """All disks, by number."""
        return [DiskRecord._make(row) for row in self._execute("SELECT * FROM disks ORDER BY number")]
