"""Whether a history is linearizable: some order of its calls explains every answer.

Wing and Gong's search with Lowe's memory of configurations: take any call that was begun before
every call not taken yet was answered, ask the model whether it can be answered so, go on; go back
when none can. A call without an answer may be taken at any time after it was begun, or never.
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
    # Calls that were answered come first: trying those without an answer early rarely helps.
    ordered = sorted(calls, key=lambda call: (call.answered, call.invoked))
    wanted = sum(call.is_answered for call in ordered)
    all_answered = (1 << wanted) - 1
    seen: set[tuple[int, tuple[object, ...]]] = set()
    stack: list[tuple[int, Names]] = [(0, state)]
    best, stuck = -1, ()  # type: int, tuple[Call, ...]
    steps = 0
    while stack:
        taken, names = stack.pop()
        if taken & all_answered == all_answered:
            return Verdict(True, wanted)
        candidates = _candidates(ordered, taken, wanted)
        count = (taken & all_answered).bit_count()
        if count > best:
            best, stuck = count, tuple(ordered[at] for at in candidates if ordered[at].is_answered)
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
                following.append((taken | 1 << at, after))
        if steps > STEPS_MAX:
            return Verdict(False, best, stuck, undecided=True)
        stack.extend(reversed(following))
    return Verdict(False, best, stuck)


def _candidates(ordered: list[Call], taken: int, wanted: int) -> list[int]:
    """Calls not taken that were begun before any other not taken was answered."""
    first_answer = next((ordered[at].answered for at in range(wanted) if not taken >> at & 1), None)
    found = []
    for at, call in enumerate(ordered):
        if not taken >> at & 1 and (first_answer is None or call.invoked < first_answer):
            found.append(at)
    return found
