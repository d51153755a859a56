"""What an etcd client takes and gives: keys and values, transactions, events, states of members."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from wormfs.core.errors import ConfigError
from wormfs.rpc.sockets import TcpAddress, parse_address
from wormfs.rpc.v1 import etcd_pb2

Compare = etcd_pb2.EtcdCompare
Operation = etcd_pb2.EtcdOperation


@dataclass(frozen=True, slots=True)
class EtcdOptions:
    """How to reach an etcd cluster. Raises ConfigError for what no cluster could be reached with.

    `endpoints` are "host:port", the ones to ask first in front. TLS is spoken when `ca_file` is given;
    `cert_file` and `key_file` (PEM, the key without a password) are shown to etcd, which may demand them.
    """

    endpoints: tuple[str, ...]
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    user: str = ""  # empty: no authentication
    password: str = field(default="", repr=False)
    timeout_s: float = 2.0  # of every call that says nothing else, tries at several endpoints included

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise ConfigError("etcd: no endpoint is given; name the members as host:port")
        if len(set(self.endpoints)) < len(self.endpoints):
            raise ConfigError(f"etcd: an endpoint is given twice: {', '.join(self.endpoints)}")
        for endpoint in self.endpoints:
            address = parse_address(endpoint)
            if not isinstance(address, TcpAddress) or not address.port:
                raise ConfigError(f"etcd: endpoint {endpoint!r} is not host:port")
        if (self.cert_file is None) != (self.key_file is None):
            raise ConfigError("etcd: a client certificate needs its key, and a key its certificate")
        if self.cert_file is not None and self.ca_file is None:
            raise ConfigError("etcd: a client certificate is of use with TLS only; name the ca_file too")
        if self.password and not self.user:
            raise ConfigError("etcd: a password needs its user")
        if not self.timeout_s > 0:
            raise ConfigError(f"etcd: the timeout must be positive, not {self.timeout_s:g} s")


@dataclass(frozen=True, slots=True)
class EtcdKv:
    """A key as it was put last."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int  # puts since it was made
    lease: int  # 0: none


@dataclass(frozen=True, slots=True)
class EtcdRange:
    """Keys in their order. `revision` is that of the whole key space when they were read."""

    revision: int
    kvs: tuple[EtcdKv, ...]
    more: bool  # the limit cut it short


@dataclass(frozen=True, slots=True)
class EtcdPut:
    """The reply to a put."""


@dataclass(frozen=True, slots=True)
class EtcdDeleted:
    """The reply to a delete: how many keys there were."""

    keys: int


@dataclass(frozen=True, slots=True)
class EtcdTxn:
    """A transaction's outcome: `responses` belong to the operations of the branch taken, in order."""

    succeeded: bool
    revision: int
    responses: tuple[EtcdRange | EtcdPut | EtcdDeleted, ...]

    @property
    def ranges(self) -> tuple[EtcdRange, ...]:
        """The responses to the gets alone."""
        return tuple(response for response in self.responses if isinstance(response, EtcdRange))


@dataclass(frozen=True, slots=True)
class EtcdLease:
    """A lease as granted; its time may be longer than asked for (etcd has a minimum)."""

    id: int
    ttl_s: int


class EtcdEventKind(Enum):
    """What happened to a key."""

    PUT = "put"
    DELETE = "delete"  # also when its lease ended


@dataclass(frozen=True, slots=True)
class EtcdEvent:
    """One change; `kv.mod_revision` is its revision. A delete has an empty value."""

    kind: EtcdEventKind
    kv: EtcdKv


@dataclass(frozen=True, slots=True)
class EtcdEvents:
    """Changes of one or more whole revisions, in order; `revision` is the last one's."""

    revision: int
    events: tuple[EtcdEvent, ...]


@dataclass(frozen=True, slots=True)
class EtcdMember:
    """A member of the cluster, as the cluster knows it."""

    id: int
    name: str  # empty until it started
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    is_learner: bool


@dataclass(frozen=True, slots=True)
class EtcdStatus:
    """How the member at an endpoint is. `problem` is empty when it answered; else the rest is."""

    endpoint: str
    problem: str = ""
    member_id: int = 0
    version: str = ""
    db_size_bytes: int = 0
    db_size_in_use_bytes: int = 0
    leader: int = 0  # the leader's member id; 0: it knows none
    raft_term: int = 0
    is_learner: bool = False
    alarms: tuple[str, ...] = ()  # in etcd's words


def compare_value(key: bytes, value: bytes) -> Compare:
    """Holds when the key is there and has this value."""
    return Compare(target=Compare.VALUE, key=key, value=value)


def compare_absent(key: bytes) -> Compare:
    """Holds when the key is not there."""
    return Compare(target=Compare.CREATE, key=key, create_revision=0)


def compare_mod_revision(key: bytes, revision: int) -> Compare:
    """Holds when the key was put last by this revision; 0: when it is not there."""
    return Compare(target=Compare.MOD, key=key, mod_revision=revision)


def put(key: bytes, value: bytes, lease: int = 0) -> Operation:
    """Set a key; it ends with the lease, or with none."""
    return Operation(put=etcd_pb2.EtcdPutRequest(key=key, value=value, lease=lease))


def delete(key: bytes, range_end: bytes = b"") -> Operation:
    """Remove a key, or all in [key, range_end)."""
    return Operation(delete=etcd_pb2.EtcdDeleteRequest(key=key, range_end=range_end))


def get(key: bytes, range_end: bytes = b"", *, limit: int = 0) -> Operation:
    """Read a key, or those in [key, range_end), at most `limit` of them (0: all)."""
    return Operation(range=etcd_pb2.EtcdRangeRequest(key=key, range_end=range_end, limit=limit))


def prefix_end(prefix: bytes) -> bytes:
    """The range_end that makes [prefix, range_end) all keys that begin so."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else b"\0"


def kv_of(kv: etcd_pb2.EtcdKeyValue) -> EtcdKv:
    """From the wire."""
    return EtcdKv(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def range_of(reply: etcd_pb2.EtcdRangeReply, revision: int) -> EtcdRange:
    """From the wire; a reply within a transaction has no revision of its own."""
    return EtcdRange(revision, tuple(map(kv_of, reply.kvs)), reply.more)


def response_of(reply: etcd_pb2.EtcdOperationReply, revision: int) -> EtcdRange | EtcdPut | EtcdDeleted:
    """From the wire."""
    if reply.HasField("range"):
        return range_of(reply.range, revision)
    return EtcdDeleted(reply.delete.deleted) if reply.HasField("delete") else EtcdPut()


def event_of(event: etcd_pb2.EtcdEvent) -> EtcdEvent:
    """From the wire."""
    deleted = event.kind == etcd_pb2.EtcdEvent.DELETE
    return EtcdEvent(EtcdEventKind.DELETE if deleted else EtcdEventKind.PUT, kv_of(event.kv))


def member_of(member: etcd_pb2.EtcdMember) -> EtcdMember:
    """From the wire."""
    return EtcdMember(
        member.id, member.name, tuple(member.peer_urls), tuple(member.client_urls), member.is_learner
    )


def status_of(endpoint: str, reply: etcd_pb2.EtcdStatusReply) -> EtcdStatus:
    """From the wire."""
    return EtcdStatus(
        endpoint,
        member_id=reply.header.member_id,
        version=reply.version,
        db_size_bytes=reply.db_size_bytes,
        db_size_in_use_bytes=reply.db_size_in_use_bytes,
        leader=reply.leader,
        raft_term=reply.raft_term,
        is_learner=reply.is_learner,
        alarms=tuple(reply.errors),
    )
