"""What was answered is in the log: for ever, but for the last answers of a client that died or was told.

And no inode number is told of two files, not even if the first was lost: a program may have it open.
"""

from collections.abc import Collection

from wormfs.sim.history import Call

Key = tuple[int, int]  # session, operation


def _changes(call: Call) -> bool:
    """Whether what was answered takes an entry of the log."""
    kind, result = call.operation.kind, call.result
    if not call.is_answered or not call.key[1] or result[:1] == ("error",):
        return False
    return kind in ("link", "unlink", "rmdir") or (kind == "create" and bool(result[1]))


def broken_promises(calls: list[Call], done: Collection[Key]) -> list[str]:
    """What is not as promised, given all operations in etcd's log at the end."""
    problems = []
    changes = [call for call in calls if _changes(call)]
    missing = [call for call in changes if call.key not in done]
    for call in missing:
        if not call.loss:
            problems.append(f"{call} was answered, and is not in the log")
            continue
        later = next(
            (
                other
                for other in changes
                if other.loss == call.loss and other.invoked > call.answered and other.key in done
            ),
            None,
        )
        if later is not None:
            problems.append(f"{call} is lost, and {later} behind it is not")
    made: dict[object, Call] = {}
    for call in changes:
        if call.operation.kind == "create" and made.setdefault(call.result[0], call) is not call:
            problems.append(f"{call} was given the number of {made[call.result[0]]}")
    return problems
