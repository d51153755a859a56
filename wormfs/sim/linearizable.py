"""Whether a history is linearizable: some order of its calls explains every answer.

Wing and Gong's search with Lowe's memory of configurations: take any call that was begun before
every call not taken yet was answered, ask the model whether it can be answered so, go on; go back
when none can. A call without an answer may be taken at any time after it was begun, or never. So may
one whose answer was lost with its client, but not later than it was answered, and of those lost
together only the last ones may be missing.
"""

from dataclasses import dataclass

from wormfs.sim.history import Call
from wormfs.sim.names_model import Names, step

STEPS_MAX = 400_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reached`: the most answered calls any order explained; `stuck`: one that could not follow."""

    holds: bool
    reached: int
    stuck: tuple[Call, ...] = ()
    undecided: bool = False


def linearizable(calls: list[Call], state: Names) -> Verdict:
    """Search for an order of the calls, from this state on."""
    # Calls that must be explained come first: trying others early rarely helps.
    ordered = sorted(calls, key=lambda call: (not call.is_required, call.answered, call.invoked))
    wanted = sum(call.is_required for call in ordered)
    before = _before(ordered)
    all_wanted = (1 << wanted) - 1
    seen: set[tuple[int, tuple[object, ...]]] = set()
    stack: list[tuple[int, int, Names]] = [(0, 0, state)]
    best, stuck = -1, ()  # type: int, tuple[Call, ...]
    steps = 0
    while stack:
        taken, newest, names = stack.pop()
        if taken & all_wanted == all_wanted:
            return Verdict(True, wanted)
        candidates = _candidates(ordered, taken, newest, wanted, before)
        count = (taken & all_wanted).bit_count()
        if count > best:
            best, stuck = count, tuple(ordered[at] for at in candidates if ordered[at].is_required)
        following = []
        for at in candidates:
            steps += 1
            call = ordered[at]
            after = step(names, call.operation, call.result, f"?{at}")
            if after is None or (after is names and not call.is_answered):
                continue
            configuration = (taken | 1 << at, after.key())
            if configuration not in seen:
                seen.add(configuration)
                following.append((taken | 1 << at, max(newest, call.invoked), after))
        if steps > STEPS_MAX:
            return Verdict(False, best, stuck, undecided=True)
        stack.extend(reversed(following))
    return Verdict(False, best, stuck)


def _before(ordered: list[Call]) -> dict[int, int]:
    """By lost call: those that must not be missing if it is there."""
    lost = [(at, call) for at, call in enumerate(ordered) if call.loss]
    return {
        at: sum(
            1 << other
            for other, earlier in lost
            if earlier.loss == call.loss and earlier.answered < call.invoked
        )
        for at, call in lost
    }


def _candidates(
    ordered: list[Call], taken: int, newest: int, wanted: int, before: dict[int, int]
) -> list[int]:
    """Calls not taken that may be next; `newest`: the last moment at which one of those taken was begun."""
    first_answer = next((ordered[at].answered for at in range(wanted) if not taken >> at & 1), None)
    found = []
    for at, call in enumerate(ordered):
        if taken >> at & 1 or (first_answer is not None and call.invoked >= first_answer):
            continue
        if call.loss and (call.answered < newest or before[at] & ~taken):
            continue
        found.append(at)
    return found
