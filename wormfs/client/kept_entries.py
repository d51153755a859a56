"""Log entries a session keeps because it was answered early: for the next master, should this one fail.

Invariant: the entries have consecutive sequence numbers, and none is known to be settled.
"""

from collections.abc import Sequence


class KeptEntries:
    """Entries of one mastership, in order. Bounded by the master: it answers early only so far ahead."""

    def __init__(self) -> None:
        self._first = 1  # sequence of the first entry kept
        self._entries: list[bytes] = []

    def __len__(self) -> int:
        return len(self._entries)

    def keep(self, first_sequence: int, entries: Sequence[bytes]) -> None:
        """Keep entries behind those kept before; what lies before a gap is settled."""
        behind = self._first + len(self._entries)
        if first_sequence > behind or not self._entries:
            self._entries.clear()
            self._first = behind = first_sequence
        self._entries.extend(entries[behind - first_sequence :])

    def settle(self, sequence: int) -> None:
        """Entries up to `sequence` survive the master."""
        count = sequence - self._first + 1
        if count > 0:
            del self._entries[:count]
            self._first = sequence + 1

    def all(self) -> list[bytes]:
        """What the next master must be handed."""
        return list(self._entries)

    def clear(self) -> None:
        """They are settled, or lost."""
        self._entries.clear()
