"""Programs that people use, at work while two of six nodes die and come back: 4+2, real mounts.

Each test works with all nodes, then without two of them, and looks at everything when they are back.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import combinations, cycle
from pathlib import Path
from random import Random

import pytest

from tests.conftest import ClusterFactory
from tests.harness import Cluster, drop_caches, mount_pid, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.fuse, pytest.mark.timeout(180)]

PROGRAM_TIMEOUT_S = 60
GIB = 1 << 30
PAIRS = cycle(Random(7).sample(list(combinations(range(2, 7), 2)), 10))


@dataclass(slots=True)
class Place:
    """Six nodes and two mounts of them."""

    six: Cluster
    one: Path
    other: Path

    @contextmanager
    def two_nodes_lost(self) -> Iterator[None]:
        """SIGKILL two of nodes 2 to 6; both are online again behind it."""
        pair = next(PAIRS)
        print(f"without nodes {pair}")
        for node in pair:
            os.kill(self.six.pid(node), signal.SIGKILL)
        wait_until(lambda: not any(map(self.six.running, pair)), "two nodes are gone")
        yield
        assert not any(map(self.six.running, pair))
        self.six.up()
        assert all(map(self.six.running, pair))


@pytest.fixture(scope="module")
def place(module_cluster: ClusterFactory) -> Iterator[Place]:
    six = module_cluster(nodes=6, policy="4+2")
    yield Place(six, six.mount("one"), six.mount("other"))
    six.fsck()


def ran(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """A program that must exit 0 without a word on standard error; its standard output."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C", "TZ": "UTC", **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PROGRAM_TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), f"{command}: {done.returncode} {done.stderr}"
    return done.stdout


def ran_at_once(*scripts: Sequence[str | Path]) -> None:
    """Python scripts with their arguments, side by side; each must exit 0."""
    started = [python(*script) for script in scripts]
    try:
        for each in started:
            _, errors = each.communicate(timeout=PROGRAM_TIMEOUT_S)
            assert (each.returncode, errors) == (0, "")
    finally:
        for each in started:
            each.kill()
            each.wait(PROGRAM_TIMEOUT_S)


def python(script: str | Path, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", str(script), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# --- databases

ROW = """
import json, sqlite3, sys, time
def payload(worker, number):
    return f"{worker}/{number}/".encode() * 40
path, worker = sys.argv[1:3]
db = sqlite3.connect(path, timeout=50, isolation_level=None)
"""
MAKE_TABLE = (
    ROW
    + """
assert db.execute(f"PRAGMA journal_mode={worker}").fetchone() == (worker,)
db.execute("CREATE TABLE t (worker TEXT, number INTEGER, payload BLOB, UNIQUE (worker, number))")
"""
)
INSERT = (
    ROW
    + """
first, end = map(int, sys.argv[3:5])
for number in range(first, end, 5):
    db.execute("BEGIN IMMEDIATE")
    for each in range(number, number + 5):
        db.execute("INSERT INTO t VALUES (?, ?, ?)", (worker, each, payload(worker, each)))
    db.execute("COMMIT")
db.close()
"""
)
STAY_IN_TRANSACTION = (
    ROW
    + """
db.execute("PRAGMA cache_size=5")  # pages: the rest of the transaction goes to the file before its end
db.execute("BEGIN IMMEDIATE")
db.execute("INSERT INTO t VALUES (?, ?, ?)", (worker, 0, payload(worker, 0)))
db.execute("COMMIT")
db.execute("BEGIN IMMEDIATE")
for number in range(1, 300):
    db.execute("INSERT INTO t VALUES (?, ?, ?)", (worker, number, payload(worker, number)))
db.execute("UPDATE t SET payload = ?", (b"never committed",))
print("in a transaction", flush=True)
sys.stdin.read()
"""
)
LOOK = (
    ROW
    + """
found = db.execute("SELECT worker, number, payload FROM t").fetchall()
print(json.dumps({
    "check": db.execute("PRAGMA integrity_check").fetchall(),
    "mode": db.execute("PRAGMA journal_mode").fetchone()[0],
    "rows": sorted(row[:2] for row in found),
    "wrong": [row[:2] for row in found if row[2] != payload(*row[:2])],
}))
"""
)


def kill_in_transaction(database: Path, worker: str) -> None:
    """A program commits a row, changes every page of the file without committing, and is killed."""
    with python(STAY_IN_TRANSACTION, database, worker) as doomed:
        assert doomed.stdout is not None
        try:
            assert doomed.stdout.readline() == "in a transaction\n", doomed.stderr and doomed.stderr.read()
        finally:
            doomed.kill()


@pytest.mark.parametrize("mode", ["wal", pytest.param("delete", marks=pytest.mark.unsampled)])
def test_sqlite_keeps_what_was_committed_and_nothing_else(place: Place, mode: str) -> None:
    database = place.one / f"{mode}.db"
    journal = place.one / (f"{mode}.db-wal" if mode == "wal" else f"{mode}.db-journal")
    ran(sys.executable, "-c", MAKE_TABLE, database, mode)
    rows: list[list[object]] = []

    def insert(first: int, end: int) -> None:
        ran_at_once(*((INSERT, database, worker, str(first), str(end)) for worker in "ab"))
        rows.extend([worker, number] for worker in "ab" for number in range(first, end))

    def look(mount: Path) -> None:
        found = json.loads(ran(sys.executable, "-c", LOOK, mount / database.name, "look"))
        assert found == {"check": [["ok"]], "mode": mode, "rows": sorted(rows), "wrong": []}

    insert(0, 50)
    kill_in_transaction(database, "killed")
    rows.append(["killed", 0])
    assert journal.stat().st_size > 30_000, "what was not committed never got to the file"
    look(place.one)
    with place.two_nodes_lost():
        look(place.other)
        insert(50, 100)
        kill_in_transaction(database, "killed-degraded")
        rows.append(["killed-degraded", 0])
        look(place.one)
        insert(100, 120)
    insert(120, 130)
    drop_caches()
    look(place.other)
    look(place.one)


# --- trees


def make_tree(folder: Path, files: int, random: Random) -> None:
    """Files of all sizes, links of both kinds, and modes and times of their own."""
    for number in range(files):
        path = folder / f"d{number % 7}" / f"e{number % 3}" / f"f{number:03d} ä"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.randbytes(random.choice([0, 10, 3000, 20_000, 70_000])))
        path.chmod(random.choice([0o600, 0o644, 0o640, 0o755, 0o4711]))
        if number % 10 == 0:
            path.with_name(f"link{number}").symlink_to(path.name)
            os.link(path, path.with_name(f"hard{number}"))
        times = random.randrange(10**9, 17 * 10**8) * 10**9 + random.randrange(10**9)
        os.utime(path, ns=(times, times))
    (folder / "large").write_bytes(random.randbytes(5_000_000))
    (folder / "dangling").symlink_to("nowhere")
    for path in sorted(folder.rglob("d*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o750)
            os.utime(path, ns=(10**18, 10**18 + 7))


def listing(folder: Path, form: str, *expression: str) -> list[str]:
    return sorted(ran("find", ".", *expression, "-printf", form, cwd=folder).splitlines())


FILE_FORM = "%P %y %s %m %n %U %G %T@ %l\n"
FOLDER_FORM = "%P %m %n %U %G %T@\n"


def described(folder: Path) -> dict[str, object]:
    """All that programs keep of a tree but its root: names, modes, owners, times, links, bytes."""
    inodes: dict[int, list[str]] = {}
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            inodes.setdefault(path.stat().st_ino, []).append(str(path.relative_to(folder)))
            digests[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return {
        "files": listing(folder, FILE_FORM, "-mindepth", "1", "!", "-type", "d"),
        "folders": listing(folder, FOLDER_FORM, "-mindepth", "1", "-type", "d"),
        "same": sorted(names for names in inodes.values() if len(names) > 1),
        "digests": digests,
    }


@pytest.mark.unsampled
def test_rsync_finds_no_difference(place: Place, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", 300, Random(1))
    target = place.one / "rsync"
    target.mkdir()
    ran("rsync", "-aH", tmp_path / "tree/d1", tmp_path / "tree/d4", target)
    with place.two_nodes_lost():
        ran("rsync", "-aH", f"{tmp_path}/tree/", target)
    drop_caches()

    def differences(copy: Path) -> list[str]:
        ways = [(tmp_path / "tree", copy), (copy, tmp_path / "tree")]
        return [
            ran("rsync", "-aHnc", "--itemize-changes", "--delete", f"{here}/", f"{there}/")
            for here, there in ways
        ]

    assert differences(place.other / "rsync") == ["", ""]
    changed = target / "d1/e1/f001 ä"
    found = changed.stat()
    changed.write_bytes(bytes(byte ^ 1 for byte in changed.read_bytes()) or b"1")
    os.utime(changed, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert [len(each.splitlines()) for each in differences(place.other / "rsync")] == [1, 1]


FIND_EXPRESSIONS = [
    ["-type", "f"],
    ["-type", "d"],
    ["-type", "l"],
    ["-size", "+32k"],
    ["-size", "0", "-type", "f"],
    ["-perm", "640"],
    ["-perm", "-4000"],
    ["-newer", "d0/e0/f000 ä"],
    ["-links", "+1", "-type", "f"],
    ["-newermt", "2010-01-01 UTC"],
]


@pytest.mark.unsampled
def test_find_touch_and_stat_agree_with_a_local_copy(place: Place, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", 80, Random(2))
    target = place.one / "find"
    target.mkdir()
    ran("cp", "-a", *(tmp_path / f"tree/d{number}" for number in (0, 1, 2)), target)
    dated = ["d0/e0/f000 ä", "d5/e2/f005 ä"]

    def touch(name: str) -> None:
        for tree in (tmp_path / "tree", target):
            ran("touch", "-d", f"2001-02-03 04:05:0{len(name) % 7}.123456789", name, cwd=tree)

    touch(dated[0])
    with place.two_nodes_lost():
        ran("cp", "-a", f"{tmp_path}/tree/.", target)
        touch(dated[0])
        touch(dated[1])
    drop_caches()
    for expression in FIND_EXPRESSIONS:
        expected = listing(tmp_path / "tree", "%P\n", *expression)
        assert expected, f"{expression} selects nothing"
        for tree in (target, place.other / "find"):
            assert listing(tree, "%P\n", *expression) == expected, expression
    for name in dated:
        for tree in (target, place.other / "find"):
            seen = ran("stat", "-c", "%y %x %s %a %h %F", name, cwd=tree)
            assert seen == ran("stat", "-c", "%y %x %s %a %h %F", name, cwd=tmp_path / "tree")
            assert seen.startswith("2001-02-03 04:05:0")


@pytest.mark.unsampled
def test_tar_keeps_modes_links_and_times(place: Place, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", 100, Random(3))
    copied = 'tar -C "$1" --format=posix -cf - . | tar -C "$2" -xpf -'
    for folder in (place.one / "tar", place.one / "tar-again", tmp_path / "back"):
        folder.mkdir()
    ran("bash", "-o", "pipefail", "-c", copied, "tar", tmp_path / "tree", place.one / "tar")
    with place.two_nodes_lost():
        ran("bash", "-o", "pipefail", "-c", copied, "tar", place.one / "tar", place.one / "tar-again")
    ran("bash", "-o", "pipefail", "-c", copied, "tar", place.other / "tar-again", tmp_path / "back")
    drop_caches()
    expected = described(tmp_path / "tree")
    for tree in (place.one / "tar", place.other / "tar-again", tmp_path / "back"):
        assert described(tree) == expected


@pytest.mark.unsampled
def test_git_commits_clones_and_finds_nothing_wrong(place: Place, tmp_path: Path) -> None:
    who = {"GIT_CONFIG_NOSYSTEM": "1", "HOME": str(tmp_path)}
    for role in ("AUTHOR", "COMMITTER"):
        who |= {f"GIT_{role}_NAME": "N", f"GIT_{role}_EMAIL": "n@example.org"}
    repository = place.one / "git"
    random = Random(4)
    digests = {}

    def git(folder: Path, *arguments: str | Path) -> str:
        return ran("git", "-c", "gc.auto=0", *arguments, cwd=folder, env=who)

    def commit(number: int) -> None:
        for each in range(40):
            name = f"d{each % 4}/f{number}-{each}"
            data = random.randbytes(random.choice([20, 2000, 90_000]))
            (repository / name).parent.mkdir(exist_ok=True)
            (repository / name).write_bytes(data)
            digests[name] = hashlib.sha256(data).hexdigest()
        git(repository, "add", ".")
        git(repository, "commit", "-q", "-m", f"commit {number}")

    repository.mkdir()
    git(repository, "init", "-q", "-b", "main")
    commit(1)
    with place.two_nodes_lost():
        commit(2)
        git(repository, "repack", "-q", "-a", "-d")
        git(place.one, "clone", "-q", "--no-hardlinks", "git", "clone")
        git(repository, "fsck", "--full", "--strict", "--no-progress")
        commit(3)
    git(place.one / "clone", "pull", "-q")
    drop_caches()
    head = git(repository, "rev-parse", "HEAD")
    for folder in (repository, place.other / "git", place.one / "clone", place.other / "clone"):
        git(folder, "fsck", "--full", "--strict", "--no-progress")
        assert git(folder, "rev-parse", "HEAD") == head
        assert git(folder, "status", "--porcelain") == ""
        assert git(folder, "rev-list", "--count", "HEAD") == "3\n"
        assert {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in digests} == digests


# --- single files

WRITE_MAPPED = """
import mmap, os, random, sys
path, seed, start, end = sys.argv[1], *map(int, sys.argv[2:5])
descriptor = os.open(path, os.O_RDWR)
mapped = mmap.mmap(descriptor, 0)  # shared, and no msync before the end
mapped[start:end] = random.Random(seed).randbytes(end - start)
mapped.close()
os.close(descriptor)
"""


@pytest.mark.unsampled
def test_what_was_written_by_mmap_is_there_for_the_other_mount_after_close(place: Place) -> None:
    expected = bytearray(Random(5).randbytes(6_000_001))
    (place.one / "mapped").write_bytes(expected)
    assert (place.other / "mapped").read_bytes() == expected  # its pages are cached there now

    def write(seed: int, start: int, end: int) -> None:
        ran(sys.executable, "-c", WRITE_MAPPED, place.one / "mapped", str(seed), str(start), str(end))
        expected[start:end] = Random(seed).randbytes(end - start)
        for mount in (place.other, place.one):
            found = (mount / "mapped").read_bytes()
            assert hashlib.sha256(found).digest() == hashlib.sha256(expected).digest()

    write(1, 100, 5000)
    with place.two_nodes_lost():
        write(2, 4_000_000, 5_000_000)
        write(3, 4999, 5003)
    write(4, 5_999_990, 6_000_001)
    drop_caches()
    assert (place.other / "mapped").read_bytes() == expected


APPEND = """
import os, sys
path, mark, first, end = *sys.argv[1:3], *map(int, sys.argv[3:5])
descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
for number in range(first, end):
    record = f"{mark}{number:05d}".encode() + mark.encode() * (number % 90) + b"\\n"
    assert os.write(descriptor, record) == len(record)
os.close(descriptor)
"""


@pytest.mark.unsampled
def test_records_appended_by_two_processes_are_all_there_and_whole(place: Place) -> None:
    log = place.one / "log"

    def append(first: int, end: int) -> None:
        ran_at_once(*((APPEND, log, mark, str(first), str(end)) for mark in "ab"))

    append(0, 300)
    with place.two_nodes_lost():
        append(300, 600)
    append(600, 650)
    drop_caches()
    for mount in (place.other, place.one):
        lines = (mount / "log").read_text(encoding="ascii").splitlines()
        for mark in "ab":
            own = [line for line in lines if line.startswith(mark)]
            assert own == [f"{mark}{number:05d}" + mark * (number % 90) for number in range(650)]
        assert len(lines) == 2 * 650


WRITE_AT = """
import os, random, sys
path, *offsets = sys.argv[1:]
descriptor = os.open(path, os.O_WRONLY)
for offset in map(int, offsets):
    data = random.Random(offset).randbytes(100_003)
    assert os.pwrite(descriptor, data, offset) == len(data)
os.close(descriptor)
"""
DIGEST_AROUND = """
import hashlib, os, sys
path, around, *offsets = sys.argv[1:]
descriptor = os.open(path, os.O_RDONLY)
for offset in map(int, offsets):
    start, left = offset - int(around), 100_003 + 2 * int(around)
    digest = hashlib.sha256()
    while left and (piece := os.pread(descriptor, left, start)):
        digest.update(piece)
        start, left = start + len(piece), left - len(piece)
    print(digest.hexdigest())
"""


@pytest.mark.unsampled
def test_a_sparse_file_of_five_gib_reads_back_through_the_other_mount(place: Place) -> None:
    size_bytes, around_bytes = 5 * GIB, 50_000
    path = place.one / "sparse"
    ran("truncate", "-s", str(size_bytes), path)
    whole = [4 * GIB - 50_000, 4 * GIB + 2_000_001]  # the first crosses what 32 bits can count
    degraded = [4 * GIB + (1 << 29) - 7, size_bytes - 100_003 - around_bytes]
    ran(sys.executable, "-c", WRITE_AT, path, *map(str, whole))
    with place.two_nodes_lost():
        ran(sys.executable, "-c", WRITE_AT, path, *map(str, degraded))
    offsets = [*whole, *degraded]
    around = bytes(around_bytes)
    expected = [
        hashlib.sha256(around + Random(each).randbytes(100_003) + around).hexdigest() for each in offsets
    ]
    drop_caches()
    for mount in (place.other, place.one):
        assert (mount / "sparse").stat().st_size == size_bytes
        arguments = [str(each) for each in (mount / "sparse", around_bytes, *offsets)]
        assert ran(sys.executable, "-c", DIGEST_AROUND, *arguments).split() == expected


WRITE_SYNC = """
import os, random, sys
descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_SYNC, 0o644)
for number in range(1_000_000):
    data = random.Random(number).randbytes([100, 5000, 200_000][number % 3])
    if os.write(descriptor, data) != len(data):
        break
    print(number, flush=True)
"""


@pytest.mark.parametrize(
    "degraded",
    [pytest.param(False, id="whole", marks=pytest.mark.unsampled), pytest.param(True, id="degraded")],
)
def test_a_write_with_o_sync_that_returned_survives_the_mount(place: Place, degraded: bool) -> None:
    name = f"sync-{degraded}"
    brief = place.six.mount("brief")

    def write_and_kill() -> int:
        """How many writes returned before the mount died."""
        with python(WRITE_SYNC, brief / name) as writer:
            assert writer.stdout is not None
            for number in range(12):
                assert writer.stdout.readline() == f"{number}\n"
            os.kill(mount_pid(brief), signal.SIGKILL)
            out, errors = writer.communicate(timeout=PROGRAM_TIMEOUT_S)
        assert "not connected" in errors or "connection abort" in errors
        return 12 + len(out.splitlines())

    try:
        with place.two_nodes_lost() if degraded else nullcontext():
            returned = write_and_kill()
    finally:
        place.six.unmount(brief)
    expected = b"".join(
        Random(number).randbytes([100, 5000, 200_000][number % 3]) for number in range(returned)
    )
    found = (place.other / name).read_bytes()
    assert hashlib.sha256(found[: len(expected)]).digest() == hashlib.sha256(expected).digest()
