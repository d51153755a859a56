"""The etcd client against real members: every call, and members that are killed, stopped, cut off."""

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.etcd_members import EtcdMembers, EtcdTls, make_certificates
from wormfs.core.errors import (
    ConfigError,
    DeadlineError,
    InvalidError,
    NoSpaceError,
    NotFoundError,
    NotPermittedError,
    StaleError,
    TooLargeError,
    UnavailableError,
    UncertainError,
)
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.rpc.etcd_types import (
    EtcdDeleted,
    EtcdEvent,
    EtcdEventKind,
    EtcdOptions,
    EtcdPut,
    compare_absent,
    compare_mod_revision,
    compare_value,
    delete,
    get,
    prefix_end,
    put,
)
from wormfs.rpc.etcd_watch import EtcdWatch

PUT, DELETE = EtcdEventKind.PUT, EtcdEventKind.DELETE
TEST_S = 60.0  # the longest that any of these may take
PASSWORD = "pass-word-7391"


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdMembers]:
    """One member that no test hurts; every test uses keys of its own."""
    with EtcdMembers(tmp_path_factory.mktemp("etcd")) as members:
        yield members


@pytest.fixture(scope="module")
def shared_three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdMembers]:
    with EtcdMembers(tmp_path_factory.mktemp("etcd3"), 3) as members:
        yield members


@pytest.fixture
def three(shared_three: EtcdMembers) -> Iterator[EtcdMembers]:
    """Three members, all up and healthy, to be hurt; mended afterwards."""
    shared_three.mend()
    yield shared_three
    shared_three.mend()


def options(members: EtcdMembers, *, first: int = 0, timeout_s: float = 5.0) -> EtcdOptions:
    endpoints = members.endpoints[first:] + members.endpoints[:first]
    return EtcdOptions(endpoints, timeout_s=timeout_s)


async def put_one(client: EtcdClient, key: bytes, value: bytes, lease: int = 0) -> int:
    done = await client.txn((), (put(key, value, lease),))
    assert done.succeeded
    return done.revision


async def value_of(client: EtcdClient, key: bytes) -> bytes | None:
    found = await client.range(key)
    return found.kvs[0].value if found.kvs else None


async def next_events(watch: EtcdWatch, count: int = 1, timeout_s: float = 20.0) -> list[EtcdEvent]:
    """As many events, in order; fails when more come with them."""
    events: list[EtcdEvent] = []
    with trio.fail_after(timeout_s):
        while len(events) < count:
            batch = await anext(watch)
            assert batch.revision == batch.events[-1].kv.mod_revision
            events += batch.events
    assert len(events) == count
    return events


def told(events: list[EtcdEvent]) -> list[tuple[EtcdEventKind, bytes, bytes]]:
    return [(event.kind, event.kv.key, event.kv.value) for event in events]


# Keys and transactions


async def test_a_range_returns_what_was_put(single: EtcdMembers) -> None:
    async with EtcdClient(options(single)) as client:
        first = await put_one(client, b"range/a", b"\x00\xff")
        second = await put_one(client, b"range/b", b"2")
        third = await put_one(client, b"range/a", b"")
        found = await client.range(b"range/", prefix_end(b"range/"))
        assert found.revision == third
        assert not found.more
        a, b = found.kvs
        assert (a.key, a.value, a.create_revision, a.mod_revision, a.version, a.lease) == (
            b"range/a",
            b"",
            first,
            third,
            2,
            0,
        )
        assert (b.key, b.value, b.mod_revision) == (b"range/b", b"2", second)
        then = await client.range(b"range/a", revision=first)
        assert then.kvs[0].value == b"\x00\xff"
        limited = await client.range(b"range/", prefix_end(b"range/"), limit=1, keys_only=True)
        assert limited.more
        assert [(kv.key, kv.value) for kv in limited.kvs] == [(b"range/a", b"")]
        local = await client.range(b"range/b", serializable=True)
        assert local.kvs == (b,)
        assert (await client.range(b"range/none")).kvs == ()


async def test_a_txn_is_done_or_refused_as_one(single: EtcdMembers) -> None:
    async with EtcdClient(options(single)) as client:
        made = await client.txn((compare_absent(b"txn/head"),), (put(b"txn/head", b"1"), put(b"txn/1", b"x")))
        assert made.succeeded
        assert made.responses == (EtcdPut(), EtcdPut())
        refused = await client.txn(
            (compare_absent(b"txn/head"),),
            (put(b"txn/head", b"2"),),
            (get(b"txn/head"), delete(b"txn/none")),
        )
        assert not refused.succeeded
        assert [kv.value for kv in refused.ranges[0].kvs] == [b"1"]
        assert refused.responses[1] == EtcdDeleted(0)
        assert refused.revision == made.revision
        both = (compare_value(b"txn/head", b"1"), compare_mod_revision(b"txn/1", made.revision))
        assert (await client.txn(both, (put(b"txn/head", b"3"),))).succeeded
        again = await client.txn(both, (put(b"txn/head", b"4"),))
        assert not again.succeeded
        assert await value_of(client, b"txn/head") == b"3"
        wrong_revision = (compare_mod_revision(b"txn/1", made.revision + 1),)
        assert not (await client.txn(wrong_revision, ())).succeeded
        gone = await client.txn((), (delete(b"txn/", prefix_end(b"txn/")),))
        assert gone.responses == (EtcdDeleted(2),)
        assert not (await client.txn((compare_value(b"txn/head", b""),), ())).succeeded
        assert (await client.txn((compare_mod_revision(b"txn/head", 0),), ())).succeeded


async def test_a_wrong_txn_is_refused_with_a_reason(single: EtcdMembers) -> None:
    async with EtcdClient(options(single)) as client:
        with pytest.raises(InvalidError, match="duplicate key"):
            await client.txn((), (put(b"wrong", b"1"), put(b"wrong", b"2")))
        with pytest.raises(NotFoundError, match="lease not found"):
            await client.txn((), (put(b"wrong", b"1", lease=12345),))
        assert await value_of(client, b"wrong") is None


@pytest.mark.parametrize("length_bytes", [1_700_000, 3 << 20, 17 << 20])
async def test_too_large_a_request_is_told_apart(single: EtcdMembers, length_bytes: int) -> None:
    key = b"large/%d" % length_bytes
    async with EtcdClient(options(single)) as client:
        with pytest.raises(TooLargeError):
            await put_one(client, key, bytes(length_bytes))
        assert await value_of(client, key) is None
        await put_one(client, key, bytes(1_500_000))
        assert await value_of(client, key) == bytes(1_500_000)


async def test_too_large_an_answer_leaves_a_txn_uncertain_but_not_a_read(single: EtcdMembers) -> None:
    async with EtcdClient(options(single)) as client:
        for number in range(12):
            await put_one(client, b"answer/%d" % number, bytes(1_450_000))
        everything = (b"answer/", prefix_end(b"answer/"))
        with pytest.raises(TooLargeError):
            await client.range(*everything)
        with pytest.raises(UncertainError, match="larger than max"):
            await client.txn((), (get(*everything), put(b"answered", b"1")))
        assert await value_of(client, b"answered") == b"1"
        assert len((await client.range(*everything, limit=11)).kvs) == 11
        await client.txn((), (delete(*everything),))


async def test_compaction_forgets_history_only(single: EtcdMembers) -> None:
    async with EtcdClient(options(single)) as client:
        first = await put_one(client, b"compact", b"1")
        second = await put_one(client, b"compact", b"2")
        await client.compact(second)
        await client.compact(second)
        with pytest.raises(StaleError):
            await client.range(b"compact", revision=first)
        assert await value_of(client, b"compact") == b"2"
        with pytest.raises(InvalidError):
            await client.compact(second + 1000)


async def test_a_full_database_is_no_space(tmp_path: Path) -> None:
    with EtcdMembers(tmp_path, arguments=("--quota-backend-bytes", str(3 << 20))) as members:
        async with EtcdClient(options(members)) as client:
            number = 0
            refused: NoSpaceError | None = None
            with trio.fail_after(TEST_S):
                while refused is None:
                    number += 1
                    try:
                        await put_one(client, b"full/%d" % number, bytes(400_000))
                    except NoSpaceError as error:
                        refused = error
            assert number > 4
            assert await value_of(client, b"full/%d" % number) is None
            assert await value_of(client, b"full/1") == bytes(400_000)
            (status,) = await client.status()
            assert any("NOSPACE" in alarm for alarm in status.alarms)


# Leases


async def test_a_lease_that_is_not_renewed_ends_with_its_keys(single: EtcdMembers) -> None:
    async with EtcdClient(options(single)) as client:
        lease = await client.grant_lease(1)
        assert lease.ttl_s == 2  # etcd's minimum at its default times
        granted = time.monotonic()
        revision = await put_one(client, b"lease/ends", b"1", lease.id)
        assert (await client.range(b"lease/ends")).kvs[0].lease == lease.id
        with client.watch(b"lease/ends", start_revision=revision + 1) as watch:
            assert told(await next_events(watch)) == [(DELETE, b"lease/ends", b"")]
        assert time.monotonic() - granted > 1.9
        assert await client.renew_lease(lease.id) == 0
        with pytest.raises(NotFoundError):
            await put_one(client, b"lease/ends", b"2", lease.id)


async def test_a_renewed_lease_lives_and_a_revoked_one_does_not(single: EtcdMembers) -> None:
    async with EtcdClient(options(single)) as client:
        lease = await client.grant_lease(2)
        await put_one(client, b"lease/renewed", b"1", lease.id)
        until = trio.current_time() + 3.5  # without a renewal it ends after 3 s at the latest
        while trio.current_time() < until:
            assert await client.renew_lease(lease.id) == 2
            await trio.sleep(0.5)  # time is what this is about
        assert await value_of(client, b"lease/renewed") == b"1"
        await client.revoke_lease(lease.id)
        assert await value_of(client, b"lease/renewed") is None
        await client.revoke_lease(lease.id)
        assert await client.renew_lease(lease.id) == 0


# Watches


async def test_a_watch_tells_history_then_changes(single: EtcdMembers) -> None:
    async with EtcdClient(options(single)) as client:
        first = await put_one(client, b"watch/a", b"1")
        await client.txn((), (put(b"watch/b", b"2"), delete(b"watch/a")))
        await put_one(client, b"watcher", b"not in the range")
        with client.watch(b"watch/", prefix_end(b"watch/"), start_revision=first) as watch:
            assert told(await next_events(watch, 3)) == [
                (PUT, b"watch/a", b"1"),
                (PUT, b"watch/b", b"2"),
                (DELETE, b"watch/a", b""),
            ]
            last = await put_one(client, b"watch/c", b"3")
            (event,) = await next_events(watch)
            assert (event.kv.key, event.kv.mod_revision, event.kv.create_revision) == (b"watch/c", last, last)


async def test_a_cancelled_wait_loses_no_event(single: EtcdMembers, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "wormfs.rpc")
    async with EtcdClient(options(single)) as client:
        revision = await put_one(client, b"cancelled", b"0")
        seen: list[EtcdEvent] = []
        with client.watch(b"cancelled", start_revision=revision + 1) as watch:
            for number in range(40):
                # cancelled at every stage: before the stream is up, while it waits, as the event comes
                with trio.move_on_after(number * 0.0005):
                    seen += (await anext(watch)).events
                await put_one(client, b"cancelled", b"%d" % number)
            while len(seen) < 40:
                seen += await next_events(watch)
        assert [event.kv.value for event in seen] == [b"%d" % number for number in range(40)]
    assert "moves on" not in caplog.text  # no member is to blame for it


async def test_a_watch_of_much_history_comes_in_whole_revisions(single: EtcdMembers) -> None:
    """More than a message holds: etcd sends it in fragments."""
    async with EtcdClient(options(single, timeout_s=10)) as client:
        first = await put_one(client, b"much/a", bytes(700_000))
        for number in range(6):
            both = (put(b"much/a", bytes([number]) * 700_000), put(b"much/b", bytes([number]) * 700_000))
            await client.txn((), both)
        seen: list[tuple[bytes, int]] = []
        with client.watch(b"much/", prefix_end(b"much/"), start_revision=first) as watch, trio.fail_after(30):
            while len(seen) < 13:
                batch = await anext(watch)
                at_end = [event.kv.key for event in batch.events if event.kv.mod_revision == batch.revision]
                assert at_end == ([b"much/a"] if batch.revision == first else [b"much/a", b"much/b"])
                seen += [(event.kv.key, event.kv.mod_revision - first) for event in batch.events]
        both_of_each = [(key, number) for number in range(1, 7) for key in (b"much/a", b"much/b")]
        assert seen == [(b"much/a", 0), *both_of_each]


async def test_a_watch_of_compacted_history_is_stale(single: EtcdMembers) -> None:
    async with EtcdClient(options(single)) as client:
        first = await put_one(client, b"stale", b"1")
        last = await put_one(client, b"stale", b"2")
        await client.compact(last)
        with (
            client.watch(b"stale", start_revision=first) as watch,
            pytest.raises(StaleError, match=f"revision {first}"),
            trio.fail_after(10),
        ):
            await anext(watch)
        with pytest.raises(InvalidError):
            client.watch(b"stale", start_revision=0)


async def test_a_watch_and_a_call_end_with_their_client(single: EtcdMembers) -> None:
    client = EtcdClient(options(single))
    revision = await put_one(client, b"closed", b"1")
    watch = client.watch(b"closed", start_revision=revision)
    await next_events(watch)

    async def waits() -> None:
        with pytest.raises(UnavailableError, match="closed"):
            await anext(watch)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits)
            await trio.testing.wait_all_tasks_blocked(0.05)
            client.close()
    with pytest.raises(UnavailableError, match="closed"):
        await client.range(b"closed")


async def test_a_watch_survives_the_kill_of_its_member(three: EtcdMembers) -> None:
    follower = (three.leader() + 1) % 3
    async with EtcdClient(options(three)) as writer, EtcdClient(options(three, first=follower)) as reader:
        revision = await put_one(writer, b"killed", b"0")
        with reader.watch(b"killed", start_revision=revision) as watch:
            assert told(await next_events(watch)) == [(PUT, b"killed", b"0")]
            three.kill(follower)
            await put_until_done(writer, b"killed", b"1")
            assert told(await next_events(watch)) == [(PUT, b"killed", b"1")]
            await put_until_done(writer, b"killed", b"2")
            assert told(await next_events(watch)) == [(PUT, b"killed", b"2")]


async def test_a_watch_leaves_a_member_that_hangs(three: EtcdMembers) -> None:
    follower = (three.leader() + 1) % 3
    async with (
        EtcdClient(options(three, first=(follower + 1) % 3)) as writer,
        EtcdClient(options(three, first=follower)) as reader,
    ):
        revision = await put_one(writer, b"hangs", b"0")
        with reader.watch(b"hangs", start_revision=revision) as watch:
            await next_events(watch)
            three.pause(follower)
            paused = time.monotonic()
            await put_one(writer, b"hangs", b"1")
            assert told(await next_events(watch)) == [(PUT, b"hangs", b"1")]
            assert time.monotonic() - paused < 5  # 2.5 s and what a busy machine takes


async def test_a_watch_goes_on_after_all_members_were_away(three: EtcdMembers) -> None:
    async with EtcdClient(options(three)) as client:
        revision = await put_one(client, b"away", b"0")
        with client.watch(b"away", start_revision=revision) as watch:
            await next_events(watch)
            for index in range(3):
                three.kill(index)
            with trio.move_on_after(2.5):
                await anext(watch)
            for index in range(3):
                three.start(index)
            three.wait_healthy()
            await put_until_done(client, b"away", b"1")
            assert told(await next_events(watch)) == [(PUT, b"away", b"1")]


# Members that fail


async def put_until_done(client: EtcdClient, key: bytes, value: bytes) -> int:
    """A put that is the same when done twice: sent again while nobody knows; returns the tries."""
    tries = 0
    with trio.fail_after(30):
        while True:
            tries += 1
            try:
                await client.txn((compare_value(key, value),), (), (put(key, value),))
            except UncertainError:
                continue
            else:
                return tries


@pytest.mark.parametrize("hurt", [EtcdMembers.kill, EtcdMembers.pause])
async def test_calls_go_on_without_the_follower_that_is_asked(
    three: EtcdMembers, hurt: Callable[[EtcdMembers, int], None]
) -> None:
    follower = (three.leader() + 1) % 3
    async with EtcdClient(options(three, first=follower, timeout_s=3.0)) as client:
        await put_one(client, b"without", b"0")
        lease = await client.grant_lease(10)
        hurt(three, follower)
        started = time.monotonic()
        assert await client.renew_lease(lease.id) == 10
        assert time.monotonic() - started < 3
        assert await value_of(client, b"without") == b"0"
        await put_one(client, b"without", b"1")
        assert await value_of(client, b"without") == b"1"
        assert (await client.members())[0].client_urls
        problems = [bool(status.problem) for status in await client.status(timeout_s=1)]
        assert problems == [True, False, False]


async def test_a_txn_at_a_member_that_hangs_is_uncertain_and_the_next_is_done(three: EtcdMembers) -> None:
    follower = (three.leader() + 1) % 3
    async with EtcdClient(options(three, first=follower, timeout_s=1.5)) as client:
        await put_one(client, b"hanging", b"0")
        three.pause(follower)
        started = time.monotonic()
        with pytest.raises(UncertainError, match="unknown"):
            await put_one(client, b"hanging", b"1")
        assert 1.4 < time.monotonic() - started < 2.5
        await put_one(client, b"hanging", b"2")
        assert await value_of(client, b"hanging") == b"2"


@pytest.mark.parametrize(
    ("asked", "hurt"),
    [
        pytest.param(0, EtcdMembers.kill, marks=pytest.mark.unsampled),
        pytest.param(0, EtcdMembers.pause, marks=pytest.mark.unsampled),
        (1, EtcdMembers.kill),
        pytest.param(1, EtcdMembers.pause, marks=pytest.mark.unsampled),
    ],
)
async def test_calls_go_on_without_the_leader(
    three: EtcdMembers, hurt: Callable[[EtcdMembers, int], None], asked: int
) -> None:
    """Whether it is the leader that is asked, or a follower that passes on to it."""
    leader = three.leader()
    async with EtcdClient(options(three, first=(leader + asked) % 3)) as client:
        await put_one(client, b"leader", b"0")
        hurt(three, leader)
        started = time.monotonic()
        await put_until_done(client, b"leader", b"1")
        assert await value_of(client, b"leader") == b"1"
        assert time.monotonic() - started < 15


@pytest.mark.unsampled
async def test_an_outage_of_watches_is_told_once_and_its_end_too(
    three: EtcdMembers, caplog: pytest.LogCaptureFixture
) -> None:
    """However many watches are begun while it lasts."""

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]

    caplog.set_level(logging.DEBUG, "wormfs.rpc.etcd_watch")
    async with EtcdClient(options(three, timeout_s=0.5)) as client:
        revision = await put_one(client, b"outage", b"0")
        with client.watch(b"outage", start_revision=revision) as watch:
            await next_events(watch)
            for index in (0, 1):
                three.kill(index)
            with trio.move_on_after(3):
                await anext(watch)
        for _ in range(2):
            with trio.move_on_after(1), client.watch(b"outage", start_revision=revision + 1) as watch:
                await anext(watch)
        assert len(lines()) == 1
        assert " moves on: " in lines()[0]
        assert caplog.text.count(" moves on: ") > 3  # in the log's details
        for index in (0, 1):
            three.start(index)
        three.wait_healthy(0, 1, 2)
        with trio.fail_after(10), client.watch(b"outage", start_revision=revision + 1) as watch:
            while len(lines()) < 2:
                with trio.move_on_after(0.1):
                    await anext(watch)
        assert lines()[1].startswith("watches work again, at etcd's 127.0.0.1:")


async def test_without_a_quorum_calls_end_in_time_and_work_again_after(three: EtcdMembers) -> None:
    keep = (three.leader() + 1) % 3
    async with EtcdClient(options(three, first=keep, timeout_s=1.5)) as client:
        await put_one(client, b"quorum", b"0")
        for index in {0, 1, 2} - {keep}:
            three.kill(index)
        last: UnavailableError | None = None
        with trio.fail_after(30):  # until the survivor has noticed that its leader is gone
            while not isinstance(last, UnavailableError) or isinstance(last, UncertainError):
                started = time.monotonic()
                with pytest.raises(UnavailableError) as caught:
                    await put_one(client, b"quorum", b"1")
                assert time.monotonic() - started < 2.5
                last = caught.value
        started = time.monotonic()
        with pytest.raises(UnavailableError, match=r"1\.5 s"):
            await client.range(b"quorum")
        assert time.monotonic() - started < 2.5
        assert await value_of_local(client, b"quorum") == b"0"
        statuses = await client.status()
        assert [bool(status.problem) for status in statuses] == [False, True, True]
        assert statuses[0].leader == 0
        for index in {0, 1, 2} - {keep}:
            three.start(index)
        three.wait_healthy()
        await put_until_done(client, b"quorum", b"2")
        assert await value_of(client, b"quorum") == b"2"


async def value_of_local(client: EtcdClient, key: bytes) -> bytes:
    return (await client.range(key, serializable=True)).kvs[0].value


async def test_a_txn_that_no_member_could_get_was_surely_not_done(tmp_path: Path) -> None:
    with EtcdMembers(tmp_path) as members:
        async with EtcdClient(options(members, timeout_s=1.0)) as client:
            await put_one(client, b"down", b"0")
            members.stop(0)
            started = time.monotonic()
            with pytest.raises(UnavailableError) as caught:
                await put_one(client, b"down", b"1")
            assert not isinstance(caught.value, UncertainError)
            assert 0.9 < time.monotonic() - started < 2
            members.start(0)
            members.wait_healthy()
            assert await value_of(client, b"down") == b"0"
            # a restart within the time of a call is no more than a delay
            members.kill(0)
            members.start(0)
            assert (await client.range(b"down", timeout_s=20)).kvs[0].value == b"0"


async def test_a_txn_whose_member_is_killed_before_it_answers_is_uncertain(tmp_path: Path) -> None:
    with EtcdMembers(tmp_path) as members:
        async with EtcdClient(options(members, timeout_s=20)) as client:
            await put_one(client, b"cut", b"0")
            members.pause(0)
            outcome: list[BaseException] = []

            async def put_cut() -> None:
                with pytest.raises(UncertainError) as caught:
                    await put_one(client, b"cut", b"1")
                outcome.append(caught.value)

            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(put_cut)
                    await trio.testing.wait_all_tasks_blocked(0.2)  # it is on the wire by then
                    members.kill(0)
            assert outcome


async def test_a_hanging_member_makes_reads_end_with_a_deadline(tmp_path: Path) -> None:
    with EtcdMembers(tmp_path) as members:
        async with EtcdClient(options(members, timeout_s=1.0)) as client:
            await put_one(client, b"deadline", b"0")
            members.pause(0)
            with pytest.raises(DeadlineError, match="1 s"):
                await client.range(b"deadline")
            with pytest.raises(DeadlineError, match=r"0\.2 s"):
                await client.grant_lease(5, timeout_s=0.2)
            members.resume(0)
            assert (await client.range(b"deadline", timeout_s=20)).kvs[0].value == b"0"


async def test_members_are_listed_added_and_removed(tmp_path: Path) -> None:
    with EtcdMembers(tmp_path) as members:
        async with EtcdClient(options(members)) as client:
            (only,) = await client.members()
            assert only.name == "m0"
            assert only.client_urls == (f"http://{members.endpoints[0]}",)
            (status,) = await client.status()
            assert status.member_id == status.leader == only.id
            assert status.version.startswith("3.")
            assert status.db_size_bytes >= status.db_size_in_use_bytes > 0
            assert (status.problem, status.is_learner, status.alarms) == ("", False, ())
            added = await client.add_member(("http://127.0.0.1:9",), learner=True)
            assert (added.peer_urls, added.is_learner) == (("http://127.0.0.1:9",), True)
            assert {member.id for member in await client.members()} == {only.id, added.id}
            await client.remove_member(added.id)
            await client.remove_member(added.id)
            assert await client.members() == (only,)


# Users and passwords


def enable_authentication(members: EtcdMembers) -> None:
    """`root` with PASSWORD; `reader`, who may use keys below `allowed/` only."""
    allowed = {"key": "YWxsb3dlZC8=", "range_end": "YWxsb3dlZDA="}  # base64 of allowed/ and allowed0
    members.api("auth/user/add", name="root", password=PASSWORD)
    members.api("auth/user/grant", user="root", role="root")
    members.api("auth/role/add", name="some")
    members.api("auth/role/grant", name="some", perm={"permType": "READWRITE", **allowed})
    members.api("auth/user/add", name="reader", password=PASSWORD)
    members.api("auth/user/grant", user="reader", role="some")
    members.api("auth/enable")


def as_user(members: EtcdMembers, user: str, password: str = PASSWORD) -> EtcdOptions:
    return EtcdOptions(members.endpoints, user=user, password=password, timeout_s=5.0)


async def test_users_and_tokens(tmp_path: Path) -> None:
    with EtcdMembers(tmp_path, arguments=("--bcrypt-cost", "4")) as members:
        async with EtcdClient(as_user(members, "root")) as early:
            await put_one(early, b"early", b"1")  # no authentication yet: none is needed
            enable_authentication(members)
            assert await value_of(early, b"early") == b"1"  # and now there is

        async with EtcdClient(options(members)) as nobody:
            with pytest.raises(NotPermittedError):
                await nobody.range(b"early")
        async with EtcdClient(as_user(members, "root", "wrong-word")) as wrong:
            with pytest.raises(NotPermittedError) as caught:
                await put_one(wrong, b"early", b"2")
            assert "wrong-word" not in str(caught.value)

        async with EtcdClient(as_user(members, "reader")) as reader:
            revision = await put_one(reader, b"allowed/1", b"1")
            with pytest.raises(NotPermittedError):
                await reader.range(b"early")
            with (
                reader.watch(b"early", start_revision=1) as denied,
                pytest.raises(NotPermittedError),
                trio.fail_after(20),
            ):
                await anext(denied)
            with reader.watch(b"allowed/", prefix_end(b"allowed/"), start_revision=revision) as watch:
                await next_events(watch)
                members.stop(0)  # a member forgets its tokens when it ends
                members.start(0)
                members.wait_healthy()
                await put_one(reader, b"allowed/2", b"2")
                assert told(await next_events(watch)) == [(PUT, b"allowed/2", b"2")]
            lease = await reader.grant_lease(60)
            members.stop(0)
            members.start(0)
            members.wait_healthy()
            assert await reader.renew_lease(lease.id) == 60
            with reader.watch(b"allowed/", prefix_end(b"allowed/"), start_revision=revision + 1) as watch:
                assert told(await next_events(watch)) == [(PUT, b"allowed/2", b"2")]


async def test_many_tasks_get_one_token(tmp_path: Path) -> None:
    with EtcdMembers(tmp_path, arguments=("--bcrypt-cost", "4")) as members:
        enable_authentication(members)
        async with EtcdClient(as_user(members, "root")) as client, trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(put_one, client, b"many/%d" % number, b"1")
        async with EtcdClient(as_user(members, "root")) as client:
            found = await client.range(b"many/", prefix_end(b"many/"), keys_only=True)
            assert len(found.kvs) == 50


def test_secrets_are_not_shown() -> None:
    shown = EtcdOptions(("127.0.0.1:2379",), user="root", password=PASSWORD)
    assert PASSWORD not in repr(shown)
    assert PASSWORD not in str(shown)


# TLS


async def test_tls_both_ways(tmp_path: Path) -> None:
    tls, other = make_certificates(tmp_path / "tls"), make_certificates(tmp_path / "other")
    with EtcdMembers(tmp_path / "etcd", tls=tls) as members:
        known = EtcdOptions(members.endpoints, tls.ca_file, tls.cert_file, tls.key_file, timeout_s=5.0)
        async with EtcdClient(known) as client:
            await put_one(client, b"tls", b"1")
            assert await value_of(client, b"tls") == b"1"

        async def refused(ca_file: Path | None, cert: EtcdTls | None) -> None:
            cert_file, key_file = (cert.cert_file, cert.key_file) if cert else (None, None)
            strange = EtcdOptions(members.endpoints, ca_file, cert_file, key_file, timeout_s=1.0)
            async with EtcdClient(strange) as stranger:
                with pytest.raises(UnavailableError):
                    await stranger.range(b"tls")
                with pytest.raises(UnavailableError):
                    await put_one(stranger, b"tls", b"2")

        strangers = [(other.ca_file, tls), (tls.ca_file, other), (tls.ca_file, None), (None, None)]
        async with trio.open_nursery() as nursery:
            for ca_file, cert in strangers:
                nursery.start_soon(refused, ca_file, cert)
        async with EtcdClient(known) as client:
            assert await value_of(client, b"tls") == b"1"


@pytest.mark.unsampled
async def test_what_is_wrong_with_tls_is_told_in_one_line(tmp_path: Path) -> None:
    tls, other = make_certificates(tmp_path / "tls"), make_certificates(tmp_path / "other")

    async def told(members: EtcdMembers, ca: Path | None, cert: EtcdTls | None, user: str) -> str:
        cert_file, key_file = (cert.cert_file, cert.key_file) if cert else (None, None)
        word = "word" if user else ""
        wrong = EtcdOptions(members.endpoints, ca, cert_file, key_file, user, word, timeout_s=1.0)
        async with EtcdClient(wrong) as client:
            with pytest.raises(UnavailableError) as caught:
                await client.range(b"tls")
            line = await client.explained(caught.value)
        assert members.endpoints[0] in line
        assert "\n" not in line
        return line

    with EtcdMembers(tmp_path / "etcd", tls=tls) as members:
        for user in ("", "root"):
            assert "signed by the authority in ca_file" in await told(members, other.ca_file, tls, user)
            assert "does not take the certificate in cert_file" in await told(
                members, tls.ca_file, other, user
            )
            assert "asks for a certificate" in await told(members, tls.ca_file, None, user)
            assert "it speaks TLS, and no ca_file is given" in await told(members, None, None, user)
    with EtcdMembers(tmp_path / "plain") as members:
        assert "it does not speak TLS" in await told(members, tls.ca_file, tls, "")


async def test_who_does_not_answer_is_named_where_a_user_is_given(tmp_path: Path) -> None:
    nobody = EtcdOptions(("127.0.0.1:1",), user="root", password=PASSWORD, timeout_s=0.5)
    async with EtcdClient(nobody) as client:
        for _ in range(5):  # which of two deadlines comes first must not matter
            with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1.*are most of its members up"):
                await client.range(b"key")


def test_grpc_writes_nothing_to_standard_error(tmp_path: Path) -> None:
    tls, other = make_certificates(tmp_path / "tls"), make_certificates(tmp_path / "other")
    program = (
        "import sys, trio; from pathlib import Path; from wormfs.rpc.etcd_client import EtcdClient\n"
        "from wormfs.rpc.etcd_types import EtcdOptions\n"
        "async def work():\n"
        "    options = EtcdOptions((sys.argv[1],), *map(Path, sys.argv[2:]), timeout_s=1.0)\n"
        "    async with EtcdClient(options) as client:\n"
        "        print((await client.status())[0].problem)\n"
        "trio.run(work)\n"
    )
    with EtcdMembers(tmp_path / "etcd", tls=tls) as members:
        files = (other.ca_file, tls.cert_file, tls.key_file)
        ended = subprocess.run(
            (sys.executable, "-c", program, members.endpoints[0], *files),
            capture_output=True,
            check=True,
            timeout=TEST_S,
        )
    assert b"CERTIFICATE_VERIFY_FAILED" in ended.stdout
    assert ended.stderr == b""


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    tls = make_certificates(tmp_path)
    here = ("127.0.0.1:1",)
    with pytest.raises(ConfigError, match=r"none\.pem"):
        EtcdClient(EtcdOptions(here, tmp_path / "none.pem"))
    with pytest.raises(ConfigError, match=r"node\.key"):
        EtcdClient(EtcdOptions(here, tls.key_file))
    with pytest.raises(ConfigError, match=r"ca\.key"):
        EtcdClient(EtcdOptions(here, tls.ca_file, tls.cert_file, tmp_path / "ca.key"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"endpoints": ()},
        {"endpoints": ("127.0.0.1",)},
        {"endpoints": ("unix:/run/etcd",)},
        {"endpoints": ("http://127.0.0.1:2379",)},
        {"endpoints": ("127.0.0.1:2379", "127.0.0.1:2379")},
        {"endpoints": ("127.0.0.1:2379",), "key_file": Path("k")},
        {"endpoints": ("127.0.0.1:2379",), "cert_file": Path("c"), "key_file": Path("k")},
        {"endpoints": ("127.0.0.1:2379",), "password": PASSWORD},
        {"endpoints": ("127.0.0.1:2379",), "timeout_s": 0.0},
    ],
)
def test_options_no_cluster_could_be_reached_with_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        EtcdOptions(**wrong)  # type: ignore[arg-type]  # wrong on purpose
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    ("prefix", "end"),
    [
        (b"a", b"b"),
        (b"log/", b"log0"),
        (b"a\xff", b"b"),
        (b"a\xff\xff", b"b"),
        (b"\xff", b"\0"),
        (b"", b"\0"),
    ],
)
def test_a_prefix_ends_behind_all_that_begin_so(prefix: bytes, end: bytes) -> None:
    assert prefix_end(prefix) == end
