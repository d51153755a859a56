"""Answers that are held back while others give something up, and what is recalled meanwhile."""

import stat
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.unit.client.masters import masters
from wormfs.core.errors import NotFoundError
from wormfs.core.limits import ROOT_INODE
from wormfs.rpc.v1 import types_pb2

pytestmark = pytest.mark.timeout(60)
FILE = stat.S_IFREG | 0o644
FOLDER = stat.S_IFDIR | 0o755


async def test_a_directory_others_found_before_its_maker_was_answered_is_not_known_as_empty(
    tmp_path: Path,
) -> None:
    async with (
        masters(tmp_path) as made,
        made.mount("one") as one,
        made.mount("two") as two,
        trio.open_nursery() as nursery,
    ):
        await two.fs.readdir(ROOT_INODE, b"", 10)
        asked = two.kernel.hold(ROOT_INODE)
        found = []

        async def make() -> None:
            found.append(await one.fs.make_node(ROOT_INODE, b"d", FOLDER, 0, 0))

        async with trio.open_nursery() as making:
            making.start_soon(make)
            with trio.fail_after(3):
                await asked.wait()
            folder = (await two.fs.lookup(ROOT_INODE, b"d")).attributes.inode
            changed = (await two.fs.make_node(folder, b"f", FILE, 0, 0)).attributes.inode
            assert not found
            two.kernel.go_on(ROOT_INODE)
        assert found[0].attributes.inode == folder
        assert found[0].cache_s == 0  # they are those of before the change in it
        assert (await one.fs.lookup(folder, b"f")).attributes.inode == changed
        nursery.cancel_scope.cancel()


async def test_what_was_recalled_behind_an_answer_that_was_held_back_is_not_cached(tmp_path: Path) -> None:
    async with (
        masters(tmp_path) as made,
        made.mount("one") as one,
        made.mount("two") as two,
        made.mount("three") as three,
    ):
        file = (await one.fs.make_node(ROOT_INODE, b"f", FILE, 0, 0)).attributes.inode
        other = (await one.fs.make_node(ROOT_INODE, b"g", FILE, 0, 0)).attributes.inode
        await three.fs.getattr(file)
        await three.fs.getattr(other)
        asked = three.kernel.hold(file)
        held_other = three.kernel.hold(other)
        one.kernel.invalidated = trio.Event()
        told: dict[str, tuple[types_pb2.Attributes, float]] = {}

        async def chmod(who: str, inode: int, mode: int) -> None:
            fs = one.fs if who != "two" else two.fs
            entry = await fs.setattr(inode, mode=mode)
            told[who] = (entry.attributes, entry.cache_s)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(chmod, "one", file, 0o600)
            nursery.start_soon(chmod, "one, other", other, 0o600)
            with trio.fail_after(3):
                await asked.wait()
                await held_other.wait()
            nursery.start_soon(chmod, "two", file, 0o640)
            with trio.fail_after(3):
                await one.kernel.invalidated.wait()
            three.kernel.go_on(file)
            three.kernel.go_on(other)
        assert told["two"][0].mode & 0o777 == 0o640
        assert told["one"][0].mode & 0o777 == 0o600
        assert told["one"][1] == 0
        assert told["one, other"][1] > 0  # it was held back as well, and nobody changed it


@pytest.mark.unsampled
async def test_an_answer_to_a_recall_of_a_master_before_is_none_to_the_next(tmp_path: Path) -> None:
    async with (
        masters(tmp_path) as made,
        made.mount("one") as one,
        made.mount("two") as two,
        trio.open_nursery() as nursery,
    ):
        first = (await one.fs.make_node(ROOT_INODE, b"first", FILE, 0, 0)).attributes.inode
        second = (await one.fs.make_node(ROOT_INODE, b"second", FILE, 0, 0)).attributes.inode
        await one.fs.getattr(first)
        asked = one.kernel.hold(first)

        async def chmod(inode: int, done: trio.Event) -> None:
            await two.fs.setattr(inode, mode=0o600)
            done.set()

        nursery.start_soon(chmod, first, trio.Event())
        with trio.fail_after(5):
            await asked.wait()
        await made.lead(1)
        await one.fs.getattr(second)  # resumed, and told of it
        asked = one.kernel.hold(second)
        done = trio.Event()
        nursery.start_soon(chmod, second, done)
        with trio.fail_after(10):
            await asked.wait()
        answered = made.service.leases.recalls
        assert len(answered) == 1
        one.kernel.go_on(first)  # its answer goes to the master of now
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert len(made.service.leases.recalls) == 1
        assert not done.is_set()
        one.kernel.go_on(second)
        with trio.fail_after(5):
            await done.wait()
        nursery.cancel_scope.cancel()


async def test_a_lookup_overtaken_by_a_recall_of_its_directory_is_not_cached(tmp_path: Path) -> None:
    """The recall names the directory, not the inode that the answer tells of."""
    async with masters(tmp_path) as made, made.mount("one") as one, made.mount("two") as two:
        folder = (await one.fs.make_node(ROOT_INODE, b"d", FOLDER, 0, 0)).attributes.inode
        file = (await one.fs.make_node(folder, b"f", FILE, 0, 0)).attributes.inode
        found = await one.fs.lookup(folder, b"f")
        assert found.cache_s > 0
        seen = one.fs.session._pushes
        await two.fs.unlink(folder, b"f")
        assert one.fs.session.cacheable_s(seen, file, folder) == 0
        assert one.fs.session.cacheable_s(seen, ROOT_INODE) > 0
        with pytest.raises(NotFoundError):
            await one.fs.lookup(folder, b"f")
