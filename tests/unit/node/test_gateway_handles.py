"""Handles of the gateway: never another caller's, known to somebody, and what they hold is not lost."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.unit.fuse_client.memory_filesystem import MemoryFileSystem, MemoryHandle
from wormfs.client.filesystem import Entry
from wormfs.core.errors import BadHandleError, NotFoundError, UnavailableError
from wormfs.node import gateway as gateway_module
from wormfs.node.gateway import IDLE_S, PIECE_BYTES, Gateway
from wormfs.rpc import methods
from wormfs.rpc.methods import Method, Reply, Request
from wormfs.rpc.registry import Registry, RequestContext
from wormfs.rpc.v1 import filesystem_pb2 as pb

pytestmark = pytest.mark.timeout(20)

LIMIT_S = 10.0
MODE = 0o100644


class CountingFileSystem(MemoryFileSystem):
    """Knows what is open, and can be told to fail or to wait before it says attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open_inodes: list[int] = []
        self.attributes_fail = False
        self.attributes_wait = False
        self.asked = trio.Event()
        self.releases_wait: trio.Event | None = None
        self.releasing = trio.Event()
        self.flushed: list[int] = []
        self.flushes_fail: frozenset[int] = frozenset()
        self.flushes_wait = False
        self.writes_wait: trio.Event | None = None
        self.writing = trio.Event()

    async def write(self, handle: MemoryHandle, offset_bytes: int, data: bytes) -> int:
        self.writing.set()
        if self.writes_wait is not None:
            await self.writes_wait.wait()
        return await super().write(handle, offset_bytes, data)

    async def flush(self, handle: MemoryHandle) -> None:
        if self.flushes_wait:
            await trio.sleep_forever()
        if handle.inode in self.flushes_fail:
            raise UnavailableError("too few disks")
        self.flushed.append(handle.inode)

    async def open(self, inode: int, flags: int) -> MemoryHandle:
        self.open_inodes.append(inode)
        return await super().open(inode, flags)

    async def release(self, handle: MemoryHandle) -> None:
        await trio.lowlevel.checkpoint()  # as a call to the cluster: it can be cancelled
        self.releasing.set()
        if self.releases_wait is not None:
            await self.releases_wait.wait()
        self.open_inodes.remove(handle.inode)

    async def getattr(self, inode: int) -> Entry:
        self.asked.set()
        if self.attributes_wait:
            await trio.sleep_forever()
        if self.attributes_fail:
            raise NotFoundError("removed meanwhile")
        return await super().getattr(inode)


class Node:
    """One life of a node's gateway over a cluster that outlives it."""

    def __init__(self, registry: Registry, gateway: Gateway) -> None:
        self._registry = registry
        self.gateway = gateway

    async def ask(self, method: Method[Request, Reply], request: Request) -> Any:
        """Call its handler."""
        entry = self._registry.named(method.name)
        assert entry is not None
        with trio.fail_after(LIMIT_S):
            return await entry.handler(RequestContext(None, "grpc", "a test"), request, None)

    async def write_stream(self, requests: AsyncIterator[pb.WriteRequest]) -> int:
        """Upload; the bytes written."""
        entry = self._registry.named(methods.FILESYSTEM_WRITE_STREAM.name)
        assert entry is not None
        written: int = (await entry.handler(RequestContext(None, "grpc", "a test"), requests)).written_bytes
        return written

    async def read_stream(self, request: pb.ReadRequest) -> AsyncIterator[pb.ReadReply]:
        """Download."""
        entry = self._registry.named(methods.FILESYSTEM_READ_STREAM.name)
        assert entry is not None
        async for reply in entry.handler(RequestContext(None, "grpc", "a test"), request):
            yield reply

    async def write(self, number: int, data: bytes) -> None:
        """Through a handle."""
        await self.ask(methods.FILESYSTEM_WRITE, pb.WriteRequest(handle=number, data=data))

    async def open(self, inode: int) -> int:
        """The number of a new handle."""
        reply = await self.ask(methods.FILESYSTEM_OPEN, pb.OpenRequest(inode=inode, flags=1))
        number: int = reply.handle
        return number


@asynccontextmanager
async def running_node(
    filesystem: CountingFileSystem, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Node]:
    """From its start to its end."""

    @asynccontextmanager
    async def opened(*_: object, **__: object) -> AsyncIterator[CountingFileSystem]:
        yield filesystem

    monkeypatch.setattr(gateway_module, "open_filesystem", opened)
    gateway = Gateway(lambda: [], "a test")
    registry = Registry()
    gateway.register(registry)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.run)
        yield Node(registry, gateway)
        nursery.cancel_scope.cancel()


async def _made(filesystem: CountingFileSystem, name: bytes) -> int:
    entry = await filesystem.make_node(1, name, MODE, 0, 0)
    inode: int = entry.attributes.inode
    return inode


async def test_a_handle_from_before_a_restart_is_not_anothers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its writes would go into the file that the other opened."""
    filesystem = CountingFileSystem()
    mine, others = await _made(filesystem, b"mine"), await _made(filesystem, b"others")
    async with running_node(filesystem, monkeypatch) as before:
        old = await before.open(mine)
        await before.ask(methods.FILESYSTEM_WRITE, pb.WriteRequest(handle=old, data=b"first"))
    async with running_node(filesystem, monkeypatch) as after:
        new = await after.open(others)
        with pytest.raises(BadHandleError):
            await after.ask(methods.FILESYSTEM_WRITE, pb.WriteRequest(handle=old, data=b"of mine"))
        reply = await after.ask(methods.FILESYSTEM_READ, pb.ReadRequest(handle=new, length_bytes=100))
        assert reply.data == b""
        await after.ask(methods.FILESYSTEM_WRITE, pb.WriteRequest(handle=new, data=b"of others"))
        reply = await after.ask(methods.FILESYSTEM_READ, pb.ReadRequest(handle=new, length_bytes=100))
        assert reply.data == b"of others"


async def test_numbers_fit_the_wire_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """They start anywhere, and 0 means none."""
    filesystem = CountingFileSystem()
    inode = await _made(filesystem, b"f")
    numbers = []
    for _ in range(20):
        async with running_node(filesystem, monkeypatch) as node:
            numbers += [await node.open(inode), await node.open(inode)]
    assert len(set(numbers)) == len(numbers)
    assert min(numbers) > 0
    assert max(numbers) < 1 << 64


async def test_a_handle_that_nobody_learns_of_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error behind the open."""
    filesystem = CountingFileSystem()
    inode = await _made(filesystem, b"f")
    async with running_node(filesystem, monkeypatch) as node:
        filesystem.attributes_fail = True
        with pytest.raises(NotFoundError):
            await node.open(inode)
        assert filesystem.open_inodes == []
        filesystem.attributes_fail = False
        number = await node.open(inode)
        assert filesystem.open_inodes == [inode]
        await node.ask(methods.FILESYSTEM_RELEASE, pb.ReleaseRequest(handle=number))
        assert filesystem.open_inodes == []


async def test_a_cancelled_open_releases_its_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the caller's deadline passes between the open and its answer."""
    filesystem = CountingFileSystem()
    inode = await _made(filesystem, b"f")
    async with running_node(filesystem, monkeypatch) as node:
        filesystem.attributes_wait = True
        async with trio.open_nursery() as calls:
            calls.start_soon(node.open, inode)
            with trio.fail_after(LIMIT_S):
                await filesystem.asked.wait()
            assert filesystem.open_inodes == [inode]
            calls.cancel_scope.cancel()
        assert filesystem.open_inodes == []


async def test_a_handle_that_an_upload_is_slow_to_use_stays_open(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Also before its first byte; and not for longer than the upload."""
    filesystem = CountingFileSystem()
    inode = await _made(filesystem, b"f")
    async with running_node(filesystem, monkeypatch) as node:
        number = await node.open(inode)

        async def slow() -> AsyncIterator[pb.WriteRequest]:
            yield pb.WriteRequest(handle=number)
            await trio.sleep(3 * IDLE_S)
            yield pb.WriteRequest(handle=number, data=b"first")
            await trio.sleep(3 * IDLE_S)
            yield pb.WriteRequest(handle=number, offset_bytes=5, data=b" last")

        assert await node.write_stream(slow()) == 10
        reply = await node.ask(methods.FILESYSTEM_READ, pb.ReadRequest(handle=number, length_bytes=100))
        assert reply.data == b"first last"
        await trio.sleep(IDLE_S / 2)
        assert filesystem.open_inodes == [inode]
        await trio.sleep(IDLE_S)
        assert filesystem.open_inodes == []


async def test_a_handle_whose_download_is_slowly_taken_stays_open(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    filesystem = CountingFileSystem()
    inode = await _made(filesystem, b"f")
    async with running_node(filesystem, monkeypatch) as node:
        number = await node.open(inode)
        await node.ask(methods.FILESYSTEM_WRITE, pb.WriteRequest(handle=number, data=bytes(2 * PIECE_BYTES)))
        taken = 0
        async for reply in node.read_stream(pb.ReadRequest(handle=number, length_bytes=3 * PIECE_BYTES)):
            taken += len(reply.data)
            await trio.sleep(3 * IDLE_S)
        assert taken == 2 * PIECE_BYTES


@pytest.mark.parametrize("meanwhile", ["released", "used"])
async def test_what_happens_to_an_idle_handle_while_another_is_closed_is_seen(
    meanwhile: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Closing one takes as long as the cluster takes to have what it holds."""
    filesystem = CountingFileSystem()
    first, second = await _made(filesystem, b"first"), await _made(filesystem, b"second")
    async with running_node(filesystem, monkeypatch) as node:
        await node.open(first)
        number = await node.open(second)
        filesystem.releases_wait = trio.Event()
        await filesystem.releasing.wait()
        if meanwhile == "used":
            await node.ask(methods.FILESYSTEM_WRITE, pb.WriteRequest(handle=number, data=b"x"))
        filesystem.releases_wait.set()
        if meanwhile == "released":
            filesystem.releases_wait = None
            await node.ask(methods.FILESYSTEM_RELEASE, pb.ReleaseRequest(handle=number))
        await trio.sleep(IDLE_S / 2)
        assert filesystem.open_inodes == ([second] if meanwhile == "used" else [])


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged of losses."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_node_that_stops_commits_what_its_handles_hold(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Those that hold something; what comes then is refused."""
    filesystem = CountingFileSystem()
    inodes = [await _made(filesystem, name) for name in (b"written", b"flushed", b"synced", b"all", b"read")]
    async with running_node(filesystem, monkeypatch) as node:
        written, flushed, synced, everything, _ = [await node.open(inode) for inode in inodes]
        await node.write(everything, b"1234")
        await node.ask(methods.FILESYSTEM_FSYNC, pb.FsyncRequest(handle=0))
        for number in (written, flushed, synced):
            await node.write(number, b"1234")
        await node.ask(methods.FILESYSTEM_FLUSH, pb.FlushRequest(handle=flushed))
        await node.ask(methods.FILESYSTEM_FSYNC, pb.FsyncRequest(handle=synced))
        filesystem.flushed.clear()
        await node.gateway.finish(LIMIT_S)
        assert filesystem.flushed == inodes[:1]
        with pytest.raises(UnavailableError, match="stopping"):
            await node.write(written, b"more")
        with pytest.raises(UnavailableError, match="stopping"):
            await node.ask(methods.FILESYSTEM_RELEASE, pb.ReleaseRequest(handle=written))
    assert told(caplog) == []


async def test_a_write_under_way_when_the_node_stops_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    filesystem = CountingFileSystem()
    inode = await _made(filesystem, b"f")
    async with running_node(filesystem, monkeypatch) as node, trio.open_nursery() as nursery:
        number = await node.open(inode)
        filesystem.writes_wait = trio.Event()
        nursery.start_soon(node.write, number, b"1234")
        await filesystem.writing.wait()
        nursery.start_soon(node.gateway.finish, LIMIT_S)
        await trio.testing.wait_all_tasks_blocked()
        assert filesystem.flushed == []
        filesystem.writes_wait.set()
    assert filesystem.flushed == [inode]


async def test_what_a_stopping_node_cannot_commit_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    filesystem = CountingFileSystem()
    inodes = [await _made(filesystem, name) for name in (b"one", b"two", b"three")]
    one, two, three = inodes
    filesystem.flushes_fail = frozenset([one, three])
    async with running_node(filesystem, monkeypatch) as node:
        for inode in (one, one, two, three):
            await node.write(await node.open(inode), b"1234")
        await node.gateway.finish(LIMIT_S)
        assert filesystem.flushed == [two]
    (line,) = told(caplog)
    assert f"2 files (inode {one}: 8 bytes, inode {three}: 4 bytes)" in line
    assert "too few disks" in line


async def test_a_stop_waits_for_commits_no_longer_than_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    filesystem = CountingFileSystem()
    inode = await _made(filesystem, b"f")
    filesystem.flushes_wait = True
    async with running_node(filesystem, monkeypatch) as node:
        await node.write(await node.open(inode), b"1234")
        began_s = trio.current_time()
        await node.gateway.finish(7.0)
        assert trio.current_time() - began_s == 7.0
    (line,) = told(caplog)
    assert f"1 files (inode {inode}: 4 bytes)" in line


async def test_a_stop_without_a_session_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_node(CountingFileSystem(), monkeypatch) as node:
        await node.gateway.finish(0.0)
