"""Clocks of a simulated machine: they run at their own rate, and jump."""

from collections.abc import Callable

WALL_START_NS = 1_700_000_000 * 10**9


class MachineClock:
    """`rate`: its seconds in a true one. A boot clock only jumps forward, as after a suspend."""

    def __init__(self, true_s: Callable[[], float], rate: float) -> None:
        self.rate = rate
        self._true_s = true_s
        self._boot_ahead_s = 0.0
        self._wall_ahead_s = 0.0

    def boot_s(self) -> float:
        """Seconds since boot."""
        return self._true_s() * self.rate + self._boot_ahead_s

    def wall_ns(self) -> int:
        """Nanoseconds since 1970 UTC, as far as this machine knows."""
        return WALL_START_NS + round((self._true_s() * self.rate + self._wall_ahead_s) * 1e9)

    def jump_boot(self, by_s: float) -> None:
        """Let the boot clock jump forward, as after a suspend."""
        self._boot_ahead_s += abs(by_s)

    def jump_wall(self, by_s: float) -> None:
        """Set the wall clock forward or back."""
        self._wall_ahead_s += by_s
