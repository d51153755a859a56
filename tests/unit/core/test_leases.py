"""The lease table: examples, and a random machine with a model of what clients cache."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from wormfs.core.leases import LeaseTable, first_recall_of
from wormfs.rpc.v1 import metadata_pb2

LEASE_S = 6.0


def table_of(*sessions: int) -> LeaseTable:
    table = LeaseTable(lease_s=LEASE_S, recall_limit_s=20.0)
    for number in sessions:
        table.open_session(number, 0.0)
    return table


def test_a_session_ends_a_lease_after_its_last_renewal() -> None:
    table = table_of(1, 2)
    assert table.renew(1, 3.0)
    assert table.expired(5.9) == []
    assert table.expired(6.0) == [2]
    table.end_session(2)
    assert not table.renew(2, 6.1)
    assert table.expired(9.0) == [1]


def test_a_lapsed_session_keeps_its_open_files_and_claims_nothing() -> None:
    table = table_of(1, 2)
    table.read(1, [7])
    table.opened(1, 7)
    assert table.grant_write(1, 7)
    assert table.expired(6.0) == [1, 2]
    table.lapse(1, 6.0)
    assert table.expired(6.0) == [2]
    assert not table.renew(1, 6.1)
    assert table.is_open(7)
    assert table.can_grant_write(2, 7)
    assert table.given_up(65.9) == []
    assert table.resume(1, 60.0, opens=[7], writes=[7]) == ()
    assert table.given_up(70.0) == []
    assert table.renew(1, 61.0)
    table.lapse(1, 70.0)
    assert table.given_up(130.0) == [1]
    table.end_session(1)
    assert not table.is_open(7)
    assert table.lapsed == set()


def test_a_write_lease_is_granted_only_after_readers_answered() -> None:
    table = table_of(1, 2)
    table.read(2, [10])
    assert not table.grant_write(1, 10)
    (recall,) = table.recall_readers(1, 10, 0.0, attributes=True, data=True)
    assert not table.grant_write(1, 10)
    assert table.answered(1, recall.recall_id) is None  # not its recall
    assert table.answered(2, recall.recall_id) == recall
    assert table.answered(2, recall.recall_id) is None  # a repeated answer
    assert table.grant_write(1, 10)
    assert table.foreign_writer(2, 10) == 1
    assert table.has_foreign_writers(2)
    assert not table.has_foreign_writers(1)


def test_a_write_lease_is_recalled_once_and_leaves_a_reader() -> None:
    table = table_of(1, 2, 3)
    assert table.grant_write(1, 10)
    recall = table.recall_writer(10, 0.0, (2, 5))
    assert recall is not None
    assert table.recall_writer(10, 0.0, (3, 1)) is None
    assert table.owed_to(2, [10]) == {recall.recall_id} == table.owed_for((2, 5))
    assert table.owed_to(1, [10]) == set()
    assert table.is_recalled(1, 10)
    assert not table.is_recalled(2, 10)
    table.answered(1, recall.recall_id)
    assert table.writers == {}
    assert table.other_readers(2, 10) == [1]


def test_an_unanswered_recall_ends_the_session() -> None:
    table = table_of(1, 2)
    table.grant_write(1, 10)
    recall = table.recall_writer(10, 1.0, (2, 1))
    table.renew(1, 20.0)
    table.renew(2, 20.0)
    assert table.expired(20.9) == []
    assert table.expired(21.0) == [1]
    assert table.end_session(1) == (recall,)
    assert (table.recalls, table.recalls_of, table.writers) == ({}, {}, {})


def test_only_a_recall_of_everything_ends_a_read_lease() -> None:
    table = table_of(1, 2)
    table.read(2, [10])
    for name in (b"a", b"b"):
        (recall,) = table.recall_readers(1, 10, 0.0, names=(name,), attributes=True)
        assert (recall.names, recall.attributes, recall.data) == ((name,), True, False)
    (recall,) = table.recall_readers(1, 10, 0.0, attributes=True, data=True)
    assert table.recall_readers(1, 10, 0.0, attributes=True) == []
    assert len(table.owed_to(1, [10])) == 3  # yet nothing is answered
    table.read(2, [10])
    assert len(table.recall_readers(1, 10, 0.0, attributes=True)) == 1


def test_no_session_ends_because_the_master_stood_still() -> None:
    table = table_of(1)
    table.prolong(10.0)
    assert table.expired(15.9) == []
    assert table.expired(16.0) == [1]


def test_no_recall_is_overdue_because_the_master_stood_still() -> None:
    table = table_of(1, 2)
    assert table.grant_write(1, 17)
    recall = table.recall_writer(17, 0.0, (2, 1))
    assert recall is not None
    for session in (1, 2):
        table.renew(session, 19.0)
    table.prolong(25.0)
    assert table.expired(44.9) == []
    for session in (1, 2):
        table.renew(session, 44.9)
    assert table.expired(45.0) == [1]
    assert table.answered(1, recall.recall_id) is not None


@pytest.mark.parametrize("read_late", ["in the grace", "behind the lapse"])
def test_what_was_resumed_by_one_that_was_not_heard_tells_nothing(read_late: str) -> None:
    """Its files may be open: it may come back, and say so, until it is given up."""
    table = LeaseTable(lease_s=LEASE_S, recall_limit_s=20.0)
    table.restore([1], 0.0)
    if read_late == "in the grace":
        table.resume(1, 1.0, opens=[], writes=[])
        table.lapse(1, 8.0)
    else:
        table.lapse(1, 6.0)
        table.resume(1, 7.0, opens=[], writes=[])
        assert not table.in_grace
    assert not table.sessions[1].resumed
    assert table.resume(1, 9.0, opens=[17], writes=[]) == ()
    assert table.heard(1, 9.0)
    assert table.sessions[1].resumed
    assert not table.in_grace
    assert table.is_open(17)


def test_grace_lasts_until_every_known_session_resumed_or_expired() -> None:
    table = LeaseTable(lease_s=LEASE_S, recall_limit_s=20.0)
    table.restore([1, 2, 3], 100.0)
    assert table.in_grace
    assert not table.renew(2, 101.0)  # it must resume first
    assert table.resume(1, 101.0, opens=[7, 7], writes=[8]) == (8,)
    assert table.resume(2, 101.0, opens=[], writes=[8, 9]) == (9,)  # the first claim of 8 won
    assert table.heard(1, 101.0)
    assert not table.heard(1, 101.0)
    assert table.expired(106.0) == [3]
    assert table.must_wait(1)
    table.end_session(3)
    assert table.must_wait(1)  # what 2 resumed by may have been given up long ago
    assert table.heard(2, 106.0)
    assert not table.in_grace
    assert table.resume(3, 107.0, opens=[], writes=[]) is None
    assert table.is_open(7)
    table.closed(1, [7])
    assert table.is_open(7)
    table.closed(1, [7, 7])
    assert not table.is_open(7)


def test_grace_waits_for_what_other_sessions_kernels_still_cache() -> None:
    table = LeaseTable(lease_s=LEASE_S, recall_limit_s=20.0)
    table.restore([1, 2], 100.0)
    table.resume(1, 101.0, opens=[], writes=[], cached_s=3.0)
    table.heard(1, 102.0)
    assert table.must_wait(1)  # 2 has not resumed
    table.resume(2, 101.0, opens=[], writes=[])
    table.heard(2, 101.0)
    assert not table.must_wait(1)  # its own caches are no harm to it
    assert table.must_wait(2)
    assert table.must_wait(0)
    assert not table.settle(103.9)
    assert table.settle(104.0)
    assert not table.must_wait(2)
    assert not table.in_grace


def test_a_session_that_is_not_heard_of_may_resume_again_as_if_it_had_not() -> None:
    """What it resumed by was given up: only what it claims in the end is true."""
    table = LeaseTable(lease_s=LEASE_S, recall_limit_s=20.0)
    table.restore([1], 100.0)
    assert table.resume(1, 101.0, opens=[7], writes=[7], cached_s=3.0) == (7,)
    assert table.resume(1, 102.0, opens=[8], writes=[8], cached_s=1.0) == (8,)
    assert not table.settle(105.9)
    assert table.heard(1, 102.5)
    assert not table.settle(102.9)
    assert table.settle(103.0)
    assert (table.is_open(7), table.is_open(8)) == (False, True)
    assert table.resume(1, 104.0, opens=[8], writes=[8, 9]) == (8,)  # that it wants 9 is no claim any more


@pytest.mark.parametrize("end", ["lapse", "end_session"])
def test_a_session_that_is_gone_is_not_waited_for(end: str) -> None:
    table = LeaseTable(lease_s=LEASE_S, recall_limit_s=20.0)
    table.restore([1], 100.0)
    table.resume(1, 101.0, opens=[], writes=[], cached_s=3.0)
    if end == "lapse":
        table.lapse(1, 107.0)
    else:
        table.end_session(1)
    assert not table.in_grace
    assert not table.heard(1, 107.0)


def test_resuming_keeps_leases_claimed_and_unanswered_recalls() -> None:
    table = table_of(1, 2)
    table.read(1, [5, 6])
    table.grant_write(1, 10)
    table.grant_write(1, 11)
    lost = table.recall_readers(2, 5, 0.0, attributes=True)
    kept = table.recall_writer(10, 0.0, (2, 1))
    over = table.recall_writer(11, 0.0, (2, 1))
    assert over is not None
    assert table.resume(1, 1.0, opens=[10], writes=[10]) == (10,)
    assert list(table.recalls.values()) == [*lost, kept]
    assert 5 in table.sessions[1].reads
    assert 6 in table.sessions[1].reads
    assert table.writers == {10: 1}


def test_forgetting_gives_back_write_leases_of_inodes_not_open() -> None:
    table = table_of(1, 2)
    table.read(1, [5])
    table.grant_write(1, 10)
    table.grant_write(1, 11)
    table.opened(1, 11)
    table.renew(1, 1.0, [5, 10, 11])
    assert table.other_readers(2, 5) == [1]  # it may have been told of it again: that lapses by itself
    assert table.other_readers(2, 10) == [1]
    assert table.writers == {11: 1}


def aged(table: LeaseTable, start_s: float, end_s: float) -> None:
    """The master's ticks."""
    for step in range(int((end_s - start_s) / 0.25) + 1):
        table.age(start_s + step * 0.25)


def test_a_read_lease_lapses_a_lease_after_its_last_grant() -> None:
    table = table_of(1, 2)
    table.read(1, range(1000))
    aged(table, 0.0, 4.0)
    table.read(1, [7])
    aged(table, 4.0, 5.75)
    assert table.other_readers(2, 8) == [1]
    aged(table, 6.0, 8.0)
    assert table.other_readers(2, 8) == []
    assert table.recall_readers(2, 8, 8.0, attributes=True) == []
    assert table.other_readers(2, 7) == [1]
    aged(table, 8.0, 12.5)
    assert len(table.sessions[1].reads) == 0  # memory is given back


def test_the_read_lease_of_an_open_inode_ages_from_its_close() -> None:
    table = table_of(1, 2)
    table.read(1, [7])
    table.opened(1, 7)
    table.opened(1, 7)
    aged(table, 0.0, 100.0)
    table.closed(1, [7])
    aged(table, 100.0, 200.0)
    assert table.other_readers(2, 7) == [1]
    table.closed(1, [7])
    aged(table, 200.0, 205.75)
    assert table.other_readers(2, 7) == [1]
    aged(table, 206.0, 208.0)
    assert table.other_readers(2, 7) == []


def test_an_open_inode_recalled_whole_is_read_again_only_when_told() -> None:
    table = table_of(1, 2)
    table.read(1, [7])
    table.opened(1, 7)
    table.recall_readers(2, 7, 0.0, attributes=True, data=True)
    assert table.other_readers(2, 7) == []
    table.read(1, [7])
    aged(table, 0.0, 100.0)
    assert table.other_readers(2, 7) == [1]


def test_opens_lost_with_a_connection_age_too() -> None:
    table = table_of(1, 2)
    table.read(1, [7])
    table.opened(1, 7)
    table.resume(1, 50.0, opens=[], writes=[])
    aged(table, 50.0, 55.75)
    assert table.other_readers(2, 7) == [1]
    aged(table, 56.0, 58.0)
    assert table.other_readers(2, 7) == []


def test_closing_ends_the_write_lease_and_leaves_a_reader() -> None:
    table = table_of(1, 2)
    table.read(1, [7])
    table.opened(1, 7)
    table.grant_write(1, 7)
    table.closed(1, [7])
    assert table.writers == {}
    assert table.other_readers(2, 7) == [1]


def test_a_reply_held_back_begins_its_leases_when_it_leaves() -> None:
    table = table_of(1, 2)
    table.read(1, [7, 8])
    table.recall_readers(2, 8, 0.0, attributes=True, data=True)
    aged(table, 0.0, 5.0)
    table.read_again(1, [7, 8])
    aged(table, 5.25, 10.75)
    assert table.other_readers(2, 7) == [1]
    assert table.other_readers(2, 8) == []


INODES = st.integers(1, 3)
SESSIONS = st.integers(1, 4)


class Leases(RuleBasedStateMachine):
    """Clients cache (inode, version) when told; the service steps are done as the master does them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = LeaseTable(lease_s=LEASE_S, recall_limit_s=20.0)
        self.now = 0.0
        self.versions = {1: 0, 2: 0, 3: 0}
        self.caches: dict[int, dict[int, int]] = {}
        self.until: dict[tuple[int, int], float] = {}  # (session, inode) -> its kernel's timeout

    def told(self, session: int, inode: int) -> None:
        """Its kernel keeps it for a lease's length, its open files until they are closed."""
        self.caches[session][inode] = self.versions[inode]
        self.until[session, inode] = self.now + LEASE_S

    def is_open(self, session: int, inode: int) -> bool:
        return inode in self.table.sessions[session].opens

    @rule(session=SESSIONS)
    def open(self, session: int) -> None:
        if session not in self.table.sessions:
            self.table.open_session(session, self.now)
            self.caches[session] = {}

    @rule(session=SESSIONS, inode=INODES)
    def read(self, session: int, inode: int) -> None:
        if session not in self.table.sessions:
            return
        if self.table.foreign_writer(session, inode):
            self.table.recall_writer(inode, self.now, (session, 1))
            return
        self.table.read(session, [inode])
        self.told(session, inode)

    @rule(session=SESSIONS, inode=INODES, whole=st.booleans())
    def change(self, session: int, inode: int, whole: bool) -> None:
        if session not in self.table.sessions or self.table.foreign_writer(session, inode):
            return
        self.versions[inode] += 1
        self.table.recall_readers(session, inode, self.now, attributes=True, data=whole)
        self.table.read(session, [inode])
        self.told(session, inode)
        if not self.table.owed_to(session, [inode]):  # the reply goes out: nobody may hold old state
            for other, cache in self.caches.items():
                assert other == session or cache.get(inode, self.versions[inode]) == self.versions[inode]

    @rule(session=SESSIONS, inode=INODES)
    def write_lease(self, session: int, inode: int) -> None:
        if session not in self.table.sessions:
            return
        if not self.table.grant_write(session, inode):
            if self.table.foreign_writer(session, inode):
                self.table.recall_writer(inode, self.now, (session, 1))
            else:
                self.table.recall_readers(session, inode, self.now, attributes=True, data=True)

    @rule(pick=st.integers(0, 10))
    def answer(self, pick: int) -> None:
        if self.table.recalls:
            recall = list(self.table.recalls.values())[pick % len(self.table.recalls)]
            if recall.write_lease:
                self.versions[recall.inode] += 1  # it commits what it buffered
                self.told(recall.session, recall.inode)
            else:
                self.caches[recall.session].pop(recall.inode, None)
            assert self.table.answered(recall.session, recall.recall_id) == recall

    @rule(session=SESSIONS)
    def resume(self, session: int) -> None:
        if session in self.table.sessions:
            writes = self.table.sessions[session].writes
            opens = self.table.sessions[session].opens
            self.table.resume(session, self.now, opens=[*opens], writes=tuple(writes))

    @rule(session=SESSIONS, inode=INODES)
    def open_file(self, session: int, inode: int) -> None:
        if session in self.table.sessions and not self.table.foreign_writer(session, inode):
            self.table.read(session, [inode])
            self.told(session, inode)
            self.table.opened(session, inode)

    @rule(session=SESSIONS, inode=INODES)
    def close_file(self, session: int, inode: int) -> None:
        if session in self.table.sessions and self.is_open(session, inode):
            if inode in self.caches[session]:  # attributes served from the open file until now
                self.until[session, inode] = self.now + LEASE_S
            self.table.closed(session, [inode])

    @rule(elapsed=st.sampled_from([0.5, 3.0, 7.0]), renewed=st.sets(SESSIONS))
    def tick(self, elapsed: float, renewed: set[int]) -> None:
        for session in renewed:
            self.table.renew(session, self.now)
        for _ in range(int(elapsed / 0.5)):
            self.now += 0.5
            self.table.age(self.now)
        for session, cache in self.caches.items():
            for inode in list(cache):
                if self.until[session, inode] <= self.now and not self.is_open(session, inode):
                    del cache[inode]
        for session in self.table.expired(self.now):
            self.table.lapse(session, self.now)
            self.caches[session].clear()
        for session in self.table.given_up(self.now):
            self.table.end_session(session)
            del self.caches[session]

    @invariant()
    def a_writer_is_alone(self) -> None:
        for inode, writer in self.table.writers.items():
            assert self.table.other_readers(writer, inode) == []
            for session, cache in self.caches.items():
                assert session == writer or inode not in cache

    @invariant()
    def stale_caches_owe_an_answer(self) -> None:
        for session, cache in self.caches.items():
            for inode, version in cache.items():
                if version != self.versions[inode]:
                    assert self.table.is_recalled(session, inode)

    @invariant()
    def its_indexes_agree(self) -> None:
        table = self.table
        assert {inode for s in table.sessions.values() for inode in s.writes} == set(table.writers)
        assert {key for s in table.sessions.values() for key in s.recalls} == set(table.recalls)
        assert {key for owed in table.recalls_of.values() for key in owed} == set(table.recalls)
        assert all(table.recalls_of.values())


Leases.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestLeases = Leases.TestCase


def test_recalls_of_masterships_are_numbered_apart_and_fit_their_field() -> None:
    step = 1 << 32  # a restore's
    epochs = [0, 1, 2, step - 1, step, step + 1, 5 * step + 7]
    for epoch in epochs:
        recall = metadata_pb2.Recall(recall_id=first_recall_of(epoch) + step - 2)
        assert first_recall_of(epoch) <= recall.recall_id < first_recall_of(epoch) + step
    assert first_recall_of(1) > first_recall_of(0) + 1_000_000
    assert first_recall_of(step + 1) > first_recall_of(step) + 1_000_000
