"""Pieces of a node's newest metadata snapshot, for replicas that fell behind and for backups."""

import os
from collections.abc import Callable
from pathlib import Path

import trio

from wormfs.core.errors import InvalidError, NotFoundError, UnavailableError
from wormfs.metadata import members as files
from wormfs.metadata.keeper import StateKeeper
from wormfs.rpc import methods as m
from wormfs.rpc.registry import Answer, DataBuffer, Registry, RequestContext
from wormfs.rpc.v1 import replication_pb2 as pb

PIECE_MAX_BYTES = 4 << 20
_SNAPSHOT_PAUSE_S = 0.2


class SnapshotService:
    """The handler over a node's state, of either engine; `keeper` is asked for at each request."""

    def __init__(self, keeper: Callable[[], StateKeeper]) -> None:
        self._keeper = keeper
        self._taking = trio.Lock()

    def register(self, registry: Registry) -> None:
        """Add the handler."""
        registry.add(m.REPLICATION_GET_SNAPSHOT, self._get_snapshot)

    async def _get_snapshot(
        self, _: RequestContext, request: pb.GetSnapshotRequest, __: DataBuffer | None
    ) -> Answer[pb.GetSnapshotReply]:
        if request.length_bytes > PIECE_MAX_BYTES:
            raise InvalidError(f"at most {PIECE_MAX_BYTES} bytes of a snapshot at once")
        sequence = request.sequence or await self._newest(request.at_least)
        path = self._path(sequence)
        try:
            file_bytes, data = await trio.to_thread.run_sync(
                _read, path, request.offset_bytes, request.length_bytes
            )
        except FileNotFoundError:
            raise NotFoundError(f"the snapshot of entry {sequence} is gone; ask for a newer one") from None
        except OSError as error:
            raise UnavailableError(f"{path} cannot be read: {error.strerror}") from error
        return Answer(pb.GetSnapshotReply(sequence=sequence, file_bytes=file_bytes), (data,) if data else ())

    def _path(self, sequence: int) -> Path:
        for disk in self._keeper().log.member_disks():
            path = files.snapshot_path(disk, sequence)
            if path.exists():
                return path
        raise NotFoundError(f"there is no snapshot of entry {sequence}; ask for a newer one")

    async def _newest(self, at_least: int) -> int:
        """The sequence of a snapshot of `at_least` or later, taken now if need be."""
        async with self._taking:
            while True:
                keeper = self._keeper()
                found = keeper.log.snapshot
                if found is not None and found.sequence >= at_least:
                    return found.sequence
                if keeper.state.applied < max(at_least, 1):
                    raise UnavailableError(
                        f"this replica is at entry {keeper.state.applied} itself, "
                        f"before {at_least}: ask another one"
                    )
                await keeper.snapshot()
                await trio.sleep(0 if keeper.log.snapshot is not found else _SNAPSHOT_PAUSE_S)


def _read(path: Path, offset_bytes: int, length_bytes: int) -> tuple[int, bytes]:
    """The file's length, and a piece of it. Blocks."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.fstat(descriptor).st_size, os.pread(descriptor, length_bytes, offset_bytes)
    finally:
        os.close(descriptor)
