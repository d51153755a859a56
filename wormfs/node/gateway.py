"""The FileSystem service: every operation of a mount over gRPC, on any node.

The gateway is a client like a mount: it opens a session at its first use and keeps it. Handles
are numbers of this node; one that is idle for five minutes, and in no call's use, is closed.
"""

import itertools
import logging
import os
import secrets
import stat
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import trio

from wormfs.client.filesystem import Entry, FileSystem, Handle, open_filesystem
from wormfs.client.options import ClientOptions
from wormfs.core.errors import BadHandleError, InvalidError, UnavailableError, WormError
from wormfs.core.limits import LISTING_PAGE_DEFAULT
from wormfs.node.drain import Drain
from wormfs.rpc import methods as m
from wormfs.rpc.registry import DataBuffer, Registry, RequestContext
from wormfs.rpc.v1 import filesystem_pb2 as pb
from wormfs.rpc.v1 import types_pb2

log = logging.getLogger(__name__)

IDLE_S = 300.0
PIECE_BYTES = 1 << 20
READ_MAX_BYTES = 4 << 20
LOST_SHOWN = 20
_OPEN_WAIT_S = 10.0
# This process may be the master: what a failing master loses must not be kept here alone.
_OPTIONS = ClientOptions(early_answers=False)


@dataclass(slots=True)
class _Held:
    handle: Handle
    used_s: float
    busy: int = 0
    written_bytes: int = 0  # in all
    saved_bytes: int = 0  # of those, known to be committed

    @property
    def unsaved_bytes(self) -> int:
        """Written, and not known to be committed."""
        return self.written_bytes - self.saved_bytes

    @contextmanager
    def saving(self) -> Iterator[None]:
        """What was written before a block that commits it is saved, unless the block raises."""
        written_bytes = self.written_bytes
        yield
        self.saved_bytes = max(self.saved_bytes, written_bytes)


def _attributes(entry: Entry) -> pb.AttrReply:
    return pb.AttrReply(attributes=entry.attributes)


class Gateway:
    """Handlers over one FileSystem. `run` must be running; `addresses` says where the cluster is."""

    def __init__(self, addresses: Callable[[], list[str]], label: str) -> None:
        self._addresses = addresses
        self._label = label
        self._wanted = trio.Event()
        self._tried = trio.Event()
        self._filesystem: FileSystem | None = None
        self._handles: dict[int, _Held] = {}
        self._unsaved_why = "the session ended before they were committed"
        self._drain = Drain()  # writes, and releases, which take a handle out of what `finish` saves
        # From anywhere: a handle of before a restart, or of another node, must not be another caller's here.
        self._numbers = itertools.count(1 + secrets.randbits(62))

    def register(self, registry: Registry) -> None:
        """Add the handlers."""
        registry.add(m.FILESYSTEM_RESOLVE, self._resolve)
        registry.add(m.FILESYSTEM_LOOKUP, self._lookup)
        registry.add(m.FILESYSTEM_GET_ATTR, self._getattr)
        registry.add(m.FILESYSTEM_SET_ATTR, self._setattr)
        registry.add(m.FILESYSTEM_CREATE, self._create)
        registry.add(m.FILESYSTEM_OPEN, self._open)
        registry.add(m.FILESYSTEM_RELEASE, self._release)
        registry.add(m.FILESYSTEM_READ, self._read)
        registry.add(m.FILESYSTEM_READ_STREAM, self._read_stream)
        registry.add(m.FILESYSTEM_WRITE, self._write)
        registry.add(m.FILESYSTEM_WRITE_STREAM, self._write_stream)
        registry.add(m.FILESYSTEM_FLUSH, self._flush)
        registry.add(m.FILESYSTEM_FSYNC, self._fsync)
        registry.add(m.FILESYSTEM_READ_DIR, self._readdir)
        registry.add(m.FILESYSTEM_MAKE_NODE, self._make_node)
        registry.add(m.FILESYSTEM_READ_LINK, self._readlink)
        registry.add(m.FILESYSTEM_LINK, self._link)
        registry.add(m.FILESYSTEM_RENAME, self._rename)
        registry.add(m.FILESYSTEM_UNLINK, self._unlink)
        registry.add(m.FILESYSTEM_REMOVE_DIR, self._remove_dir)
        registry.add(m.FILESYSTEM_SET_XATTR, self._set_xattr)
        registry.add(m.FILESYSTEM_GET_XATTR, self._get_xattr)
        registry.add(m.FILESYSTEM_LIST_XATTRS, self._list_xattrs)
        registry.add(m.FILESYSTEM_REMOVE_XATTR, self._remove_xattr)
        registry.add(m.FILESYSTEM_STAT_FS, self._statfs)

    # The session

    async def run(self) -> None:
        """Open the session when it is first wanted and hold it; again after it failed."""
        while True:
            await self._wanted.wait()
            try:
                async with open_filesystem(
                    self._addresses(), label=self._label, options=_OPTIONS
                ) as filesystem:
                    self._filesystem = filesystem
                    self._tried.set()
                    await self._close_idle_handles(filesystem)
            except WormError as error:
                log.warning("the gateway's session ended: %s", error.message)
            finally:
                self._filesystem = None
                self._tell_lost()
                self._handles.clear()
            self._wanted = trio.Event()
            self._tried.set()
            self._tried = trio.Event()

    async def finish(self, patience_s: float) -> None:
        """Take no more writes and commit what the handles hold, at most for `patience_s`. `run` goes on."""
        with trio.move_on_after(patience_s):
            await self._drain.finish(patience_s)
            filesystem = self._filesystem
            if filesystem is not None:
                async with trio.open_nursery() as nursery:
                    for held in self._handles.values():
                        if held.unsaved_bytes:
                            nursery.start_soon(self._save, filesystem, held)

    async def _save(self, filesystem: FileSystem, held: _Held) -> None:
        try:
            with held.saving():
                await filesystem.flush(held.handle)
        except WormError as error:
            self._unsaved_why = error.message

    def _tell_lost(self) -> None:
        """One line for all that goes with the session. What the client wrote back by itself counts, too."""
        lost: Counter[int] = Counter()
        for held in self._handles.values():
            if held.unsaved_bytes:
                lost[held.handle.inode] += held.unsaved_bytes
        if lost:
            which = ", ".join(
                f"inode {inode}: {count} bytes" for inode, count in list(lost.items())[:LOST_SHOWN]
            )
            log.error(
                "what gRPC clients wrote to %d files (%s%s) and did not flush may be lost: %s",
                len(lost),
                which,
                ", ..." if len(lost) > LOST_SHOWN else "",
                self._unsaved_why,
            )

    async def _close_idle_handles(self, filesystem: FileSystem) -> None:
        while True:
            await trio.sleep(IDLE_S / 10)
            limit_s = trio.current_time() - IDLE_S
            for number in list(self._handles):
                held = self._handles.get(number)  # while others were closed it may have been, or be in use
                if held is None or held.busy or held.used_s >= limit_s:
                    continue
                del self._handles[number]
                log.info("handle %d was idle for %g s and is closed", number, IDLE_S)
                await filesystem.release(held.handle)

    async def _fs(self) -> FileSystem:
        if self._filesystem is None:
            self._wanted.set()
            with trio.move_on_after(_OPEN_WAIT_S):
                await self._tried.wait()
            if self._filesystem is None:
                raise UnavailableError("this node has no session with the metadata master now; try again")
        return self._filesystem

    def _held(self, number: int) -> _Held:
        held = self._handles.get(number)
        if held is None:
            raise BadHandleError(
                f"handle {number} is not open on this node: it was released, or idle too long"
            )
        held.used_s = trio.current_time()
        return held

    @contextmanager
    def _in_use(self, number: int) -> Iterator[_Held]:
        """A handle that is not idle inside the block."""
        held = self._held(number)
        held.busy += 1
        try:
            yield held
        finally:
            held.busy -= 1
            held.used_s = trio.current_time()

    def _hold(self, handle: Handle) -> int:
        number = next(self._numbers)
        self._handles[number] = _Held(handle, trio.current_time())
        return number

    # Names and attributes

    async def _resolve(
        self, _: RequestContext, request: pb.ResolveRequest, __: DataBuffer | None
    ) -> pb.AttrReply:
        return _attributes(await (await self._fs()).resolve(request.path))

    async def _lookup(
        self, _: RequestContext, request: pb.LookupRequest, __: DataBuffer | None
    ) -> pb.AttrReply:
        return _attributes(await (await self._fs()).lookup(request.parent, request.name))

    async def _getattr(
        self, _: RequestContext, request: pb.GetAttrRequest, __: DataBuffer | None
    ) -> pb.AttrReply:
        return _attributes(await (await self._fs()).getattr(request.inode))

    async def _setattr(
        self, _: RequestContext, request: pb.SetAttrRequest, __: DataBuffer | None
    ) -> pb.AttrReply:
        fields = ("mode", "uid", "gid", "size_bytes", "atime_ns", "mtime_ns", "ctime_ns")
        wanted: dict[str, Any] = {name: getattr(request, name) for name in fields if request.HasField(name)}
        return _attributes(await (await self._fs()).setattr(request.inode, **wanted))

    async def _readdir(
        self, _: RequestContext, request: pb.ReadDirRequest, __: DataBuffer | None
    ) -> pb.ReadDirReply:
        limit = min(request.limit or LISTING_PAGE_DEFAULT, 10 * LISTING_PAGE_DEFAULT)
        page = await (await self._fs()).readdir(request.inode, request.after, limit)
        reply = pb.ReadDirReply(end=page.end)
        for name, entry in page.entries:
            attributes = entry.attributes
            made = reply.entries.add(name=name, inode=attributes.inode, mode=attributes.mode)
            if request.want_attributes:
                made.attributes.CopyFrom(attributes)
        return reply

    async def _make_node(
        self, _: RequestContext, request: pb.MakeNodeRequest, __: DataBuffer | None
    ) -> pb.AttrReply:
        fs = await self._fs()
        owner = (request.mode, request.uid, request.gid)
        if stat.S_ISREG(request.mode) and not request.exclusive:
            entry, handle = await fs.create(request.parent, request.name, *owner, os.O_WRONLY)
            await fs.release(handle)
            return _attributes(entry)
        return _attributes(
            await fs.make_node(request.parent, request.name, *owner, rdev=request.rdev, target=request.target)
        )

    async def _readlink(
        self, _: RequestContext, request: pb.ReadLinkRequest, __: DataBuffer | None
    ) -> pb.ReadLinkReply:
        return pb.ReadLinkReply(target=await (await self._fs()).readlink(request.inode))

    async def _link(self, _: RequestContext, request: pb.LinkRequest, __: DataBuffer | None) -> pb.AttrReply:
        return _attributes(await (await self._fs()).link(request.inode, request.parent, request.name))

    async def _rename(
        self, _: RequestContext, request: pb.RenameRequest, __: DataBuffer | None
    ) -> types_pb2.Empty:
        await (await self._fs()).rename(
            request.parent, request.name, request.new_parent, request.new_name, request.flags
        )
        return types_pb2.Empty()

    async def _unlink(
        self, _: RequestContext, request: pb.UnlinkRequest, __: DataBuffer | None
    ) -> types_pb2.Empty:
        await (await self._fs()).unlink(request.parent, request.name)
        return types_pb2.Empty()

    async def _remove_dir(
        self, _: RequestContext, request: pb.RemoveDirRequest, __: DataBuffer | None
    ) -> types_pb2.Empty:
        await (await self._fs()).rmdir(request.parent, request.name)
        return types_pb2.Empty()

    async def _set_xattr(
        self, _: RequestContext, request: pb.SetXattrRequest, __: DataBuffer | None
    ) -> types_pb2.Empty:
        await (await self._fs()).setxattr(request.inode, request.name, request.value, request.flags)
        return types_pb2.Empty()

    async def _get_xattr(
        self, _: RequestContext, request: pb.GetXattrRequest, __: DataBuffer | None
    ) -> pb.GetXattrReply:
        return pb.GetXattrReply(value=await (await self._fs()).getxattr(request.inode, request.name))

    async def _list_xattrs(
        self, _: RequestContext, request: pb.ListXattrsRequest, __: DataBuffer | None
    ) -> pb.ListXattrsReply:
        return pb.ListXattrsReply(names=await (await self._fs()).listxattrs(request.inode))

    async def _remove_xattr(
        self, _: RequestContext, request: pb.RemoveXattrRequest, __: DataBuffer | None
    ) -> types_pb2.Empty:
        await (await self._fs()).removexattr(request.inode, request.name)
        return types_pb2.Empty()

    async def _statfs(
        self, _: RequestContext, __: pb.StatFsRequest, ___: DataBuffer | None
    ) -> pb.StatFsReply:
        return await (await self._fs()).statfs()

    # Content

    async def _create(
        self, _: RequestContext, request: pb.CreateRequest, __: DataBuffer | None
    ) -> pb.OpenReply:
        entry, handle = await (await self._fs()).create(
            request.parent, request.name, request.mode, request.uid, request.gid, request.flags
        )
        return pb.OpenReply(attributes=entry.attributes, handle=self._hold(handle))

    async def _open(self, _: RequestContext, request: pb.OpenRequest, __: DataBuffer | None) -> pb.OpenReply:
        fs = await self._fs()
        handle = await fs.open(request.inode, request.flags)
        try:
            entry = await fs.getattr(request.inode)
        except BaseException:  # nobody learns of the handle
            with trio.CancelScope(shield=True):
                await fs.release(handle)
            raise
        return pb.OpenReply(attributes=entry.attributes, handle=self._hold(handle))

    async def _release(
        self, _: RequestContext, request: pb.ReleaseRequest, __: DataBuffer | None
    ) -> types_pb2.Empty:
        with self._drain.work():
            held = self._held(request.handle)
            del self._handles[request.handle]
            await (await self._fs()).release(held.handle)
        return types_pb2.Empty()

    async def _read(self, _: RequestContext, request: pb.ReadRequest, __: DataBuffer | None) -> pb.ReadReply:
        with self._in_use(request.handle) as held:
            if request.length_bytes > READ_MAX_BYTES:
                raise InvalidError(f"a Read is at most {READ_MAX_BYTES} bytes; use ReadStream for more")
            return await self._piece(held, request.offset_bytes, request.length_bytes)

    async def _piece(self, held: _Held, offset_bytes: int, length_bytes: int) -> pb.ReadReply:
        data = await (await self._fs()).read(held.handle, offset_bytes, length_bytes)
        return pb.ReadReply(data=bytes(data))  # copied before anything else runs

    async def _read_stream(self, _: RequestContext, request: pb.ReadRequest) -> AsyncIterator[pb.ReadReply]:
        offset, left = request.offset_bytes, request.length_bytes
        with self._in_use(request.handle):  # also while its reader takes its time
            while left:
                reply = await self._piece(self._held(request.handle), offset, min(left, PIECE_BYTES))
                if not reply.data:
                    return
                offset += len(reply.data)
                left -= len(reply.data)
                yield reply

    async def _write(
        self, _: RequestContext, request: pb.WriteRequest, __: DataBuffer | None
    ) -> pb.WriteReply:
        return pb.WriteReply(written_bytes=await self._put(request))

    async def _put(self, request: pb.WriteRequest) -> int:
        with self._drain.work(), self._in_use(request.handle) as held:
            fs = await self._fs()
            count = await fs.write(held.handle, request.offset_bytes, request.data)
            held.written_bytes += count
            if held.handle.flags & (os.O_SYNC | os.O_DSYNC):
                with held.saving():
                    await fs.fsync(held.handle)
            return count

    async def _write_stream(
        self, _: RequestContext, requests: AsyncIterator[pb.WriteRequest]
    ) -> pb.WriteReply:
        total = 0
        with ExitStack() as in_use:  # also while the writer takes its time
            used: set[int] = set()
            async for request in requests:
                if request.handle not in used:
                    in_use.enter_context(self._in_use(request.handle))
                    used.add(request.handle)
                total += await self._put(request)
        return pb.WriteReply(written_bytes=total)

    async def _flush(
        self, _: RequestContext, request: pb.FlushRequest, __: DataBuffer | None
    ) -> types_pb2.Empty:
        with self._in_use(request.handle) as held, held.saving():
            await (await self._fs()).flush(held.handle)
        return types_pb2.Empty()

    async def _fsync(
        self, _: RequestContext, request: pb.FsyncRequest, __: DataBuffer | None
    ) -> types_pb2.Empty:
        fs = await self._fs()
        if request.handle:
            with self._in_use(request.handle) as held, held.saving():
                await fs.fsync(held.handle, request.data_only)
        else:
            with ExitStack() as saving:
                for held in self._handles.values():
                    saving.enter_context(held.saving())
                await fs.sync()
        return types_pb2.Empty()
