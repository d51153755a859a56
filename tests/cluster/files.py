"""Files with known bytes, for tests that take servers and disks away."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from random import Random

SMALL_BYTES = 3_000  # inside the metadata
SHORT_BYTES = 150_001  # one short stripe
LONG_BYTES = 9_000_017  # several stripes and a short last one


def digest(path: Path) -> str:
    """SHA-256 of a file's content, read as a user would."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(slots=True)
class KnownFiles:
    """What was written and fsynced: digests by path."""

    digests: dict[Path, str]

    @classmethod
    def write(cls, folder: Path, random: Random, counts: dict[int, int]) -> "KnownFiles":
        """Write and fsync `counts` (size in bytes -> number of files) into `folder`."""
        known = cls({})
        for size, count in counts.items():
            for number in range(count):
                known.add(folder / f"f-{size}-{number}", random.randbytes(size))
        return known

    def add(self, path: Path, data: bytes) -> None:
        """Write one file, fsync it and remember its digest."""
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self.digests[path] = hashlib.sha256(data).hexdigest()

    def check(self) -> None:
        """Every byte reads back."""
        wrong = [path for path, expected in self.digests.items() if digest(path) != expected]
        assert not wrong, f"wrong bytes in {wrong}"
