"""The life of one mount: connect, mount, serve, unmount, write everything back.

However it ends (umount by hand, a signal, an error), the sequence is the same: the kernel stops
asking, what was written is committed and made durable within a deadline, the process ends.
"""

import contextlib
import ctypes
import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyfuse3
import trio

from fuse_client import device, turns
from fuse_client.handlers import KernelTables, MountOperations
from fuse_client.kernel_cache import MountKernelCache
from fuse_client.notify import KernelNotifier, find_fuse_descriptor
from wormfs.cli.mounts import find_kernel_mount, unmount
from wormfs.client.filesystem import FileSystem, open_filesystem
from wormfs.client.options import ClientOptions
from wormfs.core.errors import DeadlineError, UnavailableError, WormError
from wormfs.core.limits import ROOT_INODE

_log = logging.getLogger(__name__)
_WORKERS_IDLE = 8
_WORKERS_MAX = 96
_FIRST_ANSWER_S = 15.0
_DETACH_S = 10.0  # for the kernel to hand over pages written by mmap
_LAST_ANSWERS_S = 5.0
_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class MountSettings:
    """What one mount process was asked for."""

    point: Path
    cluster: tuple[str, ...]
    options: ClientOptions
    read_only: bool = False
    connect_s: float = 20.0
    stop_s: float = 30.0
    """How long writing back may take once the mount is over; past it the process ends regardless."""


async def serve_mount(settings: MountSettings, on_ready: Callable[[], None]) -> None:
    """Mount and serve until unmounted or told to stop by SIGTERM or SIGINT.

    `on_ready` is called when the mount is usable. Raises WormError when it cannot be mounted, or
    when not everything could be written back.
    """
    device.check_device()
    tables = KernelTables()
    kernel = MountKernelCache(tables)
    label = f"{os.uname().nodename}:{os.getpid()}:{settings.point}"
    phase = f"no node of the cluster {','.join(settings.cluster)} answered within {settings.connect_s:.0f} s"
    with _watchdog(settings.stop_s + _GRACE_S) as stopping, trio.CancelScope() as scope:
        scope.deadline = trio.current_time() + settings.connect_s
        async with open_filesystem(
            settings.cluster, label=label, options=settings.options, kernel=kernel
        ) as filesystem:
            await filesystem.getattr(ROOT_INODE)
            scope.deadline = math.inf
            device.attach(
                MountOperations(filesystem, tables),
                settings.point,
                source=f"wormfs:{settings.cluster[0]}",
                read_only=settings.read_only,
            )
            try:
                await _serve(settings.point, kernel, on_ready)
                failure: Exception | None = None
            except Exception as error:  # what was written is written back all the same
                failure = error
            finally:
                stopping()
                phase = (
                    f"the cluster did not confirm within {settings.stop_s:.0f} s that all is written: "
                    "what was never fsynced may be lost"
                )
                scope.deadline = trio.current_time() + settings.stop_s
            await _write_back(filesystem)
            if failure is not None:
                raise failure
    if scope.cancelled_caught:
        raise DeadlineError(phase)


async def _write_back(filesystem: FileSystem) -> None:
    try:
        await filesystem.sync()
    except WormError as error:
        raise type(error)(f"not everything could be written back: {error.message}") from error
    _log.info("everything is written back and durable")


async def _serve(point: Path, kernel: MountKernelCache, on_ready: Callable[[], None]) -> None:
    """Answer the kernel until the mount is gone; it is off the tree in any case."""
    mount = find_kernel_mount(point)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_on_signal, point, nursery.cancel_scope)
            nursery.start_soon(_announce, point, kernel, on_ready)
            turns.install()
            await pyfuse3.main(min_tasks=_WORKERS_IDLE, max_tasks=_WORKERS_MAX)
            _log.info("%s is unmounted", point)
            nursery.cancel_scope.cancel()
    except* WormError as group:
        raise group.exceptions[0] from None
    finally:
        if mount is not None and find_kernel_mount(point) == mount:
            with contextlib.suppress(WormError):
                unmount(point, lazy=True)
        kernel.attach(None)
        pyfuse3.close(unmount=False)  # what still waits for an answer gets an error now


async def _announce(point: Path, kernel: MountKernelCache, on_ready: Callable[[], None]) -> None:
    """Once the kernel has talked to us: set its limits, and say that the mount is usable."""
    kernel.attach(KernelNotifier(find_fuse_descriptor()))
    try:
        with trio.fail_after(_FIRST_ANSWER_S):
            await trio.to_thread.run_sync(os.stat, point, abandon_on_cancel=True)
    except (trio.TooSlowError, OSError) as error:
        raise UnavailableError(f"{point} is mounted but does not answer: {error}") from error
    await trio.to_thread.run_sync(device.tune, point)
    on_ready()


async def _stop_on_signal(point: Path, serving: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            _log.info("%s: unmounting %s", signal.Signals(number).name, point)
            break
        await _detach(point)
        pyfuse3.terminate()  # for what still has files open here
        await trio.sleep(_LAST_ANSWERS_S)
        _log.warning("requests that are still without an answer are given up")
        serving.cancel()


async def _detach(point: Path) -> None:
    """Take the mount off the tree, and have the kernel hand over pages written by mmap."""
    for step in (_hand_over_pages, _unmount_lazily):
        with trio.move_on_after(_DETACH_S) as waiting:
            try:
                await trio.to_thread.run_sync(step, point, abandon_on_cancel=True)
            except (OSError, WormError) as error:
                _log.warning("%s: %s", point, error)
        if waiting.cancelled_caught:
            _log.warning("the kernel is not done with %s after %.0f s; going on", point, _DETACH_S)


def _hand_over_pages(point: Path) -> None:
    descriptor = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
    try:
        ctypes.CDLL(None).syncfs(descriptor)
    finally:
        os.close(descriptor)


def _unmount_lazily(point: Path) -> None:
    if find_kernel_mount(point) is not None:
        unmount(point, lazy=True)


@contextlib.contextmanager
def _watchdog(limit_s: float) -> Iterator[Callable[[], None]]:
    """Yields what starts it: from then on this process ends within `limit_s`, whatever hangs."""

    def give_up() -> None:
        _log.critical("still not done %.0f s after the unmount: ending now", limit_s)
        os._exit(1)

    timer = threading.Timer(limit_s, give_up)
    timer.daemon = True
    try:
        yield timer.start
    finally:
        timer.cancel()
