"""`wormfs metadata backup` makes its file whole, or not at all."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from wormfs.cli.metadata_backup import _Source as Source
from wormfs.cli.metadata_backup import _write as write
from wormfs.core import errors as er
from wormfs.core.types import Policy
from wormfs.metadata.machine import Machine
from wormfs.metadata.restored_state import check_backup
from wormfs.node.snapshot_service import SnapshotService
from wormfs.rpc.registry import Answer, DataBuffer, Registry, RequestContext
from wormfs.rpc.stream_server import serve_streams
from wormfs.rpc.v1 import filesystem_pb2 as fs
from wormfs.rpc.v1 import replication_pb2 as pb

PIECE_BYTES = 20_000


class ShortPieces(SnapshotService):
    """Gives the bytes in many pieces; `failures` come one by one in the place of later pieces."""

    def __init__(self, machine: Machine, failures: list[er.WormError]) -> None:
        super().__init__(lambda: machine.keeper)
        self.failures = failures

    async def _get_snapshot(
        self, context: RequestContext, request: pb.GetSnapshotRequest, data: DataBuffer | None
    ) -> Answer[pb.GetSnapshotReply]:
        if request.offset_bytes > PIECE_BYTES and self.failures:
            raise self.failures.pop(0)
        request.length_bytes = min(request.length_bytes, PIECE_BYTES)
        return await super()._get_snapshot(context, request, data)


@asynccontextmanager
async def served(folder: Path, *failures: er.WormError) -> AsyncIterator[tuple[Machine, Source]]:
    (folder / "d").mkdir()
    machine = Machine.open([folder / "d"], copies=1)
    machine.form_cluster("c", "c", Policy(1, 0, 65536))
    for number in range(1000):
        machine.execute(fs.MakeNodeRequest(parent=1, name=b"%d" % number, mode=0o100644))
    registry = Registry()
    ShortPieces(machine, list(failures)).register(registry)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_streams, registry, [f"unix:{folder}/s"])
        yield machine, Source((f"unix:{folder}/s",), machine.sequence)
        nursery.cancel_scope.cancel()
    machine.close()


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def backed_up(path: Path, source: Source, *, force: bool = False) -> int:
    info = await trio.to_thread.run_sync(lambda: write(path, source, force=force))
    return info.sequence


async def test_a_backup_holds_what_was_answered_before(
    short_folder: Callable[[], Path], tmp_path: Path
) -> None:
    async with served(short_folder()) as (machine, source):
        await machine.snapshot()  # an older one is not good enough
        machine.execute(fs.MakeNodeRequest(parent=1, name=b"newest", mode=0o100644))
        newest = source._replace(sequence=machine.sequence)
        assert await backed_up(tmp_path / "b", newest) == machine.sequence
        found = check_backup(tmp_path / "b")
        assert (found.sequence, found.counts) == (machine.sequence, machine.counts())
        assert files_in(tmp_path) == [tmp_path / "b"]


@pytest.mark.parametrize(
    "failure", [er.UnavailableError("the node goes"), er.DataLossError("it cannot be read")]
)
async def test_a_backup_that_is_cut_off_leaves_nothing(
    short_folder: Callable[[], Path], tmp_path: Path, failure: er.WormError
) -> None:
    (tmp_path / "old").write_bytes(b"old")
    async with served(short_folder(), failure, failure) as (_, source):
        for name, force in (("new", False), ("old", True)):
            with pytest.raises(type(failure), match=failure.message):
                await backed_up(tmp_path / name, source, force=force)
    assert files_in(tmp_path) == [tmp_path / "old"]
    assert (tmp_path / "old").read_bytes() == b"old"


async def test_a_snapshot_that_is_gone_is_asked_for_anew(
    short_folder: Callable[[], Path], tmp_path: Path
) -> None:
    async with served(short_folder(), *[er.NotFoundError("gone")] * 4) as (machine, source):
        assert await backed_up(tmp_path / "b", source) == machine.sequence
    check_backup(tmp_path / "b")


async def test_a_file_that_came_meanwhile_is_not_replaced(
    short_folder: Callable[[], Path], tmp_path: Path
) -> None:
    async with served(short_folder()) as (_, source):
        (tmp_path / "b").write_bytes(b"theirs")
        with pytest.raises(er.ExistsError, match="--force replaces it"):
            await backed_up(tmp_path / "b", source)
        assert (tmp_path / "b").read_bytes() == b"theirs"
        await backed_up(tmp_path / "b", source, force=True)
        check_backup(tmp_path / "b")
        with pytest.raises(er.DiskError, match="No such file or directory"):
            await backed_up(tmp_path / "missing" / "b", source)
