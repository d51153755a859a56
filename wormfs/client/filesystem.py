"""The file system as one mount, gateway or tool sees it: what fuse_client and gRPC are thin layers over.

Caching rests on leases. Whatever the master answers may be trusted while the session's lease
lasts and no recall said otherwise; `Entry.cache_s` hands that trust on to the kernel. A recall is
taken note of the moment it arrives (`on_recall`), before any later reply is seen.
"""

import logging
import os
import stat
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import trio

from wormfs.client.buffers import BytesPool
from wormfs.client.file_reader import FileReader, ReadPattern
from wormfs.client.file_writer import FileWriter
from wormfs.client.inode_state import InodeState
from wormfs.client.options import ClientOptions
from wormfs.client.peers import PeerTable
from wormfs.client.pieces import Buffer
from wormfs.client.session import Session
from wormfs.client.stripe_cache import StripeCache
from wormfs.client.stripe_reader import StripeReader
from wormfs.client.stripe_writer import StripeWriter
from wormfs.core.errors import (
    BadHandleError,
    DataLossError,
    IsADirectoryWormError,
    TooFewChunksError,
    TooLargeError,
    UnavailableError,
    WormError,
)
from wormfs.core.limits import FILE_MAP_PAGE_DEFAULT, FILE_SIZE_MAX_BYTES, ROOT_INODE
from wormfs.core.stripes import split_range
from wormfs.rpc import methods
from wormfs.rpc.stream_client import CallReply
from wormfs.rpc.v1 import filesystem_pb2, metadata_pb2, types_pb2

log = logging.getLogger(__name__)

REMEMBERED_CHANGES = 100_000
DIRTY_CHECK_EVERY_WRITES = 32


@dataclass(frozen=True, slots=True)
class Entry:
    """One inode's attributes, and for how many seconds the kernel may keep them."""

    attributes: types_pb2.Attributes
    cache_s: float


@dataclass(frozen=True, slots=True)
class DirPage:
    """Part of a directory, in byte order of the names."""

    entries: list[tuple[bytes, Entry]]
    end: bool


class Handle:
    """One open file."""

    __slots__ = ("flags", "keep_cache", "open", "pattern", "state")

    def __init__(self, state: InodeState, flags: int, *, keep_cache: bool) -> None:
        self.state = state
        self.flags = flags
        self.keep_cache = keep_cache  # pages the kernel has of the inode are still right
        self.pattern = ReadPattern()
        self.open = True

    @property
    def inode(self) -> int:
        """The file's inode."""
        return self.state.inode

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY


@asynccontextmanager
async def locked_for_writing(state: InodeState) -> AsyncIterator[None]:
    """Hold the state's lock in a block that may need the write lease."""
    await state.lock_for_writing()
    try:
        yield
    finally:
        state.lock.release()


class KernelCache(Protocol):
    """What a mount lets the client take back from the kernel."""

    async def invalidate_inode(self, inode: int, data: bool) -> None:
        """Drop attributes, and with `data` the pages, of an inode."""

    async def invalidate_entry(self, parent: int, name: bytes) -> None:
        """Drop a directory entry."""


class NoKernelCache:
    """For clients that no kernel caches for."""

    async def invalidate_inode(self, inode: int, data: bool) -> None:
        """Nothing to drop."""

    async def invalidate_entry(self, parent: int, name: bytes) -> None:
        """Nothing to drop."""


class FileSystem:
    """Every operation of a mount. Made by `open_filesystem`.

    All methods raise WormError kinds, whose `errno` is the answer; each ends within the options'
    deadlines. Inode 1 is the root.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        nursery: trio.Nursery,
        label: str,
        options: ClientOptions,
        kernel: KernelCache,
    ) -> None:
        self._nursery = nursery
        self._options = options
        self._kernel = kernel
        self._states: dict[int, InodeState] = {}
        self._page_changes: OrderedDict[int, int] = OrderedDict()
        self._closed: list[int] = []
        self._closing = trio.Event()
        self._writes = 0
        # A write lease granted while a recall of the one before was unanswered ends with that recall:
        self._giving_up: dict[int, trio.Event] = {}  # recalls of inodes that had no state
        self._recalls_ended = 0
        self._recall_ends: OrderedDict[int, int] = OrderedDict()  # inode -> count at its last end
        self.peers = PeerTable(addresses, nursery, options)
        self.session = Session(self.peers, nursery, self, label, options)
        pool = BytesPool(options.cache_bytes)
        cache = StripeCache(pool, options.cache_bytes, options.block_cache_bytes)
        self._reader = FileReader(StripeReader(self.peers, pool, options), cache, pool, nursery, options)
        self._stripe_writer = StripeWriter(self.peers, self.session, pool, options)
        self._writer = FileWriter(self._stripe_writer, self._reader, self.session, pool, nursery, options)

    # --- answers and what may be cached -----------------------------------------------------

    def _entry(self, attributes: types_pb2.Attributes, pushes_seen: int) -> Entry:
        state = self._states.get(attributes.inode)
        if state is None:
            return Entry(attributes, self.session.cacheable_s(pushes_seen))
        if attributes.change >= state.attributes.change:
            state.adopt_attributes(attributes)
        return Entry(state.local_attributes(), self.session.cacheable_s(pushes_seen))

    def _trusted(self, state: InodeState) -> bool:
        return state.fresh and self.session.lease_left_s() > 0

    # --- names ---------------------------------------------------------------------------------

    async def lookup(self, parent: int, name: bytes) -> Entry:
        """Find a name in a directory; NotFoundError when it is not there."""
        request = filesystem_pb2.LookupRequest(parent=parent, name=name)
        reply = await self.session.query(methods.METADATA_LOOKUP, request)
        return self._entry(reply.message.attributes, reply.pushes_seen)

    async def resolve(self, path: bytes) -> Entry:
        """Walk a path from the root, not following symlinks."""
        entry = await self.getattr(ROOT_INODE)
        for name in path.split(b"/"):
            if name not in (b"", b"."):
                entry = await self.lookup(entry.attributes.inode, name)
        return entry

    async def getattr(self, inode: int) -> Entry:
        """Return an inode's attributes."""
        state = self._states.get(inode)
        if state is not None and not state.attributes_stale and self._trusted(state):
            return Entry(state.local_attributes(), self.session.lease_left_s())
        reply = await self.session.query(
            methods.METADATA_GET_ATTR, filesystem_pb2.GetAttrRequest(inode=inode)
        )
        entry = self._entry(reply.message.attributes, reply.pushes_seen)
        if state is not None:
            state.attributes_stale = False
        return entry

    async def readdir(self, inode: int, after: bytes, limit: int) -> DirPage:
        """List names behind `after`, with their attributes."""
        request = filesystem_pb2.ReadDirRequest(inode=inode, after=after, limit=limit, want_attributes=True)
        reply = await self.session.query(methods.METADATA_READ_DIR, request)
        entries = [
            (each.name, self._entry(each.attributes, reply.pushes_seen)) for each in reply.message.entries
        ]
        return DirPage(entries, reply.message.end)

    async def readlink(self, inode: int) -> bytes:
        """Return a symlink's target."""
        request = filesystem_pb2.ReadLinkRequest(inode=inode)
        return (await self.session.query(methods.METADATA_READ_LINK, request)).message.target

    async def make_node(
        self,
        parent: int,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        *,
        rdev: int = 0,
        target: bytes = b"",
    ) -> Entry:
        """Make a directory, symlink, device node or closed file; ExistsError when the name is taken."""
        request = filesystem_pb2.MakeNodeRequest(
            parent=parent, name=name, mode=mode, uid=uid, gid=gid, rdev=rdev, target=target, exclusive=True
        )
        request.caller.SetInParent()
        reply = await self.session.command(methods.METADATA_MAKE_NODE, request)
        return self._entry(reply.message.attributes, reply.pushes_seen)

    async def link(self, inode: int, parent: int, name: bytes) -> Entry:
        """Give an inode another name."""
        request = filesystem_pb2.LinkRequest(inode=inode, parent=parent, name=name)
        request.caller.SetInParent()
        reply = await self.session.command(methods.METADATA_LINK, request)
        return self._entry(reply.message.attributes, reply.pushes_seen)

    async def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name; the content stays while it is open or has other names."""
        request = filesystem_pb2.UnlinkRequest(parent=parent, name=name)
        request.caller.SetInParent()
        await self.session.command(methods.METADATA_UNLINK, request)
        self._link_counts_changed()

    async def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        request = filesystem_pb2.RemoveDirRequest(parent=parent, name=name)
        request.caller.SetInParent()
        await self.session.command(methods.METADATA_REMOVE_DIR, request)

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        """Rename, replacing what `new_name` was; `flags` as renameat2(2): NOREPLACE or EXCHANGE."""
        request = filesystem_pb2.RenameRequest(
            parent=parent, name=name, new_parent=new_parent, new_name=new_name, flags=flags
        )
        request.caller.SetInParent()
        await self.session.command(methods.METADATA_RENAME, request)
        self._link_counts_changed()

    def _link_counts_changed(self) -> None:
        """Our own change is not recalled from us, and its reply does not name the inode."""
        for state in self._states.values():
            state.attributes_stale = True

    # --- attributes ------------------------------------------------------------------------------

    async def setattr(
        self,
        inode: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size_bytes: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        ctime_ns: int | None = None,
    ) -> Entry:
        """Change what is given; `size_bytes` truncates or extends."""
        if size_bytes is not None and not 0 <= size_bytes <= FILE_SIZE_MAX_BYTES:
            raise TooLargeError(f"inode {inode}: a size of {size_bytes} bytes is past the largest file")
        request = filesystem_pb2.SetAttrRequest(
            inode=inode,
            mode=mode,
            uid=uid,
            gid=gid,
            size_bytes=size_bytes,
            atime_ns=atime_ns,
            mtime_ns=mtime_ns,
            ctime_ns=ctime_ns,
        )
        request.caller.SetInParent()
        state = self._states.get(inode)
        if state is None:
            return await self._set_attributes(request)
        async with locked_for_writing(
            state
        ):  # uncommitted writes came first: their mtime must not win over this
            if size_bytes is not None and size_bytes < state.size_bytes:
                for storing in list(state.storing.values()):
                    await storing.ended.wait()
                self._writer.truncated(state, size_bytes)
            await self._flush(state)
            entry = await self._set_attributes(request)
            if size_bytes is not None:
                state.fresh = False
                state.drop_map()
                self._reader.drop(inode)
                state.size_bytes = entry.attributes.size_bytes
            return entry

    async def _set_attributes(self, request: filesystem_pb2.SetAttrRequest) -> Entry:
        reply = await self.session.command(methods.METADATA_SET_ATTR, request)
        return self._entry(reply.message.attributes, reply.pushes_seen)

    async def getxattr(self, inode: int, name: bytes) -> bytes:
        """Return an extended attribute's value; NoXattrError when there is none."""
        request = filesystem_pb2.GetXattrRequest(inode=inode, name=name)
        return (await self.session.query(methods.METADATA_GET_XATTR, request)).message.value

    async def listxattrs(self, inode: int) -> list[bytes]:
        """Return the names of an inode's extended attributes."""
        request = filesystem_pb2.ListXattrsRequest(inode=inode)
        return list((await self.session.query(methods.METADATA_LIST_XATTRS, request)).message.names)

    async def setxattr(self, inode: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set an extended attribute; `flags`: 1 XATTR_CREATE, 2 XATTR_REPLACE."""
        request = filesystem_pb2.SetXattrRequest(inode=inode, name=name, value=value, flags=flags)
        request.caller.SetInParent()
        await self.session.command(methods.METADATA_SET_XATTR, request)
        self._link_counts_changed()

    async def removexattr(self, inode: int, name: bytes) -> None:
        """Remove an extended attribute."""
        request = filesystem_pb2.RemoveXattrRequest(inode=inode, name=name)
        request.caller.SetInParent()
        await self.session.command(methods.METADATA_REMOVE_XATTR, request)
        self._link_counts_changed()

    async def statfs(self) -> filesystem_pb2.StatFsReply:
        """Return total and free space."""
        request = filesystem_pb2.StatFsRequest()
        return (await self.session.query(methods.METADATA_STAT_FS, request)).message

    # --- opening and closing ---------------------------------------------------------------------

    async def create(
        self, parent: int, name: bytes, mode: int, uid: int, gid: int, flags: int
    ) -> tuple[Entry, Handle]:
        """Make a regular file and open it; an existing one is opened unless O_EXCL is given."""
        request = filesystem_pb2.MakeNodeRequest(
            parent=parent,
            name=name,
            mode=stat.S_IFREG | stat.S_IMODE(mode),
            uid=uid,
            gid=gid,
            exclusive=bool(flags & os.O_EXCL),
            open=True,
        )
        request.caller.SetInParent()
        recalls_ended = self._recalls_ended
        reply = await self.session.command(methods.METADATA_MAKE_NODE, request)
        handle = self._opened(reply, flags, recalls_ended)
        if not reply.message.created and flags & os.O_TRUNC:
            try:
                await self.setattr(handle.inode, size_bytes=0)
            except BaseException:
                await self.release(handle)
                raise
        return self._entry(handle.state.attributes, reply.pushes_seen), handle

    async def open(self, inode: int, flags: int) -> Handle:
        """Open a file; `flags` as open(2). O_APPEND and O_TRUNC are honoured."""
        request = metadata_pb2.OpenFileRequest(inode=inode, write=flags & os.O_ACCMODE != os.O_RDONLY)
        state = self._states.get(inode)
        if flags & os.O_TRUNC:
            request.truncate = True
            if state is not None:
                await self.setattr(inode, size_bytes=0)
        request.caller.SetInParent()
        ask = self.session.command if request.truncate else self.session.query  # the log need not know
        recalls_ended = self._recalls_ended
        reply = await ask(methods.METADATA_OPEN_FILE, request)
        if stat.S_ISDIR(reply.message.attributes.mode):
            raise IsADirectoryWormError(f"inode {inode} is a directory")
        return self._opened(reply, flags, recalls_ended)

    def _opened(self, reply: CallReply[metadata_pb2.FileMapReply], flags: int, recalls_ended: int) -> Handle:
        """Make a handle; `recalls_ended` is the count when the request was sent."""
        attributes = reply.message.attributes
        inode = attributes.inode
        state = self._states.get(inode)
        keep_cache = state is not None or self._page_changes.get(inode) == attributes.change
        if state is None:
            state = self._states[inode] = InodeState(attributes)
            state.giving_up = self._giving_up.get(inode)
        state.open_count += 1
        self._adopt_map(state, reply)
        recalled = (
            state.recalls or state.giving_up is not None or self._recall_ends.get(inode, 0) > recalls_ended
        )
        if reply.message.write_lease and state.fresh and not recalled:
            state.write_lease = True
        return Handle(state, flags, keep_cache=keep_cache)

    def _adopt_map(self, state: InodeState, reply: CallReply[metadata_pb2.FileMapReply]) -> None:
        """Take a reply's attributes and map page, unless something newer is here."""
        message = reply.message
        if message.attributes.change < state.attributes.change:
            return
        if message.attributes.change > state.attributes.change or not self._trusted(state):
            if not state.has_dirty:
                self._reader.drop(state.inode)
            state.drop_map()
        state.adopt_attributes(message.attributes)
        state.adopt_map(message)
        state.fresh = self.session.cacheable_s(reply.pushes_seen) > 0
        state.attributes_stale = False

    async def release(self, handle: Handle) -> None:
        """Close a handle. With the last one, what could not be written is given up (and logged)."""
        if not handle.open:
            return
        handle.open = False
        state = handle.state
        if state.open_count == 1 and state.has_dirty:
            async with locked_for_writing(state):
                try:
                    await self._flush(state)
                except WormError as error:
                    if state.open_count == 1:
                        self._writer.discard(state, error)
        state.open_count -= 1
        self._closed.append(state.inode)
        self._closing.set()
        self._let_go_if_unused(state)

    def _let_go_if_unused(self, state: InodeState) -> None:
        if state.open_count == 0 and not state.recalls and self._states.get(state.inode) is state:
            self._let_go(state)

    def _let_go(self, state: InodeState) -> None:
        inode = state.inode
        if self._trusted(state):
            self._page_changes[inode] = state.attributes.change
            self._page_changes.move_to_end(inode)
            if len(self._page_changes) > REMEMBERED_CHANGES:
                self._page_changes.popitem(last=False)
        else:
            self._page_changes.pop(inode, None)
        self._stripe_writer.done_with(inode)
        self._reader.drop(inode)
        del self._states[inode]

    async def _tell_closed(self) -> None:
        """Report closed files to the master, many at a time, in the background."""
        while True:
            await self._closing.wait()
            self._closing = trio.Event()
            inodes, self._closed = self._closed, []
            request = metadata_pb2.CloseFilesRequest(session_id=self.session.session_id, inodes=inodes)
            try:
                await self.session.query(methods.METADATA_CLOSE_FILES, request)
            except WormError as error:  # a session that ended has no open files either
                log.warning("%d closed files were not reported: %s", len(inodes), error.message)

    # --- reading ---------------------------------------------------------------------------------

    async def read(self, handle: Handle, offset_bytes: int, length_bytes: int) -> Buffer:
        """Return up to `length_bytes`; fewer only at the end of the file.

        The answer may be a view that is valid only until the caller's next await: copy it to keep
        it. Raises DataLossError (EIO) when the bytes cannot be rebuilt.
        """
        if not handle.open or handle.flags & os.O_ACCMODE == os.O_WRONLY:
            raise BadHandleError(f"inode {handle.inode} is not open for reading")
        state = handle.state
        await self._ensure_map(state, offset_bytes // state.stripe_size_bytes)
        length_bytes = min(length_bytes, max(0, state.size_bytes - offset_bytes))
        if length_bytes == 0:
            return b""
        sequential = handle.pattern.note(offset_bytes, length_bytes)
        parts = list(split_range(offset_bytes, length_bytes, state.stripe_size_bytes))
        for attempt in range(2):
            entered = state.enter_read()
            try:
                if len(parts) == 1:
                    return await self._reader.read_part(
                        state, parts[0], handle.pattern, sequential=sequential
                    )
                out = bytearray()
                for part in parts:
                    await self._ensure_map(state, part.index)
                    out += await self._reader.read_part(state, part, handle.pattern, sequential=sequential)
            except TooFewChunksError as error:
                # Another client may have replaced the stripes and their chunks are collected.
                if attempt or not await self._map_moved(state, entered):
                    raise DataLossError(f"inode {state.inode}: {error.message}") from error
            else:
                return out
            finally:
                state.leave_read(entered)
        raise AssertionError("unreachable")

    async def _map_moved(self, state: InodeState, entered: int) -> bool:
        """Fetch the map anew; whether stripes changed since the read began."""
        if state.map_version != entered:
            return True
        before = {index: stripe.stripe_id for index, stripe in state.stripes.items()}
        state.fresh = False
        await self._ensure_map(state, 0)
        return before != {index: stripe.stripe_id for index, stripe in state.stripes.items()}

    async def _ensure_map(self, state: InodeState, index: int) -> None:
        """Have trusted attributes and the map page of a stripe index at hand."""
        for _ in range(3):
            trusted = self._trusted(state)
            if trusted and state.has_map(index):
                return
            if not trusted and not state.has_dirty:
                self._reader.drop(state.inode)
            await self._fetch_map(state, index)
        # Recalls keep overtaking the replies: what was read last was true when it was answered.

    async def _fetch_map(self, state: InodeState, index: int) -> None:
        request = metadata_pb2.GetFileMapRequest(
            inode=state.inode,
            first_index=index // FILE_MAP_PAGE_DEFAULT * FILE_MAP_PAGE_DEFAULT,
            count=FILE_MAP_PAGE_DEFAULT,
        )
        reply = await self.session.query(methods.METADATA_GET_FILE_MAP, request)
        self._adopt_map(state, reply)

    # --- writing ---------------------------------------------------------------------------------

    async def write(self, handle: Handle, offset_bytes: int, data: Buffer) -> int:
        """Take bytes; they are committed by flush, fsync, or when a stripe is full."""
        if not handle.open or not handle.writable:
            raise BadHandleError(f"inode {handle.inode} is not open for writing")
        if offset_bytes + len(data) > FILE_SIZE_MAX_BYTES:
            raise TooLargeError(f"inode {handle.inode}: a write past the largest file size")
        if len(data) == 0:
            return 0
        state = handle.state
        async with locked_for_writing(state):
            await self._ensure_write_lease(state)
            if handle.flags & os.O_APPEND:
                if state.size_bytes != offset_bytes:  # the kernel put the bytes elsewhere in its pages
                    self._nursery.start_soon(self._kernel.invalidate_inode, state.inode, True)
                offset_bytes = state.size_bytes
            first = offset_bytes // state.stripe_size_bytes
            last = (offset_bytes + len(data) - 1) // state.stripe_size_bytes
            for index in {first, last}:
                await self._ensure_map(state, index)
            await self._writer.write(state, offset_bytes, data)
            if handle.flags & (os.O_SYNC | os.O_DSYNC):
                await self._flush(state)
                await self._sync()
        self._writes += 1
        if self._writes % DIRTY_CHECK_EVERY_WRITES == 0:
            await self._limit_dirty(state)
        return len(data)

    async def _limit_dirty(self, writing: InodeState) -> None:
        if self._writer.dirty_bytes() <= self._options.dirty_bytes:
            return
        oldest = self._writer.oldest_dirty(writing)
        if oldest is not None:
            async with locked_for_writing(oldest):
                await self._flush(oldest)

    async def _ensure_write_lease(self, state: InodeState) -> None:
        """Hold the write lease; DataLossError when unsaved bytes lost their file to another writer."""
        for _ in range(8):
            if state.write_lease and self._trusted(state):
                return
            request = metadata_pb2.AcquireWriteLeaseRequest(inode=state.inode)
            request.caller.SetInParent()
            reply = await self.session.query(methods.METADATA_ACQUIRE_WRITE_LEASE, request)
            change = reply.message.attributes.change
            if state.has_dirty and state.lapsed_change and change != state.lapsed_change:
                error = DataLossError(
                    f"inode {state.inode}: the session was lost while data was unsaved, and the file has "
                    "changed since; the unsaved bytes are dropped"
                )
                self._writer.discard(state, error)
                raise error
            self._adopt_map(state, reply)
            if reply.message.write_lease and self.session.lease_left_s() > 0:
                # Even if it is being recalled again: that ends only when we let go of the lock.
                state.write_lease = state.fresh = True
        raise UnavailableError(f"inode {state.inode}: the write lease lapses as fast as it is granted")

    async def _flush(self, state: InodeState) -> None:
        """Commit what is dirty; the lock is held."""
        if not state.has_dirty:
            return
        await self._ensure_write_lease(state)
        for index in list(state.dirty):
            await self._ensure_map(state, index)
        await self._writer.flush(state)

    async def flush(self, handle: Handle) -> None:
        """Commit what was written: every other mount sees it afterwards."""
        state = handle.state
        if state.has_dirty:
            async with locked_for_writing(state):
                await self._flush(state)

    async def fsync(self, handle: Handle, data_only: bool = False) -> None:
        """Make what was written durable; an error means it is not, and the bytes are kept to try again."""
        await self.flush(handle)
        await self._sync()

    async def sync(self) -> None:
        """Make everything written and answered so far durable."""
        for state in list(self._states.values()):
            if state.has_dirty:
                async with locked_for_writing(state):
                    await self._flush(state)
        await self._sync()

    async def _sync(self) -> None:
        request = metadata_pb2.SyncRequest(session_id=self.session.session_id)
        await self.session.query(methods.METADATA_SYNC, request)

    def forget(self, inodes: Sequence[int]) -> None:
        """The kernel dropped these inodes. Their read leases lapse by themselves."""
        for inode in inodes:
            self._page_changes.pop(inode, None)

    # --- what the session asks --------------------------------------------------------------------

    def open_inodes(self) -> list[int]:
        """As SessionOwner."""
        return [inode for inode, state in self._states.items() for _ in range(state.open_count)]

    def write_leases(self) -> list[int]:
        """As SessionOwner."""
        return [inode for inode, state in self._states.items() if state.write_lease]

    def on_recall(self, recall: metadata_pb2.Recall) -> None:
        """As SessionOwner: from here on nothing recalled is trusted."""
        if recall.data:
            self._page_changes.pop(recall.inode, None)
        state = self._states.get(recall.inode)
        if state is not None:
            state.attributes_stale = True
            state.recalls += recall.write_lease
            if recall.data or recall.write_lease:
                state.fresh = False
        elif recall.write_lease:
            self._giving_up.setdefault(recall.inode, trio.Event())

    async def finish_recall(self, recall: metadata_pb2.Recall) -> None:
        """As SessionOwner: write back, drain reads of the old map, take pages and names from the kernel."""
        state = self._states.get(recall.inode)
        if state is not None and recall.write_lease:
            await self._give_up_write_lease(state)
        if state is not None and recall.data:
            if not state.has_dirty:
                self._reader.drop(state.inode)
            state.drop_map()
            await state.wait_readers_before(state.map_version)
        for name in recall.names:
            await self._kernel.invalidate_entry(recall.inode, name)
        if recall.data or recall.attributes:
            await self._kernel.invalidate_inode(recall.inode, recall.data)

    async def _give_up_write_lease(self, state: InodeState) -> None:
        """Commit under the lease's last moments. Until the master knows, none may be asked for anew."""
        async with state.lock:
            if state.write_lease:
                try:
                    await self._writer.flush(state)
                except WormError as error:
                    log.error(
                        "inode %d: recalled with bytes that cannot be saved now: %s", state.inode, error
                    )
                    state.lapsed_change = state.attributes.change
            state.write_lease = False
            state.fresh = False
            if state.giving_up is None:
                state.giving_up = trio.Event()

    def recall_ended(self, recall: metadata_pb2.Recall) -> None:
        """As SessionOwner."""
        if not recall.write_lease:
            return
        inode = recall.inode
        self._recalls_ended += 1
        self._recall_ends[inode] = self._recalls_ended
        self._recall_ends.move_to_end(inode)
        if len(self._recall_ends) > REMEMBERED_CHANGES:
            self._recall_ends.popitem(last=False)
        event = self._giving_up.pop(inode, None)
        if event is not None:
            event.set()
        state = self._states.get(inode)
        if state is not None:
            state.recalls = max(0, state.recalls - 1)
            state.lease_given_up()
            self._let_go_if_unused(state)

    def on_lapse(self) -> None:
        """As SessionOwner: no lease can be trusted; pages of open files must be read again."""
        self._distrust(frozenset())

    def on_resumed(self, write_leases: frozenset[int]) -> None:
        """As SessionOwner."""
        self._distrust(write_leases)

    def _distrust(self, kept_write_leases: frozenset[int]) -> None:
        """Ask again before serving anything cached, pages of open files included."""
        for state in self._states.values():
            if state.inode not in kept_write_leases:
                if state.has_dirty and not state.lapsed_change:
                    state.lapsed_change = state.attributes.change
                state.write_lease = False
            state.fresh = False
            state.attributes_stale = True
            self._nursery.start_soon(self._kernel.invalidate_inode, state.inode, True)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Connect, then keep the session and the cluster map fresh until cancelled."""
        await self.peers.refresh()
        await self._nursery.start(self.session.run)
        self._nursery.start_soon(self._tell_closed)
        self._nursery.start_soon(self._watch_map)
        task_status.started()

    async def _watch_map(self) -> None:
        while True:
            await trio.sleep(self._options.suspect_s / 2)
            try:
                await self.peers.refresh()
            except WormError as error:
                log.warning("the cluster map was not refreshed: %s", error.message)


@asynccontextmanager
async def open_filesystem(
    addresses: Sequence[str],
    *,
    label: str,
    options: ClientOptions | None = None,
    kernel: KernelCache | None = None,
) -> AsyncIterator[FileSystem]:
    """Connect to a cluster through any of `addresses`; everything is committed at the end of the block.

    Raises UnavailableError when the cluster cannot be reached.
    """
    chosen = options or ClientOptions()
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        filesystem = FileSystem(addresses, nursery, label, chosen, kernel or NoKernelCache())
        try:
            await nursery.start(filesystem.run)
            yield filesystem
            await filesystem.sync()
        except Exception as error:
            failure = error
        finally:
            with trio.move_on_after(chosen.connect_s, shield=True):
                try:
                    await filesystem.session.close()
                except WormError as error:
                    log.info("the session was not closed: %s", error.message)
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
