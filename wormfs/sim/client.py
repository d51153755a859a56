"""Simulated clients: they do what wormfs.client.session does to have a command done exactly once.

A session is opened once, and taken up again on a new connection whenever an answer did not come; each
command has a number, and is sent again under it, to whichever node is master, until it is answered;
each request tells up to which number all were answered. What was sent on a connection that its client
gave up may still arrive. Some calls are given up: their clients never learn what came of them.

These clients cache nothing; those of reader.py do. They keep the entries that were pushed to them with
early answers, with the real KeptEntries, and hand them over when they take their session up again.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NoReturn

import trio
from google.protobuf.message import Message

from wormfs.client.kept_entries import KeptEntries
from wormfs.core.errors import NotMasterError, SessionExpiredError, UnavailableError, WormError
from wormfs.rpc.v1 import filesystem_pb2 as fs
from wormfs.rpc.v1 import metadata_pb2
from wormfs.sim.front import LEASE_S, FarEnd
from wormfs.sim.history import History, Operation
from wormfs.sim.network import Box, Connection, Network
from wormfs.sim.node import SimNode
from wormfs.sim.signals import Signal
from wormfs.sim.trace import Trace

TRY_S = 3.0
RESUME_S = 1.5
REBORN_S = 3.0
BURST_SHARE, BURST_S = 0.5, 0.03
"""Of the pauses between operations that are short; they take turns with long ones."""
SYNC_SHARE = 0.05
PAUSE_MIN_S, PAUSE_MAX_S = 0.02, 0.2
HUNG_SHARE, HUNG_MAX_S = 0.05, 8.0
"""Of the attempts that take so much longer, behind a connection that breaks meanwhile."""
GIVEN_UP_SHARE = 0.02
NAMES = (b"a", b"b", b"c", b"d", b"e")
_FILE, _DIR, _BITS = 0o100000, 0o040000, 0o7777


class GaveUpError(Exception):
    """The client does not wait for this call's answer any more."""


class Link(Connection):
    """One with its far end, as the node has it. `pushed` is told of what was not asked for."""

    def __init__(
        self, network: Network, source: str, node: SimNode, pushed: Callable[["Link", Message], None]
    ) -> None:
        super().__init__(network, source, node.name)
        self.node = node
        self.far_end = FarEnd(self, source, lambda message: pushed(self, message))


class SimClient:
    """One mount: a session, and as many operations at once as tasks; after `die` another one begins."""

    def __init__(
        self,
        name: str,
        nodes: Sequence[SimNode],
        network: Network,
        random: Random,
        *,
        history: History,
        trace: Trace,
        problems: list[str],
    ) -> None:
        self.name = name
        self._nodes = nodes
        self._network = network
        self._random = random
        self._history = history
        self._trace = trace
        self._problems = problems
        self._master = random.choice(nodes)
        self._lives = 0
        self.early_count = 0  # entries pushed to it
        self._left: list[int] = []  # operations that each task has still to do
        self._life = trio.CancelScope()
        self._begin_life()
        self.directories: tuple[int, ...] = (1,)
        self.hurry = trio.Event()
        self.done = trio.Event()  # all its operations are
        self.stir = Signal()
        """Notified: act now."""

    def _begin_life(self) -> None:
        self.alias = f"{self.name}.{self._lives}" if self._lives else self.name  # in the history
        self._session_id = 0
        self._link: Link | None = None  # the connection the session lives on, as far as it knows
        self._heard_s = 0.0  # when the last request was sent that was answered
        self._kept = KeptEntries()
        self._opening = trio.Lock()
        self._linked = trio.Event()
        self._attempt_number = 0
        self._operation = 0
        self._outstanding: dict[int, None] = {}
        self._files: list[int] = []  # inodes it has been told of

    async def run(self, tasks: int, operations: int, think_s: float) -> NoReturn:
        """Work until so many operations of so many tasks are done, in one life or several; then stay."""
        self._left = [operations] * tasks
        while True:
            with trio.CancelScope() as self._life:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._renew)
                    async with trio.open_nursery() as working:
                        for task in range(tasks):
                            working.start_soon(self._work, task, think_s)
                    self.done.set()
            await trio.sleep(REBORN_S * self._random.random())

    def die(self) -> None:
        """End it at once, with all it knew; another mount begins in its place."""
        if self.done.is_set():
            return
        self._trace.note(self.name, f"dies, keeping {len(self._kept)} entries")
        self._life.cancel()
        if self._link is not None:
            self._link.closed.set()
        self._history.lose(self.alias)
        self._lives += 1
        self._begin_life()

    # --- asking -------------------------------------------------------------------------------

    async def _attempt(self, request: Any, link: Link, patience_s: float) -> Message:
        """Send it on this connection, and wait for an answer."""
        box: Box[Message] = Box()
        sent = type(request)()
        sent.CopyFrom(request)
        what = type(request).__name__.removesuffix("Request")

        def answer(reply: Message | WormError) -> None:
            link.send_back(lambda: box.put(reply), what=f"answer to {what}")

        late_s, sent_s = 0.0, trio.current_time()
        if self._random.random() < HUNG_SHARE:
            late_s, patience_s = self._random.random() * HUNG_MAX_S, self._random.random()
        link.send(lambda: link.node.receive(sent, answer, link.far_end), what=what, late_s=late_s)
        with trio.move_on_after(patience_s):
            await _first(box.arrived, link.closed)
        if box.answer is None:
            raise UnavailableError(f"{link.node.name} does not answer")
        self._check_link(link)
        if isinstance(box.answer, WormError):
            raise box.answer
        if link is self._link:
            self._heard_s = max(self._heard_s, sent_s)
        return box.answer

    def _check_link(self, link: Link) -> None:
        """What comes on a connection that was given up was not kept: it is as if it had not come."""
        if link.closed.is_set():
            raise UnavailableError("the connection was given up meanwhile")

    async def _insist(self, request: Any, *, may_give_up: bool = False) -> Message:
        """Ask until somebody answers. Raises what the master refuses with, or GaveUpError."""
        pause_s = PAUSE_MIN_S
        while True:
            link = self._link or await self._connect()
            if not isinstance(request, metadata_pb2.SyncRequest):
                request.caller.session_id = self._session_id
                request.caller.acknowledged = next(iter(self._outstanding), self._operation + 1) - 1
            try:
                return await self._attempt(request, link, TRY_S)
            except SessionExpiredError:
                raise  # no session that lives ends in a run: the state has lost it
            except UnavailableError as error:
                self._unlink(link)
                if may_give_up and self._random.random() < GIVEN_UP_SHARE:
                    raise GaveUpError from error
                pause_s = await self._look_elsewhere(error, pause_s)

    def _unlink(self, link: Link) -> None:
        link.closed.set()
        if self._link is link:
            self._link = None

    async def _look_elsewhere(self, error: UnavailableError, pause_s: float) -> float:
        """Wait before the next attempt, to another node perhaps; answers the wait after that."""
        if not isinstance(error, NotMasterError) or self._random.random() < 0.7:
            self._master = self._random.choice(self._nodes)
        await trio.sleep(pause_s * (0.5 + self._random.random()))
        return min(pause_s * 2, PAUSE_MAX_S)

    async def _connect(self) -> Link:
        """Open the session, or take it up again, on a new connection."""
        pause_s = PAUSE_MIN_S
        async with self._opening:
            while self._link is None:
                link = Link(self._network, self.name, self._master, self._pushed)
                self._attempt_number += 1
                request = metadata_pb2.OpenSessionRequest(
                    session_id=self._session_id,
                    attempt=self._attempt_number,
                    label=self.alias,
                    cached_ms=int(max(0.0, self.cached_s()) * 1000) + 1,
                    keeps_entries=True,
                    kept_entries=self._kept.all(),
                )
                sent_s = trio.current_time()
                try:
                    reply: Any = await self._attempt(request, link, RESUME_S)
                except trio.Cancelled:
                    link.closed.set()
                    raise
                except UnavailableError as error:
                    link.closed.set()
                    pause_s = await self._look_elsewhere(error, pause_s)
                    continue
                self._introduced(reply)
                self._leased(sent_s)
                self._heard_s = sent_s
                self._link = link
                self._linked.set()
        return self._link

    def _introduced(self, reply: Any) -> None:
        if reply.entries_lost:
            self._lost()
        self._kept.clear()
        if self._session_id and self._session_id != reply.session_id:
            raise SessionExpiredError(f"session {self._session_id} is unknown")
        if not self._session_id:
            self._session_id = reply.session_id
            self._trace.note(self.name, f"has session {self._session_id}")

    def _lost(self) -> None:
        """It is told that others were served without what it keeps: it must have been away for long."""
        away_s = trio.current_time() - self._heard_s
        self._trace.note(self.name, f"loses {len(self._kept)} entries, {away_s:.1f} s away")
        if away_s < LEASE_S:
            self._problems.append(f"{self.alias} loses what it was answered, {away_s:.1f} s after an answer")
        self._history.lose(self.alias)
        self._files.clear()

    def _pushed(self, link: Link, message: Message) -> None:
        """Something came on a connection that was not asked for."""
        if link.closed.is_set():
            return
        if isinstance(message, metadata_pb2.KeepEntries):
            if not self._kept.keep(message.settled_sequence, message.first_sequence, message.entries):
                self._problems.append(f"{self.alias} is to keep entries with a gap")
            self.early_count += len(message.entries)
        elif isinstance(message, metadata_pb2.Recall):
            # Should the answer be lost, the recall is told again at the next resume.
            self._on_recall(message)
            request = metadata_pb2.RecallDoneRequest(session_id=self._session_id, recall_id=message.recall_id)
            link.send(lambda: link.node.receive(request, _ignore, link.far_end), what="RecallDone")

    async def _renew(self) -> NoReturn:
        """Keep the session's lease alive until cancelled; at once when it was taken up again."""
        while True:
            with trio.move_on_after(LEASE_S / 3):
                await self._linked.wait()
            link = self._link or await self._connect()
            self._linked = trio.Event()
            request = metadata_pb2.RenewSessionRequest(session_id=self._session_id)
            sent_s = trio.current_time()
            try:
                reply: Any = await self._attempt(request, link, RESUME_S)
            except UnavailableError:
                self._unlink(link)
                continue
            if reply.known:
                self._leased(sent_s)
                self._kept.settle(reply.settled_sequence)
            else:
                self._unlink(link)

    # What a client that caches does about it: see reader.py.

    def cached_s(self) -> float:
        """How long it may still tell what it was told before."""
        return 0.0

    def _leased(self, sent_s: float) -> None:
        """The session's lease begins anew: it was asked for at that time."""

    def _on_recall(self, recall: metadata_pb2.Recall) -> None:
        """What this tells of must not be told again."""

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
        begun = self._history.begin(self.alias, operation)
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
        begun.key = (self._session_id, number)
        self._history.end(begun, told)
        self._trace.note(self.name, f"#{number} {begun}")
        return told

    async def sync(self) -> None:
        """Have all that was answered made safe, whatever happens to master and client."""
        begun = self._history.begin_sync()
        await self._insist(metadata_pb2.SyncRequest())
        self._history.end_sync(self.alias, begun)
        self._trace.note(self.name, "has synced")

    # --- operations ---------------------------------------------------------------------------

    async def make_directory(self, name: bytes) -> int:
        """One that is there from the start; answers its inode."""
        request = fs.MakeNodeRequest(parent=1, name=name, mode=_DIR | 0o755, exclusive=True)
        self._operation += 1
        number = request.caller.operation = self._operation
        self._outstanding[number] = None
        reply: Any = await self._insist(request)
        del self._outstanding[number]
        await self.sync()
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

    async def lookup(self, parent: int, name: bytes) -> tuple[object, ...] | None:
        """Ask what a name names."""
        return await self.call(
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

    async def getattr(self, inode: int) -> None:
        """Ask what a file is like."""
        request = fs.GetAttrRequest(inode=inode)
        await self.call(Operation("getattr", (inode,)), request, _mode_and_links, query=True)

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
            await self.getattr(inode)
        elif kind == "setattr":
            request: Any = fs.SetAttrRequest(inode=inode, mode=mode)
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

    async def _work(self, task: int, think_s: float) -> None:
        """Operations one after the other, some close together, with pauses until there is a hurry."""
        random = self._random
        while self._left[task]:
            self._left[task] -= 1
            mean_s = BURST_S if random.random() < BURST_SHARE else think_s / (1 - BURST_SHARE)
            with trio.move_on_after(random.expovariate(1 / mean_s)):
                await _first(self.hurry, self.stir.event)
            if random.random() < SYNC_SHARE:
                await self.sync()
            else:
                await self.act()


async def _first(*events: trio.Event) -> None:
    """Return when one of them has happened."""
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(wait, event)


def _ignore(_: object) -> None:
    """Nobody waits for that answer."""


def _mode_and_links(reply: Any) -> tuple[object, ...]:
    is_dir = reply.attributes.mode & 0o170000 == _DIR
    return reply.attributes.mode & _BITS, 0 if is_dir else reply.attributes.nlink


def _links(reply: Any) -> tuple[object, ...]:
    return (reply.attributes.nlink,)


def _nothing(_: Any) -> tuple[object, ...]:
    return ()
