"""Log entries that a session hands over: read, and tried on the state before any log has them.

What a session kept went through its memory, and maybe came from a newer program. An entry in the log
that cannot be applied would end this mastership and each one after it; so none gets there. It makes no
difference why it is of no use: the session is told that it is lost, for one that was refused would come
back with the same entry for ever.
"""

import sqlite3

from google.protobuf.message import DecodeError

from wormfs.core.errors import DataLossError, NewerProgramError
from wormfs.core.limits import NUMBER_MAX
from wormfs.core.ordering import is_upkeep
from wormfs.metadata.convert import event_record
from wormfs.metadata.sqlite_state import SqliteState
from wormfs.metadata.state_files import apply_entry
from wormfs.rpc.v1 import event_pb2


class UnusableEntryError(DataLossError):
    """No master of this program can order the entry; the message says what it is, and why."""


def read_kept(session_id: int, payload: bytes) -> event_pb2.LogEntry:
    """The entry, if it is one of the session's operations or upkeep. Raises UnusableEntryError."""
    try:
        entry = event_pb2.LogEntry.FromString(payload)
        events = [event_record(each) for each in entry.events]
    except (DecodeError, ValueError) as error:
        raise UnusableEntryError(f"what is no log entry ({error})") from error
    except NewerProgramError as error:
        raise UnusableEntryError("an entry of a newer program: upgrade WormFS on this node") from error
    if max(entry.operation.operation, entry.operation.acknowledged) > NUMBER_MAX:
        raise UnusableEntryError("an entry with a number past 63 bits")
    own = entry.operation.session_id == session_id and entry.operation.operation
    if not own and (entry.HasField("operation") or not events or not is_upkeep(events)):
        raise UnusableEntryError("an entry that is not its own")
    return entry


def try_kept(state: SqliteState, entry: event_pb2.LogEntry) -> None:
    """Apply the entry, and have SQLite take it, within SqliteState.all_or_nothing.

    Raises UnusableEntryError, sqlite3.Error when it is the disk that fails.
    """
    try:
        apply_entry(state, entry)
        state.flush()
    except sqlite3.Error as error:
        if isinstance(error, sqlite3.IntegrityError | sqlite3.DataError):
            raise _unusable(entry, error) from error
        raise
    except Exception as error:  # damage may show as anything: a number out of range, a division by zero
        raise _unusable(entry, error) from error


def _unusable(entry: event_pb2.LogEntry, error: Exception) -> UnusableEntryError:
    place = entry.origin
    return UnusableEntryError(
        f"an entry ({place.sequence} of mastership {place.epoch}) that does not fit the metadata: {error}"
    )
