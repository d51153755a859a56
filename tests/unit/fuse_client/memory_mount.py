"""A real mount of the in-memory stand-in, served by this process."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from fuse_client import device
from fuse_client.handlers import KernelTables, MountOperations
from fuse_client.kernel_cache import MountKernelCache
from fuse_client.serving import _serve
from tests.unit.fuse_client.memory_filesystem import MemoryFileSystem
from wormfs.cli.mounts import unmount

MountFactory = Callable[..., AbstractAsyncContextManager["Mounted"]]


@dataclass(slots=True)
class Mounted:
    point: Path
    filesystem: MemoryFileSystem
    tables: KernelTables
    kernel: MountKernelCache

    async def call(self, function: Callable[..., Any], *arguments: Any, limit_s: float = 20) -> Any:
        """A system call on the mount: in a thread, for this one has to answer it."""
        with trio.fail_after(limit_s):
            return await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True)


@asynccontextmanager
async def mount_memory(point: Path, filesystem: MemoryFileSystem | None = None) -> AsyncIterator[Mounted]:
    """Mount at `point` for the length of the block."""
    device.check_device()
    made = filesystem or MemoryFileSystem()
    tables = KernelTables()
    kernel = MountKernelCache(tables)
    device.attach(MountOperations(made.port, tables), point, source="wormfs:memory", read_only=False)
    ready = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_serve, point, kernel, ready.set)
        try:
            with trio.fail_after(20):
                await ready.wait()
            yield Mounted(point, made, tables, kernel)
        finally:
            with trio.CancelScope(deadline=trio.current_time() + 20, shield=True):
                await trio.to_thread.run_sync(lambda: unmount(point, lazy=True))
