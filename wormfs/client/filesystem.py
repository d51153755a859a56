"""The file system as one mount, gateway or tool sees it: what fuse_client and gRPC are thin layers over.

Built in three steps: LeasedStates (trust), OpenFiles (bytes), FileSystem (names and attributes).
"""

import logging
import os
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext

import trio

from wormfs.client.entries import DirPage, Entry, Handle, KernelCache, NoKernelCache, locked_for_writing
from wormfs.client.known_directories import Change
from wormfs.client.open_files import OpenFiles
from wormfs.client.options import ClientOptions
from wormfs.core.errors import (
    DataLossError,
    IsADirectoryWormError,
    NotFoundError,
    TooLargeError,
    WormError,
)
from wormfs.core.limits import FILE_SIZE_MAX_BYTES, ROOT_INODE
from wormfs.core.namespace import RENAME_EXCHANGE, check_name
from wormfs.rpc import methods
from wormfs.rpc.stream_client import CallReply
from wormfs.rpc.v1 import filesystem_pb2, metadata_pb2

__all__ = ["DirPage", "Entry", "FileSystem", "Handle", "KernelCache", "NoKernelCache", "open_filesystem"]
log = logging.getLogger(__name__)
_DOTS = (b".", b"..")


class FileSystem(OpenFiles):
    """Every operation of a mount. Made by `open_filesystem`.

    All methods raise WormError kinds, whose `errno` is the answer; each ends within the options'
    deadlines. Inode 1 is the root.
    """

    # --- names ---------------------------------------------------------------------------------

    async def lookup(self, parent: int, name: bytes) -> Entry:
        """Find a name in a directory; NotFoundError when it is not there."""
        if name not in _DOTS and self._directories.lacks(parent, name):
            check_name(name)
            raise NotFoundError(f"no entry {name!r} in directory {parent}")
        request = filesystem_pb2.LookupRequest(parent=parent, name=name)
        reply = await self.session.query(methods.METADATA_LOOKUP, request)
        return self._entry(reply.message.attributes, reply.pushes_seen, parent)

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
        known = self._directories.attributes(inode)
        if known is not None:
            return known
        marks = state.marks if state is not None else 0
        reply = await self.session.query(
            methods.METADATA_GET_ATTR, filesystem_pb2.GetAttrRequest(inode=inode)
        )
        entry = self._entry(reply.message.attributes, reply.pushes_seen)
        if state is not None and state.marks == marks:
            state.attributes_stale = False
        return entry

    async def readdir(self, inode: int, after: bytes, limit: int) -> DirPage:
        """List names behind `after`, with their attributes."""
        request = filesystem_pb2.ReadDirRequest(inode=inode, after=after, limit=limit, want_attributes=True)
        with self._directories.listing(inode) as listing:
            reply = await self.session.query(methods.METADATA_READ_DIR, request)
            if reply.message.end and not after:
                names = [each.name for each in reply.message.entries]
                listing.told(names, self.session.cacheable_s(reply.pushes_seen, inode))
        entries = [
            (each.name, self._entry(each.attributes, reply.pushes_seen, inode))
            for each in reply.message.entries
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
        reply = await self._make(request)
        if stat.S_ISDIR(mode):
            made = reply.message.attributes.inode
            self._directories.made(made, self.session.cacheable_s(reply.pushes_seen, made))
        return self._entry(reply.message.attributes, reply.pushes_seen, parent)

    async def _make(self, request: filesystem_pb2.MakeNodeRequest) -> CallReply[metadata_pb2.FileMapReply]:
        with self._directories.change(request.parent, adds=request.name) as change:
            reply = await self.session.command(methods.METADATA_MAKE_NODE, request)
            if reply.message.HasField("parent"):  # not when the name was there before
                trusted_s = self.session.cacheable_s(reply.pushes_seen, request.parent)
                change.told(trusted_s, reply.message.parent)
                self._made_after_losses(reply.message.attributes.inode)
        return reply

    async def link(self, inode: int, parent: int, name: bytes) -> Entry:
        """Give an inode another name."""
        request = filesystem_pb2.LinkRequest(inode=inode, parent=parent, name=name)
        request.caller.SetInParent()
        with self._directories.change(parent, adds=name) as change:
            reply = await self.session.command(methods.METADATA_LINK, request)
            change.told(self.session.cacheable_s(reply.pushes_seen, parent))
        return self._entry(reply.message.attributes, reply.pushes_seen, parent)

    async def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name; the content stays while it is open or has other names."""
        request = filesystem_pb2.UnlinkRequest(parent=parent, name=name)
        request.caller.SetInParent()
        with self._directories.change(parent, removes=name) as change:
            reply = await self.session.command(methods.METADATA_UNLINK, request)
            self._names_changed(reply, change)

    async def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        request = filesystem_pb2.RemoveDirRequest(parent=parent, name=name)
        request.caller.SetInParent()
        with self._directories.change(parent, removes=name) as change:
            reply = await self.session.command(methods.METADATA_REMOVE_DIR, request)
            self._names_changed(reply, change)

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        """Rename, replacing what `new_name` was; `flags` as renameat2(2): NOREPLACE or EXCHANGE."""
        request = filesystem_pb2.RenameRequest(
            parent=parent, name=name, new_parent=new_parent, new_name=new_name, flags=flags
        )
        request.caller.SetInParent()
        removes = b"" if flags & RENAME_EXCHANGE else name
        if parent == new_parent:
            with self._directories.change(parent, adds=new_name, removes=removes) as change:
                reply = await self.session.command(methods.METADATA_RENAME, request)
                self._names_changed(reply, change)
            return
        old_directory = self._directories.change(parent, removes=removes)
        new_directory = self._directories.change(new_parent, adds=new_name)
        with old_directory, new_directory:
            reply = await self.session.command(methods.METADATA_RENAME, request)
            self._names_changed(reply, old_directory, new_directory)

    def _names_changed(
        self,
        reply: CallReply[metadata_pb2.DirectoriesReply],
        change: Change,
        new_directory: Change | None = None,
    ) -> None:
        """Take note of what the master told; our own change is not recalled from us."""
        message = reply.message
        if not message.HasField("parent"):
            self._directories.drop_all_attributes()
            for state in self._states.values():
                state.mark_stale()
            return
        cacheable_s = self.session.cacheable_s
        change.told(cacheable_s(reply.pushes_seen, message.parent.inode), message.parent)
        if new_directory is not None and message.HasField("new_parent"):
            new_parent = message.new_parent
            new_directory.told(cacheable_s(reply.pushes_seen, new_parent.inode), new_parent)
        for inode in message.touched:
            self._directories.drop(inode)
            self._attributes_changed(inode, message.parent.change)  # one entry changed them all

    def _attributes_changed(self, inode: int, change: int = 0) -> None:
        touched = self._states.get(inode)
        if touched is not None:
            touched.mark_stale()
            if touched.write_lease:  # so nobody else changed it
                touched.attributes.change = max(touched.attributes.change, change)

    async def _xattr_changed(self, inode: int) -> None:
        self._attributes_changed(inode)
        state = self._states.get(inode)
        if state is not None and state.write_lease:
            await self.getattr(inode)  # its `change`, by which a failover tells our changes from others'

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
        while (state := self._states.get(inode)) is not None:
            # Uncommitted writes came first: their mtime must not win over this.
            async with locked_for_writing(state):
                if self._states.get(inode) is not state:
                    continue  # closed meanwhile, and perhaps opened anew
                cut = False
                if size_bytes is not None and size_bytes < state.size_bytes:
                    await self._writer.stored(state)
                    cut = self._writer.truncated(state, size_bytes)
                try:
                    await self._flush(state)
                    entry = await self._set_attributes(request)
                except BaseException:
                    if cut:  # unsaved bytes, of a file that may still be as long as it was
                        state.lost = DataLossError(f"inode {inode}: bytes cut off, which then failed")
                        state.adopt_attributes(state.attributes)
                    raise
                if size_bytes is not None:
                    state.size_bytes = entry.attributes.size_bytes
                return entry
        return await self._set_attributes(request)

    async def _set_attributes(self, request: filesystem_pb2.SetAttrRequest) -> Entry:
        resizing = self._resizing(request.inode) if request.HasField("size_bytes") else nullcontext()
        with self._directories.change(request.inode), resizing:
            try:
                reply = await self.session.command(methods.METADATA_SET_ATTR, request)
            except BaseException:  # it may have been done
                state = self._states.get(request.inode)
                if state is not None:
                    state.fresh = False
                    state.mark_stale()
                raise
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
        with self._directories.change(inode):
            await self.session.command(methods.METADATA_SET_XATTR, request)
        await self._xattr_changed(inode)

    async def removexattr(self, inode: int, name: bytes) -> None:
        """Remove an extended attribute."""
        request = filesystem_pb2.RemoveXattrRequest(inode=inode, name=name)
        request.caller.SetInParent()
        with self._directories.change(inode):
            await self.session.command(methods.METADATA_REMOVE_XATTR, request)
        await self._xattr_changed(inode)

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
        reply = await self._make(request)
        handle = await self._resized(self._opened(reply, flags, recalls_ended))
        if not reply.message.created and flags & os.O_TRUNC:
            try:
                await self.setattr(handle.inode, size_bytes=0)
            except BaseException:
                await self.release(handle)
                raise
        return self._entry(handle.state.attributes, reply.pushes_seen, parent), handle

    async def open(self, inode: int, flags: int) -> Handle:
        """Open a file; `flags` as open(2). O_APPEND and O_TRUNC are honoured."""
        truncates = bool(flags & os.O_TRUNC)
        if truncates and inode in self._states:  # behind what is uncommitted here
            await self.setattr(inode, size_bytes=0)
            truncates = False
        request = metadata_pb2.OpenFileRequest(
            inode=inode, write=flags & os.O_ACCMODE != os.O_RDONLY, truncate=truncates
        )
        request.caller.SetInParent()
        ask = self.session.command if truncates else self.session.query  # the log need not know
        recalls_ended = self._recalls_ended
        with self._resizing(inode) if truncates else nullcontext():
            reply = await ask(methods.METADATA_OPEN_FILE, request)
        if stat.S_ISDIR(reply.message.attributes.mode):
            raise IsADirectoryWormError(f"inode {inode} is a directory")
        return await self._resized(self._opened(reply, flags, recalls_ended))

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
