"""The replicas as a master knows them: what each has applied, and holds durably. Memory of one mastership."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

HOLDERS = 3
"""An entry leaves etcd when so many replicas hold it durably, or all when there are fewer."""
FRESH_S = 10.0
"""A replica not heard of for longer counts for nothing: its disks may be gone."""
LAG_S = 5.0
"""What was committed so long ago every replica should hold."""


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """A replica, for people."""

    name: str
    online: bool
    applied: int
    durable: int
    lags: bool


@dataclass(slots=True)
class _Heard:
    applied: int
    durable: int
    at_s: float


class ReplicaTable:
    """Who has what. Nothing of it is kept: after an election every replica tells anew."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        """`clock_s`: seconds that never go back."""
        self._clock_s = clock_s
        self._begun_s = clock_s()
        self._known: tuple[str, ...] = ()
        self._heard: dict[str, _Heard] = {}
        self._past: deque[tuple[float, int]] = deque()  # when an entry was committed, by samples

    def set_known(self, names: Iterable[str]) -> None:
        """The replicas there are, whether up or not."""
        self._known = tuple(sorted(names))

    def acknowledge(self, name: str, *, applied: int, durable: int) -> None:
        """A replica tells what it has; less than before when its disks were lost."""
        self._heard[name] = _Heard(applied, durable, self._clock_s())

    def sample(self, committed: int) -> None:
        """The log ends here now: what later is late counts from such moments."""
        now_s = self._clock_s()
        self._past.append((now_s, committed))
        while len(self._past) > 1 and self._past[1][0] <= now_s - LAG_S:
            self._past.popleft()

    def _fresh(self) -> list[_Heard]:
        limit_s = self._clock_s() - FRESH_S
        return [heard for name in self._known if (heard := self._heard.get(name)) and heard.at_s >= limit_s]

    @property
    def needed(self) -> int:
        """How many replicas must hold an entry durably before it may leave etcd."""
        return min(HOLDERS, len(self._known))

    @property
    def majority(self) -> int:
        """How many must when it cannot stay there: as many as etcd itself asks for, at most `needed`."""
        return min(self.needed, len(self._known) // 2 + 1)

    def held(self, count: int) -> int:
        """The last entry that so many replicas hold durably; 0 while too few are heard of."""
        durable = sorted((heard.durable for heard in self._fresh()), reverse=True)
        return durable[count - 1] if 0 < count <= len(durable) else 0

    def applied(self) -> list[int]:
        """What each replica that is up has applied."""
        return [heard.applied for heard in self._fresh()]

    def _expected(self) -> int:
        at_s, sequence = self._past[0] if self._past else (self._clock_s(), 0)
        return sequence if at_s <= self._clock_s() - LAG_S else 0

    @property
    def settling(self) -> bool:
        """Whether the mastership is so young that some replica may not have had the time to tell."""
        return self._clock_s() < self._begun_s + LAG_S

    def holding(self) -> int:
        """How many hold all but the last seconds' entries durably."""
        return sum(heard.durable >= self._expected() for heard in self._fresh())

    def views(self) -> list[ReplicaView]:
        """Every replica there is."""
        fresh = {id(heard) for heard in self._fresh()}
        made = []
        for name in self._known:
            heard = self._heard.get(name)
            online = id(heard) in fresh
            applied, durable = (heard.applied, heard.durable) if heard else (0, 0)
            made.append(ReplicaView(name, online, applied, durable, online and durable < self._expected()))
        return made
