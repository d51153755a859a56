"""Reading the whole state: its digest, and the problems its own structure can have (for fsck)."""

from collections.abc import Iterator

import xxhash

from wormfs.core.limits import INLINE_MAX_BYTES, ROOT_INODE
from wormfs.metadata.schema import TABLES
from wormfs.metadata.sqlite_state import SqliteState

_PROBLEMS: tuple[tuple[str, str], ...] = (
    (
        "entry {1!r} of directory {0} names inode {2}, which does not exist",
        "SELECT e.parent, e.name, e.inode FROM entries e LEFT JOIN inodes i USING (inode) "
        "WHERE i.inode IS NULL",
    ),
    (
        "entry {1!r} lies in inode {0}, which is not a directory",
        "SELECT e.parent, e.name FROM entries e LEFT JOIN inodes i ON i.inode = e.parent "
        "WHERE i.inode IS NULL OR i.mode & 61440 != 16384",
    ),
    (
        "inode {0} has {2} names, but nlink {1}",
        "SELECT i.inode, i.nlink, coalesce(n.names, 0) FROM inodes i LEFT JOIN "
        "(SELECT inode, count(*) AS names FROM entries GROUP BY inode) n USING (inode) "
        "WHERE i.mode & 61440 != 16384 AND i.nlink != coalesce(n.names, 0)",
    ),
    (
        "directory {0} has {2} subdirectories, but nlink {1}",
        "SELECT i.inode, i.nlink, coalesce(c.below, 0) FROM inodes i LEFT JOIN "
        "(SELECT parent, count(*) AS below FROM inodes WHERE parent > 0 AND parent != inode "
        "AND nlink > 0 GROUP BY parent) c ON c.parent = i.inode "
        "WHERE i.mode & 61440 = 16384 AND i.nlink > 0 AND i.nlink != coalesce(c.below, 0) + 2",
    ),
    (
        "directory {0} says it lies in directory {1}, which does not name it",
        "SELECT i.inode, i.parent FROM inodes i WHERE i.mode & 61440 = 16384 AND i.nlink > 0 "
        # Not by a subquery for each directory: that reads all entries of its parent again and again.
        f"AND i.inode != {ROOT_INODE} AND (i.parent, i.inode) NOT IN (SELECT parent, inode FROM entries)",
    ),
    (
        "inode {0} has no name and is not an orphan",
        "SELECT inode FROM inodes WHERE nlink = 0 AND inode NOT IN (SELECT inode FROM orphans)",
    ),
    (
        "orphan {0} does not exist or has a name",
        "SELECT o.inode FROM orphans o LEFT JOIN inodes i USING (inode) WHERE i.nlink IS NOT 0",
    ),
    (
        "a stripe or extent belongs to inode {0}, which is not a file",
        "SELECT DISTINCT s.inode FROM (SELECT inode FROM stripes UNION SELECT inode FROM extents) s "
        "LEFT JOIN inodes i USING (inode) WHERE i.inode IS NULL OR i.mode & 61440 != 32768",
    ),
    (
        "inode {0} holds {2} bytes, but allocated_bytes is {1}",
        "SELECT i.inode, i.allocated_bytes, "
        "coalesce((SELECT sum(valid_bytes) FROM stripes s WHERE s.inode = i.inode), 0) + "
        "coalesce((SELECT sum(length_bytes) FROM extents x WHERE x.inode = i.inode), 0) AS held "
        "FROM inodes i WHERE i.mode & 61440 = 32768 AND i.allocated_bytes != held",
    ),
    (
        "stripe {1} of inode {0} reaches past the file's end or its own",
        "SELECT s.inode, s.stripe_index FROM stripes s JOIN inodes i USING (inode) "
        "WHERE s.stripe_index * i.stripe_size_bytes + s.valid_bytes > i.size_bytes "
        "OR s.valid_bytes > s.length_bytes OR s.valid_bytes < 1",
    ),
    (
        "the extent at {1} of inode {0} is empty, over a stripe border or past the file's end",
        "SELECT x.inode, x.offset_bytes FROM extents x JOIN inodes i USING (inode) "
        "WHERE x.offset_bytes + x.length_bytes > i.size_bytes OR x.length_bytes != length(x.data) "
        "OR x.length_bytes < 1 OR x.offset_bytes / i.stripe_size_bytes "
        "!= (x.offset_bytes + x.length_bytes - 1) / i.stripe_size_bytes",
    ),
    (
        "extents of inode {0} overlap at {1}",
        "SELECT a.inode, b.offset_bytes FROM extents a JOIN extents b ON b.inode = a.inode "
        "AND b.offset_bytes > a.offset_bytes AND b.offset_bytes < a.offset_bytes + a.length_bytes "
        f"AND b.offset_bytes < a.offset_bytes + {INLINE_MAX_BYTES}",
    ),
    (
        "stripe {0} is both garbage and in a file",
        "SELECT DISTINCT g.stripe_id FROM stripes s JOIN garbage g ON g.stripe_id = s.stripe_id "
        "AND g.file = s.inode",
    ),
    (
        "stripe {0} is allocated to session {1}, which does not exist",
        "SELECT a.stripe_id, a.session_id FROM allocations a LEFT JOIN sessions s USING (session_id) "
        "WHERE s.session_id IS NULL",
    ),
)

_COUNTS = {
    "inodes": "SELECT count(*) FROM inodes",
    "stripes": "SELECT count(*) FROM stripes",
    "extents": "SELECT count(*) FROM extents",
    "inline_bytes": "SELECT coalesce(sum(length_bytes), 0) FROM extents",
    "garbage_chunks": "SELECT count(*) FROM garbage",
    "sessions": "SELECT count(*) FROM sessions",
    "orphans": "SELECT count(*) FROM orphans",
    "allocations": "SELECT count(*) FROM allocations",
}


def check_namespace(state: SqliteState) -> Iterator[str]:
    """Problems of the state's own structure, one line each. Reads every table."""
    state.flush()
    for text, query in _PROBLEMS:
        for row in state.connection.execute(query):
            yield text.format(*row)
    counts = state.counts()._asdict()
    for name, query in _COUNTS.items():
        found = state.connection.execute(query).fetchone()[0]
        if found != counts[name]:
            yield f"the state counts {counts[name]} {name.replace('_', ' ')}, but has {found}"
    yield from _unreachable(state)


def _unreachable(state: SqliteState) -> Iterator[str]:
    """Named directories that do not lead up to the root."""
    query = (
        "WITH RECURSIVE up(inode) AS (SELECT ? UNION SELECT e.inode FROM up JOIN entries e ON "
        "e.parent = up.inode) SELECT inode FROM inodes WHERE mode & 61440 = 16384 "
        "AND nlink > 0 AND inode NOT IN (SELECT inode FROM up)"
    )
    for (inode,) in state.connection.execute(query, (ROOT_INODE,)):
        yield f"directory {inode} cannot be reached from the root"


def digest(state: SqliteState) -> str:
    """A checksum of everything in the state: equal for equal logs, whatever the database's layout."""
    state.flush()
    total = xxhash.xxh3_128(repr(state.head_items()).encode())
    for table, order in TABLES:
        total.update(table.encode())
        for row in state.connection.execute(f"SELECT * FROM {table} ORDER BY {order}"):
            total.update(repr(row).encode())
    return total.hexdigest()
