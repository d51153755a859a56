"""One client of a recorded history, a process of its own: works in a folder until told to stop.

Arguments: FOLDER NAME FILE STOP. Appends an Operation (tests/history.py) as a JSON list to FILE for each
operation; ends when STOP exists. Everybody meets at the same names by the clock: a name is a time slot's.
"""

import ctypes
import errno
import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

SLOT_S = 0.25
_LIBC = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1


class Client:
    """The operations; each returns the value to record and whether it won."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._count = 0
        self._slot = 0
        self._random = random.Random(name)

    def create(self, path: Path) -> None:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))

    def rename(self, path: Path) -> None:
        own = self._folder / f"own-{path.name}-{self._name}"
        write_synced(own, self._name.encode(), os.O_EXCL)
        if _LIBC.renameat2(_AT_FDCWD, bytes(own), _AT_FDCWD, bytes(path), _RENAME_NOREPLACE):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def put(self, path: Path, number: int) -> None:
        # A name for each: a rename that failed may take effect later.
        new = self._folder / f"new-{self._name}-{number}"
        write_synced(new, str(number).encode(), os.O_EXCL)
        os.rename(new, path)

    def get(self, path: Path) -> int:
        try:
            return int(path.read_bytes())
        except FileNotFoundError:
            return 0

    def append(self, record: str) -> None:
        write_synced(self._folder / "log", f"{record}\n".encode(), os.O_APPEND)

    def keep(self, path: Path, data: bytes) -> None:
        write_synced(path, data, os.O_EXCL)

    def work(self, record: Callable[..., None], others: list[str]) -> None:
        """One round of everything."""
        self._count += 1
        number, slot = self._count, int(time.monotonic() / SLOT_S)
        if slot > self._slot:  # nobody tries twice: he would meet himself
            self._slot = slot
            record("create", f"x-{slot}", "", lambda: self.create(self._folder / f"x-{slot}"))
            record("rename", f"y-{slot}", "", lambda: self.rename(self._folder / f"y-{slot}"))
        record("put", self._name, str(number), lambda: self.put(self._folder / f"n-{self._name}", number))
        other = self._random.choice(others)
        record("get", other, "", lambda: self.get(self._folder / f"n-{other}"))
        line = f"{self._name}-{number:06d}"
        record("append", "log", line, lambda: self.append(line))
        data = self._random.randbytes(self._random.choice([10, 3000, 70_000, 300_000]))
        name = f"k-{self._name}-{number}"
        digest = hashlib.sha256(data).hexdigest()
        record("keep", name, digest, lambda: self.keep(self._folder / name, data))


def write_synced(path: Path, data: bytes, flags: int) -> None:
    """Write a file; returns when it is durable, whatever close(2) says then."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | flags, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main() -> None:
    folder, name, file, stop, *others = sys.argv[1:]
    client = Client(Path(folder), name)
    with Path(file).open("a", encoding="utf-8", buffering=1) as log:

        def record(kind: str, key: str, value: str, act: Callable[[], object]) -> None:
            begun_s, outcome, problem = time.monotonic(), "ok", ""
            try:
                answer = act()
            except OSError as error:
                outcome = "no" if error.errno == errno.EEXIST and kind in ("create", "rename") else "unknown"
                problem = errno.errorcode.get(error.errno or 0, str(error))
            else:
                value = str(answer) if kind == "get" else value
            line = [name, kind, key, value, outcome, begun_s, time.monotonic(), problem]
            log.write(json.dumps(line) + "\n")

        while not os.path.exists(stop):
            client.work(record, others)
            time.sleep(SLOT_S / 10)  # the rate of the load


if __name__ == "__main__":
    main()
