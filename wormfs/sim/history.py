"""What clients asked for and were told: the only thing the checkers believe."""

from collections.abc import Callable
from dataclasses import dataclass, field

PENDING = float("inf")


@dataclass(frozen=True, slots=True)
class Operation:
    """What was asked. `kind` names the operation, `arguments` are its own (see names_model.py)."""

    kind: str
    arguments: tuple[object, ...]


@dataclass(slots=True, eq=False)
class Call:
    """One operation of one client. Moments are numbers of steps of the history, not times.

    `result`: what was answered, or ("error", kind of error). `key`: its session, and its number there,
    which is 0 for a query. `loss`: not 0 for one whose answer may have been lost, and which loss it was.
    """

    client: str
    operation: Operation
    invoked: int
    answered: float = PENDING
    result: tuple[object, ...] = ()
    key: tuple[int, int] = (0, 0)
    loss: int = 0

    @property
    def is_answered(self) -> bool:
        """Whether the client knows what came of it."""
        return self.answered != PENDING

    @property
    def is_required(self) -> bool:
        """Whether what was answered must be true for ever."""
        return self.is_answered and not self.loss

    def __str__(self) -> str:
        told = (self.result or "done") if self.is_answered else "no answer"
        return f"{self.client} {self.operation.kind}{self.operation.arguments} -> {told}"


@dataclass
class History:
    """All calls, in the order they were begun."""

    calls: list[Call] = field(default_factory=list)
    losses: int = 0
    answered: Callable[[Call], None] | None = None  # called when a call was
    _moment: int = 0
    _synced: dict[str, int] = field(default_factory=dict)  # client -> what was answered before is safe

    def begin(self, client: str, operation: Operation) -> Call:
        """A client asks."""
        self._moment += 1
        call = Call(client, operation, self._moment)
        self.calls.append(call)
        return call

    def end(self, call: Call, result: tuple[object, ...]) -> None:
        """It was answered."""
        self._moment += 1
        call.answered = self._moment
        call.result = result
        if self.answered is not None:
            self.answered(call)

    def begin_sync(self) -> int:
        """A client asks that all it was answered so far be safe; the moment, for end_sync."""
        self._moment += 1
        return self._moment

    def end_sync(self, client: str, begun: int) -> None:
        """It is."""
        self._synced[client] = max(begun, self._synced.get(client, 0))

    def lose(self, client: str) -> None:
        """The client died, or was told of a loss: what was answered since its last sync may be gone."""
        self.losses += 1
        safe = self._synced.get(client, 0)
        self.end_sync(client, self.begin_sync())
        for call in self.calls:
            if call.client == client and call.is_answered and call.answered > safe:
                call.loss = self.losses
