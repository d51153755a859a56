"""What `make test` leaves out of the long tests, and `make test-all` runs (WORMFS_ROUNDS)."""

import os

WHOLE = "all"


def rounds(sample: int, whole: int) -> int:
    """How many rounds a long test runs; WORMFS_ROUNDS is `all` or a number, for every test the same."""
    wanted = os.environ.get("WORMFS_ROUNDS", "")
    if wanted == WHOLE:
        return whole
    return int(wanted) if wanted else sample


def runs_unsampled() -> bool:
    """Whether tests marked `unsampled` run."""
    return bool(rounds(0, 1))
