import stat

import pytest

from tests.unit.core.memory_state import STRIPE_BYTES, World
from wormfs.core import errors as er
from wormfs.core.limits import LINK_MAX
from wormfs.core.namespace import (
    check_name,
    decide_link,
    decide_make_node,
    decide_remove_dir,
    decide_remove_xattr,
    decide_rename,
    decide_set_attr,
    decide_set_xattr,
    decide_unlink,
)
from wormfs.core.state import Touch
from wormfs.core.writing import decide_free_orphan, decide_truncate


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (b"", er.NotFoundError),
        (b".", er.InvalidError),
        (b"..", er.InvalidError),
        (b"a/b", er.InvalidError),
        (b"a\0", er.InvalidError),
        (b"n" * 256, er.NameTooLongError),
    ],
)
def test_bad_names_are_refused(name: bytes, error: type[er.WormError]) -> None:
    with pytest.raises(error):
        check_name(name)


def test_any_other_bytes_are_a_name() -> None:
    check_name(b"\xff" * 255)
    check_name(b"...")


def test_a_new_file_takes_times_ids_and_the_policys_stripe_size(world: World) -> None:
    row = world.make(1, b"f", stat.S_IFREG | 0o4751)
    assert (row.mode, row.nlink, row.uid, row.gid) == (stat.S_IFREG | 0o4751, 1, 7, 8)
    assert row.atime_ns == row.mtime_ns == row.ctime_ns == world.at.time_ns
    assert (row.change, row.stripe_size_bytes) == (world.at.sequence, STRIPE_BYTES)
    root = world.row(1)
    assert (root.mtime_ns, root.ctime_ns, root.nlink) == (world.at.time_ns, world.at.time_ns, 2)
    assert root.atime_ns < world.at.time_ns


def test_a_mode_without_type_is_a_regular_file(world: World) -> None:
    assert world.make(1, b"f", 0o600).mode == stat.S_IFREG | 0o600


def test_a_new_directory_counts_as_a_link_of_its_parent(world: World) -> None:
    row = world.folder()
    assert (row.nlink, row.parent, world.row(1).nlink) == (2, 1, 3)


def test_set_gid_directories_pass_on_group_and_bit(world: World) -> None:
    top = world.make(1, b"d", stat.S_IFDIR | 0o2755, gid=99)
    assert world.file(parent=top.inode).gid == 99
    below = world.folder(parent=top.inode)
    assert (below.gid, below.mode & stat.S_ISGID) == (99, stat.S_ISGID)


def test_symlinks_and_devices_keep_target_and_number(world: World) -> None:
    link = world.make(1, b"l", stat.S_IFLNK | 0o777, target=b"../x")
    assert (link.target, link.size_bytes) == (b"../x", 4)
    assert world.make(1, b"dev", stat.S_IFBLK | 0o600, rdev=0x801).rdev == 0x801
    assert world.make(1, b"pipe", stat.S_IFIFO | 0o600, rdev=5).rdev == 0


@pytest.mark.parametrize(
    ("mode", "target", "error"),
    [
        (0o150000, b"", er.InvalidError),
        (stat.S_IFREG, b"x", er.InvalidError),
        (stat.S_IFLNK, b"", er.NotFoundError),
        (stat.S_IFLNK, b"x" * 4096, er.NameTooLongError),
        (stat.S_IFLNK, b"x\0y", er.InvalidError),
    ],
)
def test_impossible_nodes_are_refused(
    world: World, mode: int, target: bytes, error: type[er.WormError]
) -> None:
    with pytest.raises(error):
        world.make(1, b"f", mode, target=target)


def test_an_existing_name_is_refused_or_answered(world: World) -> None:
    row = world.file(b"f")
    world.folder(b"d")
    world.make(1, b"l", stat.S_IFLNK, target=b"f")
    with pytest.raises(er.ExistsError):
        world.file(b"f")
    again = decide_make_node(
        world.state, world.next(), parent=1, name=b"f", mode=0o600, uid=1, gid=1, exclusive=False
    )
    assert (again.inode, again.events, again.created) == (row, (), False)
    with pytest.raises(er.IsADirectoryWormError):
        world.make(1, b"d", stat.S_IFREG, exclusive=False)
    with pytest.raises(er.ExistsError):
        world.make(1, b"l", stat.S_IFREG, exclusive=False)
    with pytest.raises(er.ExistsError):
        world.make(1, b"f", stat.S_IFDIR, exclusive=False)


def test_parents_must_be_living_directories(world: World) -> None:
    row = world.file()
    gone = world.folder()
    world.take(decide_remove_dir(world.state, world.next(), parent=1, name=b"folder"))
    with pytest.raises(er.NotDirectoryError):
        world.file(parent=row.inode)
    for parent in (gone.inode, 999):
        with pytest.raises(er.NotFoundError):
            world.file(parent=parent)
        with pytest.raises(er.NotFoundError):
            decide_link(world.state, world.next(), inode=row.inode, parent=parent, name=b"x")
        with pytest.raises(er.NotFoundError):
            decide_rename(world.state, world.next(), parent=1, name=b"file", new_parent=parent, new_name=b"x")


def test_link_adds_a_name_and_changes_ctime(world: World) -> None:
    row = world.file()
    decision = world.take(decide_link(world.state, world.next(), inode=row.inode, parent=1, name=b"two"))
    after = world.row(row.inode)
    assert (after.nlink, after.ctime_ns, after.mtime_ns) == (2, world.at.time_ns, row.mtime_ns)
    assert decision.touched == (Touch(1, (b"two",)), Touch(row.inode))


def test_link_refuses_directories_orphans_taken_names_and_too_many(world: World) -> None:
    row = world.file()
    top = world.folder()
    with pytest.raises(er.NotPermittedError):
        decide_link(world.state, world.next(), inode=top.inode, parent=1, name=b"x")
    with pytest.raises(er.ExistsError):
        decide_link(world.state, world.next(), inode=row.inode, parent=1, name=b"folder")
    with pytest.raises(er.StaleError):
        decide_link(world.state, world.next(), inode=999, parent=1, name=b"x")
    world.state.put_inode(row._replace(nlink=LINK_MAX))
    with pytest.raises(er.TooManyLinksError):
        decide_link(world.state, world.next(), inode=row.inode, parent=1, name=b"x")
    world.state.put_inode(row)
    world.take(decide_unlink(world.state, world.next(), parent=1, name=b"file"))
    with pytest.raises(er.NotFoundError):
        decide_link(world.state, world.next(), inode=row.inode, parent=1, name=b"x")


def test_unlink_leaves_an_orphan_only_at_the_last_name(world: World) -> None:
    row = world.file()
    world.take(decide_link(world.state, world.next(), inode=row.inode, parent=1, name=b"two"))
    world.take(decide_unlink(world.state, world.next(), parent=1, name=b"file"))
    assert (world.row(row.inode).nlink, world.state.orphans(0, 10)) == (1, [])
    world.take(decide_unlink(world.state, world.next(), parent=1, name=b"two"))
    assert (world.row(row.inode).nlink, world.state.orphans(0, 10)) == (0, [row.inode])
    assert world.row(1).mtime_ns == world.at.time_ns
    world.take(decide_free_orphan(world.state, row.inode))
    assert (world.state.inode(row.inode), world.state.orphans(0, 10)) == (None, [])
    assert decide_free_orphan(world.state, row.inode).events == ()
    assert decide_free_orphan(world.state, 1).events == ()


def test_unlink_and_rmdir_keep_to_their_kinds(world: World) -> None:
    world.file()
    top = world.folder()
    world.file(parent=top.inode)
    with pytest.raises(er.IsADirectoryWormError):
        decide_unlink(world.state, world.next(), parent=1, name=b"folder")
    with pytest.raises(er.NotDirectoryError):
        decide_remove_dir(world.state, world.next(), parent=1, name=b"file")
    with pytest.raises(er.NotEmptyError):
        decide_remove_dir(world.state, world.next(), parent=1, name=b"folder")
    for decide in (decide_unlink, decide_remove_dir):
        with pytest.raises(er.NotFoundError):
            decide(world.state, world.next(), parent=1, name=b"none")


def test_rmdir_takes_the_parents_link_back(world: World) -> None:
    row = world.folder()
    world.take(decide_remove_dir(world.state, world.next(), parent=1, name=b"folder"))
    assert (world.row(1).nlink, world.row(row.inode).nlink) == (2, 0)
    assert world.state.orphans(0, 10) == [row.inode]


def rename(world: World, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
    world.take(
        decide_rename(
            world.state,
            world.next(),
            parent=parent,
            name=name,
            new_parent=new_parent,
            new_name=new_name,
            flags=flags,
        )
    )


def test_rename_moves_directories_with_their_links(world: World) -> None:
    left, right = world.folder(b"left"), world.folder(b"right")
    moved = world.folder(b"d", left.inode)
    rename(world, left.inode, b"d", right.inode, b"e")
    assert (world.row(left.inode).nlink, world.row(right.inode).nlink) == (2, 3)
    assert world.row(moved.inode).parent == right.inode
    assert world.row(moved.inode).ctime_ns == world.at.time_ns
    assert (world.names(left.inode), world.names(right.inode)) == ([], [b"e"])


def test_rename_replaces_files_and_empty_directories(world: World) -> None:
    row, old = world.file(b"f"), world.file(b"g")
    rename(world, 1, b"f", 1, b"g")
    assert world.state.entry(1, b"g") == row.inode
    assert world.state.orphans(0, 10) == [old.inode]
    top, empty = world.folder(b"d"), world.folder(b"e")
    rename(world, 1, b"d", 1, b"e")
    assert world.state.entry(1, b"e") == top.inode
    assert (world.row(1).nlink, world.row(empty.inode).nlink) == (3, 0)


def test_rename_refuses_what_linux_refuses(world: World) -> None:
    row = world.file(b"f")
    top = world.folder(b"d")
    below = world.folder(b"below", top.inode)
    full = world.folder(b"full")
    world.file(parent=full.inode)

    def fails(error: type[er.WormError], *arguments: object) -> None:
        with pytest.raises(error):
            rename(world, *arguments)  # type: ignore[arg-type]

    fails(er.InvalidError, 1, b"f", 1, b"g", 3)
    fails(er.InvalidError, 1, b"f", 1, b"g", 4)
    fails(er.NotFoundError, 1, b"none", 1, b"g")
    fails(er.ExistsError, 1, b"f", 1, b"d", 1)
    fails(er.NotFoundError, 1, b"f", 1, b"g", 2)
    fails(er.InvalidError, 1, b"d", below.inode, b"x")
    fails(er.InvalidError, 1, b"d", top.inode, b"x")
    fails(er.NotEmptyError, top.inode, b"below", 1, b"d")
    fails(er.InvalidError, top.inode, b"below", 1, b"d", 2)
    fails(er.NotDirectoryError, 1, b"d", 1, b"f")
    fails(er.IsADirectoryWormError, 1, b"f", 1, b"d")
    fails(er.NotEmptyError, 1, b"d", 1, b"full")
    fails(er.NotDirectoryError, row.inode, b"x", 1, b"g")


def test_rename_onto_a_name_of_the_same_inode_does_nothing(world: World) -> None:
    row = world.file(b"f")
    world.take(decide_link(world.state, world.next(), inode=row.inode, parent=1, name=b"g"))
    decision = decide_rename(world.state, world.next(), parent=1, name=b"f", new_parent=1, new_name=b"g")
    assert (decision.events, decision.touched) == ((), ())


def test_exchange_swaps_entries_parents_and_links(world: World) -> None:
    left, right = world.folder(b"left"), world.folder(b"right")
    child, row = world.folder(b"d", left.inode), world.file(b"f", right.inode)
    rename(world, left.inode, b"d", right.inode, b"f", 2)
    assert (world.state.entry(left.inode, b"d"), world.state.entry(right.inode, b"f")) == (
        row.inode,
        child.inode,
    )
    assert (world.row(left.inode).nlink, world.row(right.inode).nlink) == (2, 3)
    rename(world, left.inode, b"d", right.inode, b"f", 2)
    assert (world.row(left.inode).nlink, world.row(right.inode).nlink) == (3, 2)
    assert world.row(child.inode).parent == left.inode


def test_set_attr_sets_only_what_is_given(world: World) -> None:
    row = world.file()
    world.take(decide_set_attr(world.state, world.next(), inode=row.inode, mode=0o100000 | 0o7700, uid=1))
    after = world.row(row.inode)
    assert (after.mode, after.uid, after.gid) == (stat.S_IFREG | 0o7700, 1, 8)
    assert (after.ctime_ns, after.mtime_ns) == (world.at.time_ns, row.mtime_ns)
    world.take(
        decide_set_attr(
            world.state, world.next(), inode=row.inode, atime_ns=-5, mtime_ns=6, ctime_ns=7, gid=3
        )
    )
    after = world.row(row.inode)
    assert (after.atime_ns, after.mtime_ns, after.ctime_ns, after.gid) == (-5, 6, 7, 3)
    assert decide_set_attr(world.state, world.next(), inode=row.inode).events == ()


def test_a_size_can_be_set_on_files_only(world: World) -> None:
    row, top = world.file(), world.folder()
    link = world.make(1, b"l", stat.S_IFLNK, target=b"x")
    for inode, size, error in (
        (top.inode, 0, er.IsADirectoryWormError),
        (link.inode, 0, er.InvalidError),
        (row.inode, (1 << 53) + 1, er.TooLargeError),
        (999, 0, er.StaleError),
    ):
        with pytest.raises(error):
            decide_set_attr(world.state, world.next(), inode=inode, size_bytes=size)


def test_size_and_attributes_change_together(world: World) -> None:
    row = world.file()
    decision = decide_set_attr(
        world.state, world.next(), inode=row.inode, size_bytes=100, mtime_ns=5, mode=0o600
    )
    done = world.take(decision)
    after = world.row(row.inode)
    assert (after.size_bytes, after.mtime_ns, after.mode & 0o777) == (100, 5, 0o600)
    assert done.touched == (Touch(row.inode, (), True, True),)
    world.take(decide_truncate(world.state, world.next(), inode=row.inode))
    assert (world.row(row.inode).size_bytes, world.row(row.inode).mtime_ns) == (0, world.at.time_ns)


def test_xattrs_follow_their_flags(world: World) -> None:
    inode = world.file().inode
    at = world.next
    world.take(decide_set_xattr(world.state, at(), inode=inode, name=b"user.a", value=b"1", flags=1))
    assert world.row(inode).ctime_ns == world.at.time_ns
    with pytest.raises(er.ExistsError):
        decide_set_xattr(world.state, at(), inode=inode, name=b"user.a", value=b"2", flags=1)
    world.take(decide_set_xattr(world.state, at(), inode=inode, name=b"user.a", value=b"2", flags=2))
    assert world.state.xattr(inode, b"user.a") == b"2"
    with pytest.raises(er.NoXattrError):
        decide_set_xattr(world.state, at(), inode=inode, name=b"user.b", value=b"", flags=2)
    with pytest.raises(er.InvalidError):
        decide_set_xattr(world.state, at(), inode=inode, name=b"user.b", value=b"", flags=4)
    for name, value in ((b"", b""), (b"x" * 256, b""), (b"a\0", b""), (b"a", b"v" * 65537)):
        with pytest.raises(er.RangeError):
            decide_set_xattr(world.state, at(), inode=inode, name=name, value=value)
    world.take(decide_remove_xattr(world.state, at(), inode=inode, name=b"user.a"))
    with pytest.raises(er.NoXattrError):
        decide_remove_xattr(world.state, at(), inode=inode, name=b"user.a")
