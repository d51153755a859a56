"""The work of concurrent clients on mounts, recorded, and checked in the end."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

from tests import history_client
from tests.history import OK, UNKNOWN, Found, Operation, violations
from tests.history_client import write_synced

_END_S = 100.0  # an operation may last for its deadline, 30 s, and the machine may be busy


class RecordedWork:
    """Two clients on each mount work in the folder `name` while the context lasts."""

    def __init__(self, mounts: Sequence[Path], name: str, scratch: Path) -> None:
        """`scratch` is a new local folder."""
        self._mounts = mounts
        self._name = name
        self._scratch = scratch
        self._stop = scratch / "stop"
        self._clients: dict[str, subprocess.Popen[bytes]] = {}
        self.history: list[Operation] = []
        self.problems: Counter[str] = Counter()

    def __enter__(self) -> "RecordedWork":
        (self._mounts[0] / self._name).mkdir()
        names = [f"{number}{letter}" for number, _ in enumerate(self._mounts, 1) for letter in "ab"]
        for name in names:
            folder = self._mounts[int(name[:-1]) - 1] / self._name
            others = [other for other in names if other != name]
            self._clients[name] = subprocess.Popen(
                [sys.executable, history_client.__file__, folder, name, self._file(name), self._stop, *others]
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.touch()
        try:
            for name, process in self._clients.items():
                assert process.wait(_END_S) == 0, f"client {name} failed"
        finally:
            for process in self._clients.values():
                process.kill()
                process.wait(_END_S)
        for name in self._clients:
            for line in self._file(name).read_text(encoding="utf-8").splitlines():
                *fields, problem = json.loads(line)
                self.history.append(Operation(*fields))
                self.problems[f"{fields[1]} {fields[4]} {problem}"] += 1
        print(f"{self._name}: {len(self.history)} operations; {dict(sorted(self.problems.items()))}")

    def _file(self, name: str) -> Path:
        return self._scratch / f"client-{name}"

    def check(self, mount: Path) -> None:
        """What is seen through this mount fits what the clients were told; and they did work."""
        found = find(mount / self._name)
        broken = violations(self.history, found)
        if broken:
            raise AssertionError("\n".join(broken + self.around(broken)))
        done = Counter(each.kind for each in self.history if each.outcome == OK)
        assert all(done[kind] for kind in ("create", "rename", "put", "get", "append", "keep")), done

    def around(self, broken: Iterable[str]) -> list[str]:
        """The operations on the keys that these lines are about."""
        keys = {line.split(" ")[1].rstrip(":") for line in broken}
        return [str(each) for each in self.history if each.key in keys and each.kind != "append"]

    def unknown(self) -> list[Operation]:
        """Operations that failed."""
        return [each for each in self.history if each.outcome == UNKNOWN]

    def acknowledged(self, *, since_s: float, until_s: float) -> int:
        """How many changes were both begun and answered in this time of the monotonic clock."""
        return sum(
            each.outcome == OK and each.kind != "get" and since_s < each.begun_s and each.ended_s < until_s
            for each in self.history
        )


def find(folder: Path) -> Found:
    """What the clients left there."""
    names = {entry.name for entry in folder.iterdir()}

    def of(prefix: str) -> Iterable[str]:
        return sorted(name for name in names if name.startswith(prefix))

    return Found(
        names=frozenset(of("x-")),
        owners={name: (folder / name).read_text(encoding="ascii") for name in of("y-")},
        numbers={name.removeprefix("n-"): int((folder / name).read_bytes()) for name in of("n-")},
        records={name: (folder / name).read_text(encoding="ascii").splitlines() for name in of("log")},
        digests={name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in of("k-")},
    )


def synced_write_s(path: Path) -> float:
    """How long a new file's write and fsync take, in seconds."""
    begun_s = time.monotonic()
    write_synced(path, b"written", os.O_EXCL)
    return time.monotonic() - begun_s
