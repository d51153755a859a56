"""Repair: stripes with lost or damaged chunks are rebuilt, narrow ones widened, by itself.

A disk that is offline for `after_s` is given up: its chunks count as lost. Work goes in rounds: one
survey of all stripes counts what there is to do, then one pass over them for each degree of urgency
works at it, `AT_ONCE` stripes side by side. Nothing is remembered but the counts and the chunks
reported damaged, so memory is bounded for any number of stripes. Rounds end when a survey finds
nothing that can be done; they begin again when a disk comes or goes or damage is reported.

A new stripe is allocated to repair's own session, which a restarted master closes: what a crash
left half-written is garbage then. Nothing is written under its number before the log's quorum has
the allocation: the next master would give the number out again. The switch is one event that holds
only if the file still has the old stripe (wormfs/core/writing.py, decide_replace_stripe); it need not
be confirmed here, for the old chunks are deleted only once it is durable (collector.py). When the
mastership ends, so does repair.
"""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from random import Random

import trio

from wormfs.codec.erasure import available_codecs
from wormfs.core.errors import NoSpaceError, NotMasterError, WormError
from wormfs.core.placement import Placement, place_stripes
from wormfs.core.records import FileStripe, Stripe
from wormfs.core.repair import URGENCY, Need, Situation, need_of, target_policy
from wormfs.core.types import ChunkKey
from wormfs.metadata.machine import Machine
from wormfs.node.links import NodeLinks
from wormfs.node.master_service import MasterService
from wormfs.node.members import Members
from wormfs.node.stripe_copier import PutFailedError, StripeCopier
from wormfs.rpc.v1 import cluster_pb2, filesystem_pb2, metadata_pb2, types_pb2

log = logging.getLogger(__name__)

SESSION_LABEL = "repair"
AT_ONCE = 3
PAGE = 500
DAMAGED_MAX = 100_000
LOGGED_FAILURES = 5  # in each round
SETTLE_S = 10.0  # after a change of disks, before stripes are widened (or `after_s`, if that is less)
AGAIN_S = 600.0
RETRY_MIN_S = 2.0
RETRY_MAX_S = 60.0


@dataclass(slots=True)
class Progress:
    """What GetStatus tells; bytes are file bytes, without parity."""

    waiting: int = 0
    waiting_bytes: int = 0
    rebuilt: int = 0
    rebuilt_bytes: int = 0
    widened: int = 0
    stuck: int = 0
    stuck_reason: str = ""


@dataclass(slots=True)
class _Survey:
    """Counts of one look at all stripes."""

    needs: dict[Need, int] = field(default_factory=lambda: dict.fromkeys(Need, 0))
    work_bytes: int = 0
    held: dict[int, int] = field(default_factory=dict)  # disk given up -> chunks of stripes on it


class Repair:
    """See the module."""

    def __init__(
        self,
        machine: Machine,
        members: Members,
        master: MasterService,
        links: NodeLinks,
        *,
        after_s: float,
        rate_bytes: int,
        random: Random,
        round_ended: Callable[[], None],
    ) -> None:
        self._machine = machine
        self._members = members
        self._master = master
        self._copier = StripeCopier(links, machine.cluster_id)
        self._after_s = after_s
        self._rate_bytes = rate_bytes
        self._random = random
        self._session = 0
        self._damaged: dict[int, set[int]] = {}  # stripe id -> chunk indexes
        self._changed = trio.Event()
        self._changed_s = trio.current_time()
        self._next_start_s = 0.0
        self._failed = 0  # stripes of this round
        self._failure = ""  # why, the last of them
        self._deposed: NotMasterError | None = None
        self.progress = Progress()
        self.empty_disks: tuple[int, ...] = ()
        self._round_ended = round_ended
        members.listen(self._note_change)

    def _note_change(self) -> None:
        self._changed_s = trio.current_time()
        self._changed.set()

    def note_damaged(self, disk: int, key: ChunkKey) -> None:
        """A chunk was found missing or damaged; ignored unless a file needs it."""
        known = self._damaged.get(key.stripe_id, set())
        if key.index in known or (not known and len(self._damaged) >= DAMAGED_MAX):
            return
        stripe = self._machine.stripe_by_id(key.file, key.stripe_id)
        if stripe is None or stripe.disks[key.index : key.index + 1] != (disk,):
            return
        self._damaged.setdefault(key.stripe_id, known).add(key.index)
        log.warning("chunk %d of stripe %d on disk %d is to be rebuilt", key.index, key.stripe_id, disk)
        self._changed.set()

    @staticmethod
    def close_old_sessions(machine: Machine) -> None:
        """At the master's start: what repair had under way before is garbage."""
        for session in machine.sessions():
            if session.label == SESSION_LABEL:
                machine.close_session(session.session_id)

    def status(self) -> cluster_pb2.RepairStatus:
        """For GetStatus."""
        now = self.progress
        return cluster_pb2.RepairStatus(
            waiting_stripes=now.waiting,
            waiting_bytes=now.waiting_bytes,
            rebuilt_stripes=now.rebuilt,
            rebuilt_bytes=now.rebuilt_bytes,
            widened_stripes=now.widened,
            stuck_stripes=now.stuck,
            stuck_reason=now.stuck_reason,
            pending_disks=len(self._members.offline()) - len(self._members.offline(self._after_s)),
            empty_disks=self.empty_disks,
        )

    async def run(self) -> None:
        """Repair until cancelled, or until this node is the master no more."""
        try:
            await self._run()
        except NotMasterError as error:
            log.info("repair ends: %s", error.message)

    async def _run(self) -> None:
        self._session = self._machine.open_session(SESSION_LABEL)
        retry_s = RETRY_MIN_S
        await self._master.wait_kept_entries()
        while True:
            self._changed = trio.Event()
            self._failed, self._failure = 0, ""
            began_s = trio.current_time()
            try:
                left = await self._round()
            except NotMasterError:
                raise
            except WormError as error:
                log.warning("repair pauses: %s", error.message)
                left = True
            self._round_ended()
            retry_s = min(2 * retry_s, RETRY_MAX_S) if left else RETRY_MIN_S
            pause_s = min(self._next_look_s(began_s), retry_s if left else float("inf"))
            if self._members.offline():
                pause_s = min(pause_s, AGAIN_S)  # a write under way when it went may have come to its end
            with trio.move_on_after(pause_s):
                await self._changed.wait()
                retry_s = RETRY_MIN_S

    def _settle_s(self) -> float:
        return min(SETTLE_S, self._after_s)

    def _next_look_s(self, began_s: float) -> float:
        """When time alone makes new work: a disk is given up, or the disks have settled.

        At once, when that came since `began_s`: the round may have looked before.
        """
        now_s = trio.current_time()
        times = [since_s + self._after_s for since_s in self._members.offline().values()] + [
            self._changed_s + self._settle_s()
        ]
        return min((max(0.0, each - now_s) + 0.05 for each in times if each > began_s), default=float("inf"))

    def _situation(self) -> Situation:
        offline = frozenset(self._members.offline())
        return Situation(
            self._machine.policy,
            offline,
            frozenset(self._members.offline(self._after_s)),
            sum(view.online for view in self._members.views()),
            widen=trio.current_time() >= self._changed_s + self._settle_s(),
            registered=frozenset(info.number for info in self._machine.disks()),
        )

    # Rounds

    async def _round(self) -> bool:
        """Survey, then work; whether something that could be done is left."""
        survey = await self._survey()
        self._report(survey)
        worked = False
        for need in URGENCY:
            if survey.needs[need]:
                worked = True
                await self._pass(need)
        if worked:
            survey = await self._survey()
            self._report(survey)
            log.info(
                "repair: %d stripes rebuilt and %d widened so far, %d left, %d cannot be repaired now",
                self.progress.rebuilt,
                self.progress.widened,
                self.progress.waiting,
                self.progress.stuck,
            )
        return any(survey.needs[need] for need in URGENCY)

    async def _survey(self) -> _Survey:
        situation = self._situation()
        survey = _Survey(held=dict.fromkeys(situation.gone, 0))
        unseen = set(self._damaged)  # what is reported from here on may be of a stripe already passed
        after = None
        while True:
            page = self._machine.stripes_page(after, PAGE)
            for _, stripe in page.stripes:
                damaged = self._damaged.get(stripe.stripe_id, ())
                unseen.discard(stripe.stripe_id)
                need = need_of(stripe, situation, damaged)
                survey.needs[need] += 1
                if need in URGENCY:
                    survey.work_bytes += stripe.length_bytes
                if survey.held:
                    for disk in stripe.disks:
                        if disk in survey.held:
                            survey.held[disk] += 1
            after = page.next
            if after is None:
                break
            await trio.lowlevel.checkpoint()
        for stripe_id in unseen:
            self._damaged.pop(stripe_id, None)  # it is no file's any more
        return survey

    def _report(self, survey: _Survey) -> None:
        now = self.progress
        now.waiting = sum(survey.needs[need] for need in URGENCY)
        now.waiting_bytes = survey.work_bytes
        now.stuck = survey.needs[Need.CHUNKS] + survey.needs[Need.DISKS] + self._failed
        now.stuck_reason = ""
        if survey.needs[Need.CHUNKS]:
            now.stuck_reason = "fewer than k of their chunks are on disks that are online"
        elif survey.needs[Need.DISKS]:
            now.stuck_reason = "too few disks are online to write to"
        elif self._failed:
            now.stuck_reason = self._failure
        self.empty_disks = tuple(sorted(disk for disk, count in survey.held.items() if not count))

    async def _pass(self, need: Need) -> None:
        """Work at every stripe that needs just this; what fails waits for the next round.

        Raises NotMasterError.
        """
        slots = trio.Semaphore(AT_ONCE)
        after = None
        async with trio.open_nursery() as nursery:
            while True:
                situation = self._situation()
                page = self._machine.stripes_page(after, PAGE)
                for each in page.stripes:
                    damaged = self._damaged.get(each.stripe.stripe_id, ())
                    if need_of(each.stripe, situation, damaged) == need:
                        await slots.acquire()
                        nursery.start_soon(self._work, each, need, slots, nursery.cancel_scope)
                after = page.next
                if after is None:
                    break
                await trio.lowlevel.checkpoint()
        if self._deposed is not None:  # raised out here: a nursery would wrap it in a group
            raise self._deposed

    async def _work(
        self, each: FileStripe, need: Need, slots: trio.Semaphore, whole_pass: trio.CancelScope
    ) -> None:
        stripe = each.stripe
        try:
            await self._keep_rate(stripe.length_bytes)
            done = await self._rewrite(each, need)
        except NotMasterError as error:
            self._deposed = error
            whole_pass.cancel()
            return
        except WormError as error:
            if self._is_there(each):
                self._failed += 1
                self._failure = error.message
                level = logging.WARNING if self._failed <= LOGGED_FAILURES else logging.DEBUG
                log.log(level, "not repaired: %s", error.message)
                return
            done = False
        finally:
            slots.release()
        now = self.progress
        now.waiting = max(0, now.waiting - 1)
        now.waiting_bytes = max(0, now.waiting_bytes - stripe.length_bytes)
        self._damaged.pop(stripe.stripe_id, None)
        if not done:
            return  # the file changed meanwhile, or went: whoever wrote it wrote it whole
        if need is Need.WIDEN:
            now.widened += 1
        else:
            now.rebuilt += 1
            now.rebuilt_bytes += stripe.length_bytes

    def _is_there(self, each: FileStripe) -> bool:
        """Whether the file has the stripe still; so for all one knows, while there is no state."""
        try:
            return self._machine.stripe_by_id(each.inode, each.stripe.stripe_id) is not None
        except WormError:
            return True

    async def _keep_rate(self, length_bytes: int) -> None:
        if self._rate_bytes:
            start_s = max(self._next_start_s, trio.current_time())
            self._next_start_s = start_s + length_bytes / self._rate_bytes
            await trio.sleep_until(start_s)

    async def _rewrite(self, each: FileStripe, need: Need) -> bool:
        inode, stripe = each
        self._place(stripe, need, ())  # before anything is read for nothing
        situation = self._situation()
        damaged = frozenset(self._damaged.get(stripe.stripe_id, ()))
        data = await self._copier.read(inode, stripe, situation.offline, damaged)
        query = filesystem_pb2.GetAttrRequest(inode=inode)
        stripe_size_bytes = self._machine.execute(query).reply.attributes.stripe_size_bytes  # type: ignore[attr-defined]
        suspects: set[int] = set()
        while True:
            new = self._allocate(each, need, suspects)
            try:
                await self._machine.confirm()
                await self._copier.write(inode, stripe, new, data, stripe_size_bytes)
                return await self._master.replace_stripe(
                    metadata_pb2.ReplaceStripeRequest(
                        inode=inode,
                        holder=self._session,
                        index=stripe.index,
                        old_stripe_id=stripe.stripe_id,
                        new_stripe_id=new.stripe_id,
                    )
                )
            except PutFailedError as error:
                if suspects.issuperset(error.disks) or len(suspects) > len(stripe.disks):
                    raise
                suspects.update(error.disks)
            finally:
                self._machine.abandon(self._session, [new.stripe_id])  # nothing, once it is committed

    def _place(self, stripe: Stripe, need: Need, suspects: Collection[int]) -> Placement:
        """NoSpaceError when a stripe to be widened would stay as narrow: that would never end."""
        wanted = target_policy(stripe, self._machine.policy)
        (placement,) = place_stripes(self._members.views(suspects), wanted, 1, self._random)
        if need is Need.WIDEN and placement.k <= stripe.k:
            raise NoSpaceError(
                f"stripe {stripe.stripe_id} stays {stripe.k}+{stripe.m}: too few disks have room for more"
            )
        return placement

    def _allocate(self, each: FileStripe, need: Need, suspects: Collection[int]) -> types_pb2.Stripe:
        inode, stripe = each
        placement = self._place(stripe, need, suspects)
        codec = int(self._machine.policy.codec) or int(available_codecs()[0])
        request = metadata_pb2.AllocateStripesRequest(inode=inode, count=1)
        request.caller.session_id = self._session
        chosen = types_pb2.Stripe(
            codec=types_pb2.Codec.Name(types_pb2.Codec.ValueType(codec)),
            k=placement.k,
            m=placement.m,
            disks=placement.disks,
        )
        reply = self._machine.allocate(request, [chosen]).reply
        made: types_pb2.Stripe = reply.stripes[0]  # type: ignore[attr-defined]
        return made
