"""Everything that would differ between two runs of one seed, and how it is taken away.

- the order in which trio runs what is due: its own random numbers are seeded, its batches sorted
- threads: what code sends to a thread runs at once in its task, after a simulated while
- random ids: uuid.uuid4 counts through seeded numbers
- real time: trio's MockClock; the keeper's pause between rebuilds follows it
- the garbage collector, which ends forgotten generators at odd moments: off during a run
- hashes of str and bytes: PYTHONHASHSEED=0, which must be set before Python starts (see __main__.py)

Files lie in a folder of the run on tmpfs; no order depends on their names' order on disk.
"""

import gc
import random
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import trio
from trio._core import _run as trio_run

from wormfs.metadata import keeper
from wormfs.sim.seams import replaced

THREAD_MAX_S = 0.02
UPKEEP_INTERVALS_S = {"COMMIT_INTERVAL_S": 0.7, "SYNC_INTERVAL_S": 1.1, "CARE_INTERVAL_S": 3.0}
"""The keeper's duties, less often than on a node: simulated hours pass in minutes."""


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Let trio runs within follow from the seed alone."""
    numbers = random.Random(f"threads and ids {seed}")

    async def in_no_thread(function: Callable[..., Any], *args: Any, **_: Any) -> Any:
        await trio.sleep(numbers.random() * THREAD_MAX_S)
        return function(*args)

    def counted_uuid() -> uuid.UUID:
        return uuid.UUID(int=numbers.getrandbits(128), version=4)

    scheduler_state = trio_run._r.getstate()
    collecting = gc.isenabled()
    with ExitStack() as stack:
        for owner, name, value in (
            (trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
            (trio.to_thread, "run_sync", in_no_thread),
            (uuid, "uuid4", counted_uuid),
            (keeper, "time", SimpleNamespace(monotonic=trio.current_time)),
            *((keeper, name, value) for name, value in UPKEEP_INTERVALS_S.items()),
        ):
            stack.enter_context(replaced(owner, name, value))
        trio_run._r.seed(seed)
        gc.disable()
        try:
            yield
        finally:
            trio_run._r.setstate(scheduler_state)
            if collecting:
                gc.enable()
