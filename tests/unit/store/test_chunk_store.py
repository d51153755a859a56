"""What the store promises while the disk works: right bytes, ranges, lists, deletes."""

import os
import shutil
from pathlib import Path

import pytest
import trio

from tests.unit.store.samples import CLUSTER, chunk_files, content_of, get, header_of, open_disk, put
from wormfs.codec.chunk_format import CHUNK_LENGTH_MAX_BYTES
from wormfs.core.errors import (
    ChunkCorruptError,
    ChunkSizeError,
    DiskError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    WrongChunkError,
    WrongClusterError,
)
from wormfs.core.limits import CHECKSUM_BLOCK_BYTES as BLOCK
from wormfs.core.types import ChunkKey
from wormfs.store.chunk_listing import scan
from wormfs.store.chunk_store import ChunkStore, StoreOptions

KEY = ChunkKey(12, 34, 5)


@pytest.mark.parametrize("length", [64, 4096, 16_384, 20_032, 300_032, 1 << 20, CHUNK_LENGTH_MAX_BYTES])
async def test_a_chunk_reads_back_whole_and_in_parts(store: ChunkStore, length: int) -> None:
    data = await put(store, KEY, length)
    path = store.chunk_path(1, KEY)
    assert path.stat().st_size == header_of(KEY, data).header_bytes + length
    for _ in ("cold", "cached"):
        assert await get(store, KEY) == data
        answer = await store.get(1, KEY, length - 1, 1)
        start = (length - 1) // BLOCK * BLOCK
        assert answer.offset_bytes == start
        assert bytes(answer.data) == data[start:]
        assert answer.checksums == header_of(KEY, data[start:]).checksums
        answer.release()
        assert await get(store, KEY, 0, 5 * BLOCK) == data[: 5 * BLOCK]
    store.forget_all()
    assert await get(store, KEY, 10, 1) == data[:BLOCK]
    assert store.pool.used_bytes == 0


async def test_an_empty_chunk_is_a_chunk(store: ChunkStore) -> None:
    assert await put(store, KEY, 0) == await get(store, KEY) == b""


async def test_ranges_outside_the_chunk_are_refused(store: ChunkStore) -> None:
    await put(store, KEY, 128)
    for _ in ("cold", "cached"):
        for offset, length in ((128, 1), (-1, 1), (0, -1)):
            with pytest.raises(InvalidError):
                await get(store, KEY, offset, length)
        assert await get(store, KEY, 127, 1 << 30) == content_of(KEY, 128)


async def test_absent_chunks_and_disks_are_not_found(store: ChunkStore) -> None:
    with pytest.raises(NotFoundError, match="no such chunk"):
        await get(store, KEY)
    with pytest.raises(NotFoundError, match="no disk 9"):
        await get(store, KEY, disk=9)
    assert store.disks()[0].online


async def test_putting_again_is_harmless(store: ChunkStore, folder: Path) -> None:
    data = await put(store, KEY, 70_016)
    assert await get(store, KEY) == data
    await put(store, KEY, 70_016)
    assert await get(store, KEY) == data
    assert len(chunk_files(folder)) == 1
    assert list((folder / "tmp").iterdir()) == []


async def test_damaged_or_foreign_puts_are_refused_alone(store: ChunkStore, folder: Path) -> None:
    data = content_of(KEY, 4096)
    buffer = store.pool.acquire(4096)
    buffer.data[:] = data
    buffer.data[77] ^= 1
    outcomes: list[type[Exception]] = []

    async def attempt() -> None:
        with pytest.raises(ChunkCorruptError, match="arrived damaged"):
            await store.put(1, header_of(KEY, data), buffer)
        outcomes.append(ChunkCorruptError)

    async with trio.open_nursery() as nursery:  # in one round with good ones
        nursery.start_soon(put, store, ChunkKey(1, 1, 0), 4096)
        nursery.start_soon(attempt)
        nursery.start_soon(put, store, ChunkKey(1, 2, 0), 4096)
    assert outcomes == [ChunkCorruptError]
    with pytest.raises(WrongClusterError):
        await store.put(1, header_of(KEY, data, "another"), buffer)
    with pytest.raises(ChunkSizeError):
        await store.put(1, header_of(KEY, data[:64]), buffer)
    buffer.release()
    assert len(chunk_files(folder)) == 2
    assert list((folder / "tmp").iterdir()) == []


async def test_many_puts_at_once_share_rounds(store: ChunkStore, folder: Path) -> None:
    keys = [ChunkKey(1 + number % 7, number, 0) for number in range(150)]
    async with trio.open_nursery() as nursery:
        for key in keys:
            nursery.start_soon(put, store, key, 1024)
    for key in keys:
        assert await get(store, key) == content_of(key, 1024)
    assert len(chunk_files(folder)) == 150


async def test_damage_is_told_and_other_blocks_still_served(store: ChunkStore) -> None:
    data = await put(store, KEY, 1 << 20)
    path = store.chunk_path(1, KEY)
    with path.open("r+b") as file:
        file.seek(4096 + 5 * BLOCK + 1)
        file.write(b"\xff\x00\xff")
    for _ in ("cold", "cached"):
        with pytest.raises(ChunkCorruptError, match=r"0000000000000022\.05.*block 5"):
            await get(store, KEY)
        with pytest.raises(ChunkCorruptError):
            await get(store, KEY, 5 * BLOCK, 10)
        assert await get(store, KEY, 6 * BLOCK, BLOCK) == data[6 * BLOCK : 7 * BLOCK]
    assert store.disks()[0].online
    assert store.pool.used_bytes == 0


async def test_a_rotted_header_is_repaired(store: ChunkStore) -> None:
    data = await put(store, KEY, 300_032)
    with store.chunk_path(1, KEY).open("r+b") as file:
        file.write(bytes(512))
    assert await get(store, KEY) == data
    page = await store.list(1)
    assert "had to be repaired" in page.chunks[0].problem


@pytest.mark.parametrize("length", [300_032, 4096])
async def test_cut_long_and_moved_chunks_have_their_own_errors(store: ChunkStore, length: int) -> None:
    await put(store, KEY, length)
    path = store.chunk_path(1, KEY)
    whole = path.read_bytes()
    for changed, error in (
        (whole[:-1], ChunkSizeError),
        (whole + b"x", ChunkSizeError),
        (whole[:100], ChunkCorruptError),
        (b"", ChunkCorruptError),
    ):
        path.write_bytes(changed)
        with pytest.raises(error, match=str(path)):
            await get(store, KEY)
    path.write_bytes(whole)
    path.rename(path.with_suffix(".04"))
    with pytest.raises(WrongChunkError, match="belongs"):
        await get(store, ChunkKey(KEY.file, KEY.stripe_id, 4))
    assert store.pool.used_bytes == 0


async def test_a_chunk_cut_while_open_is_told(store: ChunkStore) -> None:
    await put(store, KEY, 1 << 20)
    await get(store, KEY, 0, 1)
    with store.chunk_path(1, KEY).open("r+b") as file:
        file.truncate(4096 + 300_000)
    for offset in (0, 5 * BLOCK):
        with pytest.raises(ChunkSizeError, match="cut short"):
            await get(store, KEY, offset)


async def test_small_reads_of_an_open_chunk_come_from_the_disk_too(store: ChunkStore) -> None:
    data = await put(store, KEY, 1 << 20)
    await get(store, KEY, 0, 1)
    with store.chunk_path(1, KEY).open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    for start in range(0, 1 << 20, BLOCK):
        assert await get(store, KEY, start + 5, 1) == data[start : start + BLOCK]
    assert store.pool.used_bytes == 0


async def test_a_chunk_read_whole_serves_small_reads_without_looking_up_its_path(store: ChunkStore) -> None:
    data = await put(store, KEY, 1 << 20)
    assert await get(store, KEY) == data
    store.chunk_path(1, KEY).unlink()  # would be found out by any lookup
    assert await get(store, KEY, 3 * BLOCK, 1) == data[3 * BLOCK : 4 * BLOCK]
    assert await get(store, KEY) == data


async def test_deletes_remove_empty_folders_and_forget(store: ChunkStore, folder: Path) -> None:
    keys = [ChunkKey(number % 40, number, 0) for number in range(80)]
    async with trio.open_nursery() as nursery:
        for key in keys:
            nursery.start_soon(put, store, key, 64)
    assert await get(store, keys[0]) == content_of(keys[0], 64)
    assert await store.delete(1, [keys[0], KEY]) == []
    with pytest.raises(NotFoundError):
        await get(store, keys[0])
    assert await get(store, keys[40]) == content_of(keys[40], 64)
    assert await store.delete(1, keys) == []
    assert chunk_files(folder) == []
    assert [path for path in (folder / "chunks").glob("*/*") if path.is_dir()] == []


async def test_puts_and_deletes_of_one_file_race_safely(store: ChunkStore) -> None:
    async def churn(index: int) -> None:
        for stripe in range(30):
            key = ChunkKey(7, stripe, index)
            assert await put(store, key, 64) == await get(store, key)
            assert await store.delete(1, [key]) == []

    async with trio.open_nursery() as nursery:
        for index in range(4):
            nursery.start_soon(churn, index)
    assert (await store.list(1)).chunks == []


async def test_listing_pages_cover_every_chunk_once(store: ChunkStore, folder: Path) -> None:
    keys = [ChunkKey(number // 3, number, number % 6) for number in range(50)]
    async with trio.open_nursery() as nursery:
        for key in keys:
            nursery.start_soon(put, store, key, 128)
    (folder / "chunks" / "stray").write_text("not ours")
    (folder / "chunks" / "000").mkdir(exist_ok=True)
    (folder / "chunks" / "000" / "stray").mkdir()
    seen, after, pages = [], b"", 0
    while True:
        page = await store.list(1, after, 7)
        seen += page.chunks
        pages += 1
        if not page.next:
            break
        after = page.next
    assert pages == 8
    assert sorted(info.key for info in seen) == sorted(keys)
    assert [info.path for info in seen] == [str(path) for path in chunk_files(folder) if path.name != "stray"]
    assert all(info.problem == "" and info.length_bytes == 128 and info.header for info in seen)
    with pytest.raises(InvalidError):
        await store.list(1, b"garbage")


async def test_listing_names_problems(store: ChunkStore) -> None:
    for stripe in range(5):
        await put(store, ChunkKey(1, stripe, 0), 128)
    paths = [store.chunk_path(1, ChunkKey(1, stripe, 0)) for stripe in range(5)]
    paths[0].write_bytes(b"short")
    with paths[1].open("r+b") as file:
        file.seek(4100)
        file.write(b"rot")
    paths[2].rename(paths[2].with_suffix(".03"))
    paths[3].unlink()
    wrong = paths[4].parent.parent.parent / "999" / paths[4].parent.name
    wrong.mkdir(parents=True)
    paths[4].rename(wrong / paths[4].name)
    quick = {info.key.stripe_id: info.problem for info in (await store.list(1)).chunks}
    assert "cut short" in quick[0]
    assert quick[1] == ""
    assert "belongs" in quick[2]
    assert 3 not in quick
    assert "wrong folder" in quick[4]
    checked = {info.key.stripe_id: info.problem for info in (await store.list(1, verify=True)).chunks}
    assert "checksum" in checked[1]


async def test_scan_yields_headers_to_piece_files_together(store: ChunkStore, folder: Path) -> None:
    for stripe in range(3):
        await put(store, ChunkKey(1, stripe, 0), 128)
    store.close()
    disk = open_disk(folder)
    found = [info.header for info in scan(disk, verify=True) if info.header is not None]
    disk.close()
    assert [(header.file, header.stripe_id, header.k, header.m) for header in found] == [
        (1, stripe, 4, 2) for stripe in range(3)
    ]


async def test_cancelled_puts_do_no_harm(store: ChunkStore) -> None:
    for _ in range(20):
        with trio.move_on_after(0.0003):
            await put(store, KEY, 1 << 20)
    await put(store, KEY, 1 << 20)
    assert await get(store, KEY) == content_of(KEY, 1 << 20)
    assert store.pool.used_bytes == 0


async def test_a_store_that_stops_says_so(folder: Path) -> None:
    store = ChunkStore([open_disk(folder)], cluster_id=CLUSTER)
    with pytest.raises(UnavailableError, match="not running"):
        await put(store, KEY, 64)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        with pytest.raises(InvalidError, match="running already"):
            await store.run()
        await put(store, KEY, 64)
        nursery.cancel_scope.cancel()
    with pytest.raises(UnavailableError):
        await put(store, KEY, 64)
    store.close()


async def test_disks_can_be_added_while_running(store: ChunkStore, tmp_path: Path) -> None:
    store.add_disk(open_disk(tmp_path / "disk-2", 2))
    await put(store, KEY, 64, disk=2)
    assert [status.number for status in store.disks()] == [1, 2]
    taken = open_disk(tmp_path / "disk-3", 2)
    with pytest.raises(InvalidError, match="not free"):
        store.add_disk(taken)
    taken.close()
    other = ChunkStore(cluster_id="another")
    disk = open_disk(tmp_path / "disk-4", 4)
    with pytest.raises(WrongClusterError):
        other.add_disk(disk)
    disk.close()


async def test_few_descriptors_are_enough(folder: Path) -> None:
    store = ChunkStore([open_disk(folder)], cluster_id=CLUSTER, options=StoreOptions(cached_chunks=2))
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        keys = [ChunkKey(1, stripe, 0) for stripe in range(6)]
        for key in keys:
            await put(store, key, 64)
        for _ in range(3):
            for key in keys:
                assert await get(store, key) == content_of(key, 64)
        nursery.cancel_scope.cancel()
    store.close()


@pytest.mark.parametrize("length", [64, 70_016, 1 << 20])
async def test_file_systems_without_direct_io_serve_too(folder: Path, length: int) -> None:
    disk = open_disk(folder)
    disk.direct = False
    store = ChunkStore([disk], cluster_id=CLUSTER)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        data = await put(store, KEY, length)
        assert store.chunk_path(1, KEY).stat().st_size == 4096 + length
        for _ in ("cold", "cached"):
            assert await get(store, KEY) == data
            assert (await get(store, KEY, length - 1, 1))[-1:] == data[-1:]
        nursery.cancel_scope.cancel()
    store.close()


async def test_a_lost_chunks_folder_is_made_again(store: ChunkStore, folder: Path) -> None:
    shutil.rmtree(folder / "chunks")
    shutil.rmtree(folder / "tmp")
    with pytest.raises(DiskError):
        await put(store, KEY, 64)
    await store.check_disks()
    assert await put(store, KEY, 64) == await get(store, KEY)
