"""The fake network: messages between named processes, delayed, lost, doubled, reordered, cut off.

A message is a function called at its arrival. One that meets a cut link is lost, or waits and
comes some time after the link is whole again: TCP sends again for a long time, with growing pauses.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Generic, TypeVar

import trio

from wormfs.core.errors import WormError
from wormfs.sim.signals import Signal
from wormfs.sim.trace import Trace

T = TypeVar("T")
HELD_SHARE = 0.4
"""Of the messages that meet a cut link: they come late, the others never."""


@dataclass
class Weather:
    """How the whole network is just now; shares are probabilities for each message."""

    delay_s: float = 0.002  # mean
    slow_share: float = 0.02
    slow_s: float = 0.5  # at most, of a slow message
    lost_share: float = 0.0
    doubled_share: float = 0.01


@dataclass
class Box(Generic[T]):
    """Where an answer arrives; the first one counts."""

    arrived: trio.Event = field(default_factory=trio.Event)
    answer: T | WormError | None = None

    def put(self, answer: T | WormError) -> None:
        """The answer is here."""
        if not self.arrived.is_set():
            self.answer = answer
            self.arrived.set()


class Network:
    """Links are directed: (from, to). `changed` tells of cut and mended ones."""

    def __init__(self, random: Random, trace: Trace, nursery: trio.Nursery) -> None:
        self.weather = Weather()
        self.changed = Signal()
        self._random = random
        self._trace = trace
        self._nursery = nursery
        self._cut: dict[tuple[str, str], int] = {}  # how many faults cut the link
        self.message_count = 0

    def cut(self, source: str, target: str) -> None:
        """Let nothing pass in this direction."""
        self._cut[source, target] = self._cut.get((source, target), 0) + 1
        self.changed.notify()

    def mend(self, source: str, target: str) -> None:
        """Take one cut() back."""
        self._cut[source, target] -= 1
        if not self._cut[source, target]:
            del self._cut[source, target]
        self.changed.notify()

    def is_cut(self, source: str, target: str) -> bool:
        """Whether nothing passes now."""
        return (source, target) in self._cut

    def delay_s(self) -> float:
        """How long a message takes now."""
        weather, random = self.weather, self._random
        if random.random() < weather.slow_share:
            return random.random() * weather.slow_s
        return random.expovariate(1 / weather.delay_s)

    def send(
        self,
        source: str,
        target: str,
        arrive: Callable[[], None],
        *,
        what: str,
        repeatable: bool = True,
        late_s: float = 0.0,
    ) -> None:
        """Send a message. `repeatable`: it may come twice; `late_s`: it takes so much longer than others."""
        self.message_count += 1
        copies = 1
        if repeatable and self._random.random() < self.weather.doubled_share:
            copies = 2
        for _ in range(copies):
            self._nursery.start_soon(self._carry, source, target, arrive, what, late_s)

    async def _carry(
        self, source: str, target: str, arrive: Callable[[], None], what: str, late_s: float
    ) -> None:
        if self._random.random() < self.weather.lost_share:
            self._trace.note(source, f"-> {target} lost: {what}")
            return
        await trio.sleep(self.delay_s() + late_s)
        if self.is_cut(source, target):
            if self._random.random() >= HELD_SHARE:
                self._trace.note(source, f"-> {target} cut off: {what}")
                return
            met_s = trio.current_time()
            while self.is_cut(source, target):
                await self.changed.wait()
            pause_s = self._random.random() * (trio.current_time() - met_s)
            await trio.sleep(self.delay_s() + pause_s)
        arrive()


class _Way:
    """One direction of a connection."""

    def __init__(self, network: Network, source: str, target: str) -> None:
        self._network = network
        self._source = source
        self._target = target
        self._sent = 0
        self._next = 0  # the number of the one that arrives next
        self._early: dict[int, Callable[[], None]] = {}

    def send(self, arrive: Callable[[], None], what: str, late_s: float = 0.0) -> None:
        """Send a message."""
        number = self._sent
        self._sent += 1
        self._network.send(
            self._source, self._target, lambda: self._come(number, arrive), what=what, late_s=late_s
        )

    def _come(self, number: int, arrive: Callable[[], None]) -> None:
        if number >= self._next:  # else it came twice
            self._early[number] = arrive
        while self._next in self._early:
            arrive = self._early.pop(self._next)
            self._next += 1
            arrive()


class Connection:
    """What TCP gives, each way: messages arrive once, in the order they were sent; behind a lost one, none.

    They may arrive long after both ends have forgotten about it.
    """

    def __init__(self, network: Network, source: str, target: str) -> None:
        self.target = target
        self.closed = trio.Event()  # its source has given it up
        self._there = _Way(network, source, target)
        self._back = _Way(network, target, source)

    def send(self, arrive: Callable[[], None], *, what: str, late_s: float = 0.0) -> None:
        """Send a message from its source."""
        self._there.send(arrive, what, late_s)

    def send_back(self, arrive: Callable[[], None], *, what: str) -> None:
        """Send a message to its source."""
        self._back.send(arrive, what)
