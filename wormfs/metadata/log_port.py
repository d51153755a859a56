"""The port of the metadata log: what an engine (embedded here, etcd later) offers the machine."""

from collections.abc import AsyncGenerator, Iterator
from typing import NamedTuple, Protocol


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

    def campaign(self, last_epoch: int) -> int:
        """Become master; answers the new epoch, above `last_epoch`. UnavailableError: another one is."""

    def append(self, sequence: int, payload: bytes) -> None:
        """Append the next entry: kept by a crash of this process when it returns, not of the machine.

        Raises NoSpaceError or UnavailableError with nothing appended.
        """

    def read(self, after: int) -> Iterator[LogRecord]:
        """Entries behind `after`, in order. DataLossError when they are trimmed or damaged."""

    def watch(self, after: int) -> AsyncGenerator[LogRecord, None]:
        """Entries behind `after` for ever, as they come."""

    def trim(self, through: int) -> None:
        """Entries up to `through` are in every copy's snapshot: they may be forgotten."""

    async def wait_durable(self, sequence: int) -> None:
        """Return when entries up to `sequence` survive a power loss. UnavailableError: no copy is left."""
