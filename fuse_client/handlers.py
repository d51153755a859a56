"""The FUSE request handlers: each one translates, and calls the client's `FileSystem` once.

Permissions are the kernel's (`default_permissions`); caches are the kernel's under leases that
`FileSystem` holds. The kernel has applied the umask already; we apply it again, for some do not.
"""

import errno
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, SetattrFields

from fuse_client.attributes import mode_without_set_id, to_kernel, to_statvfs
from fuse_client.errno_map import answers_errno
from fuse_client.tables import HeldInodes, Listing, LookupCounts, OpenFile, OpenTable
from wormfs.core.errors import WormError
from wormfs.core.limits import LISTING_PAGE_DEFAULT, ROOT_INODE

if TYPE_CHECKING:
    from wormfs.client.filesystem import Entry, FileSystem

_log = logging.getLogger(__name__)
_PERMISSIONS = 0o7777
_DOTS = (b".", b"..")
_UNKNOWN_INODE = 0xFFFFFFFF  # as libfuse's FUSE_UNKNOWN_INO: nothing looks at the inode of ".."
# Not enforced, hence refused: the kernel does not ask us for access lists, and file capabilities would
# cost a request per write to look for (the kernel wants to take them, and remembers no "there is none").
_REFUSED_XATTRS = frozenset((b"system.posix_acl_access", b"system.posix_acl_default", b"security.capability"))
_CAPABILITY = b"security.capability"
_STACKTRACE = b"fuse_stacktrace"
FETCHED_ANEW_MAX = 3
"""Times that a request for entries fetches the rest of a page anew, since what comes next was changed."""


class KernelTables:
    """All that a mount knows of the kernel's state; shared with the kernel cache's invalidations."""

    def __init__(self) -> None:
        self.lookups = LookupCounts()
        self.files: OpenTable[OpenFile] = OpenTable()
        self.listings: OpenTable[Listing] = OpenTable()
        self.directories = HeldInodes()
        self.pages = HeldInodes()

    @contextmanager
    def changing(self, *inodes: int, names: Sequence[tuple[int, bytes]] = ()) -> Iterator[None]:
        """This mount changes inodes and names meanwhile: what open listings fetched before is not given.

        Nobody recalls our own changes, and the kernel takes what a listing says for newer than they are.
        """
        try:
            yield
        finally:
            for listing in self.listings:
                listing.note(inodes, [name for parent, name in names if parent == listing.inode])


class MountOperations(pyfuse3.Operations):
    """One mount's handlers."""

    supports_dot_lookup = True
    enable_writeback_cache = False  # the kernel would ignore sizes changed by other mounts
    enable_acl = False

    def __init__(self, filesystem: "FileSystem", tables: KernelTables) -> None:
        self._filesystem = filesystem
        self._changing = tables.changing
        self._lookups = tables.lookups
        self._files = tables.files
        self._listings = tables.listings
        self._directories = tables.directories
        self._pages = tables.pages

    def _given(self, entry: "Entry") -> EntryAttributes:
        """The entry for an answer that makes the kernel know the inode once more."""
        self._lookups.add(entry.attributes.inode)
        return to_kernel(entry)

    # --- names

    @answers_errno
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """Find a name."""
        with self._directories.hold(parent_inode):
            return self._given(await self._filesystem.lookup(parent_inode, name))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """The kernel dropped inodes from its cache. Never fails."""
        gone = self._lookups.subtract(inode_list)
        if gone:
            try:
                self._filesystem.forget(gone)
            except Exception:
                _log.exception("forget: a bug in WormFS")

    @answers_errno
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a closed file, a device node, a fifo or a socket."""
        with self._directories.hold(parent_inode), self._changing(parent_inode):
            made = await self._filesystem.make_node(
                parent_inode, name, mode & ~ctx.umask, ctx.uid, ctx.gid, rdev=rdev
            )
            return self._given(made)

    @answers_errno
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        """Make a directory."""
        wanted = stat.S_IFDIR | (mode & _PERMISSIONS & ~ctx.umask)
        with self._directories.hold(parent_inode), self._changing(parent_inode):
            made = await self._filesystem.make_node(parent_inode, name, wanted, ctx.uid, ctx.gid)
            return self._given(made)

    @answers_errno
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a symbolic link."""
        with self._directories.hold(parent_inode), self._changing(parent_inode):
            made = await self._filesystem.make_node(
                parent_inode, name, stat.S_IFLNK | 0o777, ctx.uid, ctx.gid, target=target
            )
            return self._given(made)

    @answers_errno
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """Give an inode one more name."""
        with self._directories.hold(new_parent_inode), self._changing(inode, new_parent_inode):
            return self._given(await self._filesystem.link(inode, new_parent_inode, new_name))

    @answers_errno
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Remove a name; the inode lives on while it is open."""
        removed = ((parent_inode, name),)
        with self._directories.hold(parent_inode), self._changing(parent_inode, names=removed):
            await self._filesystem.unlink(parent_inode, name)

    @answers_errno
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Remove an empty directory."""
        removed = ((parent_inode, name),)
        with self._directories.hold(parent_inode), self._changing(parent_inode, names=removed):
            await self._filesystem.rmdir(parent_inode, name)

    @answers_errno
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        """Move a name, over another one too; RENAME_NOREPLACE and RENAME_EXCHANGE are passed on."""
        parents = (parent_inode_old, parent_inode_new)
        moved = ((parent_inode_old, name_old), (parent_inode_new, name_new))
        with self._directories.hold(*parents), self._changing(*parents, names=moved):
            await self._filesystem.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    @answers_errno
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        """A symbolic link's target."""
        return await self._filesystem.readlink(inode)

    # --- attributes

    @answers_errno
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        """An inode's attributes."""
        return to_kernel(await self._filesystem.getattr(inode))

    @answers_errno
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        """Change attributes; truncate and extend."""
        with self._changing(inode):
            return await self._set_attributes(inode, attr, fields, ctx)

    async def _set_attributes(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, ctx: RequestContext
    ) -> EntryAttributes:
        mode = attr.st_mode & _PERMISSIONS if fields.update_mode else None
        owner_changes = fields.update_uid or fields.update_gid
        if mode is None and (owner_changes or (fields.update_size and ctx.uid != 0)):
            mode = await self._mode_without_set_id(inode)
        entry = await self._filesystem.setattr(
            inode,
            mode=mode,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size_bytes=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
        )
        return to_kernel(entry)

    async def _mode_without_set_id(self, inode: int) -> int | None:
        return mode_without_set_id((await self._filesystem.getattr(inode)).attributes)

    @answers_errno
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        """Never called under default_permissions, where the kernel checks by itself."""
        return True

    @answers_errno
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        """Space and inodes."""
        return to_statvfs(await self._filesystem.statfs())

    # --- open files

    def _opened(self, entry_handle: OpenFile) -> FileInfo:
        """Number the handle. Never direct_io: mmap needs the page cache."""
        keep = entry_handle.handle.keep_cache
        return FileInfo(fh=self._files.add(entry_handle), direct_io=False, keep_cache=keep)

    @answers_errno
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        """Open an inode; O_TRUNC and O_APPEND are passed on."""
        loses_set_id = ctx.uid != 0 and flags & os.O_ACCMODE != os.O_RDONLY
        with self._changing(*((inode,) if flags & os.O_TRUNC else ())):
            if loses_set_id and flags & os.O_TRUNC:
                await self._take_set_id(inode)
            handle = await self._filesystem.open(inode, flags)
        return self._opened(OpenFile(handle, loses_set_id))

    @answers_errno
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """Make a regular file and open it."""
        wanted = mode & _PERMISSIONS & ~ctx.umask
        named = ((parent_inode, name),)  # it may have been there, and be truncated
        with self._directories.hold(parent_inode), self._changing(parent_inode, names=named):
            entry, handle = await self._filesystem.create(parent_inode, name, wanted, ctx.uid, ctx.gid, flags)
            return self._opened(OpenFile(handle, ctx.uid != 0)), self._given(entry)

    @answers_errno
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """File bytes, fewer only at the end; any kind of buffer, copied once, into the kernel."""
        handle = self._files.get(fh).handle
        with self._pages.hold(handle.inode):
            return await self._filesystem.read(handle, off, size)  # type: ignore[return-value]

    @answers_errno
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write all of `buf`."""
        opened = self._files.get(fh)
        inode = opened.handle.inode
        if opened.take_set_id:
            await self._take_set_id(inode)
            opened.take_set_id = False
        with self._pages.hold(inode), self._changing(inode):
            return await self._filesystem.write(opened.handle, off, buf)

    async def _take_set_id(self, inode: int) -> None:
        mode = await self._mode_without_set_id(inode)
        if mode is not None:
            await self._filesystem.setattr(inode, mode=mode)

    @answers_errno
    async def flush(self, fh: int) -> None:
        """close(2) of one descriptor: what was written is committed, and errors are told here."""
        await self._filesystem.flush(self._files.get(fh).handle)

    @answers_errno
    async def fsync(self, fh: int, datasync: bool) -> None:
        """Everything written is durable on return."""
        await self._filesystem.fsync(self._files.get(fh).handle, datasync)

    @answers_errno
    async def release(self, fh: int) -> None:
        """The last descriptor is closed; nobody hears an error of ours."""
        await self._filesystem.release(self._files.remove(fh).handle)

    # --- open directories

    @answers_errno
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        """Start a listing; nothing is fetched yet."""
        return self._listings.add(Listing(inode))

    @answers_errno
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        """Fill one reply with entries and their attributes. "." and ".." are not counted as lookups."""
        listing = self._listings.get(fh)
        with self._directories.hold(listing.inode):
            for number in range(start_id, len(_DOTS)):
                if not _give_dot(token, listing.inode, number):
                    return
            await self._give_entries(listing, max(0, start_id - len(_DOTS)), token)

    async def _give_entries(self, listing: Listing, offset: int, token: ReaddirToken) -> None:
        listing.seek(offset)
        now_s = trio.current_time()
        given = fetched_anew = 0
        while True:
            if listing.used_up:
                if listing.ends:
                    return
                listing.forget_page()  # what changes from here on is noted, and so not cached
                listing.fetching = True
                try:
                    page = await self._filesystem.readdir(listing.inode, listing.cursor, LISTING_PAGE_DEFAULT)
                except WormError:
                    if given:  # counted as known to the kernel: it gets them, then the error
                        return
                    raise
                finally:
                    listing.fetching = False
                now_s = trio.current_time()
                listing.load(page.entries, ends=page.end, now_s=now_s)
                continue
            name, entry = listing.page[listing.position]
            if listing.is_stale(name, entry) and fetched_anew < FETCHED_ANEW_MAX:
                # Not even without a timeout: the kernel takes what it says for newer than the change.
                fetched_anew += 1
                listing.forget_page()
                continue
            made = to_kernel(entry)
            made.attr_timeout = made.entry_timeout = listing.cache_s(name, entry, now_s)
            if not pyfuse3.readdir_reply(token, name, made, listing.next_offset() + len(_DOTS)):
                return
            self._lookups.add(made.st_ino)
            listing.advance(name)
            given += 1

    @answers_errno
    async def releasedir(self, fh: int) -> None:
        """The listing ends."""
        self._listings.remove(fh)

    @answers_errno
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Every change of names answered so far is durable on return."""
        await self._filesystem.fsync_directory(self._listings.get(fh).inode)

    # --- extended attributes

    @answers_errno
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        """One extended attribute."""
        if name in _REFUSED_XATTRS:
            raise FUSEError(errno.ENODATA if name == _CAPABILITY else errno.EOPNOTSUPP)
        return await self._filesystem.getxattr(inode, name)

    @answers_errno
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        """Set one; pyfuse3 has checked XATTR_CREATE and XATTR_REPLACE by a getxattr."""
        if name == _STACKTRACE and inode == ROOT_INODE:
            self.stacktrace()
            return
        if name in _REFUSED_XATTRS:
            raise FUSEError(errno.EOPNOTSUPP)
        await self._filesystem.setxattr(inode, name, value)

    @answers_errno
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        """The names of all."""
        return await self._filesystem.listxattrs(inode)

    @answers_errno
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        """Remove one."""
        if name in _REFUSED_XATTRS:
            raise FUSEError(errno.ENODATA if name == _CAPABILITY else errno.EOPNOTSUPP)
        await self._filesystem.removexattr(inode, name)


def _give_dot(token: ReaddirToken, inode: int, number: int) -> bool:
    made = EntryAttributes()
    made.st_ino = inode if number == 0 else _UNKNOWN_INODE
    made.st_mode = stat.S_IFDIR | 0o755
    made.attr_timeout = made.entry_timeout = 0
    return pyfuse3.readdir_reply(token, _DOTS[number], made, number + 1)
