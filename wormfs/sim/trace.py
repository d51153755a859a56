"""What happened in a run, line by line, and the hash that two runs of one seed share."""

import hashlib
from collections.abc import Callable
from pathlib import Path


class Trace:
    """Lines under simulated time. `keep`: remember them, not only their hash.

    `folder`: where the run's disks are; errors name it, and it is another one each time.
    """

    def __init__(self, now_s: Callable[[], float], folder: Path, *, keep: bool = False) -> None:
        self._now_s = now_s
        self._folder = f"{folder}/"
        self._hash = hashlib.sha256()
        self._keep = keep
        self.lines: list[str] = []
        self.line_count = 0

    def note(self, who: str, what: str) -> None:
        """Add a line; it must hold nothing that differs between two runs of a seed."""
        line = f"{self._now_s():11.6f} {who:<9} {what.replace(self._folder, '')}"
        self._hash.update(line.encode() + b"\n")
        self.line_count += 1
        if self._keep:
            self.lines.append(line)

    @property
    def digest(self) -> str:
        """The hash of all lines so far."""
        return self._hash.hexdigest()
