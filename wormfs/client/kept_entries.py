"""Log entries a session keeps because it was answered early: for the next master, should this one fail.

Invariant: the entries have consecutive sequence numbers, and none is known to be settled.
"""

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from wormfs.rpc.v1 import event_pb2

_INODE_FIELDS = ("inode", "parent", "new_parent", "replaced_inode")
"""Of events, all kinds of them."""


class KeptEntries:
    """Entries of one mastership, in order. Bounded by the master: it answers early only so far ahead."""

    def __init__(self) -> None:
        self._first = 1  # sequence of the first entry kept
        self._entries: list[bytes] = []

    def __len__(self) -> int:
        return len(self._entries)

    def keep(self, settled_sequence: int, first_sequence: int, entries: Sequence[bytes]) -> bool:
        """Keep entries behind those kept before; False when some between them never came."""
        self.settle(settled_sequence)
        behind = self._first + len(self._entries)
        if first_sequence > behind:
            return False
        self._entries.extend(entries[behind - first_sequence :])
        return True

    def settle(self, sequence: int) -> None:
        """Entries up to `sequence` survive the master."""
        count = sequence - self._first + 1
        if count > 0:
            del self._entries[:count]
            self._first = sequence + 1

    def inodes(self) -> frozenset[int] | None:
        """Inodes that the entries change; None when they cannot all be told (a newer program's, damaged)."""
        found: set[int] = set()
        try:
            entries = [event_pb2.LogEntry.FromString(payload) for payload in self._entries]
        except DecodeError:
            return None
        for event in (event for entry in entries for event in entry.events):
            kind = event.WhichOneof("kind")
            if kind is None:
                return None
            fields = getattr(event, kind).ListFields()
            found.update(value for field, value in fields if field.name in _INODE_FIELDS)
        return frozenset(found)

    def all(self) -> list[bytes]:
        """What the next master must be handed."""
        return list(self._entries)

    def clear(self) -> None:
        """They are settled, or lost; another mastership's come next, whose numbers begin anew."""
        self._entries.clear()
        self._first = 1
