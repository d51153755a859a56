"""Names of inodes, for fsck: the metadata can be asked for a name's inode, not for an inode's name.

So one walk over the whole namespace serves all inodes that are looked for. It works page by page with
others' work in between, and holds no more than a page of names for each level of directories.
"""

import stat
from collections.abc import AsyncIterator, Callable

import trio

from wormfs.core.errors import NotDirectoryError, NotFoundError, StaleError
from wormfs.core.limits import ROOT_INODE
from wormfs.metadata.machine import Machine
from wormfs.rpc.v1 import filesystem_pb2

PAGE = 1000


async def paths_of(machine: Machine, wanted: Callable[[int], bool]) -> AsyncIterator[tuple[int, bytes]]:
    """Every name, as an absolute path, of each inode that is `wanted`."""
    left: list[tuple[int, bytes, bytes]] = [(ROOT_INODE, b"", b"")]  # directory, its path, after this name
    while left:
        directory, path, after = left.pop()
        request = filesystem_pb2.ReadDirRequest(inode=directory, after=after, limit=PAGE)
        try:
            page = machine.execute(request).reply
        except (NotFoundError, NotDirectoryError, StaleError):
            continue  # removed meanwhile
        assert isinstance(page, filesystem_pb2.ReadDirReply)
        if not page.end and page.entries:
            left.append((directory, path, page.entries[-1].name))
        for entry in page.entries:
            name = path + b"/" + entry.name
            if wanted(entry.inode):
                yield entry.inode, name
            if stat.S_ISDIR(entry.mode):
                left.append((entry.inode, name, b""))
        await trio.lowlevel.checkpoint()


def shown(path: bytes) -> str:
    """A path in one line of text: control characters and bytes that are no UTF-8 are escaped."""
    text = path.decode(errors="backslashreplace")
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )
