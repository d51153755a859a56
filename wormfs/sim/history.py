"""What clients asked for and were told: the only thing the checkers believe."""

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

    `result`: what was answered, or ("error", kind of error).
    """

    client: str
    operation: Operation
    invoked: int
    answered: float = PENDING
    result: tuple[object, ...] = ()

    @property
    def is_answered(self) -> bool:
        """Whether the client knows what came of it."""
        return self.answered != PENDING

    def __str__(self) -> str:
        told = (self.result or "done") if self.is_answered else "no answer"
        return f"{self.client} {self.operation.kind}{self.operation.arguments} -> {told}"


@dataclass
class History:
    """All calls, in the order they were begun."""

    calls: list[Call] = field(default_factory=list)
    _moment: int = 0

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
