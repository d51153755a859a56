"""The metadata state machine: commands in, events logged and applied, replies out.

One machine per master. Everything but `run`, `wait_durable` and `watch` is synchronous and belongs
to the trio thread. The order for a command is: decide on the state, append to the log, apply,
answer; so what was answered is in the log, and the state can always be rebuilt from it.
"""

import functools
import logging
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Concatenate, NamedTuple, ParamSpec, TypeAlias, TypeVar

import trio
from google.protobuf.message import Message

from wormfs.core import events as ev
from wormfs.core.apply import apply
from wormfs.core.errors import (
    DataLossError,
    ExistsError,
    InvalidError,
    NoSpaceError,
    NotFoundError,
    SessionExpiredError,
    TooLargeError,
    UnavailableError,
)
from wormfs.core.limits import NUMBER_MAX
from wormfs.core.ordering import (
    SKIPPED_STRIPES,
    Place,
    is_included,
    is_independent,
    is_upkeep,
    may_follow,
    next_tail,
    skip_told,
)
from wormfs.core.records import Counts, FileStripe, GarbageChunk, Restored, Session, Stripe
from wormfs.core.state import At, Decision, Touch
from wormfs.core.types import Codec, Policy
from wormfs.core.writing import (
    Placement,
    decide_abandon,
    decide_allocate,
    decide_close_session,
    decide_collected,
    decide_forget_disk,
    decide_free_orphan,
    decide_open_session,
)
from wormfs.metadata import checks
from wormfs.metadata.convert import (
    attributes_message,
    fill_event,
    policy_message,
    stripe_message,
)
from wormfs.metadata.embedded_log import SEGMENT_BYTES, EmbeddedLog
from wormfs.metadata.keeper import StateKeeper
from wormfs.metadata.kept_entry import UnusableEntryError, read_kept, try_kept
from wormfs.metadata.log_port import UPKEEP, EventLog, LogRecord
from wormfs.metadata.requests import COMMANDS, GROWING, QUERIES, REPLIES, command_reply, request_targets
from wormfs.metadata.sqlite_state import SqliteState
from wormfs.metadata.state_files import place_of, state_path
from wormfs.rpc.v1 import cluster_pb2, event_pb2, filesystem_pb2, metadata_pb2, types_pb2

COMMIT_ENTRIES = 2_000
NameChange: TypeAlias = (
    filesystem_pb2.MakeNodeRequest
    | filesystem_pb2.UnlinkRequest
    | filesystem_pb2.RemoveDirRequest
    | filesystem_pb2.RenameRequest
)
P = ParamSpec("P")
R = TypeVar("R")
logger = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """What a request came to."""

    reply: Message
    sequence: int  # wait_durable(sequence) makes it durable
    touched: tuple[Touch, ...] = ()  # what other sessions must drop; empty for queries and retries


class StripesPage(NamedTuple):
    """A page of all stripes of all files."""

    stripes: list[FileStripe]
    next: tuple[int, int] | None  # the cursor of the next page; None: the end


def _recovering(
    method: Callable[Concatenate["Machine", P], R],
) -> Callable[Concatenate["Machine", P], R]:
    """When SQLite fails under `method`, which then has changed nothing, try again on a sound state."""

    @functools.wraps(method)
    def tried(machine: "Machine", /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(machine, *args, **kwargs)
        except sqlite3.Error as error:
            return machine._keeper.put_right(error, lambda: method(machine, *args, **kwargs))

    return tried


class Machine:
    """The metadata of a cluster. Made by `open`.

    While the keeper has no state (no disk takes it), what needs one raises UnavailableError.
    """

    def __init__(self, keeper: StateKeeper, log: EventLog, clock: Callable[[], int]) -> None:
        self._keeper = keeper
        self._log = log
        self._clock = clock
        self._uncommitted = 0
        self._unapplied: tuple[Touch, ...] = ()
        self._first_served = 0  # the first entry of this mastership that is not independent (core.ordering)
        self._has_skipped = False  # numbers that the mastership before may have told
        self._nodes_told: list[cluster_pb2.NodeInfo] = []
        self._disks_told: list[cluster_pb2.DiskInfo] = []
        self.epoch = 0

    @classmethod
    def lead(
        cls,
        keeper: StateKeeper,
        log: EventLog,
        epoch: int,
        *,
        node: int = 0,
        clock: Callable[[], int] = time.time_ns,
    ) -> "Machine":
        """Begin a mastership over a state that is at the log's end; its first entry says so.

        `node`: the master's number; 0 when it has none yet. `clock`: nanoseconds since 1970 UTC.
        """
        machine = cls(keeper, log, clock)
        machine.epoch = epoch
        keeper.source = log
        machine._log_decision(Decision((ev.MasterElected(epoch, node),)))
        return machine

    @classmethod
    def open(
        cls,
        directories: Sequence[Path],
        *,
        copies: int,
        clock: Callable[[], int] = time.time_ns,
        node: int = 1,
        create: bool = True,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> "Machine":
        """Recover log and state from the `metadata` folders of these disk folders, or begin new ones.

        `copies`: disks that hold log and snapshots (m + 1). `clock`: nanoseconds since 1970 UTC.
        `create=False`: raise DataLossError instead of beginning anew, for a node that had metadata.
        Raises DataLossError, WrongClusterError, UnavailableError (no disk can be written).
        """
        log = EmbeddedLog.open(directories, copies=copies, create=create, segment_bytes=segment_bytes)
        try:
            keeper = StateKeeper(log, directories)
        except BaseException:
            log.close()
            raise
        try:
            # The node is the only candidate; the epoch still tells histories apart.
            machine = cls.lead(keeper, log, keeper.state.epoch + 1, node=node, clock=clock)
            keeper.replicate_now()
        except BaseException:
            keeper.close()
            raise
        return machine

    def close(self) -> None:
        """Commit, sync and close everything. Called last; `run` must have ended."""
        self._keeper.close()

    # --- identity and registry ----------------------------------------------------------------

    @property
    def cluster_id(self) -> str:
        """Empty until form_cluster."""
        return self._keeper.identity.cluster_id

    @property
    def cluster_name(self) -> str:
        """For people."""
        return self._keeper.identity.cluster_name

    @property
    def policy(self) -> Policy:
        """The policy that new files use."""
        return self._keeper.identity.policy

    @property
    def sequence(self) -> int:
        """The last entry applied."""
        return self._keeper.state.applied

    @property
    def durable_sequence(self) -> int:
        """Entries up to this one survive a power loss."""
        return self._log.durable_sequence

    @property
    def restored(self) -> Restored:
        """The backup that the metadata came back from last."""
        return self._keeper.identity.restored

    @property
    def next_stripe_id(self) -> int:
        """Stripes from this id on were never allocated, as far as this metadata knows."""
        return self._keeper.state.next_stripe_id

    @property
    def keeper(self) -> StateKeeper:
        """Who cares for the state, and takes its snapshots."""
        return self._keeper

    @_recovering
    def form_cluster(self, cluster_id: str, name: str, policy: Policy) -> None:
        """Give the cluster its identity and root directory, once. ExistsError when it has one."""
        if self.cluster_id:
            raise ExistsError(f"this is cluster {self.cluster_id} already")
        self._log_decision(Decision((ev.ClusterFormed(cluster_id, name, policy),)))

    @_recovering
    def set_policy(self, policy: Policy) -> None:
        """Stripes written from now on use this policy. The caller has checked it."""
        if policy != self.policy:
            self._log_decision(Decision((ev.PolicySet(policy),)))

    def policy_message(self) -> types_pb2.Policy:
        """The policy as the wire has it."""
        return policy_message(self.policy)

    @_recovering
    def register_node(self, node: cluster_pb2.NodeInfo) -> int:
        """Register a node or its changed addresses; answers its number (that of its name, if known).

        NotFoundError: its number is not known here.
        """
        known = {row.number: row for row in self._keeper.state.nodes()}
        number = node.number or next((row.number for row in known.values() if row.name == node.name), 0)
        if number and number not in known:
            raise NotFoundError(f"node {number} ({node.name}) is not known to this cluster")
        number = number or self._keeper.state.next_node
        event = ev.NodeRegistered(
            number, node.name, tuple(node.addresses), node.grpc_address, node.machine_id
        )
        before = known.get(number)
        if before is None or tuple(before) != (
            event.number,
            event.name,
            event.addresses,
            event.grpc_address,
            event.machine_id,
        ):
            self._log_decision(Decision((event,)))
        return number

    @_recovering
    def register_disk(self, disk: cluster_pb2.DiskInfo) -> int:
        """Register a disk of a node, known by its uuid; answers its number."""
        known = {row.uuid: row for row in self._keeper.state.disks()}
        before = known.get(disk.uuid)
        number = before.number if before else self._keeper.state.next_disk
        event = ev.DiskRegistered(number, disk.uuid, disk.node, disk.path)
        if before is None or tuple(before) != (number, disk.uuid, disk.node, disk.path):
            self._log_decision(Decision((event,)))
        return number

    def nodes(self) -> list[cluster_pb2.NodeInfo]:
        """Every node as it registered, by number; whether it is online is the caller's knowledge.

        While there is no state: as it was told last.
        """
        with suppress(UnavailableError):
            self._nodes_told = self._nodes()
        return list(self._nodes_told)

    @_recovering
    def _nodes(self) -> list[cluster_pb2.NodeInfo]:
        return [
            cluster_pb2.NodeInfo(
                number=row.number,
                name=row.name,
                addresses=row.addresses,
                grpc_address=row.grpc_address,
                machine_id=row.machine_id,
            )
            for row in self._keeper.state.nodes()
        ]

    @_recovering
    def forget_disk(self, disk: int) -> int:
        """Take a disk out of the cluster, with its garbage, and its node with its last disk.

        No stripe may have a chunk on it. NotFoundError: it is not registered.
        """
        nodes = {row.number: row.node for row in self._keeper.state.disks()}
        if disk not in nodes:
            raise NotFoundError(f"disk {disk} is not registered")
        last = list(nodes.values()).count(nodes[disk]) == 1
        return self._log_decision(decide_forget_disk(disk, nodes[disk] if last else 0))

    def disks(self) -> list[cluster_pb2.DiskInfo]:
        """Every disk as it registered, by number. While there is no state: as it was told last."""
        with suppress(UnavailableError):
            self._disks_told = self._disks()
        return list(self._disks_told)

    @_recovering
    def _disks(self) -> list[cluster_pb2.DiskInfo]:
        return [
            cluster_pb2.DiskInfo(number=row.number, uuid=row.uuid, node=row.node, path=row.path)
            for row in self._keeper.state.disks()
        ]

    # --- requests -----------------------------------------------------------------------------

    def execute(self, request: Message, *, now_ns: int | None = None) -> Outcome:
        """Answer a Metadata service request. Raises WormError subclasses; a retry repeats its reply."""
        try:
            return self._execute(request, now_ns)
        except sqlite3.Error as error:
            return self._keeper.put_right(error, lambda: self._execute(request, now_ns))
        except OverflowError as error:
            raise InvalidError("a number past 63 bits names nothing here") from error

    def _execute(self, request: Message, now_ns: int | None) -> Outcome:
        kind = type(request)
        state = self._keeper.state
        query = QUERIES.get(kind)
        if query is not None:
            return Outcome(query(state, request), state.applied)
        decide = COMMANDS.get(kind)
        if decide is None:
            raise InvalidError(f"{kind.__name__} is not a request for the metadata machine")
        caller: types_pb2.Caller = request.caller  # type: ignore[attr-defined]
        remembered = self._remembered(caller, kind)
        if remembered is not None:
            return remembered
        at = At(state.applied + 1, self._clock() if now_ns is None else now_ns)
        if self._keeper.short_of_space and kind in GROWING:
            raise NoSpaceError(self._keeper.short_of_space)
        decision = decide(state, at, request)
        reply = command_reply(state, decision, REPLIES[kind], at.sequence)
        if decision.events:
            self._unapplied = decision.touched
            self._append(decision, at, caller, reply)
            self._unapplied = ()
        return Outcome(reply, self._keeper.state.applied, decision.touched)

    def take_unapplied(self) -> tuple[Touch, ...]:
        """What other sessions must drop although the command failed: it is in the log, the state was lost."""
        touched, self._unapplied = self._unapplied, ()
        return touched

    @_recovering
    def tell_directories(self, request: NameChange, outcome: Outcome) -> None:
        """Add to the reply of what was just done its directories' attributes, and whose else changed."""
        reply: metadata_pb2.FileMapReply | metadata_pb2.DirectoriesReply = outcome.reply  # type: ignore[assignment]
        row = self._keeper.state.inode(request.parent)
        if row is not None:
            reply.parent.CopyFrom(attributes_message(row))
        if isinstance(reply, metadata_pb2.FileMapReply):
            return
        told = [request.parent]
        if isinstance(request, filesystem_pb2.RenameRequest) and request.new_parent != request.parent:
            told.append(request.new_parent)
            row = self._keeper.state.inode(request.new_parent)
            if row is not None:
                reply.new_parent.CopyFrom(attributes_message(row))
        reply.touched.extend([touch.inode for touch in outcome.touched if touch.inode not in told])

    @_recovering
    def remembered(self, request: metadata_pb2.AllocateStripesRequest) -> Outcome | None:
        """The reply already given to a retried AllocateStripes, so that no placement need be chosen."""
        return self._remembered(request.caller, type(request))

    def _remembered(self, caller: types_pb2.Caller, kind: type[Message]) -> Outcome | None:
        session = caller.session_id
        if not session:
            return None
        state = self._keeper.state
        if not state.has_session(session):
            raise SessionExpiredError(f"session {session} has expired; open a new one")
        operation = caller.operation
        if not operation:
            return None
        if max(operation, caller.acknowledged) > NUMBER_MAX:
            raise InvalidError(f"session {session}: a number past 63 bits is no operation's")
        if operation <= state.acknowledged(session):
            raise InvalidError(
                f"operation {operation} of session {session} was acknowledged: its reply is gone"
            )
        reply = state.reply(session, operation)
        if reply is not None:
            return Outcome(REPLIES[kind].FromString(reply), state.applied)
        return None

    @_recovering
    def targets(self, request: Message) -> tuple[int, ...]:
        """Inodes whose attributes or content the request will read or change (write-lease recalls)."""
        try:
            return request_targets(self._keeper.state, request)
        except OverflowError:
            return ()

    @_recovering
    def allocate(
        self,
        request: metadata_pb2.AllocateStripesRequest,
        placements: Sequence[types_pb2.Stripe],
        *,
        now_ns: int | None = None,
    ) -> Outcome:
        """Give the caller's session stripe ids with the placements chosen (codec, k, m and disks set).

        Takes `request.abandoned` back too. The reply is an AllocateStripesReply.
        """
        if max(request.inode, *request.abandoned, 0) > NUMBER_MAX:
            raise InvalidError("a number past 63 bits names nothing here")
        remembered = self.remembered(request)
        if remembered is not None:
            return remembered
        state = self._keeper.state
        at = At(state.applied + 1, self._clock() if now_ns is None else now_ns)
        decision = decide_allocate(
            state,
            session_id=request.caller.session_id,
            inode=request.inode,
            placements=[
                Placement(stripe.codec, stripe.k, stripe.m, tuple(stripe.disks)) for stripe in placements
            ],
            abandoned=request.abandoned,
        )
        stripes: tuple[Stripe, ...] = decision.events[-1].stripes  # type: ignore[union-attr]
        reply = metadata_pb2.AllocateStripesReply(stripes=[stripe_message(stripe) for stripe in stripes])
        self._append(decision, at, request.caller, reply)
        return Outcome(reply, self.sequence)

    @_recovering
    def abandon(self, session_id: int, stripe_ids: Sequence[int]) -> int:
        """Make stripes allocated to a session garbage; answers the sequence. Unknown ones are ignored."""
        return self._log_decision(
            decide_abandon(self._keeper.state, session_id=session_id, stripe_ids=stripe_ids)
        )

    # --- sessions, orphans, garbage -----------------------------------------------------------

    @_recovering
    def open_session(self, label: str) -> int:
        """A new session's id."""
        session_id = self._keeper.state.next_session_id
        self._log_decision(decide_open_session(self._keeper.state, label))
        return session_id

    @_recovering
    def close_session(self, session_id: int) -> int:
        """End a session: its allocated stripes become garbage. Answers the sequence; idempotent."""
        return self._log_decision(decide_close_session(self._keeper.state, session_id))

    @_recovering
    def sessions(self) -> list[Session]:
        """Every session, by id."""
        return self._keeper.state.sessions()

    @_recovering
    def has_session(self, session_id: int) -> bool:
        """Whether the session lives."""
        return self._keeper.state.has_session(session_id)

    @_recovering
    def orphans(self, after: int = 0, limit: int = 1_000) -> list[int]:
        """Inodes without a name, above `after`."""
        return self._keeper.state.orphans(after, limit)

    @_recovering
    def free_orphan(self, inode: int) -> bool:
        """One bounded step (some ms) of freeing an orphan nobody holds open; True when it is gone."""
        decision = decide_free_orphan(self._keeper.state, inode)
        self._log_decision(decision)
        return not decision.events or isinstance(decision.events[-1], ev.OrphanFreed)

    @_recovering
    def garbage(self, disk: int, after: int = 0, limit: int = 1_000) -> list[GarbageChunk]:
        """Garbage chunks of a disk with stripe ids above `after`, in order."""
        return self._keeper.state.garbage(disk, after, limit)

    def garbage_disks(self) -> list[int]:
        """Disk numbers that have garbage; none is told of while there is no state."""
        with suppress(UnavailableError):
            return self._garbage_disks()
        return []

    @_recovering
    def _garbage_disks(self) -> list[int]:
        return self._keeper.state.garbage_disks()

    @_recovering
    def chunks_collected(self, disk: int, stripe_ids: Sequence[int]) -> int:
        """A disk no longer holds these garbage chunks. Answers the sequence."""
        return self._log_decision(decide_collected(disk, stripe_ids))

    # --- reading the whole state --------------------------------------------------------------

    @_recovering
    def stripes_page(self, after: tuple[int, int] | None = None, limit: int = 1_000) -> StripesPage:
        """Every file's stripes, by inode and index; `after`: the `next` of the page before."""
        stripes = self._keeper.state.stripes_after(after or (0, -1), limit)
        last = stripes[-1] if len(stripes) == limit else None
        return StripesPage(stripes, None if last is None else (last.inode, last.stripe.index))

    @_recovering
    def file_stripes(self, inode: int, first_index: int, limit: int) -> list[Stripe]:
        """A file's stripes from an index on."""
        return list(self._keeper.state.stripes_from(inode, first_index, limit))

    @_recovering
    def stripe_by_id(self, inode: int, stripe_id: int) -> Stripe | None:
        """A file's stripe of that id; looks at every stripe of the file."""
        if max(inode, stripe_id) > NUMBER_MAX:  # names nothing here; SQLite would not even take it
            return None
        return self._keeper.state.stripe_by_id(inode, stripe_id)

    @_recovering
    def is_allocated(self, stripe_id: int) -> bool:
        """Whether a session may be writing this stripe now."""
        return self._keeper.state.allocation(stripe_id) is not None

    @_recovering
    def inline_bytes(self, inode: int) -> int:
        """Bytes of a file held in extents."""
        return sum(span.length_bytes for span in self._keeper.state.extent_spans_from(inode, 0))

    def counts(self) -> Counts:
        """How much there is of everything; costs nothing."""
        return self._keeper.identity.counts()

    @_recovering
    def digest(self) -> str:
        """A checksum of the whole state: equal sequences of entries give equal digests."""
        self._keeper.state.begin()
        return checks.digest(self._keeper.state)

    def check_namespace(self) -> Iterator[str]:
        """Problems of the state's own structure, one line each; none in a sound one."""
        self._keeper.state.begin()
        yield from checks.check_namespace(self._keeper.state)

    async def check_namespace_apart(self) -> list[str]:
        """As check_namespace, of all that is settled now, while the machine goes on."""
        async with self._log.settled():
            self._keeper.commit()
            database = state_path(self._keeper.disk)
        try:
            return await trio.to_thread.run_sync(_problems_of, database)
        except sqlite3.Error as error:
            raise UnavailableError(f"{database}: the metadata state cannot be read: {error}") from error

    # --- log and disks ------------------------------------------------------------------------

    async def wait_durable(self, sequence: int) -> None:
        """Return when entries up to `sequence` survive a power loss."""
        await self._log.wait_durable(sequence)

    async def admit(self) -> None:
        """Wait until commands may be decided; before `execute` and its like."""
        await self._log.admit()

    async def confirm(self, *, hurry: bool = True) -> None:
        """Return when what was seen of the state so far may be told to others.

        Raises NotMasterError.
        """
        await self._log.confirm(hurry=hurry)

    def answers_early(self, session_id: int) -> bool:
        """Whether what was seen so far may be told to a session that keeps the `unsettled` entries."""
        return 0 < self._first_served <= self._log.settled_sequence and self._log.answers_early(session_id)

    def unsettled(self, after: int) -> Sequence[LogRecord]:
        """Entries behind `after` that this mastership may lose, in order."""
        return self._log.unsettled(after)

    @property
    def settled_sequence(self) -> int:
        """Entries up to this one are not lost with the master."""
        return self._log.settled_sequence

    def watch(self, after: int) -> AsyncGenerator[LogRecord, None]:
        """Log entries behind `after`, for ever."""
        return self._log.watch(after)

    def metadata_disks(self) -> list[Path]:
        """Disk folders that hold whole copies of log and snapshots now."""
        return self._keeper.member_disks()

    @property
    def metadata_copies_wanted(self) -> int:
        """How many there should be."""
        return self._keeper.copies_wanted

    def disk_failed(self, path: Path) -> None:
        """A disk is not to be used any more, until disk_usable."""
        self._keeper.disk_failed(path)

    def disk_usable(self, path: Path) -> None:
        """A disk (a new one too) may hold metadata (again)."""
        self._keeper.disk_usable(path)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit, sync, snapshot and re-replicate in the background, until cancelled."""
        await self._keeper.run(task_status=task_status)

    async def snapshot(self) -> None:
        """Store a snapshot on every metadata disk now, and trim the log."""
        await self._keeper.snapshot()

    # --- the one way to change anything -------------------------------------------------------

    def _log_decision(self, decision: Decision) -> int:
        """Log and apply a decision of the master's own."""
        if decision.events:
            self._append(decision, At(self.sequence + 1, self._clock()), None, None)
        return self.sequence

    @_recovering
    def begin_serving(self, *, stripes: bool = False) -> None:
        """Let no later master order what sessions kept of one before: others are told what is without it.

        To be called before anybody is served, and when all that was kept is adopted; what is told then must
        wait for `confirm`. An answer to a question leaves no trace in the log, hence an entry of its own. It
        skips the inode numbers that may have been told of what is lost; other entries may be there already.
        """
        if not self._has_skipped:
            state = self._keeper.state
            events: tuple[ev.Event, ...] = (skip_told(state.next_inode),)
            if stripes:  # `stripes`: their ids are told before the log has them, too
                last = Stripe(0, state.next_stripe_id + SKIPPED_STRIPES, Codec.ZFEC, 1, 0, 0, 0, 0, ())
                events += (ev.StripesAllocated(0, 0, (last,)), ev.StripesAbandoned((last.stripe_id,)))
            self._log_decision(Decision(events))
            self._has_skipped = True

    @_recovering
    def adopt(self, session_id: int, kept: Sequence[bytes]) -> bool:
        """Order anew what a session kept of a mastership before; to be called before anybody is served.

        Entries that the log has are passed over. False: some can no longer be ordered, and are lost; so
        is what no master could ever order, for the session would hand it to each (kept_entry.py).
        Raises NotMasterError, UnavailableError, NoSpaceError: nothing is said of them then.
        """
        try:
            for payload in kept:
                entry = read_kept(session_id, payload)
                place = place_of(entry)
                if self._is_done(entry, place):
                    continue
                if not may_follow(self._keeper.state.tail, place):
                    return False
                self._order_anew(session_id, entry, place)
        except UnusableEntryError as error:
            logger.error("session %d hands over %s: lost, as all behind it", session_id, error.message)
            return False
        return True

    def _order_anew(self, session_id: int, entry: event_pb2.LogEntry, place: Place) -> None:
        entry.origin.epoch, entry.origin.sequence = place
        entry.sequence = self.sequence + 1
        entry.epoch = self.epoch
        # What is in the log must be what can be applied: each master and replica after this one has to.
        with self._keeper.state.all_or_nothing():
            try_kept(self._keeper.state, entry)
            try:
                self._log.append(entry.sequence, entry.SerializeToString(), session_id)
            except TooLargeError as error:
                raise UnusableEntryError(error.message) from error
        self._uncommitted += 1

    @_recovering
    def has_kept(self, session_id: int, kept: Sequence[bytes]) -> bool:
        """Whether all a session kept is in the log."""
        try:
            entries = [read_kept(session_id, payload) for payload in kept]
            return all(self._is_done(entry, place_of(entry)) for entry in entries)
        except UnusableEntryError as error:
            logger.error("session %d hands over %s: it is lost", session_id, error.message)
            return False

    def _is_done(self, entry: event_pb2.LogEntry, place: Place) -> bool:
        state = self._keeper.state
        if is_included(state.tail, place):
            return True
        if not entry.HasField("operation"):
            return place.epoch < state.tail.epoch  # upkeep that a later master will have to do again
        session_id, operation = entry.operation.session_id, entry.operation.operation
        return operation <= state.acknowledged(session_id) or state.reply(session_id, operation) is not None

    def _append(
        self, decision: Decision, at: At, caller: types_pb2.Caller | None, reply: Message | None
    ) -> None:
        entry = event_pb2.LogEntry(sequence=at.sequence, epoch=self.epoch, time_ns=at.time_ns)
        for event in decision.events:
            fill_event(entry.events.add(), event)
        remember = caller is not None and reply is not None and caller.session_id and caller.operation
        packed = b""
        if remember and caller is not None and reply is not None:
            packed = reply.SerializeToString()
            entry.operation.session_id = caller.session_id
            entry.operation.operation = caller.operation
            entry.operation.acknowledged = caller.acknowledged
            entry.operation.reply = packed
        session = entry.operation.session_id or (UPKEEP if is_upkeep(decision.events) else 0)
        self._log.append(at.sequence, entry.SerializeToString(), session)
        if not self._first_served and (caller is not None or not is_independent(decision.events)):
            self._first_served = at.sequence

        def change(state: SqliteState) -> None:
            state.begin()
            for event in decision.events:
                content = isinstance(event, ev.FileWritten | ev.FileTruncated)
                apply(state, event, at, decision.change if content else None)
            if remember and caller is not None:
                state.put_reply(caller.session_id, caller.operation, caller.acknowledged, packed)
            place = Place(self.epoch, at.sequence)
            state.set_applied(at.sequence, self.epoch, next_tail(state.tail, place, decision.events))

        self._applying(change, at.sequence)

    def _applying(self, change: Callable[[SqliteState], None], sequence: int) -> None:
        """Apply what is in the log now."""
        state = self._keeper.state
        try:
            change(state)
            self._uncommitted += 1
            if self._uncommitted >= COMMIT_ENTRIES and self._log.settled_sequence == sequence:
                self._uncommitted = 0
                state.commit()
        except (sqlite3.Error, DataLossError) as error:
            # The entry is in the log: the state is rebuilt with it.
            self._keeper.rebuild_state(str(error))


def _problems_of(database: Path) -> list[str]:
    """Check a state on a connection of one's own: it sees what was committed when it begins."""
    with closing(sqlite3.connect(f"file:{database}?mode=rw", uri=True, isolation_level=None)) as connection:
        state = SqliteState(connection)
        state.begin()
        return list(checks.check_namespace(state))
