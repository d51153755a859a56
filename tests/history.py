"""A history of what concurrent clients did and were told, and what it must not show.

Pure: `violations` takes the operations and what was found in the end. An operation is

- `create KEY`: exclusively, KEY is there at most once;
- `rename KEY`: of a file that names the client to KEY, unless KEY is there;
- `put KEY n`: the number n, by the one client that writes KEY, n growing; `get KEY` reads it (0: nothing);
- `append KEY RECORD`: a record that nobody else appends;
- `keep KEY DIGEST`: a new file, fsynced.

Its outcome is `ok`; `no`, when it was refused as one that came too late; or `unknown`, when it failed, which
it may have done before or after it took effect.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

OK, NO, UNKNOWN = "ok", "no", "unknown"


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of one client; times are seconds of one clock."""

    client: str
    kind: str
    key: str
    value: str
    outcome: str
    begun_s: float
    ended_s: float

    @property
    def number(self) -> int:
        """The value of a put or get."""
        return int(self.value)


@dataclass(frozen=True, slots=True)
class Found:
    """What is there in the end."""

    names: frozenset[str] = frozenset()
    """Files left by `create`."""
    owners: Mapping[str, str] = field(default_factory=dict)
    """The client whose file each `rename` key is."""
    numbers: Mapping[str, int] = field(default_factory=dict)
    """The last number of each `put` key."""
    records: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The records of each `append` key, in their order."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Of each `keep` key that is there."""


def violations(history: Iterable[Operation], found: Found) -> list[str]:
    """Every promise that was broken, one line each; empty when none was."""
    by_kind: dict[str, dict[str, list[Operation]]] = defaultdict(lambda: defaultdict(list))
    for operation in sorted(history, key=lambda each: each.begun_s):
        by_kind[operation.kind][operation.key].append(operation)
    lines = [
        *_each(by_kind["create"], lambda key, done: _create(key, done, key in found.names)),
        *_each(by_kind["rename"], lambda key, done: _rename(key, done, found.owners.get(key))),
        *_each(by_kind["put"], lambda key, done: _register(key, done, by_kind["get"].get(key, []), found)),
        *_each(by_kind["append"], lambda key, done: _appends(key, done, found.records.get(key, ()))),
        *_each(by_kind["keep"], lambda key, done: _kept(key, done, found.digests.get(key))),
    ]
    return sorted(lines)


def _each(
    by_key: Mapping[str, list[Operation]], check: Callable[[str, list[Operation]], Iterator[str]]
) -> Iterator[str]:
    for key, operations in by_key.items():
        yield from check(key, operations)


def _exclusive(key: str, done: Sequence[Operation]) -> Iterator[str]:
    kind = done[0].kind
    won = [each.client for each in done if each.outcome == OK]
    if len(won) > 1:
        yield f"{kind} {key}: {' and '.join(won)} were both told that they had won"
    possible = [each for each in done if each.outcome != NO]
    for each in done:
        if each.outcome == NO and all(other.begun_s > each.ended_s for other in possible):
            yield f"{kind} {key}: {each.client} was told that it was there, and nobody had made it"


def _create(key: str, done: Sequence[Operation], is_there: bool) -> Iterator[str]:
    yield from _exclusive(key, done)
    if not is_there and any(each.outcome == OK for each in done):
        yield f"create {key}: was made, and is gone"


def _rename(key: str, done: Sequence[Operation], owner: str | None) -> Iterator[str]:
    yield from _exclusive(key, done)
    for each in done:
        if each.outcome == OK and owner != each.client:
            yield f"rename {key}: {each.client} had won, and it is {owner or 'nobody'}'s"
        if each.outcome == NO and owner == each.client:
            yield f"rename {key}: {each.client} was refused, and it is its own"


def _register(key: str, puts: Sequence[Operation], gets: Sequence[Operation], found: Found) -> Iterator[str]:
    last = max((each.number for each in puts if each.outcome == OK), default=0)
    tried = {0} | {each.number for each in puts}
    held = found.numbers.get(key, 0)
    if held < last or held not in tried:
        yield f"put {key}: {last} was the last acknowledged, {held} is there"
    seen = [each for each in (*puts, *gets) if each.outcome == OK]
    for get in gets:
        if get.outcome != OK:
            continue
        before = max((each.number for each in seen if each.ended_s < get.begun_s), default=0)
        if get.number < before:
            yield f"get {key}: {get.client} read {get.number} after {before} had been put or read"
        if get.number and not any(put.number == get.number and put.begun_s < get.ended_s for put in puts):
            yield f"get {key}: {get.client} read {get.number}, which nobody had put yet"


def _appends(key: str, done: Sequence[Operation], records: Sequence[str]) -> Iterator[str]:
    tried = {each.value: each for each in done}
    places: dict[str, int] = {}
    for place, record in enumerate(records):
        if record not in tried:
            yield f"append {key}: holds {record!r}, which nobody appended"
        elif record in places:
            yield f"append {key}: holds {record!r} twice"
        places[record] = place
    acknowledged = [each for each in done if each.outcome == OK]
    for each in acknowledged:
        if each.value not in places:
            yield f"append {key}: {each.value!r} was acknowledged, and is not there"
    there = sorted((each for each in acknowledged if each.value in places), key=lambda each: each.ended_s)
    first_behind = _suffix_minima([places[each.value] for each in sorted(there, key=lambda e: e.begun_s)])
    begun = sorted(there, key=lambda each: each.begun_s)
    at = 0
    for each in there:
        while at < len(begun) and begun[at].begun_s <= each.ended_s:
            at += 1
        if at < len(begun) and first_behind[at] < places[each.value]:
            yield f"append {key}: {each.value!r} stands behind one that was begun after its end"


def _suffix_minima(numbers: Sequence[int]) -> list[int]:
    minima = list(numbers)
    for at in range(len(minima) - 2, -1, -1):
        minima[at] = min(minima[at], minima[at + 1])
    return minima


def _kept(key: str, done: Sequence[Operation], digest: str | None) -> Iterator[str]:
    for each in done:
        if each.outcome == OK and digest != each.value:
            yield f"keep {key}: was fsynced, and {'is gone' if digest is None else 'reads otherwise'}"
