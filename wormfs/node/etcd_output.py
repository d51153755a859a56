"""The log file of a managed etcd member: kept short, and read for why the member died."""

import json
import os
import shutil
from pathlib import Path

LOG_BYTES = 16 << 20
_TAIL_BYTES = 16 << 10
_SHOWN_LINES = 3
_SHOWN_CHARACTERS = 300
_REMOVED = "permanently removed from the cluster"
_ADVICE = {
    "no space left on device": "make room on the file system of {folder}",
    "address already in use": "another process listens there: end it, or choose another address",
}


def bound(log_file: Path, limit_bytes: int = LOG_BYTES) -> None:
    """When the log is over its limit, put it aside (the older one goes) and begin anew; etcd appends on.

    What etcd writes in between is lost. A full disk or lost folder is not this file's problem.
    """
    try:
        if log_file.stat().st_size > limit_bytes:
            try:
                shutil.copyfile(log_file, log_file.with_name(f"{log_file.name}.old"))
            finally:
                os.truncate(log_file, 0)
    except OSError:
        pass


def length(log_file: Path) -> int:
    """Where the next line will stand; 0 when there is no log."""
    try:
        return log_file.stat().st_size
    except OSError:
        return 0


def says_removed(log_file: Path, since: int = 0) -> bool:
    """Whether the member ended because it is none of the cluster any more, and never will be."""
    try:
        return any(_REMOVED in line for line in _tail(log_file, since))
    except OSError:
        return False


def last_words(log_file: Path, since: int = 0) -> str:
    """The last warnings and errors behind offset `since`, in one line, with what to do where we know."""
    try:
        lines = _tail(log_file, since)
    except OSError as error:
        return f"its log cannot be read: {error.strerror}"
    worst = [text for line in lines if (text := _complaint(line))]
    said = worst[-_SHOWN_LINES:] or [line.strip() for line in lines if line.strip()][-1:]
    advice = [
        text.format(folder=log_file.parent) for sign, text in _ADVICE.items() if any(sign in w for w in worst)
    ]
    return "; ".join([*(text[:_SHOWN_CHARACTERS] for text in said), *advice]) or "its log says nothing"


def _tail(log_file: Path, since: int) -> list[str]:
    with log_file.open("rb") as log:
        end = log.seek(0, os.SEEK_END)
        log.seek(max(0, end - _TAIL_BYTES, since if since <= end else 0))  # past it: begun anew since
        return log.read().decode(errors="replace").splitlines()


def _complaint(line: str) -> str:
    """A line of zap's JSON from warning up, short; '' for all else."""
    try:
        fields = json.loads(line)
        if fields["level"] in ("debug", "info"):
            return ""
        return ": ".join(str(fields[name]) for name in ("msg", "error") if fields.get(name))
    except (ValueError, KeyError, TypeError):
        return ""
