"""The names of inodes that fsck has something to tell about."""

from pathlib import Path

from wormfs.core.types import Policy
from wormfs.metadata.machine import Machine
from wormfs.node import fsck_names
from wormfs.node.fsck_names import paths_of, shown
from wormfs.rpc.v1 import filesystem_pb2 as fs


def make(machine: Machine, parent: int, name: bytes, mode: int = 0o100644) -> int:
    reply = machine.execute(fs.MakeNodeRequest(parent=parent, name=name, mode=mode)).reply
    inode: int = reply.attributes.inode  # type: ignore[attr-defined]
    return inode


async def test_every_name_of_the_wanted_inodes_is_found(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    machine = Machine.open([tmp_path / "d"], copies=1)
    machine.form_cluster("c", "c", Policy(1, 0, 65536))
    folder = make(machine, 1, b"folder", 0o040755)
    deep = make(machine, folder, b"deep", 0o040755)
    wanted = {make(machine, deep, b"file"): b"/folder/deep/file"}
    # More than a page, so that a directory is left and come back to.
    for number in range(2 * fsck_names.PAGE + 1):
        inode = make(machine, folder, b"many-%05d" % number)
    wanted[inode] = b"/folder/many-%05d" % number
    machine.execute(fs.LinkRequest(inode=inode, parent=1, name=b"link"))
    found = [each async for each in paths_of(machine, lambda each: each in wanted)]
    assert sorted(found) == sorted([*wanted.items(), (inode, b"/link")])


def test_names_are_shown_in_one_line() -> None:
    assert shown("/a b/\u00e9".encode()) == "/a b/\u00e9"
    assert shown(b"/new\nline\x1b[2J") == "/new\\nline\\x1b[2J"
    assert shown(b"/\xff") == "/\\xff"
