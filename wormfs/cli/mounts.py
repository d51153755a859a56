"""The WormFS mounts of this machine: the kernel's mount table, and who serves each mount.

A mount process keeps a record (JSON) in the runtime folder while it serves, and leaves it behind
only when it could not write everything back; then `error` says what was lost.
"""

import contextlib
import ctypes
import dataclasses
import errno
import hashlib
import json
import os
import re
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from wormfs.cli.processes import Process, command_line, find_process
from wormfs.core.errors import InvalidError, WormError

FILE_SYSTEM_TYPE = "fuse.wormfs"
_MOUNT_TABLE = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(rb"\\([0-7]{3})")
_MNT_FORCE = 1  # end the requests that nobody will answer
_MNT_DETACH = 2
_ANSWER_S = 5.0


@dataclass(frozen=True, slots=True)
class KernelMount:
    """One line of the kernel's mount table that is ours; `device` is its st_dev as MAJOR:MINOR."""

    point: Path
    device: str


def kernel_mounts(table: Path = _MOUNT_TABLE) -> list[KernelMount]:
    """Every WormFS mount of a mount namespace, the topmost last (proc(5), mountinfo); ours by default."""
    found = []
    for line in table.read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        if after.split(b" ", 1)[0].decode("ascii", "replace") != FILE_SYSTEM_TYPE:
            continue
        fields = before.split(b" ")
        point = _ESCAPE.sub(lambda match: bytes((int(match[1], 8),)), fields[4])
        found.append(KernelMount(Path(os.fsdecode(point)), fields[2].decode("ascii")))
    return found


def find_kernel_mount(point: Path) -> KernelMount | None:
    """The WormFS mount at exactly this absolute path."""
    return next((mount for mount in reversed(kernel_mounts()) if mount.point == point), None)


def holder_elsewhere(device: str) -> int:
    """A process whose mount namespace, not ours, has that device mounted; 0 when there is none.

    A container keeps a copy of what was mounted when it started, also after our umount.
    """
    seen = {os.readlink("/proc/self/ns/mnt")}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            namespace = os.readlink(entry / "ns/mnt")
            if namespace in seen:
                continue
            seen.add(namespace)
            if any(mount.device == device for mount in kernel_mounts(entry / "mountinfo")):
                return int(entry.name)
        except OSError:
            continue  # it ended, or is not ours to look at
    return 0


def absolute_point(given: str) -> Path:
    """The mount point's real path, found without asking what is mounted there (it may be dead)."""
    path = Path(os.path.abspath(given))
    here = Path(os.path.realpath(path.parent)) / path.name
    return here if find_kernel_mount(here) else Path(os.path.realpath(path))


@dataclass(frozen=True, slots=True)
class MountRecord:
    """Who serves a mount point. `error`: what could not be written back when it ended."""

    point: str
    pid: int
    start_ticks: int
    cluster: str
    log_file: str
    error: str = ""

    @property
    def process(self) -> Process:
        """The mount process."""
        return Process(self.pid, self.start_ticks)

    def write(self) -> None:
        """Keep it for `umount`, whole or not at all."""
        path = _record_path(Path(self.point))
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")
        new.replace(path)


def own_record(point: Path, cluster: str, log_file: str) -> MountRecord:
    """A record that names this very process."""
    own = find_process(os.getpid())
    return MountRecord(str(point), os.getpid(), own.start_ticks if own else 0, cluster, log_file)


def read_record(point: Path) -> MountRecord | None:
    """The record of a mount point, if a whole one is there."""
    try:
        return MountRecord(**json.loads(_record_path(point).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def record_of_process(point: Path) -> MountRecord | None:
    """Who serves a mount point whose record is another user's, or lies in another session's folder."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            line = command_line(int(entry.name))
            ours = line[1:4] == ["-m", "fuse_client", str(point)]
            process = find_process(int(entry.name)) if ours else None
            if process is not None:
                log_file = line[line.index("--log-file") + 1] if "--log-file" in line[:-1] else ""
                return MountRecord(str(point), process.pid, process.start_ticks, "", log_file)
    return None


def remove_record(point: Path) -> None:
    """The mount ended well, or its end was told."""
    _record_path(point).unlink(missing_ok=True)


def runtime_folder() -> Path:
    """Where records lie: /run/wormfs for root, else in XDG_RUNTIME_DIR, else below the temporary folder."""
    if os.getuid() == 0:
        return Path("/run/wormfs")
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base, "wormfs") if base else Path(tempfile.gettempdir(), f"wormfs-{os.getuid()}")


def _record_path(point: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(point)).hexdigest()[:24]
    return runtime_folder() / f"mount-{digest}.json"


def unmount(point: Path, *, lazy: bool, force: bool = False) -> None:
    """Take the mount point off the tree; without `lazy` only when nothing there is in use.

    `force` (root only) ends requests without an answer; for mounts whose process is dead. Blocks while the
    kernel writes back pages of mmap. Raises WormError: it is in use, or cannot be unmounted.
    """
    if os.getuid() != 0:
        _fusermount(point, lazy=lazy)
        return
    library = ctypes.CDLL(None, use_errno=True)
    flags = (_MNT_DETACH if lazy else 0) | (_MNT_FORCE if force else 0)
    if library.umount2(os.fsencode(point), flags) == 0:
        return
    number = ctypes.get_errno()
    raise _failure(point, os.strerror(number), in_use=number == errno.EBUSY)


def _fusermount(point: Path, *, lazy: bool) -> None:
    command = ["fusermount3", "-u", *(("-z",) if lazy else ()), "--", str(point)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise InvalidError("fusermount3 is missing; install fuse3") from None
    if done.returncode != 0:
        reason = done.stderr.strip().replace("\n", "; ")
        raise _failure(point, reason, in_use="busy" in reason.lower())


def _failure(point: Path, reason: str, *, in_use: bool) -> WormError:
    if in_use:
        return WormError(f"{point} is in use: close what is open there and leave the directory, then repeat")
    return WormError(f"cannot unmount {point}: {reason}")


def clear_dead_mount(point: Path) -> bool:
    """Take off a mount whose process is gone; False when there is none."""
    cleared = False
    while find_kernel_mount(point) is not None and _is_dead(point):
        unmount(point, lazy=True, force=True)
        cleared = True
    if cleared:
        with contextlib.suppress(OSError):
            remove_record(point)
    return cleared


def _is_dead(point: Path) -> bool:
    record = read_record(point) or record_of_process(point)
    if record is not None:
        return not record.process.running
    alive: list[bool] = []

    def ask() -> None:
        try:
            os.statvfs(point)
        except OSError as error:
            if error.errno == errno.ENOTCONN:  # the kernel has nobody to ask
                return
        alive.append(True)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_ANSWER_S)
    return not alive
