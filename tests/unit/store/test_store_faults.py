"""Disks that vanish, fill up, err or hang; processes that are killed: nothing acknowledged is lost."""

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from tests.unit.store.samples import CLUSTER, chunk_files, content_of, get, open_disk, put
from wormfs.core.errors import DiskError, NoSpaceError, NotFoundError, UnavailableError
from wormfs.core.types import ChunkKey
from wormfs.store.chunk_store import ChunkStore, StoreOptions
from wormfs.store.disk import Disk

KEY = ChunkKey(12, 34, 5)


async def test_a_deleted_folder_takes_only_its_disk_offline(store: ChunkStore, tmp_path: Path) -> None:
    store.add_disk(open_disk(tmp_path / "disk-2", 2))
    await put(store, KEY, 4096)
    await put(store, KEY, 4096, disk=2)
    os.rename(tmp_path / "disk-1", tmp_path / "gone")
    with pytest.raises(DiskError):
        await put(store, ChunkKey(1, 1, 1), 4096)
    with pytest.raises(DiskError, match="offline"):
        await get(store, KEY)
    status = store.disks()[0]
    assert not status.online
    assert status.problem
    assert status.free_bytes == 0
    assert await store.delete(1, [KEY]) == [KEY]
    with pytest.raises(DiskError):
        await store.list(1)
    assert await get(store, KEY, disk=2) == content_of(KEY, 4096)
    await put(store, ChunkKey(1, 1, 1), 4096, disk=2)
    assert not (tmp_path / "disk-1").exists()


@pytest.mark.parametrize("action", ["get", "delete", "list", "check"])
async def test_every_operation_notices_a_deleted_folder(store: ChunkStore, folder: Path, action: str) -> None:
    os.rename(folder, folder.with_name("gone"))
    if action == "get":
        with pytest.raises(DiskError):
            await get(store, KEY)
    elif action == "delete":
        assert await store.delete(1, [KEY]) == [KEY]
    elif action == "list":
        with pytest.raises(DiskError):
            await store.list(1)
    else:
        await store.check_disks()
    assert not store.disks()[0].online


async def test_a_folder_that_returns_serves_again(store: ChunkStore, folder: Path) -> None:
    data = await put(store, KEY, 4096)
    away = folder.with_name("away")
    os.rename(folder, away)
    await store.check_disks()
    assert not store.disks()[0].online
    Disk.open(folder).close()  # something else is mounted there now
    await store.check_disks()
    assert not store.disks()[0].online
    os.rename(folder, folder.with_name("other"))
    os.rename(away, folder)
    await store.check_disks()
    assert store.disks()[0].online
    assert store.disks()[0].problem == ""
    assert await get(store, KEY) == data
    await put(store, ChunkKey(1, 1, 1), 4096)


async def test_another_disks_identity_in_the_folder_is_noticed(store: ChunkStore, folder: Path) -> None:
    identity = folder / "wormfs-disk.json"
    kept = identity.read_text()
    uuid = store.disks()[0].uuid
    identity.write_text(kept.replace(uuid, uuid[::-1]))
    await store.check_disks()
    assert "another disk" in store.disks()[0].problem


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An 8 MiB file system of its own."""
    target = tmp_path / "small"
    target.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(target)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    yield target
    subprocess.run(["umount", str(target)], check=True)


async def fill(store: ChunkStore) -> int:
    """Put chunks of 1 MiB until the disk is full; return how many it took."""
    for count in range(100):
        try:
            await put(store, ChunkKey(1, count, 0), 1 << 20)
        except NoSpaceError:
            return count
    raise AssertionError("an 8 MiB disk took 100 MiB")


@pytest.mark.parametrize("reserve", [0, 2 << 20])
async def test_a_full_disk_refuses_but_stays_online(small_disk: Path, reserve: int) -> None:
    store = ChunkStore([open_disk(small_disk, reserve_bytes=reserve)], cluster_id=CLUSTER)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        stored = await fill(store)
        assert stored == (7 if reserve == 0 else 5)
        await store.check_disks()
        assert store.disks()[0].online
        assert list((small_disk / "tmp").iterdir()) == []
        for number in range(stored):
            key = ChunkKey(1, number, 0)
            assert await get(store, key) == content_of(key, 1 << 20)
        assert await store.delete(1, [ChunkKey(1, 0, 0)]) == []
        await put(store, ChunkKey(2, 2, 2), 1 << 20)
        # Someone else takes the space behind our back: the write itself fails, and says so.
        (small_disk / "foreign").write_bytes(bytes(store.disks()[0].free_bytes + reserve))
        with pytest.raises(NoSpaceError):
            await put(store, ChunkKey(3, 3, 3), 1 << 20)
        nursery.cancel_scope.cancel()
    store.close()


def failing(real: Callable[..., object], code: int, only: str = "") -> Callable[..., object]:
    """The operating system's call, answering with an error on chunk files (or those named)."""

    def call(*arguments: object, **keywords: object) -> object:
        target = arguments[0]
        path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)
        if "/chunks/" in path or "/tmp/" in path or (only and only in path):
            raise OSError(code, os.strerror(code))
        return real(*arguments, **keywords)

    return call


@pytest.mark.parametrize("call", ["pwrite", "fdatasync", "fsync", "rename"])
async def test_an_io_error_while_writing_takes_the_disk_offline(
    store: ChunkStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    data = await put(store, KEY, 4096)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(getattr(os, call), errno.EIO))
        with pytest.raises(DiskError, match=r"Input/output error"):
            await put(store, ChunkKey(1, 1, 1), 4096)
    status = store.disks()[0]
    assert not status.online
    assert "Input/output error" in status.problem
    await store.check_disks()
    assert not store.disks()[0].online, "a disk that erred must not return by itself"
    with pytest.raises(DiskError):
        await get(store, KEY)
    assert data


@pytest.mark.parametrize("length", [4096, 1 << 20])
async def test_an_io_error_while_reading_takes_the_disk_offline(
    store: ChunkStore, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    await put(store, KEY, length)
    monkeypatch.setattr(os, "preadv", failing(os.preadv, errno.EIO))
    monkeypatch.setattr(os, "pread", failing(os.pread, errno.EIO))
    with pytest.raises(DiskError, match=r"Input/output error"):
        await get(store, KEY)
    assert not store.disks()[0].online
    assert store.pool.used_bytes == 0


async def test_too_few_descriptors_are_not_the_disks_fault(
    store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(store, KEY, 4096)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing(os.open, errno.EMFILE))
        with pytest.raises(UnavailableError):
            await get(store, KEY)
        with pytest.raises(UnavailableError):
            await put(store, ChunkKey(1, 1, 1), 4096)
    assert store.disks()[0].online
    assert await get(store, KEY) == content_of(KEY, 4096)


@pytest.mark.parametrize("call", ["fdatasync", "stat"])
async def test_a_hanging_disk_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    options = StoreOptions(health_interval_s=3600, disk_timeout_s=0.2)
    store = ChunkStore([open_disk(folder)], cluster_id=CLUSTER, options=options)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        await put(store, KEY, 4096)
        hung, real = threading.Event(), getattr(os, call)

        def hang(*arguments: object, **keywords: object) -> object:
            if threading.current_thread() is not threading.main_thread():
                hung.wait(30)
            return real(*arguments, **keywords)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, hang)
            with trio.fail_after(10):
                if call == "fdatasync":
                    with pytest.raises(DiskError, match="no answer"):
                        await put(store, ChunkKey(1, 1, 1), 4096)
                else:
                    await store.check_disks()
            hung.set()
        assert "no answer" in store.disks()[0].problem
        with pytest.raises(DiskError):
            await put(store, ChunkKey(1, 1, 2), 4096)
        nursery.cancel_scope.cancel()
    store.close()


WRITER = """
import sys, trio
from pathlib import Path
from tests.unit.store.samples import CLUSTER, open_disk, put
from wormfs.core.types import ChunkKey
from wormfs.store.chunk_store import ChunkStore

async def main():
    store = ChunkStore([open_disk(Path(sys.argv[1]))], cluster_id=CLUSTER)
    async def lane(number):
        for stripe in range(10_000):
            key = ChunkKey(stripe % 5, stripe, number)
            await put(store, key, (4096, 70_016, 300_032)[stripe % 3])
            if stripe % 4 == 3:
                old = ChunkKey((stripe - 2) % 5, stripe - 2, number)
                assert not await store.delete(1, [old])
                print("deleted", old.file, old.stripe_id, old.index, flush=True)
            print("put", key.file, key.stripe_id, key.index, flush=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        for number in range(4):
            nursery.start_soon(lane, number)

trio.run(main)
"""


def write_and_kill(folder: Path, lines: int) -> list[str]:
    """Run WRITER, kill it after that many lines and return all lines it could say."""
    root = str(Path(__file__).parents[3])
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    ) as child:
        assert child.stdout is not None
        told = [child.stdout.readline() for _ in range(lines)]
        child.send_signal(signal.SIGKILL)
        told += child.stdout.read().splitlines(keepends=True)
    return [line for line in told if line.endswith("\n")]  # the kill may have cut the last one


@pytest.mark.parametrize("lines", [1, 60, 200])
async def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path, lines: int) -> None:
    folder = tmp_path / "disk-1"
    told = write_and_kill(folder, lines)
    present: dict[ChunkKey, int] = {}
    for line in told:
        word, file, stripe, index = line.split()
        key = ChunkKey(int(file), int(stripe), int(index))
        if word == "put":
            present.setdefault(key, (4096, 70_016, 300_032)[key.stripe_id % 3])
        else:
            present[key] = -1
    store = ChunkStore([open_disk(folder)], cluster_id=CLUSTER)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        assert list((folder / "tmp").iterdir()) == []
        for key, length in present.items():
            if length < 0:
                with pytest.raises(NotFoundError):
                    await get(store, key)
            # a delete that was under way may have taken it without saying so
            elif key.stripe_id % 4 != 1:
                assert await get(store, key) == content_of(key, length)
        page = await store.list(1, limit=100_000, verify=True)
        assert [info.problem for info in page.chunks if info.problem] == []
        assert len(page.chunks) == len(chunk_files(folder))
        nursery.cancel_scope.cancel()
    store.close()
    assert len(present) >= lines // 2
