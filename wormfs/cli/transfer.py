"""`wormfs put` and `wormfs get`: file contents in and out without a mount."""

import argparse
import contextlib
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from wormfs.cli.connection import add_cluster_options, target_of
from wormfs.cli.gateway import open_gateway
from wormfs.cli.parsing import Subparsers, command
from wormfs.cli.progress import Progress
from wormfs.cli.tree import PIECE_BYTES, Tree, is_directory
from wormfs.core.errors import (
    ExistsError,
    InvalidError,
    IsADirectoryWormError,
    NotDirectoryError,
    NotFoundError,
    WormError,
)
from wormfs.core.limits import ROOT_INODE
from wormfs.rpc.v1 import types_pb2


def add_parsers(subparsers: Subparsers) -> None:
    """Add `put` and `get`."""
    put = command(
        subparsers,
        "put",
        _put,
        "copy local files into the cluster; returns when they are durable",
        examples=[
            "wormfs put a.txt /docs/a.txt",
            "wormfs put -r photos /",
            "tar c . | wormfs put - /backup.tar",
        ],
    )
    put.add_argument("source", nargs="+", metavar="LOCAL", help="local files; - is standard input")
    put.add_argument("target", metavar="PATH", help="a path in the cluster, or a directory there")
    put.add_argument(
        "-r",
        "--recursive",
        action="store_true",
        help="whole directories, with modes and times; as root with owners",
    )
    add_cluster_options(put)
    get = command(
        subparsers,
        "get",
        _get,
        "copy files out of the cluster",
        examples=["wormfs get /docs/a.txt .", "wormfs get -r /photos .", "wormfs get /backup.tar - | tar t"],
    )
    get.add_argument("source", nargs="+", metavar="PATH", help="paths in the cluster")
    get.add_argument("target", metavar="LOCAL", help="a local path or directory; - is standard output")
    get.add_argument(
        "-r",
        "--recursive",
        action="store_true",
        help="whole directories, with modes and times; as root with owners",
    )
    add_cluster_options(get)


def _put(arguments: argparse.Namespace) -> int:
    with open_gateway(target_of(arguments)) as gateway, Progress("put", total=0) as progress:
        putter = _Putter(Tree(gateway), progress, recursive=arguments.recursive)
        into = putter.tree.place(arguments.target)
        directory = into.attributes is not None and is_directory(into.attributes)
        if len(arguments.source) > 1 and not directory:
            raise NotDirectoryError(f"{arguments.target}: must be a directory to take several files")
        if arguments.target.endswith("/") and not directory:
            raise NotDirectoryError(f"{arguments.target}: no such directory; make it with: wormfs mkdir")
        for source in arguments.source:
            if directory and into.attributes is not None:
                if source == "-":
                    raise InvalidError("standard input needs a file's name as its target")
                name = os.fsencode(os.path.basename(os.path.abspath(source)))
                putter.put(source, into.attributes.inode, name)
            else:
                putter.put(source, into.parent, into.name)
        putter.tree.sync()
    return 0


class _Putter:
    def __init__(self, tree: Tree, progress: Progress, *, recursive: bool) -> None:
        self.tree = tree
        self.progress = progress
        self.recursive = recursive

    def put(self, source: str, parent: int, name: bytes) -> None:
        """Copy one argument, symlinks in it followed."""
        if source == "-":
            if sys.stdin is None:
                raise InvalidError("standard input is closed: there is nothing to put")
            # Unbuffered: a buffer's lock, held by a thread that still reads, would abort our exit.
            with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as stream:
                self._put_stream(stream, 0o666 & ~_umask(), parent, name)
            return
        found = os.stat(source)
        if stat.S_ISDIR(found.st_mode):
            if not self.recursive:
                raise IsADirectoryWormError(f"{source} is a directory; copy it with -r")
            self._put_directory(Path(source), found, parent, name)
        else:
            self._put_file(Path(source), found, parent, name)

    def _put_directory(self, source: Path, found: os.stat_result, parent: int, name: bytes) -> None:
        """Everything below a directory; what is there already is merged with, as cp -r does."""
        made = self.tree.lookup(parent, name)
        if made is None:
            made = self.tree.make_directory(parent, name, stat.S_IMODE(found.st_mode))
        elif not is_directory(made):
            raise NotDirectoryError(f"{os.fsdecode(name)}: is there already and no directory")
        for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
            path, entry_name = Path(entry.path), os.fsencode(entry.name)
            entry_found = entry.stat(follow_symlinks=False)
            if entry.is_symlink():
                self._put_symlink(path, entry_found, made.inode, entry_name)
            elif entry.is_dir(follow_symlinks=False):
                self._put_directory(path, entry_found, made.inode, entry_name)
            elif entry.is_file(follow_symlinks=False):
                self._put_file(path, entry_found, made.inode, entry_name)
            else:
                print(f"wormfs: {path}: left out: no file, directory or symlink", file=sys.stderr)
        if made.inode != ROOT_INODE:
            self._keep_attributes(made.inode, found)

    def _keep_attributes(self, inode: int, found: os.stat_result) -> None:
        """With -r: modes and times as they were, owners too when we are root."""
        if self.recursive:
            self.tree.set_attributes(
                inode,
                mode=None if stat.S_ISLNK(found.st_mode) else stat.S_IMODE(found.st_mode),
                owner=(found.st_uid, found.st_gid) if os.getuid() == 0 else None,
                mtime_ns=found.st_mtime_ns,
            )

    def _put_symlink(self, source: Path, found: os.stat_result, parent: int, name: bytes) -> None:
        target = os.readlink(os.fsencode(source))
        try:
            made = self.tree.make_symlink(parent, name, target)
        except ExistsError:
            self.tree.unlink(parent, name)
            made = self.tree.make_symlink(parent, name, target)
        self._keep_attributes(made.inode, found)

    def _put_file(self, source: Path, found: os.stat_result, parent: int, name: bytes) -> None:
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISFIFO(found.st_mode):
            raise InvalidError(f"{source}: no regular file")
        self.progress.describe(source.name)
        self.progress.grow(found.st_size)
        with source.open("rb", buffering=0) as stream:
            self._put_stream(stream, stat.S_IMODE(found.st_mode) & 0o777, parent, name, found)

    def _put_stream(
        self,
        stream: BinaryIO,
        mode: int,
        parent: int,
        name: bytes,
        found: os.stat_result | None = None,
    ) -> None:
        """Write beside the target, make it durable, then rename: nobody sees a part of it."""
        existing = self.tree.lookup(parent, name)
        if existing is not None:
            if is_directory(existing):
                raise IsADirectoryWormError(f"{os.fsdecode(name)}: is a directory")
            mode = stat.S_IMODE(existing.mode)
        temporary = b".wormfs-put-" + secrets.token_hex(8).encode()
        try:
            made = self.tree.write_file(parent, temporary, mode, self._pieces(stream))
            if found is not None:
                self._keep_attributes(made.inode, found)
            self.tree.rename(parent, temporary, parent, name, replace=True)
        except BaseException:
            self._discard(parent, temporary)
            raise

    def _discard(self, parent: int, temporary: bytes) -> None:
        with contextlib.suppress(WormError):  # the error that led here says more
            self.tree.unlink(parent, temporary)

    def _pieces(self, stream: BinaryIO) -> Iterator[bytes]:
        while piece := stream.read(PIECE_BYTES):
            self.progress.advance(len(piece))
            yield piece


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _get(arguments: argparse.Namespace) -> int:
    to_stdout = arguments.target == "-"
    target = Path(arguments.target)
    if len(arguments.source) > 1 and not to_stdout and not target.is_dir():
        raise NotDirectoryError(f"{target}: must be a directory to take several files")
    with open_gateway(target_of(arguments)) as gateway, Progress("get", total=0) as progress:
        getter = _Getter(Tree(gateway), progress, recursive=arguments.recursive)
        for source in arguments.source:
            place = getter.tree.place(source)
            if place.attributes is None:
                raise NotFoundError(f"{source}: no such file or directory")
            if to_stdout:
                getter.print_file(source, place.attributes)
            else:
                name = os.fsdecode(place.name) if place.name != b"." else ""
                getter.get(source, place.attributes, target / name if target.is_dir() else target)
    return 0


class _Getter:
    def __init__(self, tree: Tree, progress: Progress, *, recursive: bool) -> None:
        self.tree = tree
        self.progress = progress
        self.recursive = recursive

    def print_file(self, source: str, attributes: types_pb2.Attributes) -> None:
        """One file to standard output."""
        if not stat.S_ISREG(attributes.mode):
            raise InvalidError(f"{source}: no regular file: it cannot go to standard output")
        self.progress.grow(attributes.size_bytes)
        self._copy(attributes, sys.stdout.buffer)
        sys.stdout.buffer.flush()

    def get(self, source: str, attributes: types_pb2.Attributes, target: Path) -> None:
        """One argument: a file, or with -r a directory."""
        if is_directory(attributes):
            if not self.recursive:
                raise IsADirectoryWormError(f"{source} is a directory; copy it with -r")
            self._get_directory(attributes, target)
        elif stat.S_ISREG(attributes.mode):
            self._get_file(attributes, target)
        else:
            raise InvalidError(f"{source}: no regular file")

    def _get_directory(self, attributes: types_pb2.Attributes, target: Path) -> None:
        if target.exists() and not target.is_dir():
            raise NotDirectoryError(f"{target}: is there already and no directory")
        target.mkdir(exist_ok=True)
        for entry in self.tree.entries(attributes.inode):
            path = target / os.fsdecode(entry.name)
            if stat.S_ISDIR(entry.mode):
                self._get_directory(entry.attributes, path)
            elif stat.S_ISREG(entry.mode):
                self._get_file(entry.attributes, path)
            elif stat.S_ISLNK(entry.mode):
                path.unlink(missing_ok=True)
                path.symlink_to(os.fsdecode(self.tree.read_link(entry.inode)))
                self._keep_attributes(path, entry.attributes)
            else:
                print(f"wormfs: {path}: left out: no file, directory or symlink", file=sys.stderr)
        self._keep_attributes(target, attributes)

    def _keep_attributes(self, path: Path, attributes: types_pb2.Attributes) -> None:
        """With -r: modes and times as they were, owners and set-id bits too when we are root."""
        if not self.recursive:
            return
        root = os.getuid() == 0
        if root:
            os.chown(path, attributes.uid, attributes.gid, follow_symlinks=False)
        if not stat.S_ISLNK(attributes.mode):  # a chown takes set-id bits away, so after it
            path.chmod(stat.S_IMODE(attributes.mode) & (0o7777 if root else 0o777))
        os.utime(path, ns=(attributes.atime_ns, attributes.mtime_ns), follow_symlinks=False)

    def _get_file(self, attributes: types_pb2.Attributes, target: Path) -> None:
        """Write beside the target, then rename: nobody sees a part of it."""
        if target.is_dir():
            raise IsADirectoryWormError(f"{target}: is a directory")
        self.progress.describe(target.name)
        self.progress.grow(attributes.size_bytes)
        if target.exists() and not target.is_file():  # such as /dev/null or a pipe
            with target.open("wb", buffering=0) as stream:
                self._copy(attributes, stream)
            return
        temporary = target.with_name(f".wormfs-get-{secrets.token_hex(8)}")
        try:
            stream = temporary.open("xb", buffering=0)
        except OSError as error:  # the name that was asked for, not one nobody knows
            raise OSError(error.errno, error.strerror, str(target)) from None
        try:
            with stream:
                self._copy(attributes, stream)
            temporary.chmod(stat.S_IMODE(attributes.mode) & 0o777)
            self._keep_attributes(temporary, attributes)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _copy(self, attributes: types_pb2.Attributes, stream: BinaryIO) -> None:
        """All bytes, or an error: a file that ends early was cut meanwhile and is no copy."""
        copied = 0
        for piece in self.tree.read_file(attributes.inode, attributes.size_bytes):
            view = memoryview(piece)
            while view:
                view = view[stream.write(view) :]
            copied += len(piece)
            self.progress.advance(len(piece))
        if copied != attributes.size_bytes:
            raise WormError(
                f"inode {attributes.inode} ended after {copied} of {attributes.size_bytes} bytes: "
                "it was changed while it was read; copy it again"
            )
