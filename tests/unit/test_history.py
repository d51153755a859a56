"""The history checker: a sound history passes, and each planted violation is found."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests.history import NO, OK, UNKNOWN, Found, Operation, violations


def op(
    client: str, kind: str, key: str, value: object = "", outcome: str = OK, *, at: tuple[float, float]
) -> Operation:
    return Operation(client, kind, key, str(value), outcome, *at)


SOUND = [
    op("a", "create", "x", at=(0, 1)),
    op("b", "create", "x", outcome=NO, at=(0.5, 1.5)),
    op("a", "rename", "y", outcome=NO, at=(2, 3)),
    op("b", "rename", "y", outcome=UNKNOWN, at=(1, 4)),
    op("a", "put", "n", 1, at=(0, 1)),
    op("a", "put", "n", 2, outcome=UNKNOWN, at=(2, 3)),
    op("b", "get", "n", 0, at=(0.5, 0.6)),
    op("b", "get", "n", 2, at=(4, 5)),
    op("a", "append", "log", "a1", at=(0, 1)),
    op("b", "append", "log", "b1", at=(0.5, 2)),
    op("a", "append", "log", "a2", outcome=UNKNOWN, at=(2, 3)),
    op("b", "append", "log", "b2", at=(3, 4)),
    op("a", "keep", "k", "d1", at=(0, 1)),
    op("a", "keep", "l", "d2", outcome=UNKNOWN, at=(1, 2)),
]
FOUND = Found(
    names=frozenset({"x"}),
    owners={"y": "b"},
    numbers={"n": 2},
    records={"log": ["b1", "a1", "b2"]},
    digests={"k": "d1", "l": "other"},
)


def test_a_sound_history_shows_nothing() -> None:
    assert violations(SOUND, FOUND) == []


def test_what_failed_may_have_been_done_or_not() -> None:
    assert (
        violations(SOUND, replace(FOUND, records={"log": ["a1", "b1", "a2", "b2"]}, digests={"k": "d1"}))
        == []
    )
    undone = [each for each in SOUND if each.kind not in {"get", "rename"}]
    assert violations(undone, replace(FOUND, numbers={"n": 1}, owners={})) == []


@pytest.mark.parametrize(
    ("planted", "line"),
    [
        (op("c", "create", "x", at=(1, 2)), "create x: a and c were both told that they had won"),
        (
            op("c", "create", "z", outcome=NO, at=(1, 2)),
            "create z: c was told that it was there, and nobody had",
        ),
        (op("c", "create", "z", at=(1, 2)), "create z: was made, and is gone"),
        (op("c", "rename", "y", at=(1, 2)), "rename y: c had won, and it is b's"),
        (op("b", "rename", "y", outcome=NO, at=(1, 2)), "rename y: b was refused, and it is its own"),
        (op("a", "put", "n", 3, at=(5, 6)), "put n: 3 was the last acknowledged, 2 is there"),
        (op("c", "get", "n", 1, at=(6, 7)), "get n: c read 1 after 2 had been put or read"),
        (op("c", "get", "n", 0, at=(1.5, 1.6)), "get n: c read 0 after 1 had been put or read"),
        (op("c", "get", "n", 2, at=(1.5, 1.6)), "get n: c read 2, which nobody had put yet"),
        (op("c", "append", "log", "c1", at=(1, 2)), "append log: 'c1' was acknowledged, and is not there"),
        (op("c", "keep", "gone", "d3", at=(1, 2)), "keep gone: was fsynced, and is gone"),
        (op("c", "keep", "l", "d3", at=(1, 2)), "keep l: was fsynced, and reads otherwise"),
    ],
)
def test_a_planted_operation_is_found(planted: Operation, line: str) -> None:
    found = violations([*SOUND, planted], FOUND)
    assert any(each.startswith(line) for each in found), found


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"names": frozenset()}, "create x: was made, and is gone"),
        ({"owners": {"y": "a"}}, "rename y: a was refused, and it is its own"),
        ({"numbers": {"n": 7}}, "put n: 1 was the last acknowledged, 7 is there"),
        ({"numbers": {}}, "put n: 1 was the last acknowledged, 0 is there"),
        ({"records": {"log": ["b1", "a1", "b2", "b1"]}}, "append log: holds 'b1' twice"),
        ({"records": {"log": ["b1", "a1", "b", "b2"]}}, "append log: holds 'b', which nobody appended"),
        ({"records": {"log": ["b2", "a1", "b1"]}}, "append log: 'a1' stands behind one that was begun after"),
        ({"digests": {"k": "d2"}}, "keep k: was fsynced, and reads otherwise"),
    ],
)
def test_what_is_there_must_fit(changed: Mapping[str, object], line: str) -> None:
    found = violations(SOUND, replace(FOUND, **changed))  # type: ignore[arg-type]  # fields of Found
    assert any(each.startswith(line) for each in found), found
