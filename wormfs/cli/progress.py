"""A progress bar on standard error, when that is a terminal; nothing otherwise."""

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import (
    Progress as RichProgress,
)


class Progress:
    """Shows how far one job is; a context manager."""

    def __init__(self, what: str, *, total: int | None = None, unit: str = "bytes") -> None:
        columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn()]
        if unit == "bytes":
            columns += [DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn()]
        else:
            columns += [MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn()]
        self._bar = RichProgress(
            *columns,
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        self._task = self._bar.add_task(what, total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def describe(self, what: str) -> None:
        """Name what is worked on now."""
        self._bar.update(self._task, description=what)

    def advance(self, amount: int) -> None:
        """So much more is done."""
        self._bar.advance(self._task, amount)

    def grow(self, amount: int) -> None:
        """So much more is to be done."""
        total = self._bar.tasks[0].total
        self._bar.update(self._task, total=(total or 0) + amount)

    def update(self, completed: int, total: int | None = None) -> None:
        """So much is done in all, of so much."""
        self._bar.update(self._task, completed=completed, total=total)
