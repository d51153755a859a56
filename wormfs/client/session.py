"""A session with the metadata master: one connection, leases kept alive, commands done exactly once.

The session belongs to its id, not to a connection: after a lost connection it is taken up again
on a new one, and a command that got no answer is sent again under its old number, which the
master answers from memory if it had been done. A connection on which a call hangs is given up as
soon as another node turns out to be master, or the master to be reached anew (link_watch.py).
"""

import logging
import random
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, Protocol, TypeVar

import trio
from google.protobuf.message import Message

from wormfs.client.kept_entries import KeptEntries
from wormfs.client.link_watch import LinkWatch
from wormfs.client.options import ClientOptions
from wormfs.client.peers import PeerTable
from wormfs.core.errors import (
    DeadlineError,
    InvalidError,
    NotMasterError,
    SessionExpiredError,
    UnavailableError,
    WormError,
)
from wormfs.core.limits import RECALL_LIMIT_S
from wormfs.rpc.methods import (
    METADATA_ALLOCATE_STRIPES,
    METADATA_CLOSE_SESSION,
    METADATA_COMMIT_WRITE,
    METADATA_MAKE_NODE,
    METADATA_OPEN_FILE,
    METADATA_OPEN_SESSION,
    METADATA_RECALL_DONE,
    METADATA_RENEW_SESSION,
    METADATA_SYNC,
    Method,
)
from wormfs.rpc.stream_client import CallReply, StreamConnection
from wormfs.rpc.v1 import filesystem_pb2, metadata_pb2, types_pb2

log = logging.getLogger(__name__)
Req = TypeVar("Req", bound=Message)
Rep = TypeVar("Rep", bound=Message)

LEASE_MARGIN_S = 1.0
"""The client stops trusting its leases this long before the master may give them away."""
TRY_S = 10.0
"""One attempt at a call; a recall or a restarted master may hold an answer back for a lease's length."""
RESUME_S = 3.0
"""One attempt to resume: nothing but the log in etcd can hold its answer back."""
RETRY_PAUSE_MAX_S = 0.2
"""Between attempts while there is no master: about a tenth of what an election takes."""
KEPT_BACK_MAX = 10_000
"""For so many operations more the master is to remember its reply to a commit that got no answer."""
RECALLED_MAX = 100_000
"""Inodes whose last recall is remembered; what was asked before older ones is not cached."""


_OPENING = (METADATA_OPEN_FILE, METADATA_MAKE_NODE)
"""Whether it was done is not known when no answer came: the next resume tells what is open."""


_OF_ONE_SESSION = (METADATA_COMMIT_WRITE, METADATA_ALLOCATE_STRIPES)
"""What rests on leases and stripes that end with their session."""


class SessionOwner(Protocol):
    """What the session asks of, and tells, the file system above it."""

    def on_recall(self, recall: metadata_pb2.Recall) -> None:
        """A lease is recalled: stop trusting what it covered, at once. Called before later replies."""

    async def finish_recall(self, recall: metadata_pb2.Recall) -> None:
        """Write back and drop what the lease covered; the master is told when this returns."""

    def recall_ended(self, recall: metadata_pb2.Recall) -> None:
        """The master knows that the recall is done (or the session is lost)."""

    def open_inodes(self) -> list[int]:
        """Inodes held open, one entry for each open."""

    def write_leases(self) -> list[int]:
        """Inodes whose write lease is held, or was held and is wanted back for what is unsaved."""

    async def before_commit(
        self, request: metadata_pb2.CommitWriteRequest
    ) -> CallReply[filesystem_pb2.AttrReply] | None:
        """Whether a commit may be sent: None, or what was answered to it when it was done before.

        Raises StaleError when it must not, since what it was written over may have changed.
        """

    def on_lapse(self) -> None:
        """The leases may have run out unseen: nothing cached may be served any more."""

    def on_replaced(self) -> None:
        """A new session, of a backup's metadata perhaps: no `change` told before can be compared with."""

    def on_lost(self, inodes: frozenset[int] | None) -> None:
        """Changes of these inodes, answered early, are lost: caches tell of them, and syncs must fail.

        None: which ones is not known.
        """

    def on_resumed(self, write_leases: frozenset[int]) -> None:
        """Connected again; the master may have restarted: only these write leases are sure."""


@dataclass(frozen=True, slots=True)
class _Link:
    """The connection the session lives on now."""

    connection: StreamConnection
    incarnation: int
    pushes_before: int  # on connections before this one: pushes are numbered through


@dataclass(frozen=True, slots=True)
class _Owed:
    """A recall that is not answered yet, and what rests on that: no lease is trusted past `limit_s`."""

    limit_s: float
    connection: StreamConnection  # that it was pushed on last


class Session:
    """See the module; every method raises UnavailableError kinds once its deadline has passed."""

    def __init__(
        self, peers: PeerTable, nursery: trio.Nursery, owner: SessionOwner, label: str, options: ClientOptions
    ) -> None:
        self._peers = peers
        self._nursery = nursery
        self._owner = owner
        self._label = label
        self._options = options
        self._random = random.Random()
        self._session_id = 0
        self._incarnation = 0  # counts the session ids used
        self._attempt = 0  # counts what opened or resumed the session, or tried to
        self._lease_s = 6.0
        self._valid_until_s = -1e9
        self._asked_s = -1e9  # when that was asked which was answered last: later pushes were pushed later
        self._owed: dict[int, _Owed] = {}  # by recall
        self._handed_until_s = -1e9  # what was handed out as cacheable is gone by then
        self._lapsed = True
        self._extended = trio.Event()
        self._linked = trio.Event()
        self._link: _Link | None = None
        self._linking = trio.Lock()
        self._watch = LinkWatch(peers)
        self._operation = 0
        self._outstanding: dict[int, None] = {}
        self._kept_back: dict[int, None] = {}  # commits without an answer, until their owner gave up asking
        self._kept = KeptEntries()
        self._pushes = 0  # the number of the last one
        self._recalled: OrderedDict[int, int] = OrderedDict()  # inode -> number of its last recall
        self._recalled_before = 0  # recalls up to this number may not be in `_recalled`
        self.cluster_id = ""

    @property
    def session_id(self) -> int:
        """The id the master knows this session by."""
        return self._session_id

    @property
    def attempts(self) -> int:
        """How often it was opened or resumed, or that was tried: the same while one connection lives."""
        return self._attempt

    def lease_left_s(self) -> float:
        """How long what the master granted may still be trusted; 0 when not at all."""
        left_s = self._valid_until_s - trio.current_time()
        if left_s <= 0:
            return 0.0
        self._handed_until_s = self._valid_until_s
        return left_s

    def cacheable_s(self, pushes_seen: int, *inodes: int) -> float:
        """How long what a reply says of these inodes may be cached: 0 when one was recalled behind it."""
        if pushes_seen < self._recalled_before:
            return 0.0
        for inode in inodes:
            if self._recalled.get(inode, 0) > pushes_seen:
                return 0.0
        return self.lease_left_s()

    # --- calls -------------------------------------------------------------------------

    async def query(self, method: Method[Req, Rep], request: Req) -> CallReply[Rep]:
        """Ask the master; asked again for as long as the deadline allows."""
        caller = getattr(request, "caller", None)
        return await self._call(method, request, caller, self._options.deadline_s)

    async def command(self, method: Method[Req, Rep], request: Req) -> CallReply[Rep]:
        """Have the master change something, exactly once.

        A commit that fails without an answer may have been done: `commit_done` tells, until `answered`.
        """
        self._operation += 1
        operation = self._operation
        self._outstanding[operation] = None
        try:
            caller: types_pb2.Caller = request.caller  # type: ignore[attr-defined]
            caller.operation = operation
            return await self._call(method, request, caller, self._options.deadline_s)
        except (UnavailableError, trio.Cancelled):
            if method is METADATA_COMMIT_WRITE:
                self._kept_back[operation] = None
            raise
        finally:
            del self._outstanding[operation]
            while self._kept_back and next(iter(self._kept_back)) <= self._operation - KEPT_BACK_MAX:
                del self._kept_back[next(iter(self._kept_back))]

    async def commit_done(self, inode: int, operation: int) -> CallReply[filesystem_pb2.AttrReply] | None:
        """What was answered to a commit, if it was done and the master remembers; it is not done by this.

        Operations are counted through sessions: under the next one's id the number is nobody's.
        """
        # One that can only be refused, under the same number, is answered from the master's memory.
        again = metadata_pb2.CommitWriteRequest(inode=inode)
        again.caller.operation = operation
        again.stripes.add()
        try:
            return await self.query(METADATA_COMMIT_WRITE, again)
        except InvalidError:
            return None

    def answered(self, operation: int) -> None:
        """It does not matter any more what became of a commit."""
        self._kept_back.pop(operation, None)

    async def _call(
        self, method: Method[Req, Rep], request: Req, caller: types_pb2.Caller | None, timeout_s: float
    ) -> CallReply[Rep]:
        deadline_s = trio.current_time() + timeout_s
        incarnation = 0
        pause_s = 0.02
        asked_before = False
        while True:
            link: _Link | None = None
            try:
                link = self._link
                if link is None or link.connection.closed.is_set():
                    link = await self._relink(deadline_s)
                if method is METADATA_COMMIT_WRITE:
                    done: Any = await self._owner.before_commit(request)  # type: ignore[arg-type]
                    if done is not None:
                        return done  # type: ignore[no-any-return]
                    link = self._link if self._link is link else None
                if link is None:
                    continue
                if caller is not None:
                    incarnation = self._sign(caller, link, incarnation, method.name)
                elif method is METADATA_SYNC:  # of the session that lives now; what it lost was told
                    request.session_id = self._session_id  # type: ignore[attr-defined]
                remembered = asked_before and caller is not None and caller.operation > 0
                return await self._ask(link, method, request, deadline_s, remembered=remembered)
            except (UnavailableError, NotMasterError) as error:
                first, asked_before = not asked_before, True
                slow = isinstance(error, DeadlineError) and not isinstance(error, NotMasterError)
                if method in _OPENING or not slow:
                    self._unlink(link)
                if isinstance(error, SessionExpiredError) and incarnation and caller and caller.operation:
                    if not first or method in _OF_ONE_SESSION:
                        raise
                    incarnation = 0  # refused, and so surely not done: the next session asks it
                left_s = deadline_s - trio.current_time()
                if left_s <= 0:
                    raise DeadlineError(
                        f"the metadata master did not answer {method.name.rpartition('/')[2]} within "
                        f"{timeout_s:g} s: {error.message}"
                    ) from error
                await trio.sleep(min(pause_s * (0.5 + self._random.random()), left_s))
                pause_s = min(pause_s * 2, RETRY_PAUSE_MAX_S)

    def _sign(self, caller: types_pb2.Caller, link: _Link, incarnation: int, method: str) -> int:
        """Say who asks; `incarnation` is that of the attempt before, 0 for none. Answers this one's."""
        if caller.operation and incarnation and incarnation != link.incarnation:
            raise SessionExpiredError(
                f"{method} was under way when the session expired; whether it was done is not known"
            )
        caller.session_id = self._session_id
        first = min(next(iter(each), self._operation + 1) for each in (self._outstanding, self._kept_back))
        caller.acknowledged = first - 1
        return link.incarnation

    async def _ask(
        self,
        link: _Link,
        method: Method[Req, Rep],
        request: Req,
        deadline_s: float,
        *,
        remembered: bool = False,
    ) -> CallReply[Rep]:
        """One attempt. `remembered`: an earlier one may have been done, and this be answered from memory."""
        sent_s = trio.current_time()
        begun = self._watch.begin(link.connection)
        try:
            reply = await link.connection.call(
                method, request, timeout_s=max(0.01, min(TRY_S, deadline_s - sent_s))
            )
        except UnavailableError:
            raise
        except trio.Cancelled:
            if method in _OPENING:
                self._unlink(link)
            raise
        except WormError:
            self._check_kept(link)
            raise
        finally:
            self._watch.end(begun)
        self._check_kept(link)
        if remembered or trio.current_time() - sent_s > LEASE_MARGIN_S:
            reply.pushes_seen = -1  # others may have changed since what it tells of; its leases are over
        else:
            reply.pushes_seen += link.pushes_before
        return reply

    def _check_kept(self, link: _Link) -> None:
        """Take no answer that came after its connection was given up: entries pushed ahead were not kept."""
        if self._link is not link:
            raise UnavailableError(f"{link.connection.address}: the connection was given up meanwhile")

    # --- the connection ------------------------------------------------------------------

    def _unlink(self, link: _Link | None) -> None:
        if link is not None and self._link is link:
            self._link = None
            self._recalled_before = self._pushes + 1  # what comes now is not heard of
            link.connection.on_push = None  # what the next master was told is final
            link.connection.close()

    async def _relink(self, deadline_s: float) -> _Link:
        with trio.move_on_at(deadline_s):
            async with self._linking:
                link = self._link
                if link is not None and not link.connection.closed.is_set():
                    return link
                return await self._dial()
        raise DeadlineError("no connection to the metadata master within the deadline")

    async def _dial(self) -> _Link:
        self._link = None
        connection = self._watch.take_found() or await self._peers.reach_master()
        self._pushes += 1
        pushes_before = self._recalled_before = self._pushes
        self._recalled.clear()
        connection.on_push = partial(self._on_push, connection, pushes_before)
        try:
            return await self._introduce(connection, pushes_before)
        except BaseException:
            connection.on_push = None
            connection.close()
            raise

    async def _introduce(self, connection: StreamConnection, pushes_before: int) -> _Link:
        self._attempt += 1
        request = metadata_pb2.OpenSessionRequest(
            session_id=self._session_id,
            attempt=self._attempt,
            label=self._label,
            open_inodes=self._owner.open_inodes(),
            write_leases=self._owner.write_leases(),
            cached_ms=int(max(0.0, self._handed_until_s - trio.current_time()) * 1000) + 1,
            keeps_entries=self._options.early_answers,
            kept_entries=self._kept.all(),
        )
        sent_s = trio.current_time()
        # What is pushed again behind the reply may have been lost with the connection before.
        self._asked_s = sent_s - self._lease_s
        # A new session is not asked for in haste: each attempt may leave one behind.
        try_s = RESUME_S if self._session_id else TRY_S
        reply = (await connection.call(METADATA_OPEN_SESSION, request, timeout_s=try_s)).message
        self._note_lapse()
        if reply.entries_lost:
            log.error(
                "%d changes answered by a master that failed are lost: it is too late to order them anew",
                len(self._kept),
            )
            self._owner.on_lost(self._kept.inodes())
        self._kept.clear()
        kept = bool(self._session_id) and reply.resumed and reply.session_id == self._session_id
        if kept:
            self._owner.on_resumed(frozenset(reply.granted_write_leases))
        else:
            if self._session_id:
                log.warning("session %d had expired; its leases are lost", self._session_id)
                self._owner.on_replaced()
            self._incarnation += 1
        self._session_id = reply.session_id
        self.cluster_id = reply.cluster_id
        self._lease_s = reply.lease_ms / 1000
        self._extend_lease(sent_s)
        self._link = _Link(connection, self._incarnation, pushes_before)
        self._linked.set()
        return self._link

    def _extend_lease(self, sent_s: float) -> None:
        granted_s = sent_s + self._lease_s - LEASE_MARGIN_S
        self._valid_until_s = min([granted_s, *(owed.limit_s for owed in self._owed.values())])
        if self._valid_until_s > trio.current_time():
            self._lapsed = False
            self._extended.set()

    async def have_leases(self) -> None:
        """Wait until what the master grants may be trusted; UnavailableError when that takes too long."""
        with trio.move_on_after(self._options.deadline_s):
            while self.lease_left_s() <= 0:
                if self._extended.is_set():
                    self._extended = trio.Event()
                await self._extended.wait()
            return
        raise DeadlineError("the session's lease was not prolonged within the deadline")

    def _note_lapse(self) -> None:
        if not self._lapsed and trio.current_time() >= self._valid_until_s:
            self._lapsed = True
            self._owner.on_lapse()

    # --- leases --------------------------------------------------------------------------

    def _on_push(self, connection: StreamConnection, pushes_before: int, message: Message) -> None:
        if isinstance(message, metadata_pb2.KeepEntries):
            if not self._kept.keep(message.settled_sequence, message.first_sequence, message.entries):
                log.error("the master's entries to keep have a gap: its connection is given up")
                link = self._link
                if link is not None and link.connection is connection:
                    self._unlink(link)
                else:
                    connection.close()
        elif isinstance(message, metadata_pb2.Recall):
            self._pushes = pushes_before + connection.pushes_seen
            self._recalled[message.inode] = self._pushes
            self._recalled.move_to_end(message.inode)
            if len(self._recalled) > RECALLED_MAX:
                self._recalled_before = self._recalled.popitem(last=False)[1]
            limit_s = self._asked_s + RECALL_LIMIT_S - LEASE_MARGIN_S
            owed = self._owed.get(message.recall_id)
            if owed is not None:
                limit_s = min(limit_s, owed.limit_s)
            self._owed[message.recall_id] = _Owed(limit_s, connection)
            self._owner.on_recall(message)
            self._nursery.start_soon(self._answer_recall, message)

    async def _answer_recall(self, recall: metadata_pb2.Recall) -> None:
        try:
            await self._owner.finish_recall(recall)
            await self.query(
                METADATA_RECALL_DONE,
                metadata_pb2.RecallDoneRequest(session_id=self._session_id, recall_id=recall.recall_id),
            )
            self._owed.pop(recall.recall_id, None)
        except WormError as error:
            log.warning("recall of inode %d was not answered: %s", recall.inode, error.message)
        finally:
            self._owner.recall_ended(recall)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Open the session, then keep its lease alive until cancelled."""
        await self._relink(trio.current_time() + self._options.deadline_s)
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch.run)
            nursery.start_soon(self._note_lapses)
            nursery.start_soon(self._keep_alive)

    async def _note_lapses(self) -> NoReturn:
        while True:
            await trio.sleep_until(self._valid_until_s)
            self._note_lapse()
            if self._lapsed:
                if self._extended.is_set():
                    self._extended = trio.Event()
                await self._extended.wait()

    async def _keep_alive(self) -> NoReturn:
        silent = False
        while True:
            try:
                await self._renew()
            except WormError as error:
                log.log(
                    logging.DEBUG if silent else logging.WARNING,
                    "the session was not renewed: %s",
                    error.message,
                )
                silent = True
                await trio.sleep(RETRY_PAUSE_MAX_S)
            else:
                silent = False
                with trio.move_on_after(self._lease_s / 3):
                    await self._linked.wait()  # a new master serves others once it hears more of this session

    async def _renew(self) -> None:
        patience_s = self._lease_s / 3
        link = self._link
        if link is None or link.connection.closed.is_set():
            link = await self._relink(trio.current_time() + self._lease_s)
        self._linked = trio.Event()
        sent_s = trio.current_time()
        request = metadata_pb2.RenewSessionRequest(session_id=self._session_id)
        try:
            reply = await self._ask(link, METADATA_RENEW_SESSION, request, sent_s + patience_s)
        except DeadlineError:
            raise  # the watch knows whether another connection would be better
        except UnavailableError:
            self._unlink(link)
            raise
        if reply.message.known:
            self._asked_s = sent_s
            # What was not pushed again on this connection, before this answer, the master waits for no more.
            for key in [key for key, owed in self._owed.items() if owed.connection is not link.connection]:
                del self._owed[key]
            self._extend_lease(sent_s)
            self._kept.settle(reply.message.settled_sequence)
        else:
            self._unlink(link)
            await self._relink(trio.current_time() + self._lease_s)

    async def close(self) -> None:
        """End the session; what it allocated and did not commit becomes garbage."""
        link = self._link
        if link is None or link.connection.closed.is_set():
            return
        request = metadata_pb2.CloseSessionRequest(session_id=self._session_id)
        await link.connection.call(METADATA_CLOSE_SESSION, request, timeout_s=2.0)
        link.connection.close()
