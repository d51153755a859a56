"""The SQLite schema of the metadata state, and its migrations.

The database is a cache: it can always be rebuilt from a snapshot (an older copy of itself) and
the log. All integers fit 63 bits (limits.py bounds sizes; ids count up from 1). Names and values
are BLOBs, so that order and equality are those of bytes.
"""

import sqlite3

from wormfs.core.errors import NewerProgramError

SCHEMA_V1 = """
-- One row per value of which there is one: see StateHead in sqlite_state.py.
CREATE TABLE head (
    key   TEXT PRIMARY KEY,
    value BLOB NOT NULL           -- INTEGER, TEXT or BLOB by key
) WITHOUT ROWID;

CREATE TABLE nodes (
    number       INTEGER PRIMARY KEY,
    name         TEXT NOT NULL,
    addresses    TEXT NOT NULL,   -- one per line, preferred first
    grpc_address TEXT NOT NULL,
    machine_id   TEXT NOT NULL
);

CREATE TABLE disks (
    number INTEGER PRIMARY KEY,
    uuid   TEXT NOT NULL UNIQUE,
    node   INTEGER NOT NULL,
    path   TEXT NOT NULL
);

CREATE TABLE inodes (
    inode               INTEGER PRIMARY KEY,  -- 1 is the root; never used twice
    parent              INTEGER NOT NULL,     -- of a directory: where its entry is (root: itself); else 0
    mode                INTEGER NOT NULL,     -- st_mode: type and permission bits
    nlink               INTEGER NOT NULL,     -- entries naming it; directory: 2 + subdirectories; 0: orphan
    uid                 INTEGER NOT NULL,
    gid                 INTEGER NOT NULL,
    rdev                INTEGER NOT NULL,
    size_bytes          INTEGER NOT NULL,     -- symlink: length of target; directory: 0
    allocated_bytes     INTEGER NOT NULL,     -- sum of stripes.valid_bytes and extent lengths
    atime_ns            INTEGER NOT NULL,     -- ns since 1970 UTC, as the next two
    mtime_ns            INTEGER NOT NULL,
    ctime_ns            INTEGER NOT NULL,
    change              INTEGER NOT NULL,     -- sequence of the last log entry that changed the row
    stripe_size_bytes   INTEGER NOT NULL,     -- file range of one stripe; fixed when made
    target              BLOB NOT NULL         -- of a symlink; else empty
);

CREATE TABLE entries (
    parent INTEGER NOT NULL,      -- a directory's inode
    name   BLOB NOT NULL,         -- 1 to 255 bytes
    inode  INTEGER NOT NULL,      -- exists in inodes, nlink > 0
    PRIMARY KEY (parent, name)
) WITHOUT ROWID;

CREATE TABLE xattrs (
    inode INTEGER NOT NULL,
    name  BLOB NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (inode, name)
) WITHOUT ROWID;

-- Committed stripes. Every chunk of one was durable before its row came.
CREATE TABLE stripes (
    inode              INTEGER NOT NULL,
    stripe_index       INTEGER NOT NULL,   -- covers file bytes from stripe_index * stripe_size_bytes
    stripe_id          INTEGER NOT NULL,   -- never used twice; in no other table
    codec              INTEGER NOT NULL,
    k                  INTEGER NOT NULL,
    m                  INTEGER NOT NULL,
    chunk_length_bytes INTEGER NOT NULL,
    length_bytes       INTEGER NOT NULL,   -- bytes encoded
    valid_bytes        INTEGER NOT NULL,   -- 1 to length_bytes: still part of the file; beyond: zeros
    disks              BLOB NOT NULL,      -- k+m disk numbers, 4 bytes big endian each
    PRIMARY KEY (inode, stripe_index)
) WITHOUT ROWID;

-- File bytes held here, over stripes and holes. Of one inode: never overlapping, never over a
-- stripe border, below size_bytes, at most INLINE_MAX_BYTES in one stripe's range.
CREATE TABLE extents (
    inode        INTEGER NOT NULL,
    offset_bytes INTEGER NOT NULL,
    length_bytes INTEGER NOT NULL,         -- of data, at least 1
    data         BLOB NOT NULL
);
CREATE UNIQUE INDEX extents_by_offset ON extents (inode, offset_bytes, length_bytes);

-- Inodes without a name, kept for those who hold them open.
CREATE TABLE orphans (inode INTEGER PRIMARY KEY);

CREATE TABLE sessions (
    session_id   INTEGER PRIMARY KEY,      -- never used twice
    label        TEXT NOT NULL,
    acknowledged INTEGER NOT NULL          -- operations up to this one are answered and forgotten
);

-- Replies to repeat when an operation is retried; none with operation <= acknowledged.
CREATE TABLE replies (
    session_id INTEGER NOT NULL,
    operation  INTEGER NOT NULL,
    reply      BLOB NOT NULL,              -- the serialized reply message
    PRIMARY KEY (session_id, operation)
) WITHOUT ROWID;

-- Stripes given to sessions, neither committed nor given up.
CREATE TABLE allocations (
    stripe_id  INTEGER PRIMARY KEY,
    session_id INTEGER NOT NULL,
    inode      INTEGER NOT NULL,
    codec      INTEGER NOT NULL,
    k          INTEGER NOT NULL,
    m          INTEGER NOT NULL,
    disks      BLOB NOT NULL               -- as in stripes
);
CREATE INDEX allocations_by_session ON allocations (session_id);

-- Chunks that may exist on disks and that no file needs.
CREATE TABLE garbage (
    disk        INTEGER NOT NULL,
    stripe_id   INTEGER NOT NULL,
    file        INTEGER NOT NULL,          -- the inode the chunk was written for
    chunk_index INTEGER NOT NULL,
    PRIMARY KEY (disk, stripe_id)
) WITHOUT ROWID;
"""

MIGRATIONS: tuple[str, ...] = (SCHEMA_V1,)
"""Script i takes a database from version i to i + 1. Never edit one that was released."""

TABLES: tuple[tuple[str, str], ...] = (
    ("nodes", "number"),
    ("disks", "number"),
    ("inodes", "inode"),
    ("entries", "parent, name"),
    ("xattrs", "inode, name"),
    ("stripes", "inode, stripe_index"),
    ("extents", "inode, offset_bytes"),
    ("orphans", "inode"),
    ("sessions", "session_id"),
    ("replies", "session_id, operation"),
    ("allocations", "stripe_id"),
    ("garbage", "disk, stripe_id"),
)
"""Every table but head, and the order of rows in which the digest reads it."""


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a database (maybe an empty one) to the newest schema, each step in its transaction.

    Raises NewerProgramError when it is newer than this program.
    """
    connection.execute(
        "CREATE TABLE IF NOT EXISTS migrations (version INTEGER PRIMARY KEY)"  # the steps taken
    )
    row = connection.execute("SELECT coalesce(max(version), 0) FROM migrations").fetchone()
    version = int(row[0])
    if version > len(MIGRATIONS):
        raise NewerProgramError(
            f"metadata schema {version} is newer than this program's {len(MIGRATIONS)}: upgrade WormFS"
        )
    for step in range(version, len(MIGRATIONS)):
        connection.executescript(
            f"BEGIN; {MIGRATIONS[step]} INSERT INTO migrations VALUES ({step + 1}); COMMIT;"
        )
