"""What a simulated master answers clients with: the real Metadata service, on simulated connections."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import Any, NoReturn, cast

import trio
from google.protobuf.message import Message

from wormfs.core.errors import UnavailableError, WormError
from wormfs.metadata.machine import Machine
from wormfs.node.collector import free_orphans
from wormfs.node.master_service import MasterService
from wormfs.node.members import Members
from wormfs.rpc import methods as m
from wormfs.rpc.registry import Registry, RequestContext
from wormfs.rpc.stream_server import ServerConnection
from wormfs.sim.network import Connection

LEASE_S = 6.0
COLLECT_S = 1.0
Front = Callable[["FarEnd", Message], Awaitable[Message]]
_SERVED = {
    method.request: method
    for method in m.METHODS
    if method.name.startswith("wormfs.v1.Metadata/") and not method.server_streaming
}


class FarEnd:
    """A client's connection as its node has it: what MasterService needs of a ServerConnection."""

    def __init__(self, link: Connection, client: str, pushed: Callable[[Message], None]) -> None:
        self.closed = trio.Event()  # the node does not learn of it: its client's lease runs out
        self.client = client
        self._link = link
        self._pushed = pushed

    def push(self, message: Message) -> None:
        """Send what was not asked for; it arrives before any later answer."""
        if self.closed.is_set():
            raise UnavailableError(f"{self.client} is gone")
        sent = type(message)()
        sent.CopyFrom(message)
        self._link.send_back(lambda: self._pushed(sent), what=type(message).__name__)

    def push_unmade(self, make: Callable[[], Message]) -> None:
        """As push: every answer here leaves by itself."""
        self.push(make())


async def serve_metadata(
    machine: Machine, random: Random, *, task_status: trio.TaskStatus[Front] = trio.TASK_STATUS_IGNORED
) -> None:
    """Be the master's service until cancelled; started with what answers requests."""
    service = MasterService(machine, Members(machine, silent_after_s=1e9), lease_s=LEASE_S, random=random)
    registry = Registry()
    service.register(registry, confirmed=True)

    async def front(connection: FarEnd, request: Message) -> Message:
        entry = registry.named(_SERVED[type(request)].name)
        if entry is None:
            raise UnavailableError(f"{type(request).__name__} is not served in a simulation")
        context = RequestContext(cast("ServerConnection", connection), "stream", connection.client)
        reply: Any = await entry.handler(context, request, None)
        return cast("Message", reply)

    async with trio.open_nursery() as nursery:
        await nursery.start(service.run)
        nursery.start_soon(_collect, machine, service)
        task_status.started(front)


async def _collect(machine: Machine, service: MasterService) -> NoReturn:
    """As wormfs.node.collector does, without chunks."""
    while True:
        await trio.sleep(COLLECT_S)
        with suppress(WormError):
            await free_orphans(machine, service.leases)
