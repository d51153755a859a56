"""Random operations on a mount and on a plain directory: contents, attributes and errnos alike."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.conftest import ClusterFactory

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(900)]

NAMES = st.sampled_from([b"a", b"b", b"c", b"d\xff\xfe", b"n" * 255, b"n" * 256])
DIRS = st.sampled_from([b".", b"p", b"q", b"p/r"])
# Around the sizes where bytes move from the metadata into stripes, and from one stripe to the next.
OFFSETS = st.sampled_from(
    [0, 1, 100, 4095, 4096, 65_000, 65_536, 131_071, 600_000, 4_194_204, 4_194_304, 8_388_600]
)
LENGTHS = st.sampled_from([1, 17, 4096, 65_535, 65_537, 130_000, 300_000])
SIZES = st.sampled_from([0, 1, 4096, 65_536, 70_000, 900_000, 4_194_303, 4_200_000])


def pattern(seed: int, length: int) -> bytes:
    unit = bytes((seed * 31 + i * 7 + (i >> 8)) & 0xFF for i in range(1024))
    return (unit * (length // 1024 + 1))[:length]


def outcome(operation: Callable[[], object]) -> object:
    try:
        return operation()
    except OSError as error:
        return ("errno", error.errno)


def describe(root: bytes) -> dict[bytes, tuple[object, ...]]:
    """Everything under `root` that both sides must agree on."""
    found: dict[bytes, tuple[object, ...]] = {}
    for folder, directories, files in os.walk(root):
        for name in directories + files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            relative = os.path.relpath(path, root)
            kind = stat.S_IFMT(status.st_mode)
            link = os.readlink(path) if kind == stat.S_IFLNK else b""
            size = status.st_size if kind == stat.S_IFREG else 0
            found[relative] = (kind, stat.S_IMODE(status.st_mode), status.st_nlink, size, link)
    return found


class MountModel(RuleBasedStateMachine):
    """One example: a fresh folder on the mounts and its plain twin.

    With several mounts of one cluster, each operation goes through another one than the last.
    """

    mounts: tuple[Path, ...]
    plain: Path
    count = 0

    def __init__(self) -> None:
        super().__init__()
        MountModel.count += 1
        name = f"example-{os.getpid()}-{MountModel.count}"
        self.mounted_roots = [os.fsencode(mount / name) for mount in self.mounts]
        self.plain_root = os.fsencode(self.plain / name)
        self.open: list[list[int]] = []
        self.turn = 0
        os.mkdir(self.mounted_roots[0])
        os.mkdir(self.plain_root)

    def roots(self) -> tuple[bytes, bytes]:
        self.turn += 1
        return self.mounted_roots[self.turn % len(self.mounted_roots)], self.plain_root

    def both(self, operation: Callable[[bytes], object]) -> None:
        results = [outcome(lambda root=root: operation(root)) for root in self.roots()]  # type: ignore[misc]
        assert results[0] == results[1], f"mount {results[0]!r:.200}, plain {results[1]!r:.200}"

    def on_open(self, which: int, operation: Callable[[int], object]) -> None:
        if not self.open:
            return
        pair = self.open[which % len(self.open)]
        results = [outcome(lambda fd=fd: operation(fd)) for fd in pair]  # type: ignore[misc]
        assert results[0] == results[1], f"mount {results[0]!r:.200}, plain {results[1]!r:.200}"

    def teardown(self) -> None:
        for pair in self.open:
            for fd in pair:
                os.close(fd)

    @invariant()
    def trees_agree(self) -> None:
        expected = describe(self.plain_root)
        for root in self.mounted_roots:
            assert describe(root) == expected

    @rule(folder=DIRS, name=NAMES, offset=OFFSETS, length=LENGTHS, seed=st.integers(0, 255))
    def write_at(self, folder: bytes, name: bytes, offset: int, length: int, seed: int) -> None:
        def operation(root: bytes) -> int:
            fd = os.open(os.path.join(root, folder, name), os.O_CREAT | os.O_WRONLY, 0o640)
            with closing(fd):
                return os.pwrite(fd, pattern(seed, length), offset)

        self.both(operation)
        self.read_whole(folder, name)

    @rule(folder=DIRS, name=NAMES, length=LENGTHS, seed=st.integers(0, 255))
    def append(self, folder: bytes, name: bytes, length: int, seed: int) -> None:
        def operation(root: bytes) -> int:
            fd = os.open(os.path.join(root, folder, name), os.O_WRONLY | os.O_APPEND)
            with closing(fd):
                return os.write(fd, pattern(seed, length))

        self.both(operation)
        self.read_whole(folder, name)

    def read_whole(self, folder: bytes, name: bytes) -> None:
        def operation(root: bytes) -> bytes:
            return Path(os.fsdecode(os.path.join(root, folder, name))).read_bytes()

        self.both(operation)

    @rule(folder=DIRS, name=NAMES, offset=OFFSETS, length=LENGTHS)
    def read_at(self, folder: bytes, name: bytes, offset: int, length: int) -> None:
        def operation(root: bytes) -> bytes:
            fd = os.open(os.path.join(root, folder, name), os.O_RDONLY)
            with closing(fd):
                return os.pread(fd, length, offset)

        self.both(operation)

    @rule(folder=DIRS, name=NAMES, size=SIZES)
    def truncate(self, folder: bytes, name: bytes, size: int) -> None:
        self.both(lambda root: os.truncate(os.path.join(root, folder, name), size))
        self.read_whole(folder, name)

    @rule(folder=DIRS, name=NAMES)
    def create_exclusively(self, folder: bytes, name: bytes) -> None:
        def operation(root: bytes) -> None:
            os.close(os.open(os.path.join(root, folder, name), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))

        self.both(operation)

    @rule(folder=DIRS, name=NAMES)
    def overwrite_from_nothing(self, folder: bytes, name: bytes) -> None:
        def operation(root: bytes) -> None:
            fd = os.open(os.path.join(root, folder, name), os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
            with closing(fd):
                os.write(fd, b"new")

        self.both(operation)
        self.read_whole(folder, name)

    @rule(folder=DIRS)
    def make_directory(self, folder: bytes) -> None:
        self.both(lambda root: os.mkdir(os.path.join(root, folder), 0o755))

    @rule(folder=DIRS)
    def remove_directory(self, folder: bytes) -> None:
        if folder != b".":
            self.both(lambda root: os.rmdir(os.path.join(root, folder)))

    @rule(folder=DIRS, name=NAMES)
    def unlink(self, folder: bytes, name: bytes) -> None:
        self.both(lambda root: os.unlink(os.path.join(root, folder, name)))

    @rule(folder=DIRS, name=NAMES, to_folder=DIRS, to_name=NAMES)
    def rename(self, folder: bytes, name: bytes, to_folder: bytes, to_name: bytes) -> None:
        self.both(
            lambda root: os.rename(os.path.join(root, folder, name), os.path.join(root, to_folder, to_name))
        )
        self.read_whole(to_folder, to_name)

    @rule(folder=DIRS, to_folder=DIRS)
    def rename_directory(self, folder: bytes, to_folder: bytes) -> None:
        if b"." not in (folder, to_folder):
            self.both(lambda root: os.rename(os.path.join(root, folder), os.path.join(root, to_folder)))

    @rule(folder=DIRS, name=NAMES, to_folder=DIRS, to_name=NAMES)
    def link(self, folder: bytes, name: bytes, to_folder: bytes, to_name: bytes) -> None:
        self.both(
            lambda root: os.link(
                os.path.join(root, folder, name),
                os.path.join(root, to_folder, to_name),
                follow_symlinks=False,
            )
        )

    @rule(folder=DIRS, name=NAMES, points_to=NAMES)
    def symlink(self, folder: bytes, name: bytes, points_to: bytes) -> None:
        self.both(lambda root: os.symlink(points_to, os.path.join(root, folder, name)))

    @rule(folder=DIRS, name=NAMES, mode=st.sampled_from([0o600, 0o755, 0o4755, 0o2711, 0o1777]))
    def chmod(self, folder: bytes, name: bytes, mode: int) -> None:
        self.both(lambda root: os.chmod(os.path.join(root, folder, name), mode))

    @rule(folder=DIRS, name=NAMES, stamp=st.integers(0, 2**31))
    def set_times(self, folder: bytes, name: bytes, stamp: int) -> None:
        def operation(root: bytes) -> int:
            path = os.path.join(root, folder, name)
            os.utime(path, ns=(stamp, stamp + 7))
            return os.stat(path).st_mtime_ns

        self.both(operation)

    @rule(folder=DIRS, name=NAMES, key=st.sampled_from(["user.a", "user.b"]), value=st.binary(max_size=50))
    def set_xattr(self, folder: bytes, name: bytes, key: str, value: bytes) -> None:
        def operation(root: bytes) -> object:
            path = os.path.join(root, folder, name)
            os.setxattr(path, key, value)
            return sorted(os.listxattr(path)), os.getxattr(path, key)

        self.both(operation)

    @rule(folder=DIRS, name=NAMES)
    def hold_open(self, folder: bytes, name: bytes) -> None:
        if len(self.open) == 4:
            for fd in self.open.pop(0):
                os.close(fd)
        opened: list[int] = []

        def operation(root: bytes) -> None:
            opened.append(os.open(os.path.join(root, folder, name), os.O_RDWR))

        self.both(operation)
        if opened:
            self.open.append(opened)

    @rule(which=st.integers(0, 3), offset=OFFSETS, length=LENGTHS, seed=st.integers(0, 255))
    def write_held(self, which: int, offset: int, length: int, seed: int) -> None:
        self.on_open(which, lambda fd: os.pwrite(fd, pattern(seed, length), offset))
        self.on_open(which, lambda fd: (os.fstat(fd).st_size, os.fstat(fd).st_nlink))
        self.on_open(which, whole_of)

    @rule(which=st.integers(0, 3), offset=OFFSETS, length=LENGTHS)
    def read_held(self, which: int, offset: int, length: int) -> None:
        self.on_open(which, lambda fd: os.pread(fd, length, offset))

    @rule(which=st.integers(0, 3), size=SIZES)
    def truncate_held(self, which: int, size: int) -> None:
        self.on_open(which, lambda fd: os.ftruncate(fd, size))
        self.on_open(which, whole_of)

    @rule(which=st.integers(0, 3))
    def fsync_held(self, which: int) -> None:
        self.on_open(which, os.fsync)


def whole_of(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


@contextmanager
def closing(fd: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(fd)


def run_model(mounts: tuple[Path, ...], plain: Path, examples: int) -> None:
    MountModel.mounts, MountModel.plain = mounts, plain
    run_state_machine_as_test(
        MountModel,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


def test_a_mount_behaves_as_a_plain_directory(
    module_cluster: ClusterFactory, tmp_path: Path, rounds: Callable[[int, int], int]
) -> None:
    cluster = module_cluster(nodes=1, disks=6, policy="4+2")
    run_model((cluster.mount(),), tmp_path, rounds(12, 1000))
    cluster.fsck()


def test_two_mounts_behave_as_one_plain_directory(
    module_cluster: ClusterFactory, tmp_path: Path, rounds: Callable[[int, int], int]
) -> None:
    cluster = module_cluster(nodes=1, disks=6, policy="4+2")
    run_model((cluster.mount("one"), cluster.mount("two")), tmp_path, rounds(15, 1000))
    cluster.fsck()
