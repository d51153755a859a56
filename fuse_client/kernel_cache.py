"""What the client may make the kernel forget: the `KernelCache` of a mount.

Invalidations run in threads, for the kernel may block them on locks that are only released when we
answer a request. That request may in turn wait for another mount, which waits for us: so no
invalidation is waited for without end.

- A name: it needs the directory's lock. While a request of ours holds that lock, or when the lock
  is not had soon, all cached names are made to be looked up again, which needs no lock
  (Linux 6.16). On older kernels the name goes as soon as that request is answered.
- Pages: attributes go first and at once; the kernel then asks for attributes before its next read(2)
  and drops the pages itself when the modification time changed (FUSE_AUTO_INVAL_DATA, on by
  default). So an invalidation that is stuck on a page being read can be left to end by itself.
"""

import logging
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio

from fuse_client.handlers import KernelTables
from fuse_client.notify import KernelNotifier

_log = logging.getLogger(__name__)
_LOCKED_WAIT_S = 0.1
_HELD_PAGES_WAIT_S = 0.005  # a request of ours locks them: it may end soon, or wait for this very recall
_PAGES_WAIT_S = 2.0  # nothing of ours locks the pages: they may have to be written back first
_BEGUN_WAIT_S = 0.005
_BEGUN_LOOK_S = 0.0003  # about what a thread takes to be blocked on a page
_THREADS = 64
# An answer that made the kernel know an inode may still be on its way through the kernel.
_UNKNOWN_RETRIES = 3
_UNKNOWN_PAUSE_S = 0.002


class MountKernelCache:
    """Drops what a lease allowed the kernel to keep. Nothing is cached before `attach`."""

    one_change_at_a_time = True  # the kernel holds a directory's lock from request to answer

    def __init__(self, tables: KernelTables) -> None:
        self._tables = tables
        self._notifier: KernelNotifier | None = None
        self._threads = trio.CapacityLimiter(_THREADS)

    def attach(self, notifier: KernelNotifier | None) -> None:
        """The kernel side is there; None: it is gone, and with it all it cached."""
        before, self._notifier = self._notifier, notifier
        if before is not None and self._threads.borrowed_tokens == 0:
            before.close()

    async def invalidate_inode(self, inode: int, data: bool) -> None:
        """Drop attributes, and pages if `data`. Returns when done, or when waiting longer gains nothing."""
        tables = self._tables
        for listing in tables.listings:
            listing.note((inode,))
        notifier = self._notifier
        if notifier is None or inode not in tables.lookups:
            return
        notify = partial(notifier.invalidate_inode, inode, data=data)
        for _ in range(_UNKNOWN_RETRIES):
            if await self._wait(notify, _PAGES_WAIT_S, inode) is not False:
                return
            await trio.sleep(_UNKNOWN_PAUSE_S)

    async def invalidate_written(self, inode: int) -> None:
        """As `invalidate_inode`, from within a WRITE of the inode: returns once it is done or surely begun.

        The kernel throws away attributes it asked for before an invalidation began. One that begins
        before the WRITE is answered spares who reads next; that it waits for the pages this
        WRITE keeps locked does no harm.
        """
        notifier = self._notifier
        if notifier is None or inode not in self._tables.lookups:
            return
        thread_ids: list[int] = []

        def notify() -> bool:
            thread_ids.append(threading.get_native_id())
            return notifier.invalidate_inode(inode, data=True)

        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + _BEGUN_WAIT_S
            nursery.start_soon(self._leave_when_blocked, thread_ids, nursery.cancel_scope)
            try:
                await trio.to_thread.run_sync(notify, abandon_on_cancel=True, limiter=self._threads)
            except OSError:
                _log.exception("the kernel refused an invalidation")
            nursery.cancel_scope.cancel()

    async def _leave_when_blocked(self, thread_ids: list[int], scope: trio.CancelScope) -> None:
        while not (thread_ids and _is_blocked(thread_ids[0])):  # noqa: ASYNC110 - the kernel tells no event
            await trio.sleep(_BEGUN_LOOK_S)
        scope.cancel()

    async def invalidate_entry(self, parent: int, name: bytes) -> None:
        """Drop a name of a directory."""
        tables = self._tables
        for listing in tables.listings:
            if listing.inode == parent:
                listing.note((), (name,))
        notifier = self._notifier
        if notifier is None or parent not in tables.lookups:
            return
        if parent in tables.directories and self._drop_all_entries(notifier):
            return
        done = await self._wait(partial(notifier.invalidate_entry, parent, name), _LOCKED_WAIT_S)
        if done is None:
            self._drop_all_entries(notifier)

    def _drop_all_entries(self, notifier: KernelNotifier) -> bool:
        try:
            return notifier.invalidate_all_entries()
        except OSError:
            _log.exception("the kernel refused to drop cached names")
            return False

    async def _wait(self, notify: Callable[[], bool], wait_s: float, inode: int = 0) -> bool | None:
        """Run in a thread; its result, or None when it went on without us.

        With `inode`, it goes on without us soon after a request of ours locks pages of that inode.
        """
        result: bool | None = None
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + wait_s
            if inode:
                nursery.start_soon(self._hurry_when_held, inode, nursery.cancel_scope)
            try:
                result = await trio.to_thread.run_sync(notify, abandon_on_cancel=True, limiter=self._threads)
            except OSError:
                _log.exception("the kernel refused an invalidation")
                result = True
            nursery.cancel_scope.cancel()
        if result is None:
            _log.debug("an invalidation waits for a lock of the kernel; it goes on without us")
        return result

    async def _hurry_when_held(self, inode: int, scope: trio.CancelScope) -> None:
        await self._tables.pages.wait_held(inode)
        scope.deadline = min(scope.deadline, trio.current_time() + _HELD_PAGES_WAIT_S)


def _is_blocked(thread_id: int) -> bool:
    """Whether a thread of ours waits in the kernel for a lock of a page: state D, see proc(5)."""
    try:
        stat = Path(f"/proc/self/task/{thread_id}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].split()[0] == b"D"
