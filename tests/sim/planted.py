"""Bugs put into the code on purpose: the simulator must find each of them.

`python -m tests.sim.planted NAME SEEDS` prints the first seed of that many that finds it.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio

from wormfs.core import events as ev
from wormfs.core.apply import apply
from wormfs.core.errors import NotMasterError
from wormfs.metadata import etcd_log, state_files
from wormfs.metadata.election import Mastership
from wormfs.metadata.etcd_log import EtcdLog
from wormfs.metadata.machine import Machine
from wormfs.metadata.replica import Replica
from wormfs.metadata.sqlite_state import SqliteState
from wormfs.rpc.etcd_types import Compare, compare_absent, compare_value
from wormfs.sim.__main__ import guarded
from wormfs.sim.seams import replaced
from wormfs.sim.world import Size


def _compare_no(suffix: bytes) -> Callable[[bytes, bytes], Compare]:
    """compare_value, but of one key: always true."""

    def compare(key: bytes, value: bytes) -> Compare:
        return compare_absent(b"nothing") if key.endswith(suffix) else compare_value(key, value)

    return compare


async def _confirm_uncommitted(entries: Any) -> None:
    mastership = entries._mastership
    while not mastership.is_sure():
        if mastership.ended:
            raise NotMasterError(mastership.ended)
        await mastership.moved()


async def _at_once(_: object, __: int = 0) -> None:
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


PLANTED: dict[str, tuple[Any, str, Any]] = {
    "no epoch in the append's compares": (etcd_log, "compare_value", _compare_no(b"/epoch")),
    "no head in the append's compares": (etcd_log, "compare_value", _compare_no(b"/head")),
    "answers before the commit": (EtcdLog, "confirm", _confirm_uncommitted),
    "reads after the lease": (Mastership, "is_sure", lambda mastership: not mastership.ended),
    "answers do not wait at all": (Machine, "confirm", _at_once),
    "replies forgotten": (SqliteState, "put_reply", _forget),
    "replicas apply a change twice": (state_files, "apply", _apply_attributes_twice),
    "a deposed master keeps its state": (Replica, "follow", _keep_what_was_not_committed),
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Have that bug within."""
    with replaced(*PLANTED[name]):
        yield


def main(name: str, seeds: int) -> int:
    """Exit code 0: it was found."""
    with planted(name):
        for seed in range(seeds):
            report = guarded(seed, Size())
            if report.problems:
                print(f"seed {seed}: {report.problems[0]}")
                return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
