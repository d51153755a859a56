"""The state port on SQLite in memory: the rules' tests run on the implementation that serves."""

import sqlite3
import stat
from collections.abc import Sequence

from wormfs.core.apply import apply
from wormfs.core.events import ClusterFormed, Event
from wormfs.core.namespace import decide_make_node
from wormfs.core.records import Inode
from wormfs.core.state import At, Decision
from wormfs.core.types import Policy
from wormfs.metadata.checks import check_namespace
from wormfs.metadata.sqlite_state import SqliteState

STRIPE_BYTES = 4 * 65536
POLICY = Policy(4, 2, 65536)


class World:
    """A state with a clock: decides and applies as the machine does."""

    def __init__(self) -> None:
        self.state = SqliteState(sqlite3.connect(":memory:", isolation_level=None))
        self.at = At(0, 1_000)
        self.apply(ClusterFormed("c", "test", POLICY))

    def next(self) -> At:
        """Where the next entry stands."""
        return At(self.at.sequence + 1, self.at.time_ns + 10)

    def apply(self, *events: Event) -> None:
        self.at = self.next()
        self.state.begin()
        for event in events:
            apply(self.state, event, self.at)

    def take(self, decision: Decision) -> Decision:
        """Apply a decision made at `next()`; its inode must be what the state then holds."""
        self.at = self.next()
        self.state.begin()
        for event in decision.events:
            apply(self.state, event, self.at)
        if decision.inode is not None:
            assert self.state.inode(decision.inode.inode) == decision.inode
        assert list(check_namespace(self.state)) == []
        return decision

    def make(self, parent: int, name: bytes, mode: int, **fields: int | bool | bytes) -> Inode:
        arguments = {"uid": 7, "gid": 8, **fields}
        made = self.take(
            decide_make_node(self.state, self.next(), parent=parent, name=name, mode=mode, **arguments)  # type: ignore[arg-type]
        )
        assert made.inode is not None
        return made.inode

    def file(self, name: bytes = b"file", parent: int = 1) -> Inode:
        return self.make(parent, name, stat.S_IFREG | 0o644)

    def folder(self, name: bytes = b"folder", parent: int = 1, mode: int = 0o755) -> Inode:
        return self.make(parent, name, stat.S_IFDIR | mode)

    def row(self, inode: int) -> Inode:
        found = self.state.inode(inode)
        assert found is not None
        return found

    def names(self, parent: int) -> Sequence[bytes]:
        return [name for name, _ in self.state.entry_page(parent, b"", 1_000)]
