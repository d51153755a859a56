"""What an open listing gives of names and inodes that this very mount changes meanwhile."""

import errno
import os
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import pyfuse3
import pytest

from fuse_client.handlers import FETCHED_ANEW_MAX, KernelTables, MountOperations
from fuse_client.kernel_cache import MountKernelCache
from fuse_client.tables import STALE_MAX, Listing
from tests.unit.fuse_client.memory_filesystem import MemoryFileSystem
from wormfs.client.filesystem import DirPage, Entry
from wormfs.core.errors import UnavailableError
from wormfs.core.limits import LISTING_PAGE_DEFAULT, ROOT_INODE
from wormfs.rpc.v1 import types_pb2

pytestmark = pytest.mark.timeout(20)

CACHE_S = 30.0
CONTEXT = cast(pyfuse3.RequestContext, SimpleNamespace(uid=0, gid=0, pid=1, umask=0))
SIZE_ONLY = cast(
    pyfuse3.SetattrFields,
    SimpleNamespace(
        update_mode=False,
        update_uid=False,
        update_gid=False,
        update_size=True,
        update_atime=False,
        update_mtime=False,
        update_ctime=False,
    ),
)


class RepliesFileSystem(MemoryFileSystem):
    """Its pages are replies: what changes later does not show in them."""

    def __init__(self) -> None:
        super().__init__(CACHE_S)
        self.fetches = 0
        self.page_max = LISTING_PAGE_DEFAULT
        self.refused_after: bytes | None = None
        """Asked for what follows this name, the master is away."""
        self.meanwhile: Callable[[], Awaitable[None]] | None = None
        """Done while each page is on its way."""

    async def readdir(self, inode: int, after: bytes, limit: int) -> DirPage:
        self.fetches += 1
        if self.fetches > 50 or after == self.refused_after:
            raise UnavailableError("the master is away")
        page = await super().readdir(inode, after, min(limit, self.page_max))
        reply = [(name, Entry(_copy(entry.attributes), entry.cache_s)) for name, entry in page.entries]
        if self.meanwhile is not None:
            await self.meanwhile()
        return DirPage(reply, page.end)


def _copy(attributes: types_pb2.Attributes) -> types_pb2.Attributes:
    made = types_pb2.Attributes()
    made.CopyFrom(attributes)
    return made


@dataclass(frozen=True, slots=True)
class Given:
    """One entry of a reply to the kernel."""

    name: bytes
    size_bytes: int
    entry_cache_s: float
    attributes_cache_s: float


@dataclass(slots=True)
class Reply:
    """Stands for the kernel's buffer, with room for so many entries."""

    room: int
    given: list[Given] = field(default_factory=list)
    next_offset: int = 0

    def take(self, name: bytes, made: pyfuse3.EntryAttributes, next_offset: int) -> bool:
        """As pyfuse3.readdir_reply."""
        if len(self.given) == self.room:
            return False
        self.given.append(Given(name, made.st_size, made.entry_timeout, made.attr_timeout))
        self.next_offset = next_offset
        return True

    @property
    def names(self) -> list[bytes]:
        return [given.name for given in self.given]

    def find(self, name: bytes) -> Given:
        return next(given for given in self.given if given.name == name)


class Mount:
    """The handlers over a root of files a, b and c, and one open listing of it."""

    def __init__(self) -> None:
        self.filesystem = RepliesFileSystem()
        self.tables = KernelTables()
        self.operations = MountOperations(self.filesystem.port, self.tables)
        self.inodes: dict[bytes, int] = {}
        self.listing = Listing(ROOT_INODE)
        self._number = self.tables.listings.add(self.listing)
        self._offset = 0

    async def make(self, *names: bytes) -> None:
        for name in names:
            made = await self.filesystem.make_node(ROOT_INODE, name, stat.S_IFREG | 0o644, 0, 0)
            self.inodes[name] = made.attributes.inode

    async def read(self, room: int = 100) -> Reply:
        """Go on with the listing."""
        reply = Reply(room)
        await self.operations.readdir(self._number, self._offset, cast(pyfuse3.ReaddirToken, reply))
        self._offset = reply.next_offset or self._offset
        return reply

    async def resize(self, name: bytes, size_bytes: int) -> None:
        """As truncate(2) here."""
        wanted = pyfuse3.EntryAttributes()
        wanted.st_size = size_bytes
        inode = self.inodes[name]
        told = await self.operations.setattr(inode, wanted, SIZE_ONLY, None, CONTEXT)
        assert told.st_size == size_bytes

    async def write(self, name: bytes, data: bytes) -> None:
        opened = await self.operations.open(self.inodes[name], os.O_WRONLY, CONTEXT)
        await self.operations.write(opened.fh, 0, data)


@pytest.fixture
async def mount(monkeypatch: pytest.MonkeyPatch) -> Mount:
    monkeypatch.setattr(pyfuse3, "readdir_reply", Reply.take)
    made = Mount()
    await made.make(b"a", b"b", b"c")
    return made


async def test_a_page_is_fetched_once_and_kept_by_the_kernel(mount: Mount) -> None:
    """What the other tests would not notice: without changes nothing is fetched anew."""
    assert (await mount.read(3)).names == [b".", b"..", b"a"]
    rest = await mount.read()
    assert rest.names == [b"b", b"c"]
    assert all(0 < given.entry_cache_s <= CACHE_S for given in rest.given)
    assert mount.filesystem.fetches == 1


async def test_a_name_removed_here_is_not_given(mount: Mount) -> None:
    """The kernel would take it for newer than the unlink, and keep it."""
    await mount.read(3)
    await mount.operations.unlink(ROOT_INODE, b"c", CONTEXT)
    assert (await mount.read()).names == [b"b"]


async def test_a_name_moved_here_is_given_once_at_most(mount: Mount) -> None:
    """The old name is gone from the rest of the listing."""
    await mount.read(3)
    await mount.operations.rename(ROOT_INODE, b"b", ROOT_INODE, b"d", 0, CONTEXT)
    assert (await mount.read()).names == [b"c", b"d"]


async def test_a_name_removed_while_its_page_comes_is_not_given(mount: Mount) -> None:
    """The page was made before the removal, and arrives after it."""

    async def remove() -> None:
        mount.filesystem.meanwhile = None
        await mount.operations.unlink(ROOT_INODE, b"c", CONTEXT)

    mount.filesystem.meanwhile = remove
    assert (await mount.read()).names == [b".", b"..", b"a", b"b"]
    assert mount.filesystem.fetches == 2


async def test_a_size_set_here_is_given(mount: Mount) -> None:
    """And not the page's, for the kernel to keep."""
    await mount.read(3)
    await mount.resize(b"c", 9)
    assert (await mount.read()).find(b"c").size_bytes == 9


async def test_a_size_written_here_is_given(mount: Mount) -> None:
    """As after a truncate."""
    await mount.read(3)
    await mount.write(b"c", b"1234567")
    assert (await mount.read()).find(b"c").size_bytes == 7


async def test_what_is_recalled_is_fetched_anew_too(mount: Mount) -> None:
    """Changes of other mounts come by recalls."""
    await mount.read(3)
    await mount.filesystem.setattr(mount.inodes[b"c"], size_bytes=5)
    await MountKernelCache(mount.tables).invalidate_inode(mount.inodes[b"c"], data=False)
    assert (await mount.read()).find(b"c").size_bytes == 5


async def test_changes_elsewhere_leave_the_page(mount: Mount) -> None:
    """Inodes and names of other directories are none of this listing's."""
    await mount.read(3)
    with mount.tables.changing(10_000, names=((10_000, b"b"), (10_000, b"c"))):
        pass
    assert (await mount.read()).names == [b"b", b"c"]
    assert mount.filesystem.fetches == 1


async def test_a_name_changed_again_and_again_is_given_in_the_end(mount: Mount) -> None:
    """After a few fetches, and the kernel may not keep it; its neighbours it may."""
    sizes = iter(range(1, 1000))

    async def change() -> None:
        await mount.resize(b"c", next(sizes))

    await mount.read(3)
    mount.filesystem.meanwhile = change
    await change()
    rest = await mount.read()
    assert rest.names == [b"b", b"c"]
    assert mount.filesystem.fetches == 1 + FETCHED_ANEW_MAX
    assert rest.find(b"c").size_bytes == FETCHED_ANEW_MAX  # the last page's, one change behind
    assert (rest.find(b"c").entry_cache_s, rest.find(b"c").attributes_cache_s) == (0.0, 0.0)
    assert rest.find(b"b").attributes_cache_s > 0


async def test_a_listing_held_open_at_its_end_notes_nothing(mount: Mount) -> None:
    """A process may keep it open for good, while the mount changes more and more."""
    assert (await mount.read()).names == [b".", b"..", b"a", b"b", b"c"]
    for number in range(1000):
        name = b"n%d" % number
        await mount.operations.mknod(ROOT_INODE, name, stat.S_IFREG | 0o644, 0, CONTEXT)
        await mount.operations.unlink(ROOT_INODE, name, CONTEXT)
        with mount.tables.changing(1000 + number):
            pass
    assert (mount.listing.stale_inodes, mount.listing.stale_names) == (set(), set())


async def test_a_listing_starts_over_without_old_notes(mount: Mount) -> None:
    """What is fetched later than a change tells of it."""
    await mount.read(3)
    await mount.resize(b"c", 9)
    mount.listing.seek(0)
    assert (mount.listing.stale_inodes, mount.listing.stale_names) == (set(), set())


@pytest.mark.parametrize(("over", "fetches"), [(0, 1), (1, 2)])
async def test_past_so_many_changes_a_page_is_fetched_anew(mount: Mount, over: int, fetches: int) -> None:
    """Notes take memory: they end at a limit, and the page with them."""
    await mount.read(3)
    half = STALE_MAX // 2
    with mount.tables.changing(*range(1000, 1000 + half)):
        pass
    names = [(ROOT_INODE, b"n%d" % number) for number in range(STALE_MAX - half + over)]
    with mount.tables.changing(names=names):
        pass
    noted = len(mount.listing.stale_inodes) + len(mount.listing.stale_names)
    assert noted == (0 if over else STALE_MAX)
    rest = await mount.read()
    assert rest.names == [b"b", b"c"]
    assert all(given.entry_cache_s > 0 for given in rest.given)
    assert mount.filesystem.fetches == fetches


async def test_entries_before_an_error_are_given_and_counted(mount: Mount) -> None:
    """An error takes the whole reply from the kernel: what was counted with it would never be forgotten."""
    mount.filesystem.page_max = 2
    mount.filesystem.refused_after = b"b"
    assert (await mount.read()).names == [b".", b"..", b"a", b"b"]
    assert len(mount.tables.lookups) == 2
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await mount.read()
    assert caught.value.errno == UnavailableError("").errno != errno.ENOENT
    assert len(mount.tables.lookups) == 2
    mount.filesystem.refused_after = None
    assert (await mount.read()).names == [b"c"]
    assert len(mount.tables.lookups) == 3
