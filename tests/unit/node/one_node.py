"""A master's machine, and one node with real disks that it knows, served on a unix socket; no etcd."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import trio

from tests.unit.node.serving import open_machine, run_master
from wormfs.client.peers import machine_id
from wormfs.core.records import Stripe
from wormfs.core.types import ChunkKey
from wormfs.metadata.machine import Machine
from wormfs.node.chunk_service import ChunkService
from wormfs.node.drain import Drain
from wormfs.node.fsck import Fsck
from wormfs.node.links import NodeLinks
from wormfs.node.master_service import MasterService
from wormfs.node.members import Members
from wormfs.node.repair import Repair
from wormfs.node.stripe_copier import StripeCopier
from wormfs.rpc.registry import Registry
from wormfs.rpc.stream_server import serve_streams
from wormfs.rpc.v1 import cluster_pb2, filesystem_pb2, metadata_pb2, types_pb2
from wormfs.store.chunk_store import ChunkStore
from wormfs.store.disk import Disk

ROOMY = 1 << 40
CHUNK_BYTES = 65536


class Rounds:
    """Counts repair's rounds as they end."""

    def __init__(self) -> None:
        self.count = 0
        self._ended = trio.Event()

    def __call__(self) -> None:
        self.count += 1
        self._ended.set()
        self._ended = trio.Event()

    async def pass_by(self, more: int) -> None:
        """Return when so many more have ended."""
        wanted = self.count + more
        with trio.fail_after(10):
            while self.count < wanted:
                await self._ended.wait()


@dataclass
class OneNode:
    """The node's number is 1, its disks are 1, 2, ...; `damaged` is what it found so."""

    machine: Machine
    members: Members
    master: MasterService
    links: NodeLinks
    copier: StripeCopier
    store: ChunkStore
    disks: list[Disk]
    damaged: list[tuple[int, ChunkKey]]
    nursery: trio.Nursery
    rounds: Rounds

    def make_file(self) -> tuple[int, int]:
        """An empty file, and a session to write it in."""
        request = filesystem_pb2.MakeNodeRequest(parent=1, name=b"file", mode=0o100644, exclusive=True)
        made: Any = self.machine.execute(request).reply
        return made.attributes.inode, self.machine.open_session("writer")

    async def write(
        self, inode: int, session: int, content: bytes, disks: Sequence[int]
    ) -> metadata_pb2.CommitWriteRequest:
        """Store whole stripes with one parity chunk on these disks; what commits them."""
        k = len(disks) - 1
        length = k * CHUNK_BYTES
        count = len(content) // length
        asked = metadata_pb2.AllocateStripesRequest(inode=inode, count=count)
        asked.caller.session_id = session
        place = types_pb2.Stripe(codec=types_pb2.CODEC_ZFEC, k=k, m=1, disks=disks)
        given: Any = self.machine.allocate(asked, [place] * count).reply
        query = filesystem_pb2.GetAttrRequest(inode=inode)
        attributes: Any = self.machine.execute(query).reply
        stripe_size_bytes = attributes.attributes.stripe_size_bytes
        commit = metadata_pb2.CommitWriteRequest(inode=inode)
        commit.caller.session_id = session
        for index, each in enumerate(given.stripes):
            whole = Stripe(index, each.stripe_id, each.codec, k, 1, CHUNK_BYTES, length, length, tuple(disks))
            data = bytearray(content[index * length :][:length])
            await self.copier.write(inode, whole, each, data, stripe_size_bytes)
            each.index, each.length_bytes, each.valid_bytes = index, length, length
            commit.stripes.append(each)
            commit.size_bytes = index * stripe_size_bytes + length
        return commit

    async def write_file(self, content: bytes, disks: Sequence[int]) -> int:
        """A file of whole stripes on these disks, committed; its inode."""
        inode, session = self.make_file()
        self.machine.execute(await self.write(inode, session, content, disks))
        return inode

    def stripes(self, inode: int) -> list[Stripe]:
        return list(self.machine.file_stripes(inode, 0, 100))

    async def read(self, inode: int) -> bytes:
        """What is in the file's stripes, one after the other."""
        read = [await self.copier.read(inode, each, (), ()) for each in self.stripes(inode)]
        return b"".join(bytes(each) for each in read)

    def repair(self, *, after_s: float = 300.0) -> Repair:
        """One that does not run yet; its rounds are counted."""
        return Repair(
            self.machine,
            self.members,
            self.master,
            self.links,
            after_s=after_s,
            rate_bytes=0,
            random=Random(1),
            round_ended=self.rounds,
        )

    async def problems(
        self, *, verify_data: bool = False, collect_unknown: bool = False
    ) -> list[cluster_pb2.FsckReply]:
        """What fsck finds."""
        found = self.damaged.append
        check = Fsck(
            self.machine,
            self.members,
            self.links,
            found_damaged=lambda disk, key: found((disk, key)),
            verify_data=verify_data,
            collect_unknown=collect_unknown,
        )
        return [each async for each in check.run() if each.problem]

    async def fsck(self, *, verify_data: bool = False, collect_unknown: bool = False) -> list[str]:
        """The kinds of the problems it finds."""
        found = await self.problems(verify_data=verify_data, collect_unknown=collect_unknown)
        return [each.kind for each in found]


@asynccontextmanager
async def one_node(folder: Path, free_bytes: Sequence[int] = (ROOMY,) * 4) -> AsyncIterator[OneNode]:
    """Such a node; its disks report that much room."""
    machine = open_machine(folder)
    members = Members(machine, silent_after_s=1e9)
    disks = [Disk.open(folder / f"chunks-{number}", reserve_bytes=0) for number in range(len(free_bytes))]
    node = cluster_pb2.NodeInfo(name="node-1", addresses=[f"unix:{folder}/node"], machine_id=machine_id())
    joining = cluster_pb2.RegisterNodeRequest(node=node)
    for disk, free in zip(disks, free_bytes, strict=True):
        joining.disks.add(
            uuid=disk.uuid, path=str(disk.path), state=cluster_pb2.DISK_STATE_ONLINE, free_bytes=free
        )
    reply = members.register(joining)
    for disk, given in zip(disks, reply.disks, strict=True):
        disk.assign(cluster_id=machine.cluster_id, node=reply.node, number=given.number)
    store = ChunkStore(disks, cluster_id=machine.cluster_id)
    registry = Registry()
    damaged: list[tuple[int, ChunkKey]] = []
    ChunkService(lambda: store, store.pool, Drain(), lambda disk, key: damaged.append((disk, key))).register(
        registry
    )
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(machine.run)
            await nursery.start(store.run)
            await nursery.start(serve_streams, registry, list(node.addresses))
            master = MasterService(machine, members, lease_s=6.0, random=Random(1))
            await nursery.start(run_master, master)
            links = NodeLinks(members, nursery)
            copier = StripeCopier(links, machine.cluster_id)
            yield OneNode(machine, members, master, links, copier, store, disks, damaged, nursery, Rounds())
            nursery.cancel_scope.cancel()
    finally:
        store.close()
        machine.close()
