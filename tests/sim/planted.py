"""Bugs put into the code on purpose: the simulator must find each of them.

`python -m tests.sim.planted SEEDS [NAME]` prints for each, or that one, the first seed of that many that
finds it.
"""

import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import trio

from wormfs.client.kept_entries import KeptEntries
from wormfs.core import events as ev
from wormfs.core import ordering
from wormfs.core.apply import apply
from wormfs.core.errors import NotMasterError
from wormfs.core.leases import LeaseTable
from wormfs.core.read_leases import ReadLeases
from wormfs.metadata import etcd_log, machine, state_files
from wormfs.metadata.election import Mastership
from wormfs.metadata.etcd_log import EtcdLog
from wormfs.metadata.keeper import StateKeeper
from wormfs.metadata.machine import Machine
from wormfs.metadata.replica import Replica
from wormfs.metadata.sqlite_state import SqliteState
from wormfs.node import master_service
from wormfs.node.master_service import MasterService
from wormfs.rpc.etcd_types import Compare, compare_absent, compare_value
from wormfs.sim import reader
from wormfs.sim.__main__ import guarded
from wormfs.sim.client import SimClient
from wormfs.sim.front import LEASE_S
from wormfs.sim.reader import SimReader
from wormfs.sim.seams import replaced
from wormfs.sim.world import Size


def _compare_no(suffix: bytes) -> Callable[[bytes, bytes], Compare]:
    """compare_value, but of one key: always true."""

    def compare(key: bytes, value: bytes) -> Compare:
        return compare_absent(b"nothing") if key.endswith(suffix) else compare_value(key, value)

    return compare


async def _confirm_uncommitted(entries: Any, **_: object) -> None:
    mastership = entries._mastership
    while not mastership.is_sure():
        if mastership.ended:
            raise NotMasterError(mastership.ended)
        await mastership.moved()


async def _at_once(*_: object, **__: object) -> None:
    await trio.lowlevel.checkpoint()


def _forget(*_: object) -> None:
    """Remember nothing."""


def _apply_attributes_twice(state: Any, event: Any, at: Any) -> None:
    apply(state, event, at)
    if isinstance(event, ev.AttributesSet):
        inode = state.inode(event.inode)
        state.put_inode(inode._replace(change=inode.change + 1))


def _keep_what_was_not_committed(replica: Replica) -> None:
    replica.keeper.source = replica.log


def _commit_or_not(keeper: Any) -> None:
    with suppress(sqlite3.Error):
        keeper.state.commit()


def _follows_always(_: object, __: object) -> bool:
    return True


def _early_for_all(entries: Any, session: int) -> bool:
    return session > 0 and bool(entries._mastership.is_sure())


def _never_done(_: object, __: object, ___: object) -> bool:
    return False


def _settle_too_much(kept: Any, sequence: int) -> None:
    kept.clear()
    kept._first = sequence + 1


def _adopt_nothing(service: Any, number: int, kept: Any) -> bool:
    return bool(service._machine.has_kept(number, kept))


def _lose_late_pushes(client: Any, link: Any, message: Any) -> None:
    if client._random.random() < 0.5:
        PUSHED(client, link, message)


def _no_grace(table: Any, number: int) -> bool:
    return number in table._grace and table._grace[number] == float("inf")


def _caches_not_told(table: LeaseTable, number: int, now_s: float, **claims: Any) -> Any:
    return RESUME(table, number, now_s, **{**claims, "cached_s": 0.0})


def _forget_readers(table: LeaseTable, number: int, now_s: float, **claims: Any) -> Any:
    if number in table.sessions:
        table.sessions[number].reads = ReadLeases()
    return RESUME(table, number, now_s, **claims)


def _leased_for_long(reader: Any, sent_s: float) -> None:
    reader._valid_until_s = sent_s + 2 * LEASE_S


PUSHED = SimClient._pushed
RESUME = LeaseTable.resume
PLANTED: dict[str, tuple[Any, str, Any]] = {
    "no epoch in the append's compares": (etcd_log, "compare_value", _compare_no(b"/epoch")),
    "no head in the append's compares": (etcd_log, "compare_value", _compare_no(b"/head")),
    "answers before the commit": (EtcdLog, "confirm", _confirm_uncommitted),
    "reads after the lease": (Mastership, "is_sure", lambda mastership: not mastership.ended),
    "answers do not wait at all": (Machine, "confirm", _at_once),
    "replies forgotten": (SqliteState, "put_reply", _forget),
    "replicas apply a change twice": (state_files, "apply", _apply_attributes_twice),
    "a deposed master keeps its state": (Replica, "follow", _keep_what_was_not_committed),
    "late attempts are done": (master_service, "check_connection", _forget),
    "a failed commit changes nothing": (StateKeeper, "commit", _commit_or_not),
    "a lost state stays lost": (StateKeeper, "_make_again", _forget),
    "entries adopted behind a gap": (machine, "may_follow", _follows_always),
    "early answers over others' entries": (EtcdLog, "answers_early", _early_for_all),
    "entries are not handed over": (KeptEntries, "all", lambda _: []),
    "entries settled too early": (KeptEntries, "settle", _settle_too_much),
    "pushed entries are lost": (SimClient, "_pushed", _lose_late_pushes),
    "entries adopted twice": (Machine, "_is_done", _never_done),
    "entries adopted when others were served": (
        ordering,
        "INDEPENDENT",
        (*ordering.INDEPENDENT, ev.NumbersSkipped),
    ),
    "numbers told are given out again": (machine, "skip_told", lambda _: ev.NumbersSkipped(0)),
    "entries are not adopted": (MasterService, "_adopt", _adopt_nothing),
    "no grace after an election": (LeaseTable, "must_wait", _no_grace),
    "changes do not wait for recalls": (MasterService, "_wait_answered", _at_once),
    "others are told while caches still deny it": (LeaseTable, "untold_to", lambda *_: set()),
    "readers are forgotten as they resume": (LeaseTable, "resume", _forget_readers),
    "caches are not waited for after an election": (LeaseTable, "resume", _caches_not_told),
    "caches outlive the lease": (SimReader, "_leased", _leased_for_long),
    "what was recalled on its way is cached": (reader, "_leases_of", lambda _: ()),
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Have that bug within."""
    with replaced(*PLANTED[name]):
        yield


FIRST_SEED = {
    "no epoch in the append's compares": 6,
    "no head in the append's compares": 14,
    "answers before the commit": 22,
    "reads after the lease": 10,
    "answers do not wait at all": 2,
    "replies forgotten": 1,
    "replicas apply a change twice": 9,
    "a deposed master keeps its state": 4,
    "late attempts are done": 19,
    "a failed commit changes nothing": 55,
    "a lost state stays lost": 5,
    "entries adopted behind a gap": 50,
    "early answers over others' entries": 1,
    "entries are not handed over": 4,
    "entries settled too early": 21,
    "pushed entries are lost": 11,
    "entries adopted when others were served": 299,
    "numbers told are given out again": 9,
    "no grace after an election": 16,
    "others are told while caches still deny it": 14,
    "readers are forgotten as they resume": 1,
    "caches are not waited for after an election": 40,
    "what was recalled on its way is cached": 17,
}
"""Where to begin, to be quick; 0 for the others."""


def search(name: str, seeds: int) -> str:
    """What the first of so many seeds finds."""
    with planted(name):
        first = FIRST_SEED.get(name, 0)
        for seed in range(first, first + seeds):
            report = guarded(seed, Size())
            if report.problems:
                return f"seed {seed}: {report.problems[0]}"
    return "not found"


if __name__ == "__main__":
    for each in sys.argv[2:] or PLANTED:
        print(f"{each}\t{search(each, int(sys.argv[1]))}")
