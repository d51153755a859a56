"""Sessions, leases and recalls, as a pure state machine: time comes in, recalls to push come out.

What is kept, and only here (never in the log; sessions themselves persist):

- a *session* loses its leases `lease_s` after its last renewal, or when it leaves a recall unanswered
  for `recall_limit_s`: it has *lapsed* then, and may come back for `keep_s` more, to the files it has
  open and to the answers it waits for, without leases;
- *read leases*: the inodes whose attributes, entries or content a session may serve from a cache;
  they lapse by themselves (read_leases.py), so memory is bounded by what was told in a lease's time;
- *write leases*: at most one session per inode may buffer changes of it;
- *open counts* per session and inode: an orphan is freed only when nobody holds it open;
- *recalls* pushed and not yet answered.

Invariant: while a session holds the write lease of an inode, every other session that was told
anything of that inode has an unanswered recall of it, or nothing. `grant_write` refuses otherwise.

After a restart of the master no operation is served until every *other* session known before has
resumed and what it had cached has run out, or its lease has (`must_wait`): until then it may serve
from its cache what the master no longer knows of. It has resumed once it is *heard* of again: what
asked for the resume may be a message that its client gave up long ago, and what the client says now
comes later.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from wormfs.core.read_leases import ReadLeases


def first_recall_of(epoch: int) -> int:
    """The first recall id of a mastership: those before may still be answered, to the master of now.

    Ids have 64 bits. A restore puts epochs 2^32 higher, and ends all sessions: none remembers lower ones.
    """
    return ((epoch & 0xFFFF_FFFF) << 32) + 1


@dataclass(frozen=True, slots=True)
class Recall:
    """One unanswered recall. `cause` is the (session, operation) that waits, (0, 0) for none.

    `changed`: all inodes of the change that it is about; `inode` is one of them.
    """

    recall_id: int
    session: int
    inode: int
    names: tuple[bytes, ...] = ()
    attributes: bool = False
    data: bool = False
    write_lease: bool = False
    cause: tuple[int, int] = (0, 0)
    limit_s: float = 0.0  # the time at which the session is fenced
    changed: tuple[int, ...] = ()


@dataclass(slots=True, eq=False)
class Session:
    """What one session holds. Times are in seconds of the caller's monotonic clock."""

    number: int
    expires_s: float
    resumed: bool  # false: known from before a restart, and not heard of since it resumed
    reads: ReadLeases = field(default_factory=ReadLeases)
    writes: set[int] = field(default_factory=set)
    opens: dict[int, int] = field(default_factory=dict)
    recalls: dict[int, Recall] = field(default_factory=dict)
    lapsed_s: float = math.inf  # when its leases were lost; inf while it has them


class LeaseTable:
    """All sessions of one mastership.

    Its containers may be read by the caller; only methods change them.
    """

    def __init__(
        self, *, lease_s: float, recall_limit_s: float, keep_s: float = 60.0, first_recall: int = 1
    ) -> None:
        """`first_recall`: above all of masterships before, whose answers may still be on their way."""
        self.lease_s = lease_s
        self.recall_limit_s = recall_limit_s
        self.keep_s = keep_s
        self.sessions: dict[int, Session] = {}
        self.writers: dict[int, int] = {}  # inode -> session
        self.recalls: dict[int, Recall] = {}
        self.recalls_of: dict[int, set[int]] = {}  # inode -> unanswered recall ids
        self._untold: dict[int, set[int]] = {}  # inode -> unanswered recalls of changes that touched it
        self.lapsed: set[int] = set()  # sessions that must resume before they are served
        self._grace: dict[int, float] = {}  # session known before a restart -> its caches end
        self._unheard: dict[int, float] = {}  # resumed, and no word since -> its caches will end
        self._next_recall = first_recall

    # Sessions

    def restore(self, sessions: Iterable[int], now_s: float) -> None:
        """Take over the sessions known to the state after a restart; starts the grace."""
        for number in sessions:
            self.sessions[number] = Session(number, now_s + self.lease_s, resumed=False)
            self._grace[number] = math.inf  # until it resumes

    @property
    def in_grace(self) -> bool:
        """Whether a session from before a restart may still serve from its cache."""
        return bool(self._grace)

    def must_wait(self, number: int) -> bool:
        """Whether the session's requests wait for the grace: its own caches are no harm to it."""
        return any(key != number or end_s == math.inf for key, end_s in self._grace.items())

    def settle(self, now_s: float) -> bool:
        """Forget about caches that have run out; True when the grace changed."""
        over = [number for number, end_s in self._grace.items() if end_s <= now_s]
        for number in over:
            del self._grace[number]
        return bool(over)

    def open_session(self, number: int, now_s: float) -> Session:
        """A new session."""
        session = self.sessions[number] = Session(number, now_s + self.lease_s, resumed=True)
        return session

    def resume(
        self,
        number: int,
        now_s: float,
        *,
        opens: Iterable[int],
        writes: Iterable[int],
        cached_s: float = 0.0,
    ) -> tuple[int, ...] | None:
        """A session comes back on a new connection: the write leases it has now, or None if unknown.

        Write leases it does not claim are given back. Its unanswered recalls stay: pushes may have
        been lost with the old connection, so the caller pushes them again. Before a restart's grace
        ends, what the session reclaims is granted, the first claim of a write lease winning; what
        it cached before is unknown here, so a client drops its caches when it reconnects; `cached_s`
        is how long its kernel may still keep what cannot be dropped. The grace goes on until `heard`.
        """
        session = self.sessions.get(number)
        if session is None:
            return None
        session.expires_s = now_s + self.lease_s
        # Others may have changed since what a lapsed session held: it claims nothing.
        lapsed = number in self.lapsed
        claimed = set() if lapsed else set(writes)
        if lapsed:
            self.lapsed.discard(number)
            session.lapsed_s = math.inf
        for inode in session.writes - claimed:
            self._drop_write(session, inode)
        for recall in list(session.recalls.values()):
            if recall.write_lease and recall.inode not in session.writes:
                self._drop_recall(recall)
        if not session.resumed:
            # One that lapsed has no caches left, and nobody waited for them.
            self._unheard[number] = now_s if lapsed else now_s + min(cached_s, self.lease_s)
            for inode in claimed:
                if self.writers.setdefault(inode, number) == number:
                    session.writes.add(inode)
        # The client knows best what it holds open: closes may have been lost with the connection.
        before = list(session.opens)
        session.opens.clear()
        for inode in opens:
            self.opened(number, inode)
        for inode in before:
            if inode not in session.opens:
                session.reads.closed(inode)
        return tuple(sorted(session.writes))

    def heard(self, number: int, now_s: float) -> bool:
        """It knows that it resumed, since it says more on that connection; True when the grace changed."""
        end_s = self._unheard.pop(number, None)
        if end_s is None:
            return False
        self.sessions[number].resumed = True
        self._grace[number] = end_s
        self.settle(now_s)
        return True

    def renew(self, number: int, now_s: float, forgotten: Iterable[int] = ()) -> bool:
        """Prolong a session and take back what it forgot; False: unknown, or not resumed yet.

        Read leases are left to lapse: it may have been told of the inode again since it forgot it.
        """
        session = self.sessions.get(number)
        if session is None or not session.resumed or number in self.lapsed:
            return False
        session.expires_s = now_s + self.lease_s
        for inode in forgotten:
            if inode not in session.opens:
                self._drop_write(session, inode)
        return True

    def end_session(self, number: int) -> tuple[Recall, ...]:
        """Forget a session and all it holds; answers its recalls, which are over now."""
        session = self.sessions.pop(number, None)
        self._end_grace(number)
        self.lapsed.discard(number)
        return self._end_leases(session) if session is not None else ()

    def lapse(self, number: int, now_s: float) -> tuple[Recall, ...]:
        """A session loses its leases and keeps what it has open; answers its recalls, which are over."""
        session = self.sessions[number]
        self._end_grace(number)
        self.lapsed.add(number)
        session.lapsed_s = now_s
        return self._end_leases(session)

    def _end_grace(self, number: int) -> None:
        self._grace.pop(number, None)
        self._unheard.pop(number, None)

    def _end_leases(self, session: Session) -> tuple[Recall, ...]:
        over = tuple(session.recalls.values())
        for recall in over:
            self._drop_recall(recall)
        for inode in session.writes:
            del self.writers[inode]
        session.writes = set()
        session.reads = ReadLeases()
        return over

    def expired(self, now_s: float) -> list[int]:
        """Sessions whose lease has run out or that left a recall unanswered too long: they lapse now."""
        return [
            session.number
            for session in self.sessions.values()
            if session.number not in self.lapsed
            and (
                session.expires_s <= now_s
                or any(recall.limit_s <= now_s for recall in session.recalls.values())
            )
        ]

    def given_up(self, now_s: float) -> list[int]:
        """Sessions that lapsed and did not come back: they end now."""
        return [number for number in self.lapsed if self.sessions[number].lapsed_s + self.keep_s <= now_s]

    def prolong(self, pause_s: float) -> None:
        """The master itself stood still: nobody could renew, so nobody's time ran."""
        for session in self.sessions.values():
            session.expires_s += pause_s
            session.lapsed_s += pause_s
            for key, recall in session.recalls.items():
                later = replace(recall, limit_s=recall.limit_s + pause_s)
                session.recalls[key] = self.recalls[key] = later

    def age(self, now_s: float) -> None:
        """Drop read leases that have lapsed; to be called several times in a lease's length."""
        for session in self.sessions.values():
            session.reads.age(now_s, self.lease_s)

    # Opens

    def opened(self, number: int, inode: int) -> None:
        """Count one more open of `inode` by the session."""
        session = self.sessions[number]
        session.opens[inode] = session.opens.get(inode, 0) + 1
        session.reads.opened(inode)

    def closed(self, number: int, inodes: Iterable[int]) -> None:
        """Count opens that ended, one for each occurrence in `inodes`.

        The last one ends the write lease too: nothing is buffered of a closed file.
        """
        session = self.sessions.get(number)
        if session is None:
            return
        for inode in inodes:
            count = session.opens.get(inode, 0)
            if count > 1:
                session.opens[inode] = count - 1
            elif count:
                del session.opens[inode]
                session.reads.closed(inode)
                self._drop_write(session, inode)

    def is_open(self, inode: int) -> bool:
        """Whether any session holds the inode open."""
        return any(inode in session.opens for session in self.sessions.values())

    # Read and write leases

    def read(self, number: int, inodes: Iterable[int]) -> None:
        """The session is about to be told of these inodes: it holds their read leases."""
        session = self.sessions[number]
        session.reads.grant(inodes, session.opens)

    def read_again(self, number: int, inodes: Iterable[int]) -> None:
        """What it was about to be told leaves only now: the leases it still holds begin anew."""
        session = self.sessions.get(number)
        if session is not None:
            session.reads.grant([inode for inode in inodes if inode in session.reads], session.opens)

    def foreign_writer(self, number: int, inode: int) -> int:
        """Another session that holds the write lease of `inode`; 0 for none."""
        writer = self.writers.get(inode, 0)
        return 0 if writer == number else writer

    def has_foreign_writers(self, number: int) -> bool:
        """Whether any other session holds any write lease: False is the fast way out."""
        session = self.sessions.get(number)
        return len(self.writers) != (len(session.writes) if session is not None else 0)

    def other_readers(self, number: int, inode: int) -> list[int]:
        """Other sessions that hold the read lease of `inode`."""
        if number in self.sessions and len(self.sessions) < 2:
            return []
        return [key for key, other in self.sessions.items() if key != number and inode in other.reads]

    def can_grant_write(self, number: int, inode: int) -> bool:
        """Whether nobody else holds any lease of `inode` or owes an answer to a recall of it."""
        if self.foreign_writer(number, inode) or self.other_readers(number, inode):
            return False
        owed = self.recalls_of.get(inode)
        return not owed or all(self.recalls[key].session == number for key in owed)

    def grant_write(self, number: int, inode: int) -> bool:
        """Give the session the write lease if `can_grant_write`; True when it holds it now."""
        if not self.can_grant_write(number, inode):
            return False
        self.writers[inode] = number
        self.sessions[number].writes.add(inode)
        return True

    # Recalls

    def recall_writer(
        self, inode: int, now_s: float, cause: tuple[int, int], *, whole: bool = False
    ) -> Recall | None:
        """Recall the write lease of `inode`; None when one is underway already (or nobody has it).

        Its holder stays a reader, unless `whole`: then it drops what it caches as well.
        """
        holder = self.writers.get(inode)
        if holder is None:
            return None
        for key in self.recalls_of.get(inode, ()):
            if self.recalls[key].write_lease and self.recalls[key].session == holder:
                return None
        return self._recall(holder, inode, now_s, cause, attributes=whole, data=whole, write_lease=True)

    def recall_readers(
        self,
        number: int,
        inode: int,
        now_s: float,
        *,
        operation: int = 0,
        names: tuple[bytes, ...] = (),
        attributes: bool = False,
        data: bool = False,
        changed: tuple[int, ...] = (),
    ) -> list[Recall]:
        """Recalls to push to the other readers of `inode` after `number` changed it, with all `changed`.

        A recall of everything (attributes and data) ends the read lease as it is pushed: what the
        session is told later counts anew. After any other the session keeps it until it lapses: its
        kernel may still cache other names of the directory, or the file's pages.
        """
        recalls = []
        for reader in self.other_readers(number, inode):
            if attributes and data:
                self.sessions[reader].reads.end(inode)
            recalls.append(
                self._recall(
                    reader,
                    inode,
                    now_s,
                    (number, operation),
                    names=names,
                    attributes=attributes,
                    data=data,
                    changed=changed,
                )
            )
        return recalls

    def answered(self, number: int, recall_id: int) -> Recall | None:
        """The session answered a recall; None when it had none such (a repeated answer)."""
        recall = self.recalls.get(recall_id)
        if recall is None or recall.session != number:
            return None
        self._drop_recall(recall)
        if recall.write_lease:
            session = self.sessions[number]
            self._drop_write(session, recall.inode)
            if recall.data:
                session.reads.end(recall.inode)
            else:
                session.reads.grant((recall.inode,), session.opens)  # clean now, but still cached there
        return recall

    def is_recalled(self, number: int, inode: int, *, write_lease: bool = False) -> bool:
        """Whether the session owes an answer to a recall of `inode`, or to one of its write lease."""
        return any(
            self.recalls[key].session == number and (self.recalls[key].write_lease or not write_lease)
            for key in self.recalls_of.get(inode, ())
        )

    def owed_to(self, number: int, inodes: Iterable[int]) -> set[int]:
        """Unanswered recalls of `inodes` by sessions other than `number`."""
        return self._of_others(number, self.recalls_of, inodes)

    def _of_others(self, number: int, recalls: dict[int, set[int]], inodes: Iterable[int]) -> set[int]:
        found: set[int] = set().union(*(recalls.get(inode, ()) for inode in inodes))
        return {key for key in found if self.recalls[key].session != number}

    def untold_to(self, number: int, inodes: Iterable[int]) -> set[int]:
        """Recalls by others to wait for before `number` is told of these inodes.

        A change is told to nobody while a cache denies any part of it: who was told may tell another,
        who then looks into that cache.
        """
        inodes = tuple(inodes)
        return self.owed_to(number, inodes) | self._of_others(number, self._untold, inodes)

    def owed_for(self, cause: tuple[int, int]) -> set[int]:
        """Unanswered recalls that this (session, operation) caused: a retry waits for them."""
        return {key for key, recall in self.recalls.items() if recall.cause == cause}

    def _recall(
        self,
        session: int,
        inode: int,
        now_s: float,
        cause: tuple[int, int],
        *,
        names: tuple[bytes, ...] = (),
        attributes: bool = False,
        data: bool = False,
        write_lease: bool = False,
        changed: tuple[int, ...] = (),
    ) -> Recall:
        recall = Recall(
            self._next_recall,
            session,
            inode,
            names,
            attributes,
            data,
            write_lease,
            cause,
            now_s + self.recall_limit_s,
            changed,
        )
        self._next_recall += 1
        self.recalls[recall.recall_id] = recall
        self.recalls_of.setdefault(inode, set()).add(recall.recall_id)
        for each in changed:
            self._untold.setdefault(each, set()).add(recall.recall_id)
        self.sessions[session].recalls[recall.recall_id] = recall
        return recall

    def _drop_recall(self, recall: Recall) -> None:
        del self.recalls[recall.recall_id]
        _forget(self.recalls_of, recall.inode, recall.recall_id)
        for inode in recall.changed:
            _forget(self._untold, inode, recall.recall_id)
        session = self.sessions.get(recall.session)
        if session is not None:
            session.recalls.pop(recall.recall_id, None)

    def _drop_write(self, session: Session, inode: int) -> None:
        """End a write lease; what the session caches of the inode stays."""
        if inode in session.writes:
            session.writes.discard(inode)
            del self.writers[inode]
            session.reads.grant((inode,), session.opens)


def _forget(recalls: dict[int, set[int]], inode: int, recall_id: int) -> None:
    owed = recalls[inode]
    owed.discard(recall_id)
    if not owed:
        del recalls[inode]
