"""Attaching to the kernel: mount options, the FUSE device, the kernel's limits for this mount."""

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyfuse3

from fuse_client.handlers import MountOperations
from wormfs.cli.mounts import find_kernel_mount
from wormfs.core.errors import InvalidError

_log = logging.getLogger(__name__)
_READ_AHEAD_KB = 4096
_MAX_BACKGROUND = 64  # asynchronous requests (readahead, mmap write-back) the kernel keeps in flight
_CONGESTION = 48


def mount_options(source: str, *, read_only: bool) -> set[str]:
    """Options of the mount.

    The kernel checks permissions. As root every user may enter, and set-id bits and device nodes
    work as on a local disk; the kernel forces nosuid and nodev on mounts of others.
    """
    options = {"default_permissions", f"fsname={source}", "subtype=wormfs"}
    if os.getuid() == 0:
        options |= {"allow_other", "suid", "dev"}
    if read_only:
        options.add("ro")
    return options


def check_device() -> None:
    """Raises InvalidError when this machine or user cannot mount FUSE file systems."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        raise InvalidError(
            f"cannot open /dev/fuse: {error.strerror}; load the kernel module (modprobe fuse), "
            "and in a container pass the device in"
        ) from None
    if os.getuid() != 0 and shutil.which("fusermount3") is None:
        raise InvalidError("fusermount3 is missing, which users other than root need to mount; install fuse3")


def attach(operations: MountOperations, point: Path, *, source: str, read_only: bool) -> None:
    """Mount. Raises InvalidError with libfuse's own reason."""
    with _captured_stderr() as reasons:
        try:
            pyfuse3.init(operations, str(point), mount_options(source, read_only=read_only))
        except RuntimeError as error:
            reason = "; ".join(reasons()) or str(error)
            raise InvalidError(f"cannot mount at {point}: {reason}") from None


@contextlib.contextmanager
def _captured_stderr() -> Iterator["_Reader"]:
    """What C code prints to standard error meanwhile: libfuse gives its reasons nowhere else."""
    with tempfile.TemporaryFile() as caught:
        before = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield _Reader(caught.fileno())
        finally:
            os.dup2(before, 2)
            os.close(before)


class _Reader:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __call__(self) -> list[str]:
        text = os.pread(self._descriptor, 4096, 0).decode("utf-8", "replace")
        return [line.strip() for line in text.splitlines() if line.strip()]


def tune(point: Path) -> None:
    """Raise the kernel's readahead and its number of background requests, where we may."""
    mount = find_kernel_mount(point)
    if mount is None:
        return
    connection = Path("/sys/fs/fuse/connections", mount.device.partition(":")[2])
    _set(Path("/sys/class/bdi", mount.device, "read_ahead_kb"), _READ_AHEAD_KB)
    _set(connection / "max_background", _MAX_BACKGROUND)
    _set(connection / "congestion_threshold", _CONGESTION)


def _set(path: Path, value: int) -> None:
    try:
        path.write_text(str(value), encoding="ascii")
    except OSError as error:
        _log.info("%s stays as it is: %s", path, error.strerror)
