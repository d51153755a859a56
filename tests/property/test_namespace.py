"""Random namespace operations on the machine and on a real directory side by side.

After each step errno and result must agree; at the end the whole trees must. The directory stands
on whatever the temp folder is (ext4, tmpfs): both are Linux's own judge of the rules.
"""

import ctypes
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from wormfs.core.errors import WormError
from wormfs.core.types import Policy
from wormfs.metadata.machine import Machine
from wormfs.rpc.v1 import filesystem_pb2 as fs
from wormfs.rpc.v1 import metadata_pb2 as md
from wormfs.rpc.v1 import types_pb2

_LIBC = ctypes.CDLL(None, use_errno=True)
NAMES = st.sampled_from([b"a", b"b", b"c", b"\xff\xfe", b"n" * 255])
BAD_NAMES = st.one_of(NAMES, NAMES, NAMES, st.just(b"n" * 256))
DIRS = st.lists(NAMES, max_size=3)
STRIPE_BYTES = 4 * 4096


def renameat2(old: bytes, new: bytes, flags: int) -> None:
    """rename(2) with flags, raising OSError."""
    if _LIBC.renameat2(-100, old, -100, new, flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Namespace(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        disk = self.folder / "disk"
        disk.mkdir()
        self.real = os.fsencode(self.folder / "real")
        os.mkdir(self.real)
        self.machine = Machine.open([disk], copies=1, segment_bytes=1 << 20)
        self.machine.form_cluster("c", "test", Policy(4, 2, 4096))
        self.session = self.machine.open_session("test")
        self.operation = 0
        self.now_ns = 10**18

    def teardown(self) -> None:
        assert list(self.machine.check_namespace()) == []
        before = self.machine.digest()
        sequence = self.machine.sequence
        self.machine.close()
        shutil.rmtree(self.folder / "disk" / "metadata" / "state")
        again = Machine.open([self.folder / "disk"], copies=1, segment_bytes=1 << 20)
        assert again.sequence == sequence + 1
        again.close()
        assert before
        shutil.rmtree(self.folder)

    # --- both sides of a step -----------------------------------------------------------------

    def resolve(self, path: list[bytes]) -> int:
        inode = 1
        for name in path:
            reply = self.machine.execute(fs.LookupRequest(parent=inode, name=name)).reply
            assert isinstance(reply, fs.AttrReply)
            inode = reply.attributes.inode
            if stat.S_ISLNK(reply.attributes.mode):
                raise OSError(errno.ENOENT, "a symlink in the way: all of them dangle")
        return inode

    def holder(self, path: list[bytes]) -> int:
        """As resolve, for the directory part of a path: walked before anything else is looked at."""
        inode = self.resolve(path)
        self.machine.execute(fs.LookupRequest(parent=inode, name=b"."))
        return inode

    def caller(self) -> types_pb2.Caller:
        self.operation += 1
        return types_pb2.Caller(
            session_id=self.session, operation=self.operation, acknowledged=self.operation - 1
        )

    def both(self, real: Callable[[], object], ours: Callable[[], object]) -> None:
        expected = found = 0
        try:
            real()
        except OSError as error:
            expected = error.errno or -1
        self.now_ns += 1
        try:
            ours()
        except WormError as error:
            found = error.errno
        except OSError as error:
            found = error.errno or -1
        assert errno.errorcode.get(found, found) == errno.errorcode.get(expected, expected)

    def path(self, parts: list[bytes], name: bytes = b"") -> bytes:
        return b"/".join([self.real, *parts, *([name] if name else [])])

    def make(self, parent: list[bytes], name: bytes, mode: int, target: bytes = b"") -> None:
        request = fs.MakeNodeRequest(
            caller=self.caller(),
            parent=self.holder(parent),
            name=name,
            mode=mode,
            exclusive=True,
            target=target,
        )
        outcome = self.machine.execute(request, now_ns=self.now_ns)
        reply = outcome.reply
        assert isinstance(reply, md.FileMapReply)
        got = self.machine.execute(fs.GetAttrRequest(inode=reply.attributes.inode)).reply
        assert isinstance(got, fs.AttrReply)
        assert got.attributes == reply.attributes
        # A retry answers the same and changes nothing.
        again = self.machine.execute(request, now_ns=self.now_ns)
        assert (again.reply, again.sequence) == (reply, outcome.sequence)

    # --- steps --------------------------------------------------------------------------------

    @rule(parent=DIRS, name=BAD_NAMES, setgid=st.booleans())
    def mkdir(self, parent: list[bytes], name: bytes, setgid: bool) -> None:
        mode = 0o2755 if setgid else 0o755

        def real() -> None:
            os.mkdir(self.path(parent, name))
            inherited = os.lstat(self.path(parent, name)).st_mode & stat.S_ISGID
            os.chmod(self.path(parent, name), mode | inherited)

        self.both(real, lambda: self.make(parent, name, stat.S_IFDIR | mode))

    @rule(parent=DIRS, name=BAD_NAMES)
    def create(self, parent: list[bytes], name: bytes) -> None:
        def real() -> None:
            os.close(os.open(self.path(parent, name), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))

        self.both(real, lambda: self.make(parent, name, stat.S_IFREG | 0o644))

    @rule(parent=DIRS, name=BAD_NAMES, length=st.sampled_from([1, 100, 2000]))
    def symlink(self, parent: list[bytes], name: bytes, length: int) -> None:
        target = b"t/" * length
        self.both(
            lambda: os.symlink(target, self.path(parent, name)),
            lambda: self.make(parent, name, stat.S_IFLNK | 0o777, target=target),
        )

    @rule(parent=DIRS, name=BAD_NAMES)
    def unlink(self, parent: list[bytes], name: bytes) -> None:
        self.both(
            lambda: os.unlink(self.path(parent, name)),
            lambda: self.machine.execute(
                fs.UnlinkRequest(caller=self.caller(), parent=self.holder(parent), name=name)
            ),
        )

    @rule(parent=DIRS, name=BAD_NAMES)
    def rmdir(self, parent: list[bytes], name: bytes) -> None:
        self.both(
            lambda: os.rmdir(self.path(parent, name)),
            lambda: self.machine.execute(
                fs.RemoveDirRequest(caller=self.caller(), parent=self.holder(parent), name=name)
            ),
        )

    @rule(source=DIRS, old=NAMES, parent=DIRS, name=BAD_NAMES)
    def link(self, source: list[bytes], old: bytes, parent: list[bytes], name: bytes) -> None:
        def ours() -> None:
            found = self.machine.execute(fs.LookupRequest(parent=self.holder(source), name=old)).reply
            assert isinstance(found, fs.AttrReply)
            request = fs.LinkRequest(
                caller=self.caller(), inode=found.attributes.inode, parent=self.holder(parent), name=name
            )
            self.machine.execute(request, now_ns=self.now_ns)

        self.both(
            lambda: os.link(self.path(source, old), self.path(parent, name), follow_symlinks=False), ours
        )

    @rule(source=DIRS, old=BAD_NAMES, parent=DIRS, name=BAD_NAMES, flags=st.sampled_from([0, 0, 0, 1, 2, 3]))
    def rename(self, source: list[bytes], old: bytes, parent: list[bytes], name: bytes, flags: int) -> None:
        def ours() -> None:
            holders = (1, 1) if flags == 3 else (self.holder(source), self.holder(parent))
            request = fs.RenameRequest(
                caller=self.caller(),
                parent=holders[0],
                name=old if flags != 3 else b"a",
                new_parent=holders[1],
                new_name=name if flags != 3 else b"a",
                flags=flags,
            )
            self.machine.execute(request, now_ns=self.now_ns)

        self.both(lambda: renameat2(self.path(source, old), self.path(parent, name), flags), ours)

    @rule(path=DIRS, mode=st.sampled_from([0o600, 0o755, 0o1777, 0o2775]))
    def chmod(self, path: list[bytes], mode: int) -> None:
        if not path:
            return

        def real() -> None:
            if stat.S_ISLNK(os.lstat(self.path(path)).st_mode):
                raise OSError(errno.ENOENT, "symlinks are left alone")
            os.chmod(self.path(path), mode)

        self.both(
            real,
            lambda: self.machine.execute(
                fs.SetAttrRequest(caller=self.caller(), inode=self.resolve(path), mode=mode)
            ),
        )

    @rule(path=DIRS, size=st.sampled_from([0, 1, 4095, STRIPE_BYTES, 3 * STRIPE_BYTES + 7]))
    def truncate(self, path: list[bytes], size: int) -> None:
        if not path:
            return

        def real() -> None:
            if stat.S_ISLNK(os.lstat(self.path(path)).st_mode):
                raise OSError(errno.ENOENT, "symlinks are left alone")
            os.truncate(self.path(path), size)

        self.both(
            real,
            lambda: self.machine.execute(
                fs.SetAttrRequest(caller=self.caller(), inode=self.resolve(path), size_bytes=size)
            ),
        )

    @rule()
    def free_orphans(self) -> None:
        for inode in self.machine.orphans():
            assert self.machine.free_orphan(inode)

    # --- what must hold after each step -------------------------------------------------------

    @invariant()
    def same_tree(self) -> None:
        self._compare(1, self.real)

    def _compare(self, inode: int, folder: bytes) -> None:
        reply = self.machine.execute(fs.ReadDirRequest(inode=inode, want_attributes=True)).reply
        assert isinstance(reply, fs.ReadDirReply)
        assert [entry.name for entry in reply.entries] == sorted(os.listdir(folder))
        for entry in reply.entries:
            path = folder + b"/" + entry.name
            real = os.lstat(path)
            ours = entry.attributes
            assert oct(ours.mode) == oct(real.st_mode)
            assert ours.size_bytes == real.st_size or stat.S_ISDIR(real.st_mode)
            if not stat.S_ISDIR(real.st_mode):
                assert ours.nlink == real.st_nlink
            else:
                subdirectories = sum(1 for found in os.scandir(path) if found.is_dir(follow_symlinks=False))
                assert ours.nlink == 2 + subdirectories
                up = self.machine.execute(fs.LookupRequest(parent=entry.inode, name=b"..")).reply
                assert isinstance(up, fs.AttrReply)
                assert up.attributes.inode == inode
                self._compare(entry.inode, path)
            if stat.S_ISLNK(real.st_mode):
                target = self.machine.execute(fs.ReadLinkRequest(inode=entry.inode)).reply
                assert isinstance(target, fs.ReadLinkReply)
                assert target.target == os.readlink(path)


TestNamespace = Namespace.TestCase
TestNamespace.settings = settings(
    max_examples=80,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
