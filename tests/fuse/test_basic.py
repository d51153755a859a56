"""A real mount of a real cluster does what a local file system does: bytes, errnos, attributes."""

import ctypes
import errno
import hashlib
import mmap
import os
import random
import stat
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


@pytest.fixture
def folder(mounted: Path) -> Path:
    """A directory of the mount for one test."""
    made: Path = mounted / uuid.uuid4().hex
    made.mkdir()
    return made


def errno_of(function: Callable[..., object], *arguments: object) -> int | None:
    try:
        function(*arguments)
    except OSError as error:
        return error.errno
    return None


def rename_with_flags(old: Path, new: Path, flags: int) -> None:
    """renameat2(2); Python has no binding."""
    library = ctypes.CDLL(None, use_errno=True)
    at_here = -100
    if library.renameat2(at_here, os.fsencode(old), at_here, os.fsencode(new), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("size", [0, 1, 4095, 65536, 65537, (4 << 20) - 1, 4 << 20, (9 << 20) + 7])
def test_file_reads_back_as_written(folder: Path, size: int) -> None:
    data = os.urandom(size)
    file = folder / "f"
    file.write_bytes(data)
    assert file.read_bytes() == data
    assert file.stat().st_size == size


def test_overwrites_at_any_offset(folder: Path) -> None:
    expected = bytearray(os.urandom(9_000_000))
    file = folder / "f"
    file.write_bytes(expected)
    with file.open("r+b") as opened:
        for offset, length in ((0, 1), (4095, 2), (4 << 20, 4096), ((4 << 20) - 3, 7), (8_999_990, 100)):
            piece = os.urandom(length)
            opened.seek(offset)
            opened.write(piece)
            if offset + length > len(expected):
                expected.extend(bytes(offset + length - len(expected)))
            expected[offset : offset + length] = piece
    assert hashlib.sha256(file.read_bytes()).digest() == hashlib.sha256(expected).digest()


def test_reads_at_any_offset_and_length(folder: Path) -> None:
    """Short reads are served from checksum blocks, over the borders of blocks, chunks and stripes too."""
    expected = os.urandom((24 << 20) + 7)
    file = folder / "f"
    file.write_bytes(expected)
    source = random.Random(8)
    descriptor = os.open(file, os.O_RDONLY)

    def read(offset: int, length: int) -> None:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(descriptor, length, offset) == expected[offset : offset + length]

    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        for number in range(100):
            length = source.choice([1, 4096, 16_384, 20_000, 70_000, 90_000])
            far = number % 2 * (16 << 20)  # jumps, or they would count as sequential
            border = source.choice([1 << 14, 1 << 20, 4 << 20]) - source.randrange(length)
            offset = max(0, far + source.choice([border, source.randrange(8 << 20)]))
            read(offset, length)
            for inside in (1, max(1, length // 2)):  # from blocks that the client keeps now
                read(offset + length // 2, inside)
    finally:
        os.close(descriptor)


def test_sparse_files_and_truncation(folder: Path) -> None:
    file = folder / "f"
    with file.open("wb") as opened:
        opened.seek(5 << 30)
        opened.write(b"end")
    assert file.stat().st_size == (5 << 30) + 3
    with file.open("rb") as opened:
        opened.seek((5 << 30) - 4)
        assert opened.read() == bytes(4) + b"end"
    os.truncate(file, 10)
    assert file.read_bytes() == bytes(10)
    file.write_bytes(b"x" * 100_000)
    os.truncate(file, 50)
    os.truncate(file, 100)
    assert file.read_bytes() == b"x" * 50 + bytes(50)


def test_append_goes_to_the_end(folder: Path) -> None:
    file = folder / "f"
    with file.open("ab") as first, file.open("ab") as second:
        for opened, text in ((first, b"one"), (second, b"two"), (first, b"three")):
            opened.write(text)
            opened.flush()
    assert file.read_bytes() == b"onetwothree"


def test_mmap_reads_and_writes(folder: Path) -> None:
    data = os.urandom(300_000)
    file = folder / "f"
    file.write_bytes(data)
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        assert mapped[:] == data
        mapped[100_000:100_004] = b"mmap"
        mapped.flush()
    assert file.read_bytes() == data[:100_000] + b"mmap" + data[100_004:]


def test_unlinked_file_lives_while_open(folder: Path) -> None:
    file = folder / "f"
    with file.open("w+b") as opened:
        opened.write(b"still here")
        opened.flush()
        file.unlink()
        assert os.listdir(folder) == []
        assert os.fstat(opened.fileno()).st_nlink == 0
        opened.seek(0)
        assert opened.read() == b"still here"
        opened.write(b", and longer")
        opened.flush()
        opened.seek(0)
        assert opened.read() == b"still here, and longer"


@pytest.mark.parametrize("name", [b"n" * 255, b"\xff\xfe\x80", b"new\nline", " ä€𝄞".encode()])
def test_any_name(folder: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(folder), name)
    with open(path, "wb") as opened:
        opened.write(name)
    assert os.listdir(os.fsencode(folder)) == [name]
    with open(path, "rb") as opened:
        assert opened.read() == name


def test_errnos(folder: Path) -> None:
    (folder / "d").mkdir()
    (folder / "d" / "f").touch()
    assert errno_of(os.stat, folder / "none") == errno.ENOENT
    assert errno_of(os.mkdir, folder / "d") == errno.EEXIST
    assert errno_of(os.rmdir, folder / "d") == errno.ENOTEMPTY
    assert errno_of(os.unlink, folder / "d") == errno.EISDIR
    assert errno_of(os.rmdir, folder / "d" / "f") == errno.ENOTDIR
    assert errno_of(os.stat, folder / "d" / "f" / "x") == errno.ENOTDIR
    assert errno_of(os.stat, folder / ("n" * 256)) == errno.ENAMETOOLONG
    assert errno_of(os.rename, folder / "d", folder / "d" / "e") == errno.EINVAL
    assert errno_of(os.link, folder / "d", folder / "e") == errno.EPERM
    assert errno_of(os.getxattr, folder / "d", "user.none") == errno.ENODATA


def test_rename_flags(folder: Path) -> None:
    (folder / "a").write_bytes(b"a")
    (folder / "b").write_bytes(b"b")
    assert errno_of(rename_with_flags, folder / "a", folder / "b", RENAME_NOREPLACE) == errno.EEXIST
    rename_with_flags(folder / "a", folder / "b", RENAME_EXCHANGE)
    assert ((folder / "a").read_bytes(), (folder / "b").read_bytes()) == (b"b", b"a")
    os.rename(folder / "a", folder / "b")
    assert os.listdir(folder) == ["b"]
    assert (folder / "b").read_bytes() == b"b"
    rename_with_flags(folder / "b", folder / "c", RENAME_NOREPLACE)
    assert os.listdir(folder) == ["c"]


def test_links_modes_owners_and_times(folder: Path) -> None:
    file = folder / "f"
    file.write_bytes(b"x")
    os.link(file, folder / "g")
    os.symlink("f", folder / "s")
    assert file.stat().st_nlink == 2
    assert os.readlink(folder / "s") == "f"
    os.chmod(file, 0o4751)
    assert stat.S_IMODE((folder / "g").stat().st_mode) == 0o4751
    os.utime(file, ns=(1_000_000_001, 2_000_000_002))
    assert (file.stat().st_atime_ns, file.stat().st_mtime_ns) == (1_000_000_001, 2_000_000_002)
    os.unlink(file)
    assert (folder / "g").stat().st_nlink == 1
    os.mkfifo(folder / "p")
    assert stat.S_ISFIFO((folder / "p").stat().st_mode)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_set_gid_directories_and_set_id_bits(folder: Path) -> None:
    os.chown(folder, 0, 4321)
    os.chmod(folder, 0o2777)
    (folder / "d").mkdir()
    (folder / "f").touch()
    assert (folder / "f").stat().st_gid == 4321
    assert (folder / "d").stat().st_gid == 4321
    assert (folder / "d").stat().st_mode & stat.S_ISGID
    os.chmod(folder / "f", 0o6777)
    os.chown(folder / "f", 1234, 4321)
    assert stat.S_IMODE((folder / "f").stat().st_mode) == 0o777
    os.chmod(folder / "f", 0o6777)
    subprocess.run(["sh", "-c", "echo x >> f"], cwd=folder, user=65534, group=65534, check=True, timeout=30)
    assert stat.S_IMODE((folder / "f").stat().st_mode) == 0o777


def test_extended_attributes(folder: Path) -> None:
    os.setxattr(folder, "user.a", b"\0\xff")
    os.setxattr(folder, "user.b", b"")
    assert os.getxattr(folder, "user.a") == b"\0\xff"
    assert sorted(os.listxattr(folder)) == ["user.a", "user.b"]
    assert errno_of(os.setxattr, folder, "user.a", b"", os.XATTR_CREATE) == errno.EEXIST
    os.removexattr(folder, "user.a")
    assert os.listxattr(folder) == ["user.b"]


def test_long_listing_while_names_are_removed(folder: Path) -> None:
    names = {f"{number:04d}" for number in range(2500)}
    for name in names:
        (folder / name).touch()
    seen = set()
    with os.scandir(folder) as listing:
        for entry in listing:
            assert entry.name not in seen
            seen.add(entry.name)
            os.unlink(entry.path)
    assert seen == names
    assert os.listdir(folder) == []


def test_tree_survives_tar_and_remove(folder: Path) -> None:
    source = folder / "source"
    for number in range(40):
        path = source / f"d{number % 5}" / f"e{number % 3}"
        path.mkdir(parents=True, exist_ok=True)
        (path / f"f{number}").write_bytes(os.urandom(number * 997))
    subprocess.run(["cp", "-a", source, folder / "copy"], check=True, timeout=60)
    subprocess.run(["diff", "-r", source, folder / "copy"], check=True, timeout=60)
    subprocess.run(["tar", "cf", "t.tar", "source"], cwd=folder, check=True, timeout=60)
    subprocess.run(["rm", "-r", source], check=True, timeout=60)
    subprocess.run(["tar", "xf", "t.tar"], cwd=folder, check=True, timeout=60)
    subprocess.run(["diff", "-r", source, folder / "copy"], check=True, timeout=60)


def some_names(directory: int) -> list[str]:
    """What one getdents64(2) with a small buffer tells; libc's is larger than most directories."""
    library, buffer = ctypes.CDLL(None, use_errno=True), ctypes.create_string_buffer(4096)
    number = {"x86_64": 217, "aarch64": 61}[os.uname().machine]
    filled = library.syscall(number, directory, buffer, len(buffer))
    assert filled >= 0, os.strerror(ctypes.get_errno())
    names, at = [], 0
    while at < filled:
        length = int.from_bytes(buffer.raw[at + 16 : at + 18], "little")
        names.append(buffer.raw[at + 19 : at + length].split(b"\0", 1)[0].decode())
        at += length
    return names


def test_what_changes_behind_a_listing_is_not_undone_by_it(folder: Path) -> None:
    """A page of 1,000 entries is fetched at once, and given to the kernel bit by bit."""
    names = [f"{number:03d}-{'x' * 200}" for number in range(100)]
    for name in names:
        (folder / name).touch()
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        given = some_names(directory)
        assert names[0] in given
        assert names[-2] not in given
        (folder / names[-1]).unlink()
        (folder / names[-2]).write_bytes(b"longer now")
        while some := some_names(directory):
            given += some
    finally:
        os.close(directory)
    assert given == [".", "..", *names[:-1]]
    assert not (folder / names[-1]).exists()
    assert (folder / names[-2]).stat().st_size == 10
    assert (folder / names[-2]).read_bytes() == b"longer now"
