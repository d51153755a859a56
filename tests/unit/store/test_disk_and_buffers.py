"""Buffers, layout and disk identity."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.unit.store.samples import CLUSTER, open_disk
from wormfs.core.errors import DiskError, InvalidError, TooLargeError, WrongClusterError
from wormfs.core.types import ChunkKey
from wormfs.store import layout
from wormfs.store.buffer_pool import HEAD_ROOM_BYTES, BufferPool
from wormfs.store.disk import Disk


def test_released_memory_is_used_again() -> None:
    pool = BufferPool()
    first = pool.acquire(1 << 20)
    first.data[:4] = b"worm"
    first.release()
    first.release()
    second = pool.acquire(900_000)
    assert bytes(second.data[:4]) == b"worm"
    assert len(second.data) == second.length_bytes == 900_000
    assert pool.idle_bytes == 0
    third = pool.acquire(900_000)
    assert bytes(third.data[:4]) == bytes(4)


def test_idle_memory_is_bounded_and_stale_sizes_go_first() -> None:
    pool = BufferPool(idle_max_bytes=4 << 20)
    small = [pool.acquire(64 * 1024) for _ in range(20)]
    for buffer in small:
        buffer.release()
    large = [pool.acquire(1 << 20) for _ in range(8)]
    for buffer in large:
        buffer.release()
    assert pool.idle_bytes <= 4 << 20
    assert pool.used_bytes == 0
    kept = [pool.acquire(1 << 20) for _ in range(3)]
    assert pool.idle_bytes == 0
    assert len(kept) == 3


def test_memory_that_stays_idle_is_freed() -> None:
    pool = BufferPool()
    buffers = [pool.acquire(1 << 20) for _ in range(6)]
    for buffer in buffers:
        buffer.release()
    pool.trim(keep_bytes=0)
    assert pool.idle_bytes > 5 << 20, "all of it was in use since the last trim"
    pool.acquire(1 << 20).release()
    pool.trim(keep_bytes=0)
    assert 1 << 20 < pool.idle_bytes < 2 << 20
    pool.trim()
    assert pool.idle_bytes > 0
    pool.trim(keep_bytes=0)
    assert pool.idle_bytes == 0


def test_head_room_lies_right_before_the_data() -> None:
    buffer = BufferPool().acquire(100)
    region = buffer.region(HEAD_ROOM_BYTES, 4096)
    assert len(region) == HEAD_ROOM_BYTES + 4096
    region[HEAD_ROOM_BYTES] = 7
    assert buffer.data[0] == 7
    buffer.shorten(10)
    assert len(buffer.data) == buffer.length_bytes == 10


def test_disowned_memory_never_returns() -> None:
    pool = BufferPool()
    buffer = pool.acquire(10)
    buffer.disown()
    buffer.release()
    assert pool.idle_bytes == pool.used_bytes == 0


@pytest.mark.parametrize("length", [-1, (32 << 20) + 1])
def test_buffers_are_no_longer_than_chunks(length: int) -> None:
    with pytest.raises(TooLargeError):
        BufferPool().acquire(length)


def test_paths_are_what_the_document_says() -> None:
    key = ChunkKey(0xABC, 0x1234, 5)
    assert layout.chunk_path(key) == "575/0000000000000abc/0000000000001234.05"
    assert layout.parse_cursor(layout.pack_cursor(key)) == tuple(layout.chunk_path(key).split("/"))
    assert layout.parse_chunk_name("0000000000000abc", "0000000000001234.05") == key
    for name in (
        "0000000000001234.5",
        "0000000000001234.005",
        "0000000000001234",
        "x",
        "000000000000123G.05",
    ):
        assert layout.parse_chunk_name("0000000000000abc", name) is None


@pytest.mark.parametrize("cursor", [b"x", b"1/2/3", b"../../etc", b"\xff", b"000/0000000000000abc/../x"])
def test_foreign_cursors_are_refused(cursor: bytes) -> None:
    with pytest.raises(InvalidError):
        layout.parse_cursor(cursor)


def test_an_empty_folder_becomes_a_disk_and_stays_it(folder: Path) -> None:
    disk = Disk.open(folder)
    assert (disk.number, disk.cluster_id) == (0, "")
    disk.assign(cluster_id=CLUSTER, node=3, number=7)
    uuid = disk.uuid
    disk.close()
    again = Disk.open(folder, cluster_id=CLUSTER)
    assert (again.uuid, again.number, again.node, again.cluster_id) == (uuid, 7, 3, CLUSTER)
    with pytest.raises(DiskError, match="disk 7 cannot become disk 8"):
        again.assign(cluster_id=CLUSTER, node=3, number=8)
    assert again.status().total_bytes > again.status().free_bytes > 0
    again.close()


def test_a_disk_that_is_not_mounted_is_missed_not_begun_anew(tmp_path: Path) -> None:
    point = tmp_path / "disk"
    with pytest.raises(DiskError, match=f"{point}: nothing is mounted there"):
        Disk.open(point, new_where_mounted=True)
    assert not point.exists()
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", point], check=True)
    try:
        disk = Disk.open(point, new_where_mounted=True)
        uuid = disk.uuid
        disk.close()
    finally:
        subprocess.run(["umount", point], check=True)
    with pytest.raises(DiskError, match="nothing is mounted there"):
        Disk.open(point, new_where_mounted=True)
    assert list(point.iterdir()) == []
    fresh = Disk.open(point)
    assert fresh.uuid != uuid
    fresh.close()
    Disk.open(point, new_where_mounted=True).close()  # a disk of ours is one wherever it lies


def test_a_disk_of_another_cluster_is_refused(folder: Path) -> None:
    open_disk(folder).close()
    with pytest.raises(WrongClusterError, match=CLUSTER):
        Disk.open(folder, cluster_id="another")
    open_disk(folder).close()  # the refusal let go of the folder


def test_one_process_at_a_time(folder: Path) -> None:
    disk = open_disk(folder)
    with pytest.raises(DiskError, match="in use"):
        Disk.open(folder)
    disk.close()
    Disk.open(folder).close()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", json.dumps({"uuid": "x", "cluster_id": "", "node": 0, "number": 0}), '"x"', "\xff"],
)
def test_a_damaged_identity_is_named(folder: Path, text: str) -> None:
    open_disk(folder).close()
    (folder / layout.IDENTITY_NAME).write_text(text)
    with pytest.raises(DiskError, match=r"wormfs-disk\.json"):
        Disk.open(folder)


def test_chunks_without_an_identity_are_not_taken_over(folder: Path) -> None:
    open_disk(folder).close()
    (folder / "chunks" / "000").mkdir()
    (folder / layout.IDENTITY_NAME).unlink()
    with pytest.raises(DiskError, match="holds chunks"):
        Disk.open(folder)


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="cannot be used"):
        Disk.open(tmp_path / "file")


def test_temp_files_of_an_earlier_process_are_removed(folder: Path) -> None:
    open_disk(folder).close()
    (folder / "tmp" / "17").write_bytes(b"half a chunk")
    open_disk(folder).close()
    assert list((folder / "tmp").iterdir()) == []


def test_a_folder_with_other_files_is_no_new_disk(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DiskError, match=r"thesis\.txt"):
        Disk.open(tmp_path)
    (tmp_path / "thesis.txt").unlink()
    Disk.open(tmp_path).close()
