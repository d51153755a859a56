"""Random flips and cuts in chunk files while reading: right bytes or EIO, never wrong ones."""

import contextlib
import errno
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.cluster.files import LONG_BYTES, SHORT_BYTES, KnownFiles, digest
from tests.conftest import ClusterFactory
from tests.harness import Cluster, drop_caches, run, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.fuse, pytest.mark.timeout(900)]


def chunk_files(cluster: Cluster, disks: int) -> list[Path]:
    return sorted(
        path
        for disk in range(1, disks + 1)
        for path in (cluster.disk(1, disk) / "chunks").rglob("*")
        if path.is_file()
    )


def damage(path: Path, random: Random) -> bytes:
    """Flip some bytes, or cut the file; what it held. Empty: repair had replaced it, it is gone."""
    try:
        original = path.read_bytes()
    except FileNotFoundError:
        return b""
    data = bytearray(original)
    if random.random() < 0.2:
        data = data[: random.randrange(len(data) + 1)]
    else:
        for _ in range(random.choice([1, 1, 3, 50])):
            data[random.randrange(len(data))] ^= random.randrange(1, 256)
    overwrite(path, data)
    return original


def overwrite(path: Path, data: bytes | bytearray) -> None:
    """In place, for the node may have it open; unless it is gone."""
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        file.truncate(len(data))
        file.write(data)


def test_damaged_chunks_give_right_bytes_or_eio(
    cluster: ClusterFactory, rounds: Callable[[int, int], int]
) -> None:
    random = Random(11)
    one = cluster(nodes=1, disks=6, policy="4+2")
    mount = one.mount()
    known = KnownFiles.write(mount, random, {SHORT_BYTES: 10, LONG_BYTES: 2})
    refused = 0
    for number in range(rounds(2, 60)):
        files = chunk_files(one, 6)
        chosen = random.sample(files, k=min(len(files), 12))
        originals = {path: original for path in chosen if (original := damage(path, random))}
        if number % 3 == 0:
            one.remount(mount)
        drop_caches()
        for path, expected in known.digests.items():
            try:
                found = digest(path)
            except OSError as error:
                assert error.errno == errno.EIO  # noqa: PT017 - either outcome is right
                refused += 1
            else:
                assert found == expected, f"round {number}: wrong bytes in {path.name}"
        for path, data in originals.items():
            overwrite(path, data)
    one.remount(mount)
    known.check()
    wait_until(
        lambda: run("fsck", "--cluster", one.addresses, "--verify-data").returncode == 0,
        "what was damaged is whole again",
        timeout_s=90,
    )
    assert refused < rounds(2, 60) * len(known.digests)


def test_readers_meet_damage_as_it_comes(cluster: ClusterFactory, rounds: Callable[[int, int], int]) -> None:
    """Chunks are damaged, and made whole again, under three programs that read all the time."""
    random = Random(13)
    one = cluster(nodes=1, disks=6, policy="4+2")
    mount = one.mount()
    known = KnownFiles.write(mount, random, {SHORT_BYTES: 10, LONG_BYTES: 1})
    wrong: list[str] = []
    reads = [0, 0, 0]
    stop = threading.Event()

    def read_on(reader: int) -> None:
        order, chance = list(known.digests.items()), Random(reader)
        while not stop.is_set():
            chance.shuffle(order)
            for path, expected in order:
                try:
                    if digest(path) != expected:
                        wrong.append(f"wrong bytes in {path.name}")
                except OSError as error:
                    if error.errno != errno.EIO:
                        wrong.append(f"{path.name}: {error}")
                reads[reader] += 1

    def read_more() -> None:
        drop_caches()
        goals = [count + len(known.digests) for count in reads]
        wait_until(lambda: all(count >= goal for count, goal in zip(reads, goals, strict=True)), "reads", 60)

    readers = [threading.Thread(target=read_on, args=(number,)) for number in range(len(reads))]
    for reader in readers:
        reader.start()
    try:
        for _ in range(rounds(2, 30)):
            files = chunk_files(one, 6)
            chosen = random.sample(files, k=min(len(files), 12))
            originals = {path: original for path in chosen if (original := damage(path, random))}
            read_more()
            for path, data in originals.items():
                overwrite(path, data)
            read_more()
    finally:
        stop.set()
        for reader in readers:
            reader.join(60)
    assert wrong == []
    one.remount(mount)
    known.check()


def test_a_lightly_damaged_file_reads_right(cluster: ClusterFactory) -> None:
    random = Random(12)
    one = cluster(nodes=1, disks=6, policy="4+2")
    mount = one.mount()
    known = KnownFiles.write(mount, random, {LONG_BYTES: 1})
    damaged = 0
    for disk in (1, 2):  # at most m chunks of any stripe
        for path in (one.disk(1, disk) / "chunks").rglob("*"):
            if path.is_file() and damage(path, random):
                damaged += 1
    assert damaged >= 4
    one.remount(mount)
    known.check()
