"""`make demo` and `make demo-cluster`: WormFS shown working, from nothing to nothing.

Six nodes on this machine with policy 4+2; a real mount; a real tree and a file of 1 GiB in and
back, compared byte for byte; two nodes killed; all of it again; writing while degraded; the nodes
back; fsck. With `--engine etcd` the metadata is on three members of etcd, and the two nodes that
are killed in the middle of the copy are the metadata master and another one. Exits 0 only when
every step held, and takes everything down however it ends.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape

WORMFS = Path(sys.executable).parent / "wormfs"
PIECE_BYTES = 1 << 20
COMMAND_TIMEOUT_S = 150
NODES = 6
KILLED = (3, 5)
_console = Console(highlight=False, soft_wrap=True)

Digests = dict[str, str]


class DemoError(Exception):
    """A step did not hold."""


@contextmanager
def step(text: str) -> Iterator[Callable[[str], None]]:
    """Say what is done while it is done, and how it went; the callee adds a remark."""
    remarks: list[str] = []
    began = time.monotonic()
    status = _console.status(f"{text} ...")
    _showing(status.start)
    try:
        yield remarks.append
    finally:
        _showing(status.stop)
    took = time.monotonic() - began
    remark = f": {', '.join(remarks)}" if remarks else ""
    say(f"[green]ok[/green] {text}{remark} [dim]({took:.1f} s)[/dim]")


def say(text: str) -> None:
    """A line for who looks on, if anybody still does."""
    _showing(lambda: _console.print(text))


def _showing(show: Callable[[], None]) -> None:
    """A terminal or a pipe that is gone ends nothing (rich exits when a pipe breaks)."""
    try:
        show()
    except (OSError, SystemExit):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def wormfs(*arguments: str | Path) -> str:
    """A `wormfs` command that must succeed; its output."""
    done = subprocess.run(
        [WORMFS, *arguments],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=COMMAND_TIMEOUT_S,
    )
    if done.returncode != 0:
        shown = " ".join(map(str, arguments))
        raise DemoError(f"wormfs {shown} exited {done.returncode}: {done.stdout}{done.stderr}".strip())
    return done.stdout


def file_digest(path: Path) -> str:
    """BLAKE2 of a file's bytes, or of a symlink's target."""
    if path.is_symlink():
        return "-> " + os.readlink(path)
    digest = hashlib.blake2b(digest_size=16)
    buffer = memoryview(bytearray(PIECE_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def tree_digests(root: Path) -> Digests:
    """Every name below a folder with what it holds."""
    found: Digests = {}
    for folder, folders, files in os.walk(root):
        base = Path(folder)
        links = [name for name in folders if (base / name).is_symlink()]
        for name in folders:
            found[str((base / name).relative_to(root))] = "directory"
        for name in [*files, *links]:
            found[str((base / name).relative_to(root))] = file_digest(base / name)
    return found


def compare(what: str, want: Digests, have: Digests) -> None:
    """Raises DemoError with the first differences."""
    if want == have:
        return
    wrong = sorted(name for name in want.keys() | have.keys() if want.get(name) != have.get(name))
    raise DemoError(f"{what}: {len(wrong)} names differ, such as {', '.join(wrong[:5])}")


def real_tree() -> Path:
    """A folder of thousands of small files that every machine with this demo has."""
    return Path(sysconfig.get_paths()["purelib"])


def copy_tree(source: Path, target: Path, *, most: int) -> int:
    """Up to `most` files of a tree, in a fixed order; how many."""
    count = 0
    for folder, folders, files in os.walk(source):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        there = target / Path(folder).relative_to(source)
        there.mkdir(exist_ok=True)
        for name in sorted(files):
            if count >= most:
                return count
            path = Path(folder, name)
            if path.stat().st_size <= 4 << 20:
                shutil.copy2(path, there / name)
                count += 1
    return count


def make_big_file(path: Path, size_bytes: int) -> str:
    """A file of random bytes; its digest."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("wb", buffering=0) as file:
        for _ in range(size_bytes // PIECE_BYTES):
            piece = os.urandom(PIECE_BYTES)
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def copy_file(source: Path, target: Path) -> float:
    """Copy and fsync; MB/s."""
    began = time.monotonic()
    buffer = memoryview(bytearray(PIECE_BYTES))
    with source.open("rb", buffering=0) as reading, target.open("wb", buffering=0) as writing:
        while count := reading.readinto(buffer):
            writing.write(buffer[:count])
        os.fsync(writing.fileno())
    return source.stat().st_size / 1e6 / (time.monotonic() - began)


class Demo:
    """The steps, on one temporary folder."""

    def __init__(self, folder: Path, *, files: int, big_bytes: int, engine: str) -> None:
        self.folder = folder
        self.engine = engine
        self.killed = KILLED
        self.files = files
        self.big_bytes = big_bytes
        self.cluster = folder / "cluster"
        self.mount = folder / "mnt"
        self.source = folder / "source"
        self.want: Digests = {}
        self.big_digest = ""
        self.mounted = False

    def run(self) -> None:
        """All steps. Raises DemoError, or what failed."""
        self.prepare()
        self.bring_up()
        if self.engine == "etcd":
            self.copy_in_through_failover()
            self.read_back("read it all back without the two, through a fresh mount; compare every byte")
        else:
            self.copy_in()
            self.read_back("read it all back through a fresh mount and compare every byte")
            self.kill_two()
            self.read_back("read it all again, the lost chunks rebuilt from parity")
        self.write_degraded()
        self.restart()
        self.read_back("read it all once more", big=False)
        self.check()

    def prepare(self) -> None:
        """Make what will be copied."""
        needed = 4 * self.big_bytes + (1 << 30)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise DemoError(
                f"{self.folder.parent} has {free >> 20} MiB free and the demo takes {needed >> 20} MiB;"
                " name a roomier folder: TMPDIR=/somewhere make demo"
            )
        with step("make a real tree and a file of random bytes to copy") as remark:
            self.source.mkdir()
            tree = self.source / "tree"
            tree.mkdir()
            count = copy_tree(real_tree(), tree, most=self.files)
            if count < min(self.files, 1000):
                raise DemoError(f"{real_tree()} holds only {count} files")
            self.big_digest = make_big_file(self.source / "big", self.big_bytes)
            self.want = tree_digests(tree)
            remark(f"{count} files and {self.big_bytes >> 20} MiB")

    def bring_up(self) -> None:
        """The cluster and the mount."""
        with step("start six nodes: each file becomes 4 data and 2 parity chunks on six disks"):
            wormfs("dev", "up", "--dir", self.cluster, "--nodes", str(NODES), "--engine", self.engine)
        with step(f"mount it at {self.mount}"):
            self.mount.mkdir()
            self.mount_it()

    def mount_it(self) -> None:
        """Mount."""
        self.mounted = True
        log = self.folder / "mount.log"
        wormfs("mount", self.mount, "--config", self.cluster / "client.yaml", "--log-file", log)

    def unmount_it(self) -> None:
        """Unmount; all is written then."""
        wormfs("umount", self.mount)
        self.mounted = False

    def copy_in(self) -> None:
        """The tree by `cp -a`, the big file with an fsync."""
        with step("cp -a the tree in") as remark:
            began = time.monotonic()
            subprocess.run(["cp", "-a", self.source / "tree", self.mount / "tree"], check=True, timeout=120)
            remark(f"{len(self.want) / (time.monotonic() - began):.0f} names per second")
        with step("copy the big file in, and fsync it") as remark:
            remark(f"{copy_file(self.source / 'big', self.mount / 'big'):.0f} MB/s")

    def copy_in_through_failover(self) -> None:
        """The tree by `cp -a`, which loses the metadata master half way and does not notice."""
        with step("cp -a the tree in; half way kill the metadata master and another node") as remark:
            began = time.monotonic()
            copying = subprocess.Popen(["cp", "-a", self.source / "tree", self.mount / "tree"])
            try:
                while (status := self._status())["inode_count"] < len(self.want) // 2:
                    if copying.poll() is not None:
                        raise DemoError("cp ended before the master could be killed")
                    time.sleep(0.1)
                master = int(str(status["master"]).removeprefix("node-"))
                self.killed = (master, master % NODES + 1)
                with ThreadPoolExecutor() as threads:
                    list(threads.map(self._kill, self.killed))
                if copying.wait(120) != 0:
                    raise DemoError(f"cp exited {copying.returncode}")
            finally:
                copying.kill()
                copying.wait()
            remark(f"killed nodes {self.killed[0]} (master) and {self.killed[1]}")
            remark(f"node-{self._status()['master'][-1]} is master now; cp saw no error")
            remark(f"{time.monotonic() - began:.1f} s in all")
        with step("copy the big file in, and fsync it") as remark:
            remark(f"{copy_file(self.source / 'big', self.mount / 'big'):.0f} MB/s")

    def _status(self) -> dict[str, Any]:
        """What `wormfs status` tells; nodes missing are no failure."""
        done = subprocess.run(
            [WORMFS, "status", "--json", "--config", self.cluster / "client.yaml"],
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_TIMEOUT_S,
        )
        if not done.stdout:
            raise DemoError(f"wormfs status: {done.stderr.strip()}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def read_back(self, text: str, *, big: bool = True) -> None:
        """Every byte through caches that know nothing."""
        with step(text) as remark:
            self.unmount_it()
            drop_caches()
            self.mount_it()
            compare("the tree", self.want, tree_digests(self.mount / "tree"))
            if big:
                began = time.monotonic()
                if file_digest(self.mount / "big") != self.big_digest:
                    raise DemoError("the big file came back with other bytes")
                remark(f"big file at {self.big_bytes / 1e6 / (time.monotonic() - began):.0f} MB/s")
            remark("all the same")

    def kill_two(self) -> None:
        """SIGKILL, side by side."""
        with step(f"kill nodes {KILLED[0]} and {KILLED[1]} with SIGKILL") as remark:
            with ThreadPoolExecutor() as threads:
                list(threads.map(self._kill, KILLED))
            remark("two of six gone, no warning given")

    def _kill(self, node: int) -> None:
        wormfs("dev", "stop", "--dir", self.cluster, "--node", str(node), "--kill")

    def write_degraded(self) -> None:
        """New files while two nodes are away."""
        with step("write while the two are away, and fsync") as remark:
            target = self.mount / "degraded"
            target.mkdir()
            for number in range(20):
                payload = hashlib.blake2b(str(number).encode()).digest() * 4096
                with (target / f"file-{number}").open("wb") as file:
                    file.write(payload)
                    os.fsync(file.fileno())
            self._check_degraded()
            remark("20 files")

    def _check_degraded(self) -> None:
        for number in range(20):
            payload = hashlib.blake2b(str(number).encode()).digest() * 4096
            if (self.mount / "degraded" / f"file-{number}").read_bytes() != payload:
                raise DemoError(f"degraded/file-{number} has other bytes")

    def restart(self) -> None:
        """The two come back."""
        with step("start the two again"):
            for node in self.killed:
                wormfs("dev", "start", "--dir", self.cluster, "--node", str(node))

    def check(self) -> None:
        """Fsck, and the status for the reader."""
        self._check_degraded()
        with step("wormfs fsck: metadata against chunks, both ways") as remark:
            remark(wormfs("fsck", "--config", self.cluster / "client.yaml").strip())

    def take_down(self) -> None:
        """Leave nothing: the mount, the processes, the folder."""
        if self.mounted:
            try:
                wormfs("umount", self.mount)
            except (DemoError, subprocess.TimeoutExpired):
                lazily = ["fusermount3", "-u", "-z"]
                subprocess.run([*lazily, self.mount], capture_output=True, timeout=20, check=False)
        if self.cluster.exists():
            wormfs("dev", "down", "--dir", self.cluster)
        if os.path.ismount(self.mount):
            raise DemoError(f"{self.mount} is still mounted")
        shutil.rmtree(self.folder)


def drop_caches() -> None:
    """Drop the kernel's clean caches, where we may; the client's own go with each unmount."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")
    except PermissionError:
        return


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main() -> int:
    """Exit code: 0 when all held."""
    parser = argparse.ArgumentParser(description="WormFS shown working on this machine.")
    parser.add_argument("--files", type=int, default=3000, help="small files to copy (3000)")
    parser.add_argument("--big-mib", type=int, default=1024, help="size of the big file (1024)")
    parser.add_argument("--engine", choices=["embedded", "etcd"], default="embedded", help="of the metadata")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    say(
        "WormFS on this machine: six nodes, a real mount. Files go in and come back, two nodes are killed,\n"
        "and every byte is compared with what was copied. Nothing stays behind."
    )
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="wormfs-demo-"))
    demo = Demo(folder, files=arguments.files, big_bytes=arguments.big_mib << 20, engine=arguments.engine)
    code = run_and_take_down(demo)
    if code == 0:
        say(f"[bold green]All of it held.[/bold green] {time.monotonic() - began:.0f} s in all.")
    return code


def run_and_take_down(demo: Demo) -> int:
    """The exit code. However the demo ends, all of it is taken down, and a failure is one line."""
    code = 1
    try:
        try:
            demo.run()
            code = 0
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # a second one must not end what takes down
    except KeyboardInterrupt:
        say("[red]interrupted[/red]")
        code = 130
    except BaseException as error:  # whatever it is, nothing may stay behind
        say(f"[red]FAILED[/red] {escape(_one_line(error))}")
        code = 1
    try:
        with step("unmount, stop the nodes, remove the folder"):
            demo.take_down()
    except BaseException as error:
        say(f"[red]FAILED[/red] taking down: {escape(_one_line(error))}")
        code = code or 1
    return code


def _one_line(error: BaseException) -> str:
    known = isinstance(error, DemoError | OSError | subprocess.SubprocessError)
    text = " ".join(str(error).split())
    return text if known and text else f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    sys.exit(main())
