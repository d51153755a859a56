"""`wormfs mount` and `wormfs umount`: start the mount process and wait until it serves; end it well."""

import argparse
import fcntl
import os
import re
import select
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wormfs.cli.connection import add_cluster_options
from wormfs.cli.mounts import (
    MountRecord,
    absolute_point,
    clear_dead_mount,
    find_kernel_mount,
    holder_elsewhere,
    read_record,
    record_of_process,
    remove_record,
    unmount,
)
from wormfs.cli.parsing import Subparsers, command
from wormfs.core.errors import (
    ERRORS_BY_NAME,
    ConfigError,
    DataLossError,
    DeadlineError,
    InvalidError,
    NotDirectoryError,
    NotFoundError,
    UnavailableError,
    WormError,
)
from wormfs.settings.client import load_client_config

_READY_S = 60.0
_WRITTEN_S = 60.0
"""More than the mount process gives itself for writing back (fuse_client.serving)."""
_HELD_CHECK_S = 2.0
"""A mount process that writes nothing back ends sooner."""
_LEVELS = ("debug", "info", "warning", "error")


def add_parsers(subparsers: Subparsers) -> None:
    """Add `mount` and `umount`."""
    mounting = command(
        subparsers,
        "mount",
        run_mount,
        "mount the cluster's file system on a directory; returns when it is usable",
        examples=("wormfs mount /mnt/wormfs", "wormfs mount /mnt/wormfs --cluster host1:7400,host2:7400"),
    )
    mounting.add_argument("mountpoint", metavar="MOUNTPOINT", help="a directory")
    add_cluster_options(mounting)
    mounting.add_argument("--foreground", action="store_true", help="stay; log to standard error")
    mounting.add_argument("--read-only", action="store_true", help="refuse every change")
    mounting.add_argument("--log-file", type=Path, metavar="FILE", help="else in /var/log/wormfs (root)")
    mounting.add_argument("--log-level", choices=_LEVELS, default="info", help="what is logged (info)")
    unmounting = command(
        subparsers,
        "umount",
        run_umount,
        "unmount; returns when everything is written to the cluster",
        examples=("wormfs umount /mnt/wormfs",),
    )
    unmounting.add_argument("mountpoint", metavar="MOUNTPOINT", help="where it is mounted")


def run_mount(arguments: argparse.Namespace) -> int:
    """Mount. Raises WormError with one line that says why not."""
    point = _usable_point(arguments.mountpoint)
    load_client_config(cluster=arguments.cluster, config=arguments.config)  # complain here, in one line
    given = _process_command(arguments, point)
    log_file = _log_file(arguments.log_file, point)
    with _alone_at(point) as lock:
        if arguments.foreground:
            if lock is not None:
                os.set_inheritable(lock, True)  # for as long as it is mounted
            sys.stdout.flush()
            os.execv(given[0], given)
        process, answer = _start(given, log_file)
    if answer != "OK":
        raise _told_error(answer, log_file)
    print(f"mounted {point} (process {process}, log {log_file})")
    return 0


def run_umount(arguments: argparse.Namespace) -> int:
    """Unmount and wait for the mount process. Raises WormError when something is not written."""
    point = absolute_point(arguments.mountpoint)
    record = read_record(point) or record_of_process(point)
    mounted = find_kernel_mount(point)
    if mounted is None:
        if record is None:
            raise InvalidError(f"{point} is not a WormFS mount")
    elif clear_dead_mount(point):
        note = "had died, and what was not synced is lost; the dead mount is removed"
        print(f"wormfs: the mount process of {point} {note}", file=sys.stderr)
        return 0
    else:
        _unmount_within(point, _WRITTEN_S)
    if record is not None:
        _wait_written(point, record, mounted.device if mounted is not None else "")
    return 0


def _unmount_within(point: Path, limit_s: float) -> None:
    """umount(2) cannot be interrupted; it waits for answers that the mount process gives or gives up."""
    failure: list[WormError] = []

    def work() -> None:
        try:
            unmount(point, lazy=False)
        except WormError as error:
            failure.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise DeadlineError(f"{point} is not unmounted after {limit_s:.0f} s; the mount process hangs")
    if failure:
        raise failure[0]


def _wait_written(point: Path, record: MountRecord, device: str) -> None:
    gone = record.process.wait_gone(_HELD_CHECK_S)
    holder = 0 if gone else holder_elsewhere(device)
    if holder:
        raise DeadlineError(
            f"{point} is unmounted here, but process {holder} in another mount namespace (a container?) "
            f"still has it; the mount process {record.pid} goes on until that lets go"
        )
    if not gone and not record.process.wait_gone(_WRITTEN_S):
        raise DeadlineError(
            f"{point} is unmounted, but its process {record.pid} is still writing after {_WRITTEN_S:.0f} s; "
            f"see {record.log_file}"
        )
    left = read_record(point)
    if left is None or left.pid != record.pid:
        return
    remove_record(point)
    raise DataLossError(f"{point} is unmounted; {left.error or 'its process died'}; see {record.log_file}")


def _usable_point(given: str) -> Path:
    """The directory to mount on; a dead mount there is removed first."""
    if not given:
        raise InvalidError("an empty path is no mount point")
    point = absolute_point(given)
    clear_dead_mount(point)
    if find_kernel_mount(point) is not None:
        raise InvalidError(f"{point} is already a WormFS mount; unmount it first (wormfs umount {point})")
    try:
        mode = point.stat().st_mode
    except FileNotFoundError:
        raise NotFoundError(f"mount point {point} does not exist; make it first (mkdir {point})") from None
    except OSError as error:
        raise InvalidError(f"mount point {point}: {error.strerror}") from None
    if not stat.S_ISDIR(mode):
        raise NotDirectoryError(f"mount point {point} is not a directory")
    return point


@contextmanager
def _alone_at(point: Path) -> Iterator[int | None]:
    """Hold a lock on the directory to mount on: of two at once one would hide the other.

    None where the caller may not open it. Raises InvalidError when another one is about to mount there.
    """
    try:
        descriptor = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        yield None
        return
    except OSError as error:
        raise InvalidError(f"mount point {point}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidError(f"another `wormfs mount {point}` is under way") from None
        if find_kernel_mount(point) is not None:
            raise InvalidError(f"{point} is already a WormFS mount; unmount it first (wormfs umount {point})")
        yield descriptor
    finally:
        os.close(descriptor)


def _process_command(arguments: argparse.Namespace, point: Path) -> list[str]:
    made = [sys.executable, "-m", "fuse_client", str(point), "--log-level", arguments.log_level]
    if arguments.cluster is not None:
        made += ["--cluster", arguments.cluster]
    if arguments.config is not None:
        made += ["--config", str(arguments.config.absolute())]
    if arguments.read_only:
        made.append("--read-only")
    return made


def _log_file(given: Path | None, point: Path) -> Path:
    """Root's logs lie in /var/log/wormfs, a user's in the state folder of XDG."""
    if given is not None:
        return given.absolute()
    if os.getuid() == 0:
        folder = Path("/var/log/wormfs")
    else:
        folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "wormfs"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", str(point)).strip("-") or "root"
    return folder / f"mount-{name}.log"


def _start(given: list[str], log_file: Path) -> tuple[int, str]:
    """Start the mount process; its id and what it said first (empty: it ended without a word)."""
    try:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        output = log_file.open("ab")
    except OSError as error:
        raise ConfigError(f"cannot write the log file {log_file}: {error.strerror}") from None
    reading, writing = os.pipe()
    with output, os.fdopen(reading, "rb", buffering=0) as told:
        try:
            child = subprocess.Popen(
                [*given, "--log-file", str(log_file), "--ready-fd", str(writing)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                start_new_session=True,
                pass_fds=(writing,),
            )
        finally:
            os.close(writing)
        try:
            answer = _first_line(told.fileno(), _READY_S)
        except BaseException:
            child.terminate()
            raise
        if answer != "OK":
            child.wait(timeout=_READY_S)  # it told why, and ends
        child.returncode = 0  # detached on purpose: it outlives us
    return child.pid, answer


def _first_line(descriptor: int, limit_s: float) -> str:
    """What comes until the end or a newline. Raises UnavailableError after `limit_s`."""
    deadline = time.monotonic() + limit_s
    got = b""
    while not got.endswith(b"\n"):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise UnavailableError(f"the mount is not usable after {limit_s:.0f} s; gave up")
        piece = os.read(descriptor, 65536)
        if not piece:
            break
        got += piece
    return got.decode("utf-8", "replace").strip()


def _told_error(answer: str, log_file: Path) -> WormError:
    name, tab, message = answer.partition("\t")
    if not tab:
        return WormError(f"the mount process ended before the mount was usable; see {log_file}")
    return ERRORS_BY_NAME.get(name, WormError)(message)
