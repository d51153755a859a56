"""The port of the metadata log: what an engine (embedded, etcd) offers the machine."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

UPKEEP = -1
"""Instead of a session: an entry of core.ordering's upkeep."""


class LogRecord(NamedTuple):
    """One entry as the log keeps it: a serialized LogEntry under its sequence number."""

    sequence: int
    payload: bytes


class EventLog(Protocol):
    """A log of entries numbered without gaps, appended to by one master at a time."""

    @property
    def last_sequence(self) -> int:
        """The last entry's sequence number; 0 before the first."""

    @property
    def durable_sequence(self) -> int:
        """Entries up to this one survive a power loss."""

    @property
    def settled_sequence(self) -> int:
        """Entries up to this one are not taken back by a crash of this process."""

    def append(self, sequence: int, payload: bytes, session: int = 0) -> None:
        """Append the next entry. What is told of it waits for `confirm`.

        `session`: whose numbered operation it is; UPKEEP for what any session may keep, else 0.

        Raises NoSpaceError, TooLargeError or UnavailableError with nothing appended.
        """

    def read(self, after: int) -> Iterator[LogRecord]:
        """Entries behind `after`, in order. DataLossError when they are trimmed or damaged."""

    def watch(self, after: int) -> AsyncGenerator[LogRecord, None]:
        """Entries behind `after` for ever, as they come."""

    def trim(self, through: int) -> None:
        """Entries up to `through` are in every copy's snapshot: they may be forgotten."""

    async def wait_durable(self, sequence: int) -> None:
        """Return when entries up to `sequence` survive a power loss. UnavailableError: no copy is left."""

    async def admit(self) -> None:
        """Wait until commands may be decided."""

    async def confirm(self, *, hurry: bool = True) -> None:
        """Return when a crash of this process takes nothing back that was appended so far.

        `hurry`: without waiting for more entries that could go with them.

        Raises NotMasterError when this log's node is the master no more.
        """

    def answers_early(self, session: int) -> bool:
        """Whether what was seen so far may be told to a session that keeps `unsettled` entries."""

    def unsettled(self, after: int) -> Sequence[LogRecord]:
        """Entries behind `after` that a crash of this process may take back, in order."""

    def settled(self) -> AbstractAsyncContextManager[None]:
        """A moment at which nothing appended can be taken back; its body must not switch."""
