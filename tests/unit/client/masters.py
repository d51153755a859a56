"""Masters that follow each other over one machine's metadata, and can be hurt; file systems that use them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import trio

from tests.unit.node.serving import open_machine
from wormfs.client.filesystem import FileSystem, NoKernelCache, open_filesystem
from wormfs.client.options import ClientOptions
from wormfs.client.peers import machine_id
from wormfs.core.errors import NotMasterError
from wormfs.node.master_service import MasterService
from wormfs.node.members import Members
from wormfs.rpc.methods import CLUSTER_GET_CLUSTER_MAP, METADATA_OPEN_SESSION, METHODS, Method
from wormfs.rpc.registry import DataBuffer, Registry, RequestContext
from wormfs.rpc.stream_server import serve_streams
from wormfs.rpc.v1 import cluster_pb2

LEASE_S = 3.0
"""A client trusts its leases for one second less."""


class Masters:
    """Nodes `0`, `1`, ... on unix sockets; each may be master, one at a time, and all tell who is."""

    def __init__(self, folder: Path, nursery: trio.Nursery, nodes: int) -> None:
        self._folder = folder
        self._nursery = nursery
        self.addresses = [f"unix:{folder}/s{number}" for number in range(nodes)]
        self.registries = [Registry() for _ in self.addresses]
        self._serving: trio.CancelScope | None = None
        self._ended = trio.Event()
        self.master = 0
        self.service: MasterService  # of the mastership now
        self.version = 0
        self._answers_all = False
        self._cut_off: dict[int, trio.Event] = {}
        self.lost = trio.Event()  # an answer was lost
        self.opened = trio.Event()  # a session was opened or resumed

    async def start(self) -> None:
        """Have all nodes listen; none is master."""
        for number, registry in enumerate(self.registries):
            self._refuse(number)
            await self._nursery.start(serve_streams, registry, [self.addresses[number]])

    def _refuse(self, number: int) -> None:
        role = Registry()
        role.add(CLUSTER_GET_CLUSTER_MAP, self._hurt(number, self._map))
        for method in METHODS:
            if method.name.startswith("wormfs.v1.Metadata/"):
                role.add(method, self._hurt(number, _not_master))
        self.registries[number].set_role(role)

    async def _map(
        self, _: RequestContext, __: cluster_pb2.GetClusterMapRequest, ___: DataBuffer | None
    ) -> cluster_pb2.ClusterMap:
        found = cluster_pb2.ClusterMap(version=self.version)
        for number, address in enumerate(self.addresses):
            found.nodes.add(
                number=number + 1,
                addresses=[address],
                machine_id=machine_id(),
                master=number == self.master,
                online=True,
            )
        return found

    def _hurt(self, number: int, handler: Any) -> Any:
        async def serve(context: RequestContext, request: Any, data: DataBuffer | None) -> Any:
            if number in self._cut_off:
                await self._cut_off[number].wait()
            return await handler(context, request, data)

        return serve

    async def lead(self, number: int, *, lose_answers_of: Method[Any, Any] | None = None) -> None:
        """Node `number` is master now. `lose_answers_of`: what is done, and not answered."""
        await self.depose()
        self.master = number
        self._answers_all = False
        self.version += 1
        self._ended = trio.Event()
        await self._nursery.start(self._serve, number, lose_answers_of)

    async def depose(self) -> None:
        """Nobody is master."""
        if self._serving is not None:
            self._serving.cancel()
            await self._ended.wait()
            self._serving = None

    async def _serve(
        self, number: int, lose: Method[Any, Any] | None, *, task_status: trio.TaskStatus[None]
    ) -> None:
        machine = open_machine(self._folder)
        master = MasterService(
            machine, Members(machine, silent_after_s=3.0), lease_s=LEASE_S, random=Random(1)
        )
        self.service = master
        made = Registry()
        master.register(made)
        role = Registry()
        role.add(CLUSTER_GET_CLUSTER_MAP, self._hurt(number, self._map))
        for entry in made.by_number.values():
            handler = self._hurt(number, self._noted(entry.method, entry.handler))
            role.add(entry.method, self._unanswered(handler) if entry.method is lose else handler)
        try:
            async with trio.open_nursery() as nursery:
                self._serving = nursery.cancel_scope
                await nursery.start(machine.run)
                await nursery.start(master.run)
                self.registries[number].set_role(role)
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._refuse(number)
            machine.close()
            self._ended.set()

    def _noted(self, method: Method[Any, Any], handler: Any) -> Any:
        async def serve(context: RequestContext, request: Any, data: DataBuffer | None) -> Any:
            self.opened.set()
            return await handler(context, request, data)

        return serve if method is METADATA_OPEN_SESSION else handler

    def _unanswered(self, handler: Any) -> Any:
        async def serve(context: RequestContext, request: Any, data: DataBuffer | None) -> Any:
            answer = await handler(context, request, data)
            if not self._answers_all:
                self.lost.set()
                await trio.sleep_forever()
            return answer

        return serve

    def answer_all(self) -> None:
        """From here on no answer is lost any more."""
        self._answers_all = True

    def cut_off(self, number: int) -> None:
        """Node `number` does and answers nothing any more, and breaks no connection."""
        self._cut_off[number] = trio.Event()

    def mend(self, number: int) -> None:
        """Node `number` answers what it was asked meanwhile, and goes on."""
        self._cut_off.pop(number).set()

    @asynccontextmanager
    async def mount(self, label: str, *, deadline_s: float = 20.0) -> AsyncIterator["Mount"]:
        """A client that knows all nodes."""
        options = ClientOptions(connect_s=2.0, deadline_s=deadline_s)
        kernel = Kernel()
        async with open_filesystem(self.addresses, label=label, options=options, kernel=kernel) as made:
            yield Mount(made, kernel)


class Kernel(NoKernelCache):
    """Tells when something was taken from it."""

    one_change_at_a_time = True

    def __init__(self) -> None:
        self.invalidated = trio.Event()
        self._held: dict[int, tuple[trio.Event, trio.Event]] = {}

    async def invalidate_inode(self, inode: int, data: bool) -> None:
        self.invalidated.set()
        await self._wait(inode)

    async def invalidate_entry(self, parent: int, name: bytes) -> None:
        await self._wait(parent)

    async def _wait(self, inode: int) -> None:
        if inode in self._held:
            asked, gone_on = self._held[inode]
            asked.set()
            await gone_on.wait()

    def hold(self, inode: int) -> trio.Event:
        """Take nothing of this inode back until `go_on`; answers what is set when that is asked for."""
        self._held[inode] = (trio.Event(), trio.Event())
        return self._held[inode][0]

    def go_on(self, inode: int) -> None:
        """Take back what was asked for."""
        self._held.pop(inode)[1].set()


@dataclass
class Mount:
    """A file system, and the kernel above it."""

    fs: FileSystem
    kernel: Kernel

    async def lapsed(self) -> None:
        """Wait until the leases have run out, nobody having renewed them; a file is open."""
        with trio.fail_after(2 * LEASE_S):
            while self.fs.session.lease_left_s() > 0:
                self.kernel.invalidated = trio.Event()
                await self.kernel.invalidated.wait()


async def _not_master(_: RequestContext, __: Any, ___: DataBuffer | None) -> NoReturn:
    raise NotMasterError("this node is not the metadata master")


@asynccontextmanager
async def masters(folder: Path, nodes: int = 2) -> AsyncIterator[Masters]:
    """Running nodes, the first of them master."""
    async with trio.open_nursery() as nursery:
        made = Masters(folder, nursery, nodes)
        await made.start()
        await made.lead(0)
        yield made
        nursery.cancel_scope.cancel()
