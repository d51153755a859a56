"""The Metadata service: sessions, leases and recalls around the machine that orders every change.

How one request goes (docs/internals.md, "Leases as the master keeps them"):

1. The session must be known, and live on the connection that the request came on; after a restart
   nothing is served before the grace is over.
2. If another session holds the write lease of an inode the request reads or changes, that lease
   is recalled first. Requests that need a recall queue per inode, first come first served
   (`gates.py`); requests about other inodes pass, and so does the session that is being recalled.
3. In one step without a switch: execute, note the session as reader of what the reply tells, push
   recalls to the other readers of what changed.
4. The reply leaves when all those recalls are answered, or their sessions have ended; and so do replies
   and errors that tell of the change to others meanwhile: nobody must know of it while a cache still
   tells of what was before. With a log on several servers it also waits until they have all it tells
   of, but for early answers.

A request that meets no foreign lease does 1 to 4 without waiting, which makes it cheap.
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from random import Random
from typing import Any, NoReturn, cast

import trio

from wormfs.codec.erasure import available_codecs
from wormfs.core.errors import (
    InvalidError,
    NotFoundError,
    NotMasterError,
    SessionExpiredError,
    StaleError,
    UnavailableError,
    WormError,
)
from wormfs.core.leases import LeaseTable, Recall, first_recall_of
from wormfs.core.limits import ALLOCATE_MAX, RECALL_LIMIT_S
from wormfs.core.placement import place_stripes
from wormfs.core.state import Touch
from wormfs.metadata.machine import Machine, Outcome
from wormfs.node.early_answers import EarlyAnswer, EarlyAnswers, confirming
from wormfs.node.gates import Gates
from wormfs.node.members import Members
from wormfs.node.request_rules import CHANGE, MAKE_NODE, RULES, TAKE_LEASE, Rule
from wormfs.rpc import methods as m
from wormfs.rpc.registry import DataBuffer, Registry, RequestContext
from wormfs.rpc.stream_server import ServerConnection
from wormfs.rpc.v1 import filesystem_pb2, metadata_pb2, types_pb2

log = logging.getLogger(__name__)

TICK_S = 0.25
_OURSELVES = RequestContext(None, "stream", "this node's repair")


def check_connection(current: Mapping[int, object], session: int, connection: object) -> None:
    """Refuse a session's request that did not come on the connection in `current`. UnavailableError.

    A client that gave an attempt up asks again on a new connection, and may have been told an error
    there, which is not remembered: what is still on its way on the old one must do nothing.
    """
    if session and (connection is None or current.get(session) is not connection):
        raise UnavailableError(f"session {session} does not live on this connection: resume it")


class MasterService:
    """See the module. `run` must be running for sessions to end."""

    def __init__(self, machine: Machine, members: Members, *, lease_s: float, random: Random) -> None:
        self._machine = machine
        self._members = members
        self._random = random
        self.leases = LeaseTable(
            lease_s=lease_s, recall_limit_s=RECALL_LIMIT_S, first_recall=first_recall_of(machine.epoch)
        )
        self._connections: dict[int, ServerConnection] = {}  # by session; gRPC callers have none, and 0
        self._early = EarlyAnswers(machine, self._connections)
        self._confirmed = False  # see register()
        self._served = False  # somebody was told, or changed, what a session's kept entries may change
        self._done: dict[int, set[int]] = {}  # by session: operations executed, above `acknowledged`
        self._closes: dict[int, int] = {}  # by session: number of the last CloseFiles
        self._unclosed: set[int] = set()  # ended, but not in the log yet
        self._attempts: dict[int, int] = {}  # by session: number of the last OpenSession
        self._gates = Gates()
        self._answered: dict[int, trio.Event] = {}  # recalls that requests wait for
        # Requests that wait at a gate, by session and inode: a recall to that session lets them pass.
        self._queued: dict[tuple[int, int], dict[trio.CancelScope, Any]] = {}
        self._grace_changed = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._ended = False  # nobody ends sessions any more: what waits here for others would wait for ever
        self._make_plain = self._handler(MAKE_NODE)
        self._take_lease = self._handler(TAKE_LEASE)
        self._replace = self._handler(CHANGE)

    def register(self, registry: Registry, *, confirmed: bool = False) -> None:
        """Add the Metadata service's handlers.

        `confirmed`: answers wait until the log confirms what they tell; for an engine whose appends
        can be taken back.
        """
        self._confirmed = confirmed
        for method, rule in RULES:
            self._add(registry, method, self._handler(rule), confirmed, self._early.answers)
        self._add(registry, m.METADATA_MAKE_NODE, self._make_node, confirmed, self._early.answers)
        self._add(registry, m.METADATA_OPEN_SESSION, self._open_session, confirmed)
        self._add(registry, m.METADATA_RENEW_SESSION, self._renew_session, confirmed)
        self._add(registry, m.METADATA_CLOSE_SESSION, self._close_session, confirmed)
        self._add(registry, m.METADATA_RECALL_DONE, self._recall_done, confirmed)
        self._add(registry, m.METADATA_CLOSE_FILES, self._close_files, confirmed, self._early.answers)
        self._add(registry, m.METADATA_ALLOCATE_STRIPES, self._allocate, confirmed)
        self._add(registry, m.METADATA_STAT_FS, self._stat_fs, confirmed)
        self._add(registry, m.METADATA_SYNC, self._sync, confirmed)

    def _add(
        self,
        registry: Registry,
        method: m.Method[Any, Any],
        handler: Any,
        confirmed: bool,
        early: EarlyAnswer | None = None,
    ) -> None:
        registry.add(method, confirming(self._machine, handler, early) if confirmed else handler)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """End sessions whose time is over, until cancelled."""
        self.leases.restore([each.session_id for each in self._machine.sessions()], trio.current_time())
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            try:
                await self._end_sessions()
            finally:  # in the nursery: once it is closed, _open_session must not use it
                self._ended = True
                self._grace_moved()
                self._wake()

    async def _end_sessions(self) -> NoReturn:
        last_s = trio.current_time()
        while True:
            await trio.sleep(TICK_S)
            now_s = trio.current_time()
            if now_s - last_s > 4 * TICK_S:
                self.leases.prolong(now_s - last_s)
            last_s = now_s
            self.leases.age(now_s)
            if self.leases.settle(now_s):
                self._grace_moved()
            for session in self.leases.expired(now_s):
                log.warning("session %d is silent: its leases are gone", session)
                self.leases.lapse(session, now_s)
                self._wake()
                self._grace_moved()
            for session in self.leases.given_up(now_s):
                log.warning("session %d expired; its unfinished writes are gone", session)
                self._end_session(session)
            for session in tuple(self._unclosed):
                self._close_in_log(session)

    def _check_running(self) -> None:
        if self._ended:
            raise NotMasterError("this node is the metadata master no more")

    # Requests

    def _handler(self, rule: Rule) -> Any:
        perform = self._perform
        leases = self.leases
        connection_of = self._connections.get

        async def handle(context: RequestContext, request: Any, _: DataBuffer | None) -> Any:
            session = request.caller.session_id
            connection = context.connection
            # Without a connection, over gRPC, there is no session, and with one there is.
            known = connection_of(session) is connection and (not session) == (connection is None)
            current = known and self._served
            if not current or leases.in_grace or leases.lapsed:
                await self._admit(session, connection)
            exclusive = rule.exclusive(request) if rule.exclusive is not None else 0
            if self._meets_leases(session, request, exclusive):
                return await self._perform_in_turn(rule, session, connection, request, exclusive)
            try:
                reply, owed = perform(rule, session, request, exclusive)
            except WormError:
                await self._wait_untold(session, request)
                raise
            if owed:
                await self._wait_answered(owed)
                leases.read_again(session, rule.told(request, reply))
            return reply

        return handle

    async def _admit(self, session: int, connection: ServerConnection | None) -> None:
        self._hear(session, connection)
        while self.leases.must_wait(session):
            self._check_running()
            await self._grace_changed.wait()
        if session and session not in self.leases.sessions:
            raise SessionExpiredError(f"session {session} is unknown or expired: open a new one")
        self._check_lapsed(session)
        check_connection(self._connections, session, connection)
        if not self._served:
            # A log of one server may have lost what it told, too: by a power cut, with mounts elsewhere.
            self._machine.begin_serving(stripes=not self._confirmed)
            self._served = True

    async def wait_kept_entries(self) -> None:
        """Return when no session can hand over entries any more that must come before any other change."""
        while self._confirmed and self.leases.in_grace:
            await self._grace_changed.wait()

    async def admit(self) -> None:
        """Wait until others than sessions may be told of the state; no kept entries come after that.

        Raises NotMasterError when the mastership ends meanwhile.
        """
        await self._admit(0, None)

    def _check_lapsed(self, session: int) -> None:
        """Its owner may not know yet that the leases are gone: only once it resumed is it served."""
        if session in self.leases.lapsed:
            raise UnavailableError(f"session {session} was silent for too long: resume it")

    def _perform(self, rule: Rule, session: int, request: Any, exclusive: int) -> tuple[Any, Iterable[int]]:
        """Step 3: everything that must happen without a switch. Returns reply and recalls owed."""
        if rule.needs_lease:
            self._check_lease(session, request)
        try:
            outcome: Outcome = self._machine.execute(request)
        except NotFoundError:
            if session and rule.asked is not None:
                self.leases.read(session, rule.asked(request))
            raise
        except UnavailableError:
            self._recall_others(session, request.caller.operation, self._machine.take_unapplied())
            raise
        reply: Any = outcome.reply
        if rule.names and outcome.touched:
            with suppress(UnavailableError):  # it is done, and must be recalled
                self._machine.tell_directories(request, outcome)
        if session:
            if rule.cached:
                self.leases.read(session, rule.told(request, reply))
            if rule.opens or rule.needs_lease:
                self._note_operation(rule, session, request, reply)
            if exclusive:
                reply.write_lease = self.leases.grant_write(session, exclusive)
        if rule.changes:
            self._recall_others(session, request.caller.operation, outcome.touched)
        if not self.leases.recalls:
            return reply, ()
        told = {*rule.told(request, reply), *(touch.inode for touch in outcome.touched)}
        # A retry executes nothing, yet must wait for what its first try recalled.
        operation = request.caller.operation
        repeated = self.leases.owed_for((session, operation)) if operation else set()
        return reply, self.leases.untold_to(session, told) | repeated

    def _check_lease(self, session: int, request: Any) -> None:
        """A commit needs the write lease, unless it is the retry of one done before, of any mastership."""
        if not session or self.leases.writers.get(request.inode) == session:
            return
        if request.caller.operation not in self._done[session] and not self._machine.remembered(request):
            raise StaleError(
                f"inode {request.inode} was written without its write lease: the lease was lost, "
                "and what was buffered under it with it"
            )

    def _note_operation(self, rule: Rule, session: int, request: Any, reply: Any) -> None:
        """Count an open, once for each operation; a made file comes with its write lease."""
        caller = request.caller
        done = self._done[session]
        if caller.operation:
            if caller.operation in done:
                return
            if len(done) > 1024:
                done.difference_update([each for each in done if each <= caller.acknowledged])
            done.add(caller.operation)
        if rule.opens and (rule is not MAKE_NODE or request.open):
            self.leases.opened(session, reply.attributes.inode)
            if rule is MAKE_NODE and reply.created:
                self.leases.grant_write(session, reply.attributes.inode)

    def _recall_others(self, session: int, operation: int, touched: Sequence[Touch]) -> None:
        leases = self.leases
        if len(leases.sessions) <= (1 if session else 0):
            return
        now_s = trio.current_time()
        changed = tuple({touch.inode for touch in touched})
        for touch in touched:
            for recall in leases.recall_readers(
                session,
                touch.inode,
                now_s,
                changed=changed,
                operation=operation,
                names=touch.names,
                attributes=touch.attributes,
                data=touch.data,
            ):
                self._push(recall)

    def _meets_leases(self, session: int, request: Any, exclusive: int) -> bool:
        """Whether the request cannot simply be performed: another session's lease is in its way."""
        if exclusive and (
            self._gates.closed(exclusive) or not self.leases.can_grant_write(session, exclusive)
        ):
            return True
        if not self._gates and not self.leases.has_foreign_writers(session):
            return False
        return any(
            self._gates.closed(inode) or self.leases.foreign_writer(session, inode)
            for inode in self._machine.targets(request)
        )

    async def _perform_in_turn(
        self, rule: Rule, session: int, connection: ServerConnection | None, request: Any, exclusive: int
    ) -> Any:
        """The way of a request that another session's lease is in the way of."""
        if exclusive and not session:
            raise InvalidError("a write lease needs a session")
        cause = (session, request.caller.operation)
        held: set[int] = set()
        async with AsyncExitStack() as stack:
            while True:
                self._check_session(session, connection)
                wanted = {*self._machine.targets(request), *([exclusive] if exclusive else [])}
                blocked = {inode for inode in wanted if self._blocked(session, inode, exclusive == inode)}
                entering = {inode for inode in blocked if not self._passes(session, request, inode)}
                if not entering <= held:
                    # All gates are entered in one order, so that no two requests wait crosswise.
                    await stack.aclose()
                    held = await self._queue(session, request, held | entering, stack)
                    continue
                owed = self._recall_for(session, cause, wanted, exclusive)
                if not owed:
                    break
                await self._wait_answered(owed)
            try:
                reply, still_owed = self._perform(rule, session, request, exclusive)
            except WormError:
                await stack.aclose()
                await self._wait_untold(session, request)
                raise
        if still_owed:
            await self._wait_answered(still_owed)
            self.leases.read_again(session, rule.told(request, reply))
        return reply

    def _passes(self, session: int, request: Any, inode: int) -> bool:
        """Whether it does not wait for its turn: the one that recalls waits for what it is part of.

        That is all that writes back under a recalled write lease, and the map that reads under way need
        to end. Others wait: a session that went on reading what it is recalled would never let a writer in.
        """
        maps = isinstance(request, metadata_pb2.GetFileMapRequest)
        return self.leases.is_recalled(session, inode, write_lease=not maps)

    async def _queue(self, session: int, request: Any, inodes: set[int], stack: AsyncExitStack) -> set[int]:
        """Enter the gates of `inodes`; returns those entered: fewer when a recall came meanwhile."""
        entered: set[int] = set()
        for inode in sorted(inodes):
            scopes = self._queued.setdefault((session, inode), {})
            with trio.CancelScope() as scope:
                scopes[scope] = request
                try:
                    await self._gates.enter(inode, stack)
                    entered.add(inode)
                finally:
                    del scopes[scope]
                    if not scopes:
                        self._queued.pop((session, inode), None)
            if inode not in entered:
                break
        return entered

    def _blocked(self, session: int, inode: int, exclusive: bool) -> bool:
        if self.leases.foreign_writer(session, inode) or self._gates.closed(inode):
            return True
        return exclusive and not self.leases.can_grant_write(session, inode)

    def _recall_for(
        self, session: int, cause: tuple[int, int], wanted: Iterable[int], exclusive: int
    ) -> set[int]:
        """Recall what other sessions hold and must give up; returns all recalls to wait for."""
        now_s = trio.current_time()
        owed: set[int] = set()
        for inode in wanted:
            if self.leases.foreign_writer(session, inode):
                recall = self.leases.recall_writer(inode, now_s, cause, whole=inode == exclusive)
                if recall is not None:
                    self._push(recall)
                owed |= {
                    key
                    for key in self.leases.owed_to(session, [inode])
                    if self.leases.recalls[key].write_lease
                }
            elif inode == exclusive and not self.leases.can_grant_write(session, inode):
                for recall in self.leases.recall_readers(
                    session, inode, now_s, operation=cause[1], attributes=True, data=True
                ):
                    self._push(recall)
                owed |= self.leases.owed_to(session, [inode])
        return owed

    def _check_session(self, session: int, connection: ServerConnection | None) -> None:
        if session and session not in self.leases.sessions:
            raise SessionExpiredError(f"session {session} ended while its request waited: open a new one")
        self._check_lapsed(session)
        check_connection(self._connections, session, connection)

    # Requests with rules of their own

    async def _make_node(
        self, context: RequestContext, request: filesystem_pb2.MakeNodeRequest, data: DataBuffer | None
    ) -> metadata_pb2.FileMapReply:
        session = request.caller.session_id
        if request.open and not session:
            raise InvalidError("only a session can open what it makes")
        reply: metadata_pb2.FileMapReply = await self._make_plain(context, request, data)
        inode = reply.attributes.inode
        if not request.open:
            return reply
        if reply.created and self.leases.writers.get(inode) == session:
            reply.write_lease = True
            return reply
        # It was there before (or this is a retry): its lease and its newest map must be got first.
        query = metadata_pb2.AcquireWriteLeaseRequest(caller=request.caller, inode=inode)
        query.caller.operation = 0
        created = reply.created
        reply = await self._take_lease(context, query, data)
        reply.created = created
        return reply

    async def _allocate(
        self, context: RequestContext, request: metadata_pb2.AllocateStripesRequest, _: DataBuffer | None
    ) -> metadata_pb2.AllocateStripesReply:
        await self._admit(request.caller.session_id, context.connection)
        if not 1 <= request.count <= ALLOCATE_MAX:
            raise InvalidError(f"between 1 and {ALLOCATE_MAX} stripes can be allocated at once")
        outcome = self._machine.remembered(request) or self._machine.allocate(request, self._place(request))
        return cast("metadata_pb2.AllocateStripesReply", outcome.reply)

    def _place(self, request: metadata_pb2.AllocateStripesRequest) -> list[types_pb2.Stripe]:
        policy = self._machine.policy
        codec = int(policy.codec) or int(available_codecs()[0])
        placements = place_stripes(
            self._members.views(request.suspect_disks), policy, request.count, self._random
        )
        return [
            types_pb2.Stripe(
                codec=types_pb2.Codec.Name(types_pb2.Codec.ValueType(codec)),
                k=placement.k,
                m=placement.m,
                disks=placement.disks,
            )
            for placement in placements
        ]

    async def _stat_fs(
        self, _: RequestContext, __: filesystem_pb2.StatFsRequest, ___: DataBuffer | None
    ) -> filesystem_pb2.StatFsReply:
        total, free = self._members.space_bytes()
        policy = self._machine.policy
        width = policy.k + policy.m
        return filesystem_pb2.StatFsReply(
            total_bytes=total * policy.k // width,
            free_bytes=free * policy.k // width,
            inode_count=self._machine.counts().inodes,
            free_inodes=1 << 40,
        )

    async def _sync(
        self, context: RequestContext, request: metadata_pb2.SyncRequest, _: DataBuffer | None
    ) -> types_pb2.Empty:
        if request.session_id:
            # What was answered early by a mastership before must be here before anybody is told it is safe.
            self._hear(request.session_id, context.connection)
            self._check_session(request.session_id, context.connection)
        await self._machine.wait_durable(self._machine.sequence)
        return types_pb2.Empty()

    async def _close_files(
        self, context: RequestContext, request: metadata_pb2.CloseFilesRequest, _: DataBuffer | None
    ) -> types_pb2.Empty:
        session = request.session_id
        self._check_own(context, session)
        repeated = 0 < request.number <= self._closes.get(session, 0)
        if session in self._done and not repeated:
            self._closes[session] = request.number
            self.leases.closed(session, request.inodes)
        return types_pb2.Empty()

    async def replace_stripe(self, request: metadata_pb2.ReplaceStripeRequest) -> bool:
        """Repair's command: have a stripe's new copy take its place, as any change of the file would.

        What a session buffers of the file is committed first; file maps others hold are recalled.
        False: the file does not have the old stripe any more. Raises InvalidError.
        """
        request.caller.SetInParent()
        await self._replace(_OURSELVES, request, None)
        return not self._machine.is_allocated(request.new_stripe_id)

    # Sessions

    async def _open_session(
        self, context: RequestContext, request: metadata_pb2.OpenSessionRequest, _: DataBuffer | None
    ) -> metadata_pb2.OpenSessionReply:
        connection = context.connection
        if connection is None:
            raise InvalidError("a session needs a stream connection; over gRPC use the FileSystem service")
        self._check_running()
        if request.attempt and request.attempt <= self._attempts.get(request.session_id, 0):
            raise UnavailableError(f"session {request.session_id} was taken up again after this was asked")
        now_s = trio.current_time()
        reply = metadata_pb2.OpenSessionReply(
            lease_ms=round(self.leases.lease_s * 1000), cluster_id=self._machine.cluster_id
        )
        granted = None
        if request.kept_entries:
            reply.entries_lost = not self._adopt(request.session_id, request.kept_entries)
        if request.session_id:
            granted = self.leases.resume(
                request.session_id,
                now_s,
                opens=request.open_inodes,
                writes=request.write_leases,
                cached_s=request.cached_ms / 1000,
            )
        if granted is None:
            number = self._machine.open_session(request.label)
            self.leases.open_session(number, now_s)
            for inode in request.open_inodes:  # open in the session that expired, and still in the mount
                self.leases.opened(number, inode)
            log.info("session %d opened by %s (%s)", number, request.label, context.peer)
        else:
            number = request.session_id
            reply.resumed = True
            reply.granted_write_leases.extend(granted)
            log.info("session %d resumed (%s)", number, context.peer)
        reply.session_id = number
        watched = self._connections.get(number) is connection
        self._connections[number] = connection
        self._attempts[number] = request.attempt
        self._done[number] = set()  # what is asked again from here on is not among the opens just told
        self._early.end(number)
        if request.keeps_entries:
            self._early.begin(number)
        self._wake()
        self._grace_moved()
        for recall in self.leases.sessions[number].recalls.values():
            self._push(recall)
        if self._nursery is not None and not watched:
            self._nursery.start_soon(self._watch, number, connection, context.peer)
        return reply

    def _adopt(self, number: int, kept: Sequence[bytes]) -> bool:
        """Order what the session kept of the mastership before; False when that is too late."""
        if self._served or number not in self.leases.sessions:
            # Without them, perhaps: only what is there already can be vouched for.
            return self._machine.has_kept(number, kept)
        return self._machine.adopt(number, kept)

    async def _renew_session(
        self, context: RequestContext, request: metadata_pb2.RenewSessionRequest, _: DataBuffer | None
    ) -> metadata_pb2.RenewSessionReply:
        self._check_own(context, request.session_id)
        known = self.leases.renew(request.session_id, trio.current_time(), request.forgotten)
        return metadata_pb2.RenewSessionReply(known=known, settled_sequence=self._machine.settled_sequence)

    async def _close_session(
        self, context: RequestContext, request: metadata_pb2.CloseSessionRequest, _: DataBuffer | None
    ) -> types_pb2.Empty:
        self._check_own(context, request.session_id)
        if request.session_id in self.leases.sessions:
            log.info("session %d closed", request.session_id)
            self._end_session(request.session_id)
        return types_pb2.Empty()

    async def _recall_done(
        self, context: RequestContext, request: metadata_pb2.RecallDoneRequest, _: DataBuffer | None
    ) -> types_pb2.Empty:
        self._check_own(context, request.session_id)
        if self.leases.answered(request.session_id, request.recall_id) is not None:
            self._wake()
        return types_pb2.Empty()

    def _check_own(self, context: RequestContext, session: int) -> None:
        """As check_connection, for what may be said of a session that is gone, too."""
        if session in self.leases.sessions:
            check_connection(self._connections, session, context.connection)
            self._hear(session, context.connection)

    def _hear(self, session: int, connection: ServerConnection | None) -> None:
        """A resume counts once its client says more on its connection: it may have been given up before."""
        lives_here = session and self._connections.get(session) is connection
        if lives_here and self.leases.heard(session, trio.current_time()):
            self._grace_moved()

    def _end_session(self, session: int) -> None:
        self.leases.end_session(session)
        self._connections.pop(session, None)
        self._early.end(session)
        self._done.pop(session, None)
        self._closes.pop(session, None)
        self._attempts.pop(session, None)
        self._close_in_log(session)
        self._wake()
        self._grace_moved()

    def _close_in_log(self, session: int) -> None:
        """End it in the state, too, now or as soon as there is one that takes it: it holds stripes."""
        try:
            self._machine.close_session(session)
        except WormError as error:
            if session not in self._unclosed:
                log.error("session %d cannot be closed in the log yet: %s", session, error.message)
            self._unclosed.add(session)
        else:
            self._unclosed.discard(session)

    def _grace_moved(self) -> None:
        """Let those look again that wait for the end of a restart's grace."""
        self._grace_changed.set()
        self._grace_changed = trio.Event()

    async def _watch(self, session: int, connection: ServerConnection, peer: str) -> None:
        """End the session at once when its process, on this machine, is gone with its connection.

        A process that lives on may serve from its caches until its lease runs out, so a lost
        connection alone ends nothing.
        """
        pid = _peer_pid(peer)
        if not pid:
            return
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return  # gone already, or in a namespace we do not see: the lease runs out
        try:
            await connection.closed.wait()
            with trio.move_on_after(self.leases.lease_s):
                await trio.lowlevel.wait_readable(descriptor)
                if self._connections.get(session) is connection:
                    log.info("session %d ended: its process %d is gone", session, pid)
                    self._end_session(session)
        finally:
            os.close(descriptor)

    # Recalls

    def _push(self, recall: Recall) -> None:
        """Tell the session; if it cannot be told, its lease runs out or it resumes and is told then."""
        for scope, request in self._queued.get((recall.session, recall.inode), {}).items():
            if self._passes(recall.session, request, recall.inode):
                scope.cancel()
        connection = self._connections.get(recall.session)
        if connection is None:
            return
        message = metadata_pb2.Recall(
            recall_id=recall.recall_id,
            inode=recall.inode,
            names=recall.names,
            attributes=recall.attributes,
            data=recall.data,
            write_lease=recall.write_lease,
        )
        try:
            connection.push(message)
        except UnavailableError as error:
            log.debug("recall %d could not be pushed: %s", recall.recall_id, error.message)

    async def _wait_untold(self, session: int, request: Any) -> None:
        """Wait until it may be told why the request is refused: no cache still denies it."""
        if self.leases.recalls:
            named = {getattr(request, field, 0) for field in ("inode", "parent", "new_parent")}
            inodes = named.union(self._machine.targets(request))
            await self._wait_answered(self.leases.untold_to(session, inodes))

    async def _wait_answered(self, recalls: Iterable[int]) -> None:
        for key in recalls:
            if key in self.leases.recalls:
                self._check_running()
                event = self._answered.get(key)
                if event is None:
                    event = self._answered[key] = trio.Event()
                await event.wait()
                self._check_running()

    def _wake(self) -> None:
        """Let those go on whose recalls are over, or will never be."""
        if self._answered:
            for key in [key for key in self._answered if self._ended or key not in self.leases.recalls]:
                self._answered.pop(key).set()


def _peer_pid(peer: str) -> int:
    """The process at the other end of a unix socket, as `describe_peer` tells; 0 over TCP."""
    words = peer.split()
    return int(words[1]) if len(words) > 1 and words[0] == "pid" and words[1].isdigit() else 0
