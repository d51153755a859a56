"""Events: what a metadata log entry changes, as decided facts. They mirror proto/wormfs/v1/event.proto.

An event holds every decision (ids, placements, times that a client chose); applying it never
decides anything, so equal sequences of events give equal states.
"""

from dataclasses import dataclass

from wormfs.core.records import Extent, Stripe
from wormfs.core.types import Policy


@dataclass(frozen=True, slots=True)
class ClusterFormed:
    """The cluster got its identity."""

    cluster_id: str
    name: str
    policy: Policy


@dataclass(frozen=True, slots=True)
class PolicySet:
    """Stripes written from now on use this policy."""

    policy: Policy


@dataclass(frozen=True, slots=True)
class NodeRegistered:
    """A node joined, or its addresses changed."""

    number: int
    name: str
    addresses: tuple[str, ...]
    grpc_address: str
    machine_id: str


@dataclass(frozen=True, slots=True)
class DiskRegistered:
    """A disk joined, or moved to another node or path."""

    number: int
    uuid: str
    node: int
    path: str


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """A session began."""

    session_id: int
    label: str


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """A session ended; the stripes allocated to it become garbage."""

    session_id: int


@dataclass(frozen=True, slots=True)
class InodeMade:
    """A new inode with its first name."""

    inode: int
    parent: int
    name: bytes
    mode: int
    uid: int
    gid: int
    rdev: int
    target: bytes
    stripe_size_bytes: int


@dataclass(frozen=True, slots=True)
class EntryLinked:
    """One more name for an inode."""

    inode: int
    parent: int
    name: bytes


@dataclass(frozen=True, slots=True)
class EntryRemoved:
    """A name is gone; at zero links, or for a directory, the inode becomes an orphan."""

    parent: int
    name: bytes
    inode: int


@dataclass(frozen=True, slots=True)
class EntryRenamed:
    """An entry moved; `replaced_inode` (0: none) lost its name, or with `exchange` took the old one."""

    parent: int
    name: bytes
    new_parent: int
    new_name: bytes
    inode: int
    replaced_inode: int
    exchange: bool


@dataclass(frozen=True, slots=True)
class AttributesSet:
    """Attributes changed; None stays as it is. `mode` holds the type bits too."""

    inode: int
    mode: int | None
    uid: int | None
    gid: int | None
    atime_ns: int | None
    mtime_ns: int | None
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class XattrSet:
    """An extended attribute was made or replaced."""

    inode: int
    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class XattrRemoved:
    """An extended attribute is gone."""

    inode: int
    name: bytes


@dataclass(frozen=True, slots=True)
class StripesAllocated:
    """A session may write these stripes for this inode; lengths and index are not set yet."""

    session_id: int
    inode: int
    stripes: tuple[Stripe, ...]


@dataclass(frozen=True, slots=True)
class StripesAbandoned:
    """Allocated stripes that will never be committed: their chunks are garbage."""

    stripe_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FileWritten:
    """A file's content changed: stripes replace what was in their range, then extents lie over it."""

    inode: int
    stripes: tuple[Stripe, ...]
    extents: tuple[Extent, ...]
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class FileTruncated:
    """A file was cut or extended with a hole."""

    inode: int
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class OrphanFreed:
    """An orphan that nobody holds open is gone for good."""

    inode: int


@dataclass(frozen=True, slots=True)
class ChunksCollected:
    """A disk no longer holds these garbage chunks."""

    disk: int
    stripe_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StripeReplaced:
    """Repair wrote a stripe's bytes anew: its record changes, the file does not."""

    inode: int
    stripes: tuple[Stripe, ...]  # one
    old_stripe_id: int


@dataclass(frozen=True, slots=True)
class DiskForgotten:
    """A disk that held nothing any file needs is out of the cluster for good.

    With its last disk a node goes as well: then `node` is its number, else 0.
    """

    disk: int
    node: int


@dataclass(frozen=True, slots=True)
class MasterElected:
    """A mastership began."""

    epoch: int
    node: int


@dataclass(frozen=True, slots=True)
class NumbersSkipped:
    """Inode numbers up to `last_inode` are never given out again: a client may have been told of them."""

    last_inode: int


Event = (
    ClusterFormed
    | PolicySet
    | NodeRegistered
    | DiskRegistered
    | SessionOpened
    | SessionClosed
    | InodeMade
    | EntryLinked
    | EntryRemoved
    | EntryRenamed
    | AttributesSet
    | XattrSet
    | XattrRemoved
    | StripesAllocated
    | StripesAbandoned
    | FileWritten
    | FileTruncated
    | OrphanFreed
    | ChunksCollected
    | StripeReplaced
    | DiskForgotten
    | MasterElected
    | NumbersSkipped
)
