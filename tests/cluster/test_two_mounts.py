"""One truth for all mounts: a completed operation on one is seen by the next on any other."""

import os
import threading
import time
from pathlib import Path
from random import Random

import pytest

from tests.conftest import ClusterFactory

pytestmark = [pytest.mark.cluster, pytest.mark.fuse, pytest.mark.timeout(180)]

MIB = 1 << 20


@pytest.fixture(scope="module")
def two(module_cluster: ClusterFactory) -> tuple[Path, Path]:
    cluster = module_cluster(nodes=1, disks=6, policy="4+2")
    return cluster.mount("one"), cluster.mount("two")


def test_unflushed_writes_are_seen_through_the_other_mount(two: tuple[Path, Path]) -> None:
    one, other = two
    fd = os.open(one / "open", os.O_CREAT | os.O_RDWR, 0o644)
    for number in range(20):
        data = bytes([number]) * 10_000
        os.pwrite(fd, data, number * 10_000)
        assert (other / "open").stat().st_size == (number + 1) * 10_000
        assert (other / "open").read_bytes()[-10_000:] == data
    os.close(fd)


@pytest.mark.parametrize("size", [100, 70_000, 5 * MIB])
def test_an_open_reader_sees_an_overwrite(two: tuple[Path, Path], size: int) -> None:
    one, other = two
    path, twin = one / f"over-{size}", other / f"over-{size}"
    path.write_bytes(b"a" * size)
    fd = os.open(twin, os.O_RDONLY)
    assert os.pread(fd, 50, size - 50) == b"a" * 50  # the reader's pages are cached now
    writer = os.open(path, os.O_WRONLY)
    for letter in (b"b", b"c"):
        os.pwrite(writer, letter * 50, size - 50)
        assert os.pread(fd, 50, size - 50) == letter * 50
    os.close(writer)
    os.truncate(path, size - 10)
    assert os.fstat(fd).st_size == size - 10
    assert os.pread(fd, 50, size - 50) == b"c" * 40
    os.close(fd)


def test_names_made_renamed_and_removed_are_seen_at_once(two: tuple[Path, Path]) -> None:
    one, other = two
    (one / "d").mkdir()
    for number in range(30):
        here, there = (one, other) if number % 2 else (other, one)
        assert not (there / "d" / "x").exists()
        (here / "d" / "x").write_text(str(number))
        assert (there / "d" / "x").read_text() == str(number)
        assert os.listdir(there / "d") == ["x"]
        (there / "d" / "x").rename(there / "d" / "y")
        assert not (here / "d" / "x").exists()
        assert (here / "d" / "y").read_text() == str(number)
        (here / "d" / "y").chmod(0o600 + number % 8)
        assert (there / "d" / "y").stat().st_mode & 0o777 == 0o600 + number % 8
        (here / "d" / "y").unlink()
        assert os.listdir(there / "d") == []


def test_an_unlinked_file_stays_readable_where_it_is_open(two: tuple[Path, Path]) -> None:
    one, other = two
    data = Random(3).randbytes(6 * MIB)
    (one / "gone").write_bytes(data)
    fd = os.open(other / "gone", os.O_RDONLY)
    (one / "gone").unlink()
    assert not (other / "gone").exists()
    assert b"".join(iter(lambda: os.read(fd, MIB), b"")) == data
    os.close(fd)


def test_appends_from_both_mounts_all_arrive(two: tuple[Path, Path]) -> None:
    lines_each = 100

    def append(mount: Path, mark: str) -> None:
        fd = os.open(mount / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        for number in range(lines_each):
            os.write(fd, f"{mark}{number:05d}\n".encode())
        os.close(fd)

    threads = [
        threading.Thread(target=append, args=(mount, mark)) for mount, mark in zip(two, "ab", strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    lines = (two[0] / "log").read_text().splitlines()
    assert sorted(lines) == [f"{mark}{number:05d}" for mark in "ab" for number in range(lines_each)]


@pytest.mark.parametrize(
    ("record_bytes", "records_each"),
    [
        pytest.param(100, 200, marks=pytest.mark.unsampled),
        (3_000, 200),
        pytest.param(30_000, 100, marks=pytest.mark.unsampled),
    ],
)
def test_one_append_of_any_length_stays_whole(
    two: tuple[Path, Path], record_bytes: int, records_each: int
) -> None:
    """The kernel splits a write(2) at page borders; no other mount's record may come in between."""
    name = f"records-{record_bytes}"
    (two[0] / name).touch()

    def append(mount: Path, mark: int) -> None:
        fd = os.open(mount / name, os.O_WRONLY | os.O_APPEND)
        for number in range(records_each):
            body = bytes([mark + number % 2]) * (record_bytes - 1)
            assert os.write(fd, body + b"\n") == record_bytes
        os.close(fd)

    threads = [
        threading.Thread(target=append, args=(mount, mark)) for mount, mark in zip(two, b"ax", strict=True)
    ]
    begun_s = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    took_s = time.monotonic() - begun_s
    for mount in two:
        lines = (mount / name).read_bytes().split(b"\n")
        assert lines.pop() == b""
        torn = [line for line in lines if len(line) != record_bytes - 1 or len(set(line)) != 1]
        assert (len(torn), len(lines)) == (0, 2 * records_each)
        for own in (b"ab", b"xy"):  # each mount's records in its own order
            marks = [line[0] for line in lines if line[0] in own]
            assert marks == [own[number % 2] for number in range(records_each)]
    assert took_s < 2 * records_each * 0.05  # waiting for what does not come would cost 0.1 s a record


def test_a_read_after_an_append_of_ones_own_is_whole(two: tuple[Path, Path]) -> None:
    for number in range(40):
        name = f"own-{number}"
        a = os.open(two[0] / name, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o644)
        b = os.open(two[1] / name, os.O_RDWR | os.O_APPEND)
        os.write(a, b"1" * 300)
        os.write(b, b"2" * 5000)
        os.write(a, b"3" * 5000)
        got = os.pread(a, 20_000, 0)
        os.close(a)
        os.close(b)
        assert (number, len(got)) == (number, 10_300)
        assert got == b"1" * 300 + b"2" * 5000 + b"3" * 5000


def test_appends_through_fresh_opens_all_arrive_soon(two: tuple[Path, Path]) -> None:
    opens_each = 100

    def append(mount: Path, mark: str) -> None:
        for number in range(opens_each):
            with (mount / "fresh-log").open("a") as file:
                file.write(f"{mark}{number:05d}\n")

    threads = [
        threading.Thread(target=append, args=(mount, mark)) for mount, mark in zip(two, "ab", strict=True)
    ]
    begun_s = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    # A hand-over that waits for a lock of the kernel would cost 0.1 to 2 s, not milliseconds.
    assert time.monotonic() - begun_s < 2 * opens_each * 0.05
    lines = (two[0] / "fresh-log").read_text().splitlines()
    assert sorted(lines) == [f"{mark}{number:05d}" for mark in "ab" for number in range(opens_each)]


def test_exclusive_create_has_one_winner(two: tuple[Path, Path]) -> None:
    winners: list[tuple[int, str]] = []

    def race(mount: Path, mark: str) -> None:
        for number in range(50):
            try:
                os.close(os.open(mount / f"lock-{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            except FileExistsError:
                continue
            winners.append((number, mark))

    threads = [
        threading.Thread(target=race, args=(mount, mark)) for mount, mark in zip(two, "ab", strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert sorted(number for number, _ in winners) == list(range(50))


def test_both_mounts_know_a_directory_that_both_change(two: tuple[Path, Path]) -> None:
    """Its attributes after one's own change are known without a question, until the other's change."""
    for mount in two:
        assert not (mount / "shared").exists()
    (two[0] / "shared").mkdir()
    for number in range(40):
        changer = two[number // 2 % 2]
        (changer / "shared" / f"d{number}").mkdir()
        seen = [(mount / "shared").stat() for mount in (changer, two[0], two[1])]
        assert {each.st_nlink for each in seen} == {number + 3}
        assert len({each.st_mtime_ns for each in seen}) == 1
    (two[1] / "shared" / "d0").rmdir()
    (two[1] / "shared" / "d1").rename(two[1] / "d1")
    (two[0] / "shared").chmod(0o700)
    assert {(mount / "shared").stat().st_nlink for mount in two} == {40}
    assert {(mount / "shared").stat().st_mode & 0o777 for mount in two} == {0o700}
