"""A master service over a real machine and real streams, and sessions that talk to it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TypeVar

import trio
from google.protobuf.message import Message

from wormfs.core.types import Policy
from wormfs.metadata.machine import Machine
from wormfs.node.master_service import MasterService
from wormfs.node.members import Members
from wormfs.rpc import methods as m
from wormfs.rpc.stream_client import StreamConnection, open_connection
from wormfs.rpc.stream_server import Registry, serve_streams
from wormfs.rpc.v1 import cluster_pb2, filesystem_pb2, metadata_pb2, types_pb2

Req = TypeVar("Req", bound=Message)
Rep = TypeVar("Rep", bound=Message)
POLICY = Policy(2, 1, 65536)
FILE = 0o100644


@dataclass
class Mount:
    """One session. Recalls are answered at once unless `holding`."""

    connection: StreamConnection
    nursery: trio.Nursery
    session: int = 0
    operation: int = 0
    holding: bool = False
    recalls: list[metadata_pb2.Recall] = field(default_factory=list)
    came: trio.Event = field(default_factory=trio.Event)

    def on_push(self, message: Message) -> None:
        assert isinstance(message, metadata_pb2.Recall)
        self.recalls.append(message)
        self.came.set()
        if not self.holding:
            self.nursery.start_soon(self.answer, message)

    async def recalled(self) -> metadata_pb2.Recall:
        """The next recall."""
        with trio.fail_after(5):
            await self.came.wait()
        self.came = trio.Event()
        return self.recalls[-1]

    async def answer(self, recall: metadata_pb2.Recall) -> None:
        await self.call(
            m.METADATA_RECALL_DONE,
            metadata_pb2.RecallDoneRequest(session_id=self.session, recall_id=recall.recall_id),
        )

    async def call(self, method: m.Method[Req, Rep], request: Req, *, timeout_s: float = 10) -> Rep:
        caller = getattr(request, "caller", None)
        if caller is not None:
            caller.session_id = self.session
        return (await self.connection.call(method, request, timeout_s=timeout_s)).message

    async def command(self, method: m.Method[Req, Rep], request: Req) -> Rep:
        self.operation += 1
        request.caller.operation = self.operation  # type: ignore[attr-defined]
        return await self.call(method, request)

    async def open_session(
        self, known: int = 0, *, open_inodes: Sequence[int] = (), write_leases: Sequence[int] = ()
    ) -> metadata_pb2.OpenSessionReply:
        request = metadata_pb2.OpenSessionRequest(
            session_id=known, label="test", open_inodes=open_inodes, write_leases=write_leases
        )
        reply = await self.call(m.METADATA_OPEN_SESSION, request)
        self.session = reply.session_id
        if known:
            await self.renew()
        return reply

    async def renew(self) -> bool:
        """As clients do at once when they have resumed, which counts from then on."""
        request = metadata_pb2.RenewSessionRequest(session_id=self.session)
        return (await self.call(m.METADATA_RENEW_SESSION, request)).known

    async def keep_alive(self) -> None:
        """Renew until cancelled."""
        while True:
            assert await self.renew()
            await trio.sleep(0.2)

    async def lookup(self, name: bytes) -> types_pb2.Attributes:
        request = filesystem_pb2.LookupRequest(parent=1, name=name)
        return (await self.call(m.METADATA_LOOKUP, request)).attributes

    async def getattr(self, inode: int) -> types_pb2.Attributes:
        request = filesystem_pb2.GetAttrRequest(inode=inode)
        return (await self.call(m.METADATA_GET_ATTR, request)).attributes

    async def create(self, name: bytes, *, exclusive: bool = True) -> metadata_pb2.FileMapReply:
        request = filesystem_pb2.MakeNodeRequest(
            parent=1, name=name, mode=FILE, exclusive=exclusive, open=True
        )
        return await self.command(m.METADATA_MAKE_NODE, request)

    async def chmod(self, inode: int, mode: int) -> types_pb2.Attributes:
        request = filesystem_pb2.SetAttrRequest(inode=inode, mode=mode)
        return (await self.command(m.METADATA_SET_ATTR, request)).attributes

    async def take_lease(self, inode: int) -> metadata_pb2.FileMapReply:
        request = metadata_pb2.AcquireWriteLeaseRequest(inode=inode)
        return await self.call(m.METADATA_ACQUIRE_WRITE_LEASE, request)

    async def commit(self, inode: int, data: bytes) -> types_pb2.Attributes:
        request = metadata_pb2.CommitWriteRequest(inode=inode, size_bytes=len(data))
        request.extents.add(offset_bytes=0, data=data)
        return (await self.command(m.METADATA_COMMIT_WRITE, request)).attributes


@dataclass
class Served:
    """A running master."""

    machine: Machine
    members: Members
    master: MasterService
    address: str
    mastership: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Ends with it; requests still come then."""

    @asynccontextmanager
    async def mount(self, *, session: bool = True) -> AsyncIterator[Mount]:
        async with trio.open_nursery() as nursery:
            pushes: list[Mount] = []

            def on_push(message: Message) -> None:
                pushes[0].on_push(message)

            async with open_connection([self.address], timeout_s=5, on_push=on_push) as connection:
                mount = Mount(connection, nursery)
                pushes.append(mount)
                if session:
                    await mount.open_session()
                yield mount
                nursery.cancel_scope.cancel()


def open_machine(folder: Path, disks: int = 2) -> Machine:
    """The machine of `disks` folders, formed at its first opening."""
    folders = [folder / f"disk-{number}" for number in range(1, disks + 1)]
    for each in folders:
        each.mkdir(exist_ok=True)
    machine = Machine.open(folders, copies=2)
    if not machine.cluster_id:
        machine.form_cluster("11111111-2222-3333-4444-555555555555", "test", POLICY)
    return machine


def join(members: Members, name: str, uuids: Sequence[str], *, free_bytes: int = 1 << 40) -> int:
    """Register a node with disks that are online; its number."""
    request = cluster_pb2.RegisterNodeRequest(node=cluster_pb2.NodeInfo(name=name, addresses=["x:1"]))
    for each in uuids:
        request.disks.add(
            uuid=each, path=f"/{each}", state=cluster_pb2.DISK_STATE_ONLINE, free_bytes=free_bytes
        )
    return members.register(request).node


async def run_master(master: MasterService, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    """Run it until the scope that it starts with is cancelled."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(master.run)
            task_status.started(scope)


@asynccontextmanager
async def serving(folder: Path, *, lease_s: float = 6.0, address: str | None = None) -> AsyncIterator[Served]:
    """Serve the Metadata service of the machine in `folder` on a unix socket in `folder`."""
    machine = open_machine(folder)
    members = Members(machine, silent_after_s=3.0)
    master = MasterService(machine, members, lease_s=lease_s, random=Random(1))
    registry = Registry()
    master.register(registry)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(machine.run)
            mastership = await nursery.start(run_master, master)
            bound = await nursery.start(serve_streams, registry, [address or f"unix:{folder}/s"])
            yield Served(machine, members, master, bound[0], mastership)
            nursery.cancel_scope.cancel()
    finally:
        machine.close()  # the next one of this folder would wait for its database
