"""Names and attributes of directories that a client knows without asking, and must never know wrongly."""

import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from tests.unit.client.masters import Mount, masters
from tests.unit.node.serving import open_machine
from wormfs.client.filesystem import Entry, FileSystem
from wormfs.core.errors import NameTooLongError, NotFoundError
from wormfs.core.limits import NAME_MAX_BYTES, ROOT_INODE
from wormfs.core.namespace import RENAME_EXCHANGE
from wormfs.rpc.methods import METADATA_MAKE_NODE
from wormfs.rpc.v1 import filesystem_pb2, types_pb2

pytestmark = pytest.mark.timeout(60)
FILE = stat.S_IFREG | 0o644
FOLDER = stat.S_IFDIR | 0o755
UNASKED_S = 0.5


async def make(fs: FileSystem, parent: int, name: bytes, mode: int = FILE) -> int:
    return (await fs.make_node(parent, name, mode, 0, 0)).attributes.inode


async def is_there(mount: Mount, parent: int, name: bytes) -> bool:
    try:
        await mount.fs.lookup(parent, name)
    except NotFoundError:
        return False
    return True


async def test_a_directory_just_made_is_known_without_asking(tmp_path: Path) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one:
        folder = await make(one.fs, ROOT_INODE, b"d", FOLDER)
        await make(one.fs, folder, b"a")
        made.cut_off(0)
        with trio.fail_after(UNASKED_S):
            assert not await is_there(one, folder, b"b")
        with trio.move_on_after(UNASKED_S) as asking:
            await is_there(one, folder, b"a")
        assert asking.cancelled_caught
        made.mend(0)


async def test_names_that_no_entry_has_are_answered_as_the_master_does(tmp_path: Path) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one:
        folder = await make(one.fs, ROOT_INODE, b"d", FOLDER)
        assert not await is_there(one, folder, b"x" * NAME_MAX_BYTES)
        with pytest.raises(NameTooLongError):
            await one.fs.lookup(folder, b"x" * (NAME_MAX_BYTES + 1))
        assert (await one.fs.lookup(folder, b"..")).attributes.inode == ROOT_INODE
        assert (await one.fs.lookup(folder, b".")).attributes.inode == folder


async def test_a_directory_just_listed_is_known_without_asking(tmp_path: Path) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one:
        await make(one.fs, ROOT_INODE, b"a")
        page = await one.fs.readdir(ROOT_INODE, b"", 10)
        assert [name for name, _ in page.entries] == [b"a"]
        await make(one.fs, ROOT_INODE, b"b")
        made.cut_off(0)
        with trio.fail_after(UNASKED_S):
            assert not await is_there(one, ROOT_INODE, b"c")
        made.mend(0)


async def test_a_page_of_a_listing_is_not_the_whole(tmp_path: Path) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one:
        for name in (b"a", b"b", b"c"):
            await make(one.fs, ROOT_INODE, name)
        async with made.mount("two") as two:
            assert not (await two.fs.readdir(ROOT_INODE, b"", 2)).end
            assert await is_there(two, ROOT_INODE, b"c")
            assert (await two.fs.readdir(ROOT_INODE, b"b", 2)).end
            assert await is_there(two, ROOT_INODE, b"a")


Change = Callable[[FileSystem, int, int], Awaitable[object]]
"""Makes the name `new` in the directory given last; the other one holds the file `old`."""


async def _link(fs: FileSystem, source: int, folder: int) -> None:
    await fs.link((await fs.lookup(source, b"old")).attributes.inode, folder, b"new")


CHANGES: dict[str, Change] = {
    "file": lambda fs, _, folder: make(fs, folder, b"new"),
    "directory": lambda fs, _, folder: make(fs, folder, b"new", FOLDER),
    "link": _link,
    "rename": lambda fs, source, folder: fs.rename(source, b"old", folder, b"new", 0),
}


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("by", ["another", "itself"])
async def test_a_name_is_found_whoever_makes_it(tmp_path: Path, kind: str, by: str) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one, made.mount("two") as two:
        folder = await make(one.fs, ROOT_INODE, b"d", FOLDER)
        source = await make(one.fs, ROOT_INODE, b"s", FOLDER)
        await make(one.fs, source, b"old")
        assert not await is_there(one, folder, b"new")
        await CHANGES[kind](two.fs if by == "another" else one.fs, source, folder)
        assert await is_there(one, folder, b"new")
        assert await is_there(one, source, b"old") == (kind != "rename")
        assert await is_there(two, folder, b"new")


async def test_a_name_taken_away_may_be_made_again_by_another(tmp_path: Path) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one, made.mount("two") as two:
        folder = await make(one.fs, ROOT_INODE, b"d", FOLDER)
        await make(one.fs, folder, b"a")
        await one.fs.unlink(folder, b"a")
        assert not await is_there(one, folder, b"a")
        await make(two.fs, folder, b"a")
        assert await is_there(one, folder, b"a")


async def test_a_rename_that_changes_nothing_leaves_both_names(tmp_path: Path) -> None:
    """rename(2) of one name of a file to another one of it does nothing."""
    async with masters(tmp_path) as made, made.mount("one") as one:
        folder = await make(one.fs, ROOT_INODE, b"d", FOLDER)
        file = await make(one.fs, folder, b"a")
        await one.fs.link(file, folder, b"b")
        await one.fs.rename(folder, b"a", folder, b"b", 0)
        assert await is_there(one, folder, b"a")
        assert await is_there(one, folder, b"b")


async def test_an_exchange_leaves_both_names(tmp_path: Path) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one:
        folder = await make(one.fs, ROOT_INODE, b"d", FOLDER)
        names = (b"a", b"b")
        inodes = [await make(one.fs, folder, name) for name in names]
        await one.fs.rename(folder, b"a", folder, b"b", RENAME_EXCHANGE)
        assert [(await one.fs.lookup(folder, name)).attributes.inode for name in names] == inodes[::-1]


async def test_names_are_asked_for_when_the_lease_is_over(tmp_path: Path) -> None:
    """The master forgets who knows a name; what others do then is recalled from nobody."""
    async with masters(tmp_path) as made, made.mount("one") as one, made.mount("two") as two:
        folder = await make(one.fs, ROOT_INODE, b"d", FOLDER)
        assert not await is_there(one, folder, b"a")
        # Longer than any lease, session and all.
        with trio.move_on_after(4.5):
            await trio.sleep_forever()
        await make(two.fs, folder, b"a")
        assert await is_there(one, folder, b"a")


async def test_a_remembered_answer_is_not_trusted(tmp_path: Path) -> None:
    """Others may have changed what it tells of, before it was given again."""
    async with masters(tmp_path) as made, made.mount("one") as one, trio.open_nursery() as nursery:
        await made.lead(0, lose_answers_of=METADATA_MAKE_NODE)
        entries: list[Entry] = []
        answered = trio.Event()

        async def ask() -> None:
            entries.append(await one.fs.make_node(ROOT_INODE, b"d", FOLDER, 0, 0))
            answered.set()

        nursery.start_soon(ask)
        with trio.fail_after(5):
            await made.lost.wait()
        await made.depose()
        machine = open_machine(tmp_path)
        lookup = filesystem_pb2.LookupRequest(parent=ROOT_INODE, name=b"d")
        found = machine.execute(lookup).reply
        assert isinstance(found, filesystem_pb2.AttrReply)
        folder = found.attributes.inode
        machine.execute(
            filesystem_pb2.MakeNodeRequest(caller=types_pb2.Caller(), parent=folder, name=b"a", mode=FILE)
        )
        machine.close()
        await made.lead(1)
        with trio.fail_after(10):
            await answered.wait()
        assert entries[0].attributes.inode == folder
        assert entries[0].cache_s == 0
        assert await is_there(one, folder, b"a")


@pytest.mark.parametrize("kind", ["make", "unlink", "rmdir", "rename", "rename across"])
async def test_a_directorys_attributes_come_with_the_change_in_it(tmp_path: Path, kind: str) -> None:
    async with masters(tmp_path) as made, made.mount("one") as one:
        folder = await make(one.fs, ROOT_INODE, b"d", FOLDER)
        other = await make(one.fs, ROOT_INODE, b"e", FOLDER)
        await make(one.fs, folder, b"file")
        await make(one.fs, folder, b"folder", FOLDER)
        changed = [folder]
        if kind == "make":
            await make(one.fs, folder, b"more", FOLDER)
        elif kind == "unlink":
            await one.fs.unlink(folder, b"file")
        elif kind == "rmdir":
            await one.fs.rmdir(folder, b"folder")
        elif kind == "rename":
            await one.fs.rename(folder, b"file", folder, b"g", 0)
        else:
            await one.fs.rename(folder, b"folder", other, b"g", 0)
            changed.append(other)
        with trio.fail_after(5):
            async with made.mount("two") as two:
                wanted = [(await two.fs.getattr(inode)).attributes for inode in changed]
        made.cut_off(0)
        with trio.fail_after(UNASKED_S):
            assert [(await one.fs.getattr(inode)).attributes for inode in changed] == wanted
        made.mend(0)


async def test_a_directory_that_was_moved_is_asked_for(tmp_path: Path) -> None:
    """Its times are new, and those of its change in the memory of its mover are not."""
    async with masters(tmp_path) as made, made.mount("one") as one, made.mount("two") as two:
        folder = await make(one.fs, ROOT_INODE, b"d", FOLDER)
        await make(one.fs, folder, b"a")
        before = (await one.fs.getattr(folder)).attributes
        await one.fs.rename(ROOT_INODE, b"d", ROOT_INODE, b"e", 0)
        after = (await one.fs.getattr(folder)).attributes
        assert after.change > before.change
        assert after == (await two.fs.getattr(folder)).attributes
