"""A figure, and medians of several runs."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `limit` is what it must reach (or stay under, where lower is better)."""

    value: float
    unit: str
    higher_is_better: bool = True
    limit: float | None = None

    @property
    def reached(self) -> bool:
        """Whether the limit holds; True without one."""
        if self.limit is None:
            return True
        return self.value >= self.limit if self.higher_is_better else self.value <= self.limit


def medians(rounds: Iterable[dict[str, Row]]) -> dict[str, Row]:
    """Row by row the median of the runs that have it."""
    gathered: dict[str, list[Row]] = {}
    for rows in rounds:
        for name, row in rows.items():
            gathered.setdefault(name, []).append(row)
    return {
        name: replace(rows[0], value=statistics.median(row.value for row in rows))
        for name, rows in gathered.items()
    }
