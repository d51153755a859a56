"""Simulated clients: they do what wormfs.client.session does to have a command done exactly once.

A session is opened once, and taken up again on a new connection whenever an answer did not come; each
command has a number, and is sent again under it, to whichever node is master, until it is answered;
each request tells up to which number all were answered. What was sent on a connection that its client
gave up may still arrive. Some calls are given up: their clients never learn what came of them.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import trio
from google.protobuf.message import Message

from wormfs.core.errors import NotMasterError, SessionExpiredError, UnavailableError, WormError
from wormfs.rpc.v1 import filesystem_pb2 as fs
from wormfs.rpc.v1 import metadata_pb2
from wormfs.sim.history import History, Operation
from wormfs.sim.network import Box, Connection, Network
from wormfs.sim.node import SimNode
from wormfs.sim.trace import Trace

TRY_S = 3.0
PAUSE_MIN_S, PAUSE_MAX_S = 0.02, 0.2
HUNG_SHARE, HUNG_MAX_S = 0.05, 8.0
"""Of the attempts that take so much longer, behind a connection that breaks meanwhile."""
GIVEN_UP_SHARE = 0.02
NAMES = (b"a", b"b", b"c", b"d", b"e")
_FILE, _DIR, _BITS = 0o100000, 0o040000, 0o7777


class GaveUpError(Exception):
    """The client does not wait for this call's answer any more."""


class SimClient:
    """One mount: a session, and as many operations at once as tasks call `work`."""

    def __init__(
        self,
        name: str,
        nodes: Sequence[SimNode],
        network: Network,
        random: Random,
        *,
        history: History,
        trace: Trace,
    ) -> None:
        self.name = name
        self._nodes = nodes
        self._network = network
        self._random = random
        self._history = history
        self._trace = trace
        self._master = random.choice(nodes)
        self._session_id = 0
        self._link: Connection | None = None  # the connection the session lives on, as far as it knows
        self._opening = trio.Lock()
        self._operation = 0
        self._outstanding: dict[int, None] = {}
        self._files: list[int] = []  # inodes it has been told of
        self.directories: tuple[int, ...] = (1,)
        self.hurry = trio.Event()

    # --- asking -------------------------------------------------------------------------------

    async def _attempt(self, request: Any, link: Connection) -> Message:
        """Send it on this connection, and wait for an answer."""
        node = next(each for each in self._nodes if each.name == link.target)
        network = self._network
        box: Box[Message] = Box()
        sent = type(request)()
        sent.CopyFrom(request)
        what = type(request).__name__.removesuffix("Request")

        def answer(reply: Message | WormError) -> None:
            network.send(node.name, self.name, lambda: box.put(reply), what=f"answer to {what}")

        late_s, patience_s = 0.0, TRY_S
        if self._random.random() < HUNG_SHARE:
            late_s, patience_s = self._random.random() * HUNG_MAX_S, self._random.random()
        link.send(lambda: node.receive(sent, answer, link), what=what, late_s=late_s)
        with trio.move_on_after(patience_s):
            await _first(box.arrived, link.closed)
        if box.answer is None:
            raise UnavailableError(f"{node.name} does not answer")
        if isinstance(box.answer, WormError):
            raise box.answer
        return box.answer

    async def _insist(self, request: Any, *, may_give_up: bool = False) -> Message:
        """Ask until somebody answers. Raises what the master refuses with, or GaveUpError."""
        pause_s = PAUSE_MIN_S
        while True:
            link = self._link or await self._connect()
            request.caller.session_id = self._session_id
            request.caller.acknowledged = next(iter(self._outstanding), self._operation + 1) - 1
            try:
                return await self._attempt(request, link)
            except SessionExpiredError:
                raise  # no session ends in a run: the state has lost it
            except UnavailableError as error:
                link.closed.set()
                if self._link is link:
                    self._link = None
                if may_give_up and self._random.random() < GIVEN_UP_SHARE:
                    raise GaveUpError from error
                pause_s = await self._look_elsewhere(error, pause_s)

    async def _look_elsewhere(self, error: UnavailableError, pause_s: float) -> float:
        """Wait before the next attempt, to another node perhaps; answers the wait after that."""
        if not isinstance(error, NotMasterError) or self._random.random() < 0.7:
            self._master = self._random.choice(self._nodes)
        await trio.sleep(pause_s * (0.5 + self._random.random()))
        return min(pause_s * 2, PAUSE_MAX_S)

    async def _connect(self) -> Connection:
        """Open the session, or take it up again, on a new connection."""
        pause_s = PAUSE_MIN_S
        async with self._opening:
            while self._link is None:
                link = Connection(self._network, self.name, self._master.name)
                request = metadata_pb2.OpenSessionRequest(session_id=self._session_id, label=self.name)
                try:
                    reply: Any = await self._attempt(request, link)
                except SessionExpiredError:
                    raise
                except UnavailableError as error:
                    pause_s = await self._look_elsewhere(error, pause_s)
                    continue
                if not self._session_id:
                    self._session_id = reply.session_id
                    self._trace.note(self.name, f"has session {self._session_id}")
                self._link = link
        return self._link

    async def call(
        self, operation: Operation, request: Any, result: Callable[[Any], tuple[object, ...]], *, query: bool
    ) -> tuple[object, ...] | None:
        """Have one operation done, and tell the history; None when it was given up."""
        number = 0
        if not query:
            self._operation += 1
            number = self._operation
            self._outstanding[number] = None
            request.caller.operation = number
        begun = self._history.begin(self.name, operation)
        told: tuple[object, ...]
        try:
            told = result(await self._insist(request, may_give_up=True))
        except GaveUpError:
            # The number stays outstanding: nobody may forget what came of it.
            self._trace.note(self.name, f"gives up {begun}")
            return None
        except WormError as error:
            told = ("error", type(error).__name__)
        self._outstanding.pop(number, None)
        self._history.end(begun, told)
        self._trace.note(self.name, f"#{number} {begun}")
        return told

    # --- operations ---------------------------------------------------------------------------

    async def make_directory(self, name: bytes) -> int:
        """One that is there from the start; answers its inode."""
        request = fs.MakeNodeRequest(parent=1, name=name, mode=_DIR | 0o755, exclusive=True)
        self._operation += 1
        number = request.caller.operation = self._operation
        self._outstanding[number] = None
        reply: Any = await self._insist(request)
        del self._outstanding[number]
        return int(reply.attributes.inode)

    async def create(self, parent: int, name: bytes, *, is_dir: bool, exclusive: bool, mode: int) -> None:
        """mknod or mkdir."""
        kind = _DIR if is_dir else _FILE
        request = fs.MakeNodeRequest(parent=parent, name=name, mode=kind | mode, exclusive=exclusive)
        told = await self.call(
            Operation("create", (parent, name, is_dir, exclusive, mode)),
            request,
            lambda reply: (reply.attributes.inode, reply.created),
            query=False,
        )
        if told and isinstance(told[0], int) and not is_dir:
            self._files.append(told[0])

    async def lookup(self, parent: int, name: bytes) -> None:
        """Ask what a name names."""
        await self.call(
            Operation("lookup", (parent, name)),
            fs.LookupRequest(parent=parent, name=name),
            lambda reply: (reply.attributes.inode, *_mode_and_links(reply)),
            query=True,
        )

    async def list(self, parent: int) -> None:
        """Ask for all names."""
        await self.call(
            Operation("list", (parent,)),
            fs.ReadDirRequest(inode=parent),
            lambda reply: tuple((entry.name, entry.inode) for entry in reply.entries),
            query=True,
        )

    async def act(self) -> None:
        """One operation, by lot."""
        random = self._random
        parent, other = random.choice(self.directories), random.choice(self.directories)
        name, new_name = random.choice(NAMES), random.choice(NAMES)
        kind = random.choices(
            ("create", "mkdir", "link", "unlink", "rmdir", "rename", "setattr", "getattr", "lookup", "list"),
            (22, 6, 8, 14, 4, 14, 7, 6, 14, 5),
        )[0]
        if kind in ("link", "setattr", "getattr") and not self._files:
            kind = "create"
        mode = random.randrange(0o1000)
        inode = random.choice(self._files[-4:]) if self._files else 0
        flags = random.choices((0, 1, 2), (6, 1, 2))[0]
        if kind in ("create", "mkdir"):
            exclusive = random.random() < 0.8
            await self.create(parent, name, is_dir=kind == "mkdir", exclusive=exclusive, mode=mode)
        elif kind == "lookup":
            await self.lookup(parent, name)
        elif kind == "list":
            await self.list(parent)
        elif kind == "getattr":
            request: Any = fs.GetAttrRequest(inode=inode)
            await self.call(Operation("getattr", (inode,)), request, _mode_and_links, query=True)
        elif kind == "setattr":
            request = fs.SetAttrRequest(inode=inode, mode=mode)
            await self.call(Operation("setattr", (inode, mode)), request, _mode_and_links, query=False)
        elif kind == "link":
            request = fs.LinkRequest(inode=inode, parent=parent, name=name)
            await self.call(Operation("link", (inode, parent, name)), request, _links, query=False)
        elif kind == "rename":
            request = fs.RenameRequest(
                parent=parent, name=name, new_parent=other, new_name=new_name, flags=flags
            )
            arguments = (parent, name, other, new_name, flags)
            await self.call(Operation("rename", arguments), request, _nothing, query=False)
        else:
            request = (fs.UnlinkRequest if kind == "unlink" else fs.RemoveDirRequest)(
                parent=parent, name=name
            )
            await self.call(Operation(kind, (parent, name)), request, _nothing, query=False)

    async def work(self, operations: int, think_s: float) -> None:
        """That many operations, one after the other, with pauses until there is a hurry."""
        for _ in range(operations):
            with trio.move_on_after(self._random.expovariate(1 / think_s)):
                await self.hurry.wait()
            await self.act()


async def _first(*events: trio.Event) -> None:
    """Return when one of them has happened."""
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(wait, event)


def _mode_and_links(reply: Any) -> tuple[object, ...]:
    is_dir = reply.attributes.mode & 0o170000 == _DIR
    return reply.attributes.mode & _BITS, 0 if is_dir else reply.attributes.nlink


def _links(reply: Any) -> tuple[object, ...]:
    return (reply.attributes.nlink,)


def _nothing(_: Any) -> tuple[object, ...]:
    return ()
