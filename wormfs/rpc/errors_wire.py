"""The one table between WormError classes, ErrorReply messages and gRPC status codes.

grpc itself is imported only where a status is asked for: a mount speaks streams and never loads it.
"""

from typing import TYPE_CHECKING

from wormfs.core import errors
from wormfs.core.errors import ERRORS_BY_NAME, WormError
from wormfs.rpc.v1 import types_pb2

if TYPE_CHECKING:
    import grpc

ERRNO_KEY = "wormfs-errno"
CODE_KEY = "wormfs-code"
"""Trailing metadata of a gRPC status: the errno in decimal, the name of the WormError class."""

_STATUS_NAMES: dict[type[WormError], str] = {
    WormError: "INTERNAL",
    errors.NotFoundError: "NOT_FOUND",
    errors.ExistsError: "ALREADY_EXISTS",
    errors.NotDirectoryError: "FAILED_PRECONDITION",
    errors.IsADirectoryWormError: "FAILED_PRECONDITION",
    errors.NotEmptyError: "FAILED_PRECONDITION",
    errors.NameTooLongError: "INVALID_ARGUMENT",
    errors.InvalidError: "INVALID_ARGUMENT",
    errors.NotPermittedError: "PERMISSION_DENIED",
    errors.TooManyLinksError: "FAILED_PRECONDITION",
    errors.NoXattrError: "NOT_FOUND",
    errors.TooLargeError: "OUT_OF_RANGE",
    errors.RangeError: "OUT_OF_RANGE",
    errors.StaleError: "NOT_FOUND",
    errors.BadHandleError: "FAILED_PRECONDITION",
    errors.NoSpaceError: "RESOURCE_EXHAUSTED",
    errors.ReadOnlyError: "FAILED_PRECONDITION",
    errors.UnavailableError: "UNAVAILABLE",
    errors.DeadlineError: "DEADLINE_EXCEEDED",
    errors.DataLossError: "DATA_LOSS",
    errors.WrongClusterError: "FAILED_PRECONDITION",
    errors.ConfigError: "INVALID_ARGUMENT",
}
"""A class that is not here takes the code of its nearest ancestor that is."""

_CLASS_OF_STATUS: dict[str, type[WormError]] = {
    "NOT_FOUND": errors.NotFoundError,
    "ALREADY_EXISTS": errors.ExistsError,
    "INVALID_ARGUMENT": errors.InvalidError,
    "PERMISSION_DENIED": errors.NotPermittedError,
    "OUT_OF_RANGE": errors.TooLargeError,
    "UNAVAILABLE": errors.UnavailableError,
    "DEADLINE_EXCEEDED": errors.DeadlineError,
    "DATA_LOSS": errors.DataLossError,
    "UNIMPLEMENTED": errors.ProtocolError,
}
"""For a status without our trailing metadata: one that gRPC itself made."""


def to_reply(error: WormError) -> types_pb2.ErrorReply:
    """What travels in an error frame."""
    return types_pb2.ErrorReply(code=type(error).__name__, errno=error.errno, message=error.message)


def from_reply(reply: types_pb2.ErrorReply) -> WormError:
    """The error the peer raised; a code of a newer version becomes the class with the same errno."""
    return _named(reply.code, reply.errno, reply.message)


def _named(code: str, errno: int, message: str) -> WormError:
    found = ERRORS_BY_NAME.get(code)
    if found is None:
        same = (kind for kind in ERRORS_BY_NAME.values() if kind.errno == errno)
        found = next(same, WormError)
    return found(message)


def status_of(error: WormError) -> "grpc.StatusCode":
    """The gRPC status code of an error."""
    import grpc  # noqa: PLC0415 - see the module's docstring

    for kind in type(error).__mro__:
        name = _STATUS_NAMES.get(kind)
        if name is not None:
            code: grpc.StatusCode = getattr(grpc.StatusCode, name)
            return code
    return grpc.StatusCode.INTERNAL


def trailing_metadata(error: WormError) -> tuple[tuple[str, str], ...]:
    """What travels beside the status, so that the caller gets the very class and errno."""
    return ((CODE_KEY, type(error).__name__), (ERRNO_KEY, str(error.errno)))


def from_status(code: str, details: str, trailing: dict[str, str]) -> WormError:
    """The error behind a gRPC status; `code` is the status code's name."""
    if CODE_KEY in trailing:
        number = trailing.get(ERRNO_KEY, "")
        return _named(trailing[CODE_KEY], int(number) if number.isdecimal() else 0, details)
    return _CLASS_OF_STATUS.get(code, WormError)(details or f"gRPC status {code}")
