"""Structured logs on standard error: one record a line, `key=value` text or JSON."""

import json
import logging
import sys
import time
from typing import IO

LEVELS = ("debug", "info", "warning", "error")
_NEEDS_QUOTES = frozenset(' "=\n\t')


def _stamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _fields(record: logging.LogRecord, formatter: logging.Formatter, node: str) -> dict[str, str]:
    fields = {
        "time": _stamp(record),
        "level": record.levelname.lower(),
        "node": node,
        "part": record.name.removeprefix("wormfs."),
        "message": record.getMessage(),
    }
    if record.exc_info:
        fields["trace"] = formatter.formatException(record.exc_info)
    return fields


class TextFormatter(logging.Formatter):
    """`time=... level=... node=... part=... message="..."`."""

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback is folded into the `trace` field."""
        fields = _fields(record, self, self._node)
        return " ".join(f"{key}={_quoted(value)}" for key, value in fields.items())


def _quoted(value: str) -> str:
    return json.dumps(value) if not value or _NEEDS_QUOTES.intersection(value) else value


class JsonFormatter(logging.Formatter):
    """A JSON object a line, with the same fields."""

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        return json.dumps(_fields(record, self, self._node), ensure_ascii=False)


def set_up_logging(level: str, *, as_json: bool, node: str, stream: IO[str] | None = None) -> None:
    """Send the records of every WormFS part from `level` up to `stream` (standard error)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(node) if as_json else TextFormatter(node))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
