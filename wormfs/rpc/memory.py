"""How the C library's allocator treats large blocks, and how often Python looks for cyclic garbage."""

import ctypes
import gc

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_THRESHOLD_BYTES = 32 << 20  # glibc's HEAP_MAX / 2: the largest that mallopt takes on 64 bits


def raise_mmap_threshold() -> bool:
    """Keep freed megabytes for reuse instead of unmapping them; every process calls this at start.

    The first touch of a fresh page costs far more than a copy on most virtual machines, so a
    process that moves megabytes must not take new pages for each. See mallopt(3). Returns False
    where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt.restype = ctypes.c_int
    raised = bool(mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES))
    return bool(mallopt(_M_TRIM_THRESHOLD, _THRESHOLD_BYTES)) and raised


def collect_rarely() -> None:
    """Requests make little cyclic garbage: what lives now is never looked at again, the rest rarely.

    Every process that serves requests calls this once it is set up.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
