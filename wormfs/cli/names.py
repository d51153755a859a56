"""`wormfs ls|stat|rm|mkdir|mv`: the namespace without a mount."""

import argparse
import os
import stat
from datetime import UTC, datetime
from typing import Any

from wormfs.cli.connection import add_cluster_options, target_of
from wormfs.cli.gateway import open_gateway
from wormfs.cli.output import print_json, printable, to_plain
from wormfs.cli.parsing import Subparsers, command
from wormfs.cli.tree import Place, Tree, clean_path, is_directory
from wormfs.core.errors import (
    ExistsError,
    InvalidError,
    IsADirectoryWormError,
    NotDirectoryError,
    NotEmptyError,
    NotFoundError,
    WormError,
)
from wormfs.core.limits import ROOT_INODE
from wormfs.rpc.v1 import filesystem_pb2, types_pb2


def add_parsers(subparsers: Subparsers) -> None:
    """Add `ls`, `stat`, `rm`, `mkdir`, `mv`."""
    ls = command(subparsers, "ls", _ls, "list directories", examples=["wormfs ls -l /photos"])
    ls.add_argument("path", nargs="*", metavar="PATH", help="directories or files (/)")
    ls.add_argument("-l", dest="long", action="store_true", help="with mode, owner, size and time")
    ls.add_argument("--json", action="store_true", help="for programs; the fields are in docs/api.md")
    show = command(
        subparsers, "stat", _stat, "show all attributes", examples=["wormfs stat --json /photos/a.jpg"]
    )
    show.add_argument("path", nargs="+", metavar="PATH")
    show.add_argument("--json", action="store_true", help="for programs; the fields are in docs/api.md")
    rm = command(subparsers, "rm", _rm, "remove files", examples=["wormfs rm /a.txt", "wormfs rm -r /photos"])
    rm.add_argument("path", nargs="+", metavar="PATH")
    rm.add_argument("-r", "--recursive", action="store_true", help="directories and all below")
    rm.add_argument("-f", "--force", action="store_true", help="do not mind what is not there")
    mkdir = command(subparsers, "mkdir", _mkdir, "make directories", examples=["wormfs mkdir -p /a/b/c"])
    mkdir.add_argument("path", nargs="+", metavar="PATH")
    mkdir.add_argument("-p", "--parents", action="store_true", help="with those above, and none is too many")
    mkdir.add_argument("-m", "--mode", type=_mode, default=0o755, metavar="MODE", help="octal (755)")
    mv = command(
        subparsers, "mv", _mv, "move or rename", examples=["wormfs mv /a.txt /b.txt", "wormfs mv /a /b /dir"]
    )
    mv.add_argument("source", nargs="+", metavar="PATH")
    mv.add_argument("target", metavar="TARGET", help="a path, or a directory to move into")
    mv.add_argument("-n", "--no-replace", action="store_true", help="fail when the target is there")
    for parser in (ls, show, rm, mkdir, mv):
        add_cluster_options(parser)


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o7777:
        raise argparse.ArgumentTypeError(f"expected an octal mode such as 755, not {text!r}")
    return mode


def _ls(arguments: argparse.Namespace) -> int:
    listings: dict[str, list[dict[str, Any]]] = {}
    paths: list[str] = arguments.path or ["/"]
    with open_gateway(target_of(arguments)) as gateway:
        tree = Tree(gateway)
        for number, path in enumerate(paths):
            attributes = tree.resolve(path)
            if arguments.json:
                listings[path] = [_entry_json(entry) for entry in _listed(tree, path, attributes, full=True)]
                continue
            if len(paths) > 1:
                print(f"{chr(10) if number else ''}{path}:")
            for entry in _listed(tree, path, attributes, full=arguments.long):
                print(_long_line(tree, entry) if arguments.long else printable(entry.name))
    if arguments.json:
        print_json(listings[paths[0]] if len(paths) == 1 else listings)
    return 0


def _listed(tree: Tree, path: str, attributes: types_pb2.Attributes, *, full: bool) -> Any:
    if is_directory(attributes):
        return tree.entries(attributes.inode, attributes=full)
    name = os.fsencode(path.rstrip("/").rpartition("/")[2])
    entry = filesystem_pb2.DirEntry(
        name=name, inode=attributes.inode, mode=attributes.mode, attributes=attributes
    )
    return [entry]


def _entry_json(entry: filesystem_pb2.DirEntry) -> dict[str, Any]:
    return {"name": os.fsdecode(entry.name)} | to_plain(entry.attributes)


def _time(ns: int) -> str:
    return datetime.fromtimestamp(ns // 10**9, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _long_line(tree: Tree, entry: filesystem_pb2.DirEntry) -> str:
    has = entry.attributes
    target = f" -> {printable(tree.read_link(entry.inode))}" if stat.S_ISLNK(has.mode) else ""
    return (
        f"{stat.filemode(has.mode)} {has.nlink:3d} {has.uid:5d} {has.gid:5d} {has.size_bytes:12d}"
        f" {_time(has.mtime_ns)} {printable(entry.name)}{target}"
    )


def _stat(arguments: argparse.Namespace) -> int:
    found: list[dict[str, Any]] = []
    with open_gateway(target_of(arguments)) as gateway:
        tree = Tree(gateway)
        for path in arguments.path:
            attributes = tree.resolve(path, follow=False)
            if arguments.json:
                found.append({"path": path} | to_plain(attributes))
            else:
                print(_stat_text(path, attributes))
    if arguments.json:
        print_json(found[0] if len(found) == 1 else found)
    return 0


def _stat_text(path: str, has: types_pb2.Attributes) -> str:
    return "\n".join(
        [
            f"path      {path}",
            f"inode     {has.inode}",
            f"mode      {stat.filemode(has.mode)} ({stat.S_IMODE(has.mode):04o})",
            f"links     {has.nlink}",
            f"owner     {has.uid}:{has.gid}",
            f"size      {has.size_bytes} bytes, {has.allocated_bytes} held",
            f"accessed  {_time(has.atime_ns)}",
            f"modified  {_time(has.mtime_ns)}",
            f"changed   {_time(has.ctime_ns)} (event {has.change})",
            f"stripes   of {has.stripe_size_bytes} bytes",
        ]
    )


def _rm(arguments: argparse.Namespace) -> int:
    with open_gateway(target_of(arguments)) as gateway:
        tree = Tree(gateway)
        for path in arguments.path:
            try:
                place = tree.place(path, follow=False)
                _remove(tree, place, path, recursive=arguments.recursive)
            except NotFoundError:
                if not arguments.force:
                    raise
        tree.sync()
    return 0


def _remove(tree: Tree, place: Place, path: str, *, recursive: bool) -> None:
    if place.attributes is None:
        raise NotFoundError(f"{path}: no such file or directory")
    if not is_directory(place.attributes):
        tree.unlink(place.parent, place.name)
        return
    if not recursive:
        raise IsADirectoryWormError(f"{path} is a directory; remove it with -r")
    if place.attributes.inode == ROOT_INODE:
        raise InvalidError("/ cannot be removed; name what is in it")
    _remove_below(tree, place.attributes.inode)
    tree.remove_directory(place.parent, place.name)


def _remove_below(tree: Tree, inode: int) -> None:
    for entry in tree.entries(inode, attributes=False):
        if stat.S_ISDIR(entry.mode):
            _remove_below(tree, entry.inode)
            tree.remove_directory(inode, entry.name)
        else:
            tree.unlink(inode, entry.name)


def _mkdir(arguments: argparse.Namespace) -> int:
    with open_gateway(target_of(arguments)) as gateway:
        tree = Tree(gateway)
        for path in arguments.path:
            if arguments.parents:
                _make_parents(tree, path, arguments.mode)
                continue
            place = tree.place(path, follow=False)
            if place.attributes is not None:
                raise ExistsError(f"{path}: is there already")
            tree.make_directory(place.parent, place.name, arguments.mode)
        tree.sync()
    return 0


def _make_parents(tree: Tree, path: str, mode: int) -> None:
    built = b""
    for part in clean_path(path).strip(b"/").split(b"/"):
        if not part:
            return
        built += b"/" + part
        place = tree.place(built)
        if place.attributes is None:
            tree.make_directory(place.parent, place.name, mode)
        elif not is_directory(place.attributes):
            raise NotDirectoryError(f"{os.fsdecode(built)}: is there already and no directory")


def _named(error: WormError, source: str, target: str) -> WormError:
    """The cluster speaks of inodes; who gave paths is told paths."""
    if isinstance(error, ExistsError):
        return ExistsError(f"{source}: {target} has that name already")
    if isinstance(error, InvalidError | NotEmptyError | NotDirectoryError | IsADirectoryWormError):
        return type(error)(f"{source} cannot become {target}: {error.message}")
    return error


def _mv(arguments: argparse.Namespace) -> int:
    with open_gateway(target_of(arguments)) as gateway:
        tree = Tree(gateway)
        into = tree.place(arguments.target)
        directory = into.attributes is not None and is_directory(into.attributes)
        if len(arguments.source) > 1 and not directory:
            raise NotDirectoryError(f"{arguments.target}: must be a directory to take several")
        for path in arguments.source:
            place = tree.place(path, follow=False)
            if place.attributes is None:
                raise NotFoundError(f"{path}: no such file or directory")
            if place.attributes.inode == ROOT_INODE:
                raise InvalidError("/ cannot be moved")
            parent, name = into.parent, into.name
            if into.attributes is not None and directory:
                parent, name = into.attributes.inode, place.name
            try:
                tree.rename(place.parent, place.name, parent, name, replace=not arguments.no_replace)
            except WormError as error:
                raise _named(error, path, arguments.target) from None
        tree.sync()
    return 0
