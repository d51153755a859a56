"""Simulated clients that cache: they tell again what they were told, for as long as they may.

What was told rests on the read leases of inodes. It may be told again until one of them is recalled, or
until the session's lease, as it was known when the answer came, is over. As a kernel does, a reader
keeps it when its session is taken up again, and tells the master for how long it will (`cached_ms`). It
reads from its cache in the worst moment: right when another client was told that a change is done.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import trio

from wormfs.client.session import LEASE_MARGIN_S
from wormfs.rpc.v1 import metadata_pb2
from wormfs.sim.client import NAMES, SimClient
from wormfs.sim.front import LEASE_S
from wormfs.sim.history import Call, Operation

SLOW_S = LEASE_MARGIN_S
"""What took longer is not kept: the read leases began when the master answered, which may be long ago."""
HIT_SHARE = 0.5
"""Of the reads that could be told from the cache; the others are asked, for the lease begins anew."""
_LOOKS = ("lookup", "lookup", "lookup", "list", "getattr")


class _Told(NamedTuple):
    """`names`: the directory, and the name in it, that it rests on; b"" for all names."""

    result: tuple[object, ...]
    until_s: float
    attributes: int = 0
    names: tuple[int, bytes] | None = None


def _rests_on(operation: Operation, result: tuple[object, ...], until_s: float) -> _Told | None:
    """None for what nobody may tell again."""
    failed = result[:1] == ("error",)
    if operation.kind == "getattr":
        return None if failed else _Told(result, until_s, attributes=cast("int", operation.arguments[0]))
    if operation.kind == "list":
        return None if failed else _Told(result, until_s, names=(cast("int", operation.arguments[0]), b""))
    if failed:
        names = cast("tuple[int, bytes]", operation.arguments)
        return _Told(result, until_s, names=names) if result[1] == "NotFoundError" else None
    return _Told(result, until_s, cast("int", result[0]), cast("tuple[int, bytes]", operation.arguments))


def _leases_of(told: _Told) -> Iterator[int]:
    yield told.attributes
    if told.names is not None:
        yield told.names[0]


class SimReader(SimClient):
    """A mount that changes nothing."""

    hit_count = 0

    def _begin_life(self) -> None:
        super()._begin_life()
        self._cache: dict[Operation, _Told] = {}
        self._valid_until_s = 0.0
        self._recalls = 0
        self._recalled: dict[int, int] = {}  # inode -> number of its last recall

    def cached_s(self) -> float:
        """How long it may still tell what it was told before."""
        return max((told.until_s for told in self._cache.values()), default=0.0) - trio.current_time()

    def _leased(self, sent_s: float) -> None:
        self._valid_until_s = sent_s + LEASE_S - LEASE_MARGIN_S

    def _on_recall(self, recall: metadata_pb2.Recall) -> None:
        self._recalls += 1
        self._recalled[recall.inode] = self._recalls
        whole = recall.attributes and recall.data
        for operation, told in list(self._cache.items()):
            here = told.names is not None and told.names[0] == recall.inode
            name = told.names[1] if told.names is not None else b""
            renamed = here and (whole or name in recall.names or (not name and bool(recall.names)))
            if renamed or (recall.attributes and told.attributes == recall.inode):
                del self._cache[operation]

    async def call(
        self, operation: Operation, request: Any, result: Callable[[Any], tuple[object, ...]], *, query: bool
    ) -> tuple[object, ...] | None:
        """Have it answered by the master, and remember what it said."""
        asked_s, recalls = trio.current_time(), self._recalls
        found = await super().call(operation, request, result, query=query)
        if found is None or trio.current_time() - asked_s > SLOW_S:
            return found
        told = _rests_on(operation, found, self._valid_until_s)
        if told is not None and all(self._recalled.get(inode, 0) <= recalls for inode in _leases_of(told)):
            self._cache[operation] = told
        return found

    def _tell_again(self, operation: Operation) -> bool:
        told = self._cache.get(operation)
        if told is None or told.until_s <= trio.current_time():
            return False
        self.hit_count += 1
        begun = self._history.begin(self.alias, operation)
        self._history.end(begun, told.result)
        self._trace.note(self.name, f"has cached {begun}")
        return True

    def look_again(self, call: Call) -> None:
        """Another client was answered: tell what it may have changed."""
        if call.client == self.alias or call.operation.kind in ("lookup", "list", "getattr"):
            return
        for operation in list(self._cache):
            if set(operation.arguments) & set(call.operation.arguments):
                self._tell_again(operation)

    async def act(self) -> None:
        """One look, by lot."""
        random = self._random
        kind = random.choice(_LOOKS)
        parent, name = random.choice(self.directories), random.choice(NAMES)
        inode = random.choice(self._files[-4:]) if self._files else 0
        if kind == "getattr" and inode:
            operation = Operation("getattr", (inode,))
        elif kind == "list":
            operation = Operation("list", (parent,))
        else:
            operation = Operation("lookup", (parent, name))
        if random.random() < HIT_SHARE and self._tell_again(operation):
            return
        if operation.kind == "getattr":
            await self.getattr(inode)
        elif operation.kind == "list":
            await self.list(parent)
        else:
            found = await self.lookup(parent, name)
            if found and isinstance(found[0], int):
                self._files.append(found[0])
