"""`wormfs metadata backup|check|restore`: the metadata in a file, and back from it."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

import trio

from wormfs.cli.connection import add_cluster_options, call_master, master_of, target_of, usable_addresses
from wormfs.cli.output import human_bytes, print_json
from wormfs.cli.parsing import Subparsers, command
from wormfs.cli.progress import Progress
from wormfs.core.errors import DataLossError, DiskError, ExistsError, InvalidError, NotFoundError
from wormfs.metadata.restored_state import Backup, check_backup
from wormfs.metadata.snapshots import SnapshotInfo, verify
from wormfs.node.config import load_node_config
from wormfs.node.migration import start_member
from wormfs.node.restore import restore_metadata
from wormfs.rpc import methods
from wormfs.rpc.stream_client import StreamConnection, open_connection
from wormfs.rpc.v1 import cluster_pb2, replication_pb2

CONNECT_S = 5.0
MAKE_S = 300.0
"""The node makes the snapshot first: a copy of a state of some GiB."""
PIECE_S = 60.0
PIECE_BYTES = 4 << 20
_TRIES = 5
STDOUT = "-"


def add_backup_parsers(actions: Subparsers) -> None:
    """Add `backup`, `check`, `restore` and `start-etcd` to the actions of `metadata`."""
    backup = command(
        actions,
        "backup",
        _backup,
        "write the metadata of a running cluster, as of one event, to a file",
        examples=[
            "wormfs metadata backup /backup/wormfs-$(date +%F)",
            "wormfs metadata backup - | ssh vault 'cat > wormfs.backup'",
        ],
    )
    add_cluster_options(backup)
    backup.add_argument("file", metavar="FILE", help="made whole or not at all; `-`: standard output")
    backup.add_argument("--force", action="store_true", help="replace FILE if it is there")
    backup.add_argument("--json", action="store_true", help="for programs")

    check = command(
        actions,
        "check",
        _check,
        "read a backup and check all of it; no cluster is needed",
        examples=["wormfs metadata check /backup/wormfs-2026-01-31"],
    )
    check.add_argument("file", type=Path, metavar="FILE")
    check.add_argument("--json", action="store_true", help="for programs")

    restore = command(
        actions,
        "restore",
        _restore,
        "put the metadata of a backup onto a stopped node, where there is none; see docs/many-servers.md",
        examples=[
            "systemctl stop wormfs-node     # on every node",
            "wormfs metadata start-etcd --node-config /etc/wormfs/node.yaml   # where `managed: true`",
            "wormfs metadata restore /backup/wormfs-2026-01-31 --node-config /etc/wormfs/node.yaml",
            "systemctl start wormfs-node    # on this node, then on the others",
            "wormfs fsck                    # what is missing since",
        ],
    )
    restore.add_argument("file", type=Path, metavar="FILE", help="as `wormfs metadata backup` made it")
    restore.add_argument(
        "--node-config", type=Path, required=True, metavar="NODE.yaml", help="the node's configuration"
    )

    start = command(
        actions,
        "start-etcd",
        _start_etcd,
        "start the etcd member that a stopped node looks after, and leave it running: before a restore",
        examples=["wormfs metadata start-etcd --node-config /etc/wormfs/node.yaml"],
    )
    start.add_argument(
        "--node-config", type=Path, required=True, metavar="NODE.yaml", help="the node's configuration"
    )


# --- restore and check --------------------------------------------------------------------------------


def _restore(arguments: argparse.Namespace) -> int:
    config = load_node_config(arguments.node_config)
    backup = trio.run(restore_metadata, config, arguments.file)
    print(
        f"the metadata of cluster {backup.cluster_id} is back as of event {backup.sequence}: start this "
        "node, then the others; `wormfs fsck` tells what is missing"
    )
    return 0


def _start_etcd(arguments: argparse.Namespace) -> int:
    config = load_node_config(arguments.node_config)
    trio.run(start_member, config)
    print(f"the etcd member {config.metadata.member} runs; start the others, too")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    backup = check_backup(arguments.file)
    if arguments.json:
        print_json(_plain(backup))
    else:
        print(
            f"sound: cluster {backup.cluster_id} ({backup.cluster_name}) at event {backup.sequence}, "
            f"{backup.counts.inodes} inodes, {backup.counts.stripes} stripes, "
            f"{human_bytes(backup.file_bytes)}, checksum {backup.checksum}"
        )
    return 0


def _plain(backup: Backup) -> dict[str, object]:
    return {
        "sequence": backup.sequence,
        "cluster_id": backup.cluster_id,
        "cluster_name": backup.cluster_name,
        "file_bytes": backup.file_bytes,
        "checksum": backup.checksum,
        "inodes": backup.counts.inodes,
        "stripes": backup.counts.stripes,
    }


# --- backup -------------------------------------------------------------------------------------------


class _Source(NamedTuple):
    """Where to take it from, and what was answered before it was asked for."""

    addresses: tuple[str, ...]
    sequence: int


def _backup(arguments: argparse.Namespace) -> int:
    if arguments.file != STDOUT:
        _refuse_existing(Path(arguments.file), force=arguments.force)
    elif arguments.json:
        raise InvalidError("the backup goes to standard output: --json has no place there")
    target = target_of(arguments)
    status = call_master(target, methods.CLUSTER_GET_STATUS, cluster_pb2.GetStatusRequest())
    source = _Source(usable_addresses(master_of(status.map)), status.sequence)
    if arguments.file == STDOUT:
        with Progress("backing up") as progress:
            found = trio.run(_fetch, source, sys.stdout.buffer, progress, 1)
        sys.stdout.buffer.flush()
        print(f"event {found.sequence}, {found.file_bytes} bytes", file=sys.stderr)
        return 0
    path = Path(arguments.file).absolute()
    info = _write(path, source, force=arguments.force)
    file_bytes = path.stat().st_size
    if arguments.json:
        print_json(
            {
                "file": str(path),
                "sequence": info.sequence,
                "cluster_id": status.map.cluster_id,
                "cluster_name": status.map.name,
                "file_bytes": file_bytes,
                "checksum": info.checksum.hex(),
            }
        )
    else:
        print(
            f"{path}: cluster {status.map.cluster_id} at event {info.sequence}, {human_bytes(file_bytes)}, "
            f"checksum {info.checksum.hex()}"
        )
    return 0


def _refuse_existing(path: Path, *, force: bool) -> None:
    if path.is_dir():
        raise ExistsError(f"{path} is a folder; name a file")
    if not force and path.exists():
        raise ExistsError(f"{path} exists already; --force replaces it")


def _write(path: Path, source: _Source, *, force: bool) -> SnapshotInfo:
    """The backup at `path`, durable; nothing of that name before it is whole. Raises WormError."""
    try:
        with _temporary(path) as (temporary, file):
            with Progress("backing up") as progress:
                found = trio.run(_fetch, source, file, progress, _TRIES)
            file.flush()
            os.fsync(file.fileno())
            info = verify(temporary)
            if info.sequence != found.sequence:
                raise DataLossError(
                    f"the snapshot of event {found.sequence} says that it is of {info.sequence}"
                )
            if force:
                temporary.replace(path)
            else:
                os.link(temporary, path)  # unlike a rename it never replaces
                temporary.unlink()
            _sync_folder(path.parent)
            return info
    except FileExistsError:
        raise ExistsError(f"{path} exists already; --force replaces it") from None
    except OSError as error:
        raise DiskError(f"{path}: the backup cannot be written: {error.strerror}") from error


@contextmanager
def _temporary(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A file beside `path`, gone at the end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("xb") as file:
            yield temporary, file
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def _fetch(
    source: _Source, file: IO[bytes], progress: Progress, tries: int
) -> replication_pb2.GetSnapshotReply:
    """Write a snapshot to `file`, from its beginning again when the node has dropped it for a newer one."""
    for left in reversed(range(tries)):
        try:
            async with open_connection(source.addresses, timeout_s=CONNECT_S) as connection:
                ask = replication_pb2.GetSnapshotRequest(at_least=source.sequence)
                found = (
                    await connection.call(methods.REPLICATION_GET_SNAPSHOT, ask, timeout_s=MAKE_S)
                ).message
                await _receive(connection, found, file, progress)
                return found
        except NotFoundError:
            if not left:
                raise
            file.seek(0)
            file.truncate()
    raise AssertionError("unreachable")


async def _receive(
    connection: StreamConnection,
    found: replication_pb2.GetSnapshotReply,
    file: IO[bytes],
    progress: Progress,
) -> None:
    buffer = bytearray(PIECE_BYTES)
    received_bytes = 0
    while received_bytes < found.file_bytes:
        request = replication_pb2.GetSnapshotRequest(
            sequence=found.sequence, offset_bytes=received_bytes, length_bytes=PIECE_BYTES
        )
        reply = await connection.call(
            methods.REPLICATION_GET_SNAPSHOT, request, timeout_s=PIECE_S, into=[memoryview(buffer)]
        )
        if not reply.data_bytes:
            raise DataLossError(f"the snapshot ends at {received_bytes} of {found.file_bytes} bytes")
        await trio.to_thread.run_sync(file.write, memoryview(buffer)[: reply.data_bytes])
        received_bytes += reply.data_bytes
        progress.update(received_bytes, found.file_bytes)
