"""A session with the metadata master: one connection, leases kept alive, commands done exactly once.

The session belongs to its id, not to a connection: after a lost connection it is taken up again
on a new one, and a command that got no answer is sent again under its old number, which the
master answers from memory if it had been done.
"""

import logging
import random
from dataclasses import dataclass
from typing import Protocol, TypeVar

import trio
from google.protobuf.message import Message

from wormfs.client.kept_entries import KeptEntries
from wormfs.client.options import ClientOptions
from wormfs.client.peers import PeerTable
from wormfs.core.errors import (
    DeadlineError,
    NotMasterError,
    SessionExpiredError,
    UnavailableError,
    WormError,
)
from wormfs.rpc.methods import (
    METADATA_CLOSE_SESSION,
    METADATA_OPEN_SESSION,
    METADATA_RECALL_DONE,
    METADATA_RENEW_SESSION,
    Method,
)
from wormfs.rpc.stream_client import CallReply, StreamConnection, connect
from wormfs.rpc.v1 import metadata_pb2, types_pb2

log = logging.getLogger(__name__)
Req = TypeVar("Req", bound=Message)
Rep = TypeVar("Rep", bound=Message)

LEASE_MARGIN_S = 1.0
"""The client stops trusting its leases this long before the master may give them away."""
TRY_S = 10.0
"""One attempt at a call; a recall or a restarted master may hold an answer back for a lease's length."""

RETRY_PAUSE_MAX_S = 0.2
"""Between attempts while there is no master: about a tenth of what an election takes."""


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
        """Inodes whose write lease is held."""

    def on_lapse(self) -> None:
        """The leases may have run out unseen: nothing cached may be served any more."""

    def on_lost(self) -> None:
        """Changes answered early are lost: what is cached tells of them, and the next sync must fail."""

    def on_resumed(self, write_leases: frozenset[int]) -> None:
        """Connected again; the master may have restarted: only these write leases are sure."""


@dataclass(frozen=True, slots=True)
class _Link:
    """The connection the session lives on now."""

    connection: StreamConnection
    incarnation: int


def _as_fresh(reply: CallReply[Rep], sent_s: float) -> CallReply[Rep]:
    """Mark a reply as not cacheable when what it grants may be older than the lease's margin."""
    if trio.current_time() - sent_s > LEASE_MARGIN_S:
        reply.pushes_seen = -1
    return reply


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
        self._lease_s = 6.0
        self._valid_until_s = -1e9
        self._handed_until_s = -1e9  # what was handed out as cacheable is gone by then
        self._lapsed = True
        self._link: _Link | None = None
        self._linking = trio.Lock()
        self._operation = 0
        self._outstanding: dict[int, None] = {}
        self._kept = KeptEntries()
        self.cluster_id = ""

    @property
    def session_id(self) -> int:
        """The id the master knows this session by."""
        return self._session_id

    def lease_left_s(self) -> float:
        """How long what the master granted may still be trusted; 0 when not at all."""
        left_s = self._valid_until_s - trio.current_time()
        if left_s <= 0:
            return 0.0
        self._handed_until_s = self._valid_until_s
        return left_s

    def cacheable_s(self, pushes_seen: int) -> float:
        """How long a reply's attributes may be cached: 0 when a recall overtook the reply."""
        return self.lease_left_s() if pushes_seen == self._link_pushes() else 0.0

    def _link_pushes(self) -> int:
        link = self._link
        return link.connection.pushes_seen if link is not None else -1

    # --- calls -------------------------------------------------------------------------

    async def query(self, method: Method[Req, Rep], request: Req) -> CallReply[Rep]:
        """Ask the master; asked again for as long as the deadline allows."""
        caller = getattr(request, "caller", None)
        return await self._call(method, request, caller, self._options.deadline_s)

    async def command(self, method: Method[Req, Rep], request: Req) -> CallReply[Rep]:
        """Have the master change something, exactly once."""
        self._operation += 1
        operation = self._operation
        self._outstanding[operation] = None
        try:
            caller: types_pb2.Caller = request.caller  # type: ignore[attr-defined]
            caller.operation = operation
            return await self._call(method, request, caller, self._options.deadline_s)
        finally:
            del self._outstanding[operation]

    async def _call(
        self, method: Method[Req, Rep], request: Req, caller: types_pb2.Caller | None, timeout_s: float
    ) -> CallReply[Rep]:
        deadline_s = trio.current_time() + timeout_s
        incarnation = 0
        pause_s = 0.02
        while True:
            link: _Link | None = None
            try:
                link = self._link
                if link is None or link.connection.closed.is_set():
                    link = await self._relink(deadline_s)
                if caller is not None:
                    if caller.operation and incarnation and incarnation != link.incarnation:
                        raise SessionExpiredError(
                            f"{method.name} was under way when the session expired; whether it was done "
                            "is not known"
                        )
                    incarnation = link.incarnation
                    caller.session_id = self._session_id
                    caller.acknowledged = next(iter(self._outstanding), self._operation + 1) - 1
                sent_s = trio.current_time()
                try_s = max(0.01, min(TRY_S, deadline_s - sent_s))
                return _as_fresh(await link.connection.call(method, request, timeout_s=try_s), sent_s)
            except (UnavailableError, NotMasterError) as error:
                if isinstance(error, SessionExpiredError):
                    if incarnation and caller is not None and caller.operation:
                        self._unlink(link)
                        raise
                    self._unlink(link)
                elif not isinstance(error, DeadlineError) or isinstance(error, NotMasterError):
                    self._unlink(link)
                left_s = deadline_s - trio.current_time()
                if left_s <= 0:
                    raise DeadlineError(
                        f"the metadata master did not answer {method.name.rpartition('/')[2]} within "
                        f"{timeout_s:g} s: {error.message}"
                    ) from error
                await trio.sleep(min(pause_s * (0.5 + self._random.random()), left_s))
                pause_s = min(pause_s * 2, RETRY_PAUSE_MAX_S)

    # --- the connection ------------------------------------------------------------------

    def _unlink(self, link: _Link | None) -> None:
        if link is not None and self._link is link:
            self._link = None
            link.connection.on_push = None  # what the next master was told is final
            link.connection.close()

    async def _relink(self, deadline_s: float) -> _Link:
        async with self._linking:
            link = self._link
            if link is not None and not link.connection.closed.is_set():
                return link
            with trio.move_on_at(deadline_s):
                return await self._dial()
            raise DeadlineError("no connection to the metadata master within the deadline")

    async def _dial(self) -> _Link:
        if not self._peers.master_addresses():
            await self._peers.refresh(at_most_every_s=RETRY_PAUSE_MAX_S)
        addresses = self._peers.master_addresses()
        if not addresses:
            raise UnavailableError("the cluster has no metadata master now; see `wormfs status`")
        try:
            connection = await connect(
                self._nursery, addresses, timeout_s=self._options.connect_s, on_push=self._on_push
            )
        except WormError:
            await self._peers.refresh(at_most_every_s=RETRY_PAUSE_MAX_S)
            raise
        try:
            return await self._introduce(connection)
        except NotMasterError:
            connection.close()
            await self._peers.refresh(at_most_every_s=RETRY_PAUSE_MAX_S)
            raise
        except BaseException:
            connection.close()
            raise

    async def _introduce(self, connection: StreamConnection) -> _Link:
        request = metadata_pb2.OpenSessionRequest(
            session_id=self._session_id,
            label=self._label,
            open_inodes=self._owner.open_inodes(),
            write_leases=self._owner.write_leases(),
            cached_ms=int(max(0.0, self._handed_until_s - trio.current_time()) * 1000) + 1,
            keeps_entries=self._options.early_answers,
            kept_entries=self._kept.all(),
        )
        sent_s = trio.current_time()
        reply = (await connection.call(METADATA_OPEN_SESSION, request, timeout_s=TRY_S)).message
        if reply.entries_lost:
            log.error(
                "%d changes answered by a master that failed are lost: others had been served without them",
                len(self._kept),
            )
            self._owner.on_lost()
        self._kept.clear()
        kept = bool(self._session_id) and reply.resumed and reply.session_id == self._session_id
        if kept:
            self._owner.on_resumed(frozenset(reply.granted_write_leases))
        else:
            if self._session_id:
                log.warning("session %d had expired; its leases are lost", self._session_id)
                self._owner.on_lapse()
            self._incarnation += 1
        self._session_id = reply.session_id
        self.cluster_id = reply.cluster_id
        self._lease_s = reply.lease_ms / 1000
        self._extend_lease(sent_s)
        self._link = _Link(connection, self._incarnation)
        return self._link

    def _extend_lease(self, sent_s: float) -> None:
        self._valid_until_s = sent_s + self._lease_s - LEASE_MARGIN_S
        self._lapsed = False

    # --- leases --------------------------------------------------------------------------

    def _on_push(self, message: Message) -> None:
        if isinstance(message, metadata_pb2.KeepEntries):
            self._kept.settle(message.settled_sequence)
            self._kept.keep(message.first_sequence, message.entries)
        elif isinstance(message, metadata_pb2.Recall):
            self._owner.on_recall(message)
            self._nursery.start_soon(self._answer_recall, message)

    async def _answer_recall(self, recall: metadata_pb2.Recall) -> None:
        try:
            await self._owner.finish_recall(recall)
            await self.query(
                METADATA_RECALL_DONE,
                metadata_pb2.RecallDoneRequest(session_id=self._session_id, recall_id=recall.recall_id),
            )
        except WormError as error:
            log.warning("recall of inode %d was not answered: %s", recall.inode, error.message)
        finally:
            self._owner.recall_ended(recall)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Open the session, then keep its lease alive until cancelled."""
        await self._relink(trio.current_time() + self._options.deadline_s)
        task_status.started()
        while True:
            await trio.sleep(self._lease_s / 3)
            sent_s = trio.current_time()
            if sent_s > self._valid_until_s and not self._lapsed:
                self._lapsed = True
                self._owner.on_lapse()
            try:
                await self._renew(sent_s)
            except WormError as error:
                log.warning("the session was not renewed: %s", error.message)

    async def _renew(self, sent_s: float) -> None:
        link = self._link
        if link is None or link.connection.closed.is_set():
            with trio.move_on_after(self._lease_s / 3):
                await self._relink(trio.current_time() + self._lease_s / 3)
            return
        request = metadata_pb2.RenewSessionRequest(session_id=self._session_id)
        try:
            reply = await link.connection.call(METADATA_RENEW_SESSION, request, timeout_s=self._lease_s / 3)
        except UnavailableError:
            self._unlink(link)
            raise
        if reply.message.known:
            self._extend_lease(sent_s)
            self._kept.settle(reply.message.settled_sequence)
        else:
            self._unlink(link)

    async def close(self) -> None:
        """End the session; what it allocated and did not commit becomes garbage."""
        link = self._link
        if link is None or link.connection.closed.is_set():
            return
        request = metadata_pb2.CloseSessionRequest(session_id=self._session_id)
        await link.connection.call(METADATA_CLOSE_SESSION, request, timeout_s=2.0)
        link.connection.close()
