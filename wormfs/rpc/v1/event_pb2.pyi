from wormfs.rpc.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LogEntry(_message.Message):
    __slots__ = ("sequence", "epoch", "time_ns", "events", "operation", "origin")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TIME_NS_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    epoch: int
    time_ns: int
    events: _containers.RepeatedCompositeFieldContainer[Event]
    operation: OperationDone
    origin: Origin
    def __init__(self, sequence: _Optional[int] = ..., epoch: _Optional[int] = ..., time_ns: _Optional[int] = ..., events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., operation: _Optional[_Union[OperationDone, _Mapping]] = ..., origin: _Optional[_Union[Origin, _Mapping]] = ...) -> None: ...

class Origin(_message.Message):
    __slots__ = ("epoch", "sequence")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    sequence: int
    def __init__(self, epoch: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class OperationDone(_message.Message):
    __slots__ = ("session_id", "operation", "acknowledged", "reply")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    operation: int
    acknowledged: int
    reply: bytes
    def __init__(self, session_id: _Optional[int] = ..., operation: _Optional[int] = ..., acknowledged: _Optional[int] = ..., reply: _Optional[bytes] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("cluster_formed", "policy_set", "node_registered", "disk_registered", "session_opened", "session_closed", "inode_made", "entry_linked", "entry_removed", "entry_renamed", "attributes_set", "xattr_set", "xattr_removed", "stripes_allocated", "stripes_abandoned", "file_written", "file_truncated", "orphan_freed", "chunks_collected", "master_elected", "stripe_replaced", "disk_forgotten", "numbers_skipped")
    CLUSTER_FORMED_FIELD_NUMBER: _ClassVar[int]
    POLICY_SET_FIELD_NUMBER: _ClassVar[int]
    NODE_REGISTERED_FIELD_NUMBER: _ClassVar[int]
    DISK_REGISTERED_FIELD_NUMBER: _ClassVar[int]
    SESSION_OPENED_FIELD_NUMBER: _ClassVar[int]
    SESSION_CLOSED_FIELD_NUMBER: _ClassVar[int]
    INODE_MADE_FIELD_NUMBER: _ClassVar[int]
    ENTRY_LINKED_FIELD_NUMBER: _ClassVar[int]
    ENTRY_REMOVED_FIELD_NUMBER: _ClassVar[int]
    ENTRY_RENAMED_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_SET_FIELD_NUMBER: _ClassVar[int]
    XATTR_SET_FIELD_NUMBER: _ClassVar[int]
    XATTR_REMOVED_FIELD_NUMBER: _ClassVar[int]
    STRIPES_ALLOCATED_FIELD_NUMBER: _ClassVar[int]
    STRIPES_ABANDONED_FIELD_NUMBER: _ClassVar[int]
    FILE_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    FILE_TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    ORPHAN_FREED_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_COLLECTED_FIELD_NUMBER: _ClassVar[int]
    MASTER_ELECTED_FIELD_NUMBER: _ClassVar[int]
    STRIPE_REPLACED_FIELD_NUMBER: _ClassVar[int]
    DISK_FORGOTTEN_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    cluster_formed: ClusterFormed
    policy_set: PolicySet
    node_registered: NodeRegistered
    disk_registered: DiskRegistered
    session_opened: SessionOpened
    session_closed: SessionClosed
    inode_made: InodeMade
    entry_linked: EntryLinked
    entry_removed: EntryRemoved
    entry_renamed: EntryRenamed
    attributes_set: AttributesSet
    xattr_set: XattrSet
    xattr_removed: XattrRemoved
    stripes_allocated: StripesAllocated
    stripes_abandoned: StripesAbandoned
    file_written: FileWritten
    file_truncated: FileTruncated
    orphan_freed: OrphanFreed
    chunks_collected: ChunksCollected
    master_elected: MasterElected
    stripe_replaced: StripeReplaced
    disk_forgotten: DiskForgotten
    numbers_skipped: NumbersSkipped
    def __init__(self, cluster_formed: _Optional[_Union[ClusterFormed, _Mapping]] = ..., policy_set: _Optional[_Union[PolicySet, _Mapping]] = ..., node_registered: _Optional[_Union[NodeRegistered, _Mapping]] = ..., disk_registered: _Optional[_Union[DiskRegistered, _Mapping]] = ..., session_opened: _Optional[_Union[SessionOpened, _Mapping]] = ..., session_closed: _Optional[_Union[SessionClosed, _Mapping]] = ..., inode_made: _Optional[_Union[InodeMade, _Mapping]] = ..., entry_linked: _Optional[_Union[EntryLinked, _Mapping]] = ..., entry_removed: _Optional[_Union[EntryRemoved, _Mapping]] = ..., entry_renamed: _Optional[_Union[EntryRenamed, _Mapping]] = ..., attributes_set: _Optional[_Union[AttributesSet, _Mapping]] = ..., xattr_set: _Optional[_Union[XattrSet, _Mapping]] = ..., xattr_removed: _Optional[_Union[XattrRemoved, _Mapping]] = ..., stripes_allocated: _Optional[_Union[StripesAllocated, _Mapping]] = ..., stripes_abandoned: _Optional[_Union[StripesAbandoned, _Mapping]] = ..., file_written: _Optional[_Union[FileWritten, _Mapping]] = ..., file_truncated: _Optional[_Union[FileTruncated, _Mapping]] = ..., orphan_freed: _Optional[_Union[OrphanFreed, _Mapping]] = ..., chunks_collected: _Optional[_Union[ChunksCollected, _Mapping]] = ..., master_elected: _Optional[_Union[MasterElected, _Mapping]] = ..., stripe_replaced: _Optional[_Union[StripeReplaced, _Mapping]] = ..., disk_forgotten: _Optional[_Union[DiskForgotten, _Mapping]] = ..., numbers_skipped: _Optional[_Union[NumbersSkipped, _Mapping]] = ...) -> None: ...

class ClusterFormed(_message.Message):
    __slots__ = ("cluster_id", "name", "policy")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    name: str
    policy: _types_pb2.Policy
    def __init__(self, cluster_id: _Optional[str] = ..., name: _Optional[str] = ..., policy: _Optional[_Union[_types_pb2.Policy, _Mapping]] = ...) -> None: ...

class PolicySet(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: _types_pb2.Policy
    def __init__(self, policy: _Optional[_Union[_types_pb2.Policy, _Mapping]] = ...) -> None: ...

class NodeRegistered(_message.Message):
    __slots__ = ("number", "name", "addresses", "grpc_address", "machine_id")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    GRPC_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MACHINE_ID_FIELD_NUMBER: _ClassVar[int]
    number: int
    name: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    grpc_address: str
    machine_id: str
    def __init__(self, number: _Optional[int] = ..., name: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., grpc_address: _Optional[str] = ..., machine_id: _Optional[str] = ...) -> None: ...

class DiskRegistered(_message.Message):
    __slots__ = ("number", "uuid", "node", "path")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    UUID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    number: int
    uuid: str
    node: int
    path: str
    def __init__(self, number: _Optional[int] = ..., uuid: _Optional[str] = ..., node: _Optional[int] = ..., path: _Optional[str] = ...) -> None: ...

class SessionOpened(_message.Message):
    __slots__ = ("session_id", "label")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    label: str
    def __init__(self, session_id: _Optional[int] = ..., label: _Optional[str] = ...) -> None: ...

class SessionClosed(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    def __init__(self, session_id: _Optional[int] = ...) -> None: ...

class InodeMade(_message.Message):
    __slots__ = ("inode", "parent", "name", "mode", "uid", "gid", "rdev", "target", "stripe_size_bytes")
    INODE_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    RDEV_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    STRIPE_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    inode: int
    parent: int
    name: bytes
    mode: int
    uid: int
    gid: int
    rdev: int
    target: bytes
    stripe_size_bytes: int
    def __init__(self, inode: _Optional[int] = ..., parent: _Optional[int] = ..., name: _Optional[bytes] = ..., mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., rdev: _Optional[int] = ..., target: _Optional[bytes] = ..., stripe_size_bytes: _Optional[int] = ...) -> None: ...

class EntryLinked(_message.Message):
    __slots__ = ("inode", "parent", "name")
    INODE_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    inode: int
    parent: int
    name: bytes
    def __init__(self, inode: _Optional[int] = ..., parent: _Optional[int] = ..., name: _Optional[bytes] = ...) -> None: ...

class EntryRemoved(_message.Message):
    __slots__ = ("parent", "name", "inode")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    parent: int
    name: bytes
    inode: int
    def __init__(self, parent: _Optional[int] = ..., name: _Optional[bytes] = ..., inode: _Optional[int] = ...) -> None: ...

class EntryRenamed(_message.Message):
    __slots__ = ("parent", "name", "new_parent", "new_name", "inode", "replaced_inode", "exchange")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NEW_PARENT_FIELD_NUMBER: _ClassVar[int]
    NEW_NAME_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    REPLACED_INODE_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    parent: int
    name: bytes
    new_parent: int
    new_name: bytes
    inode: int
    replaced_inode: int
    exchange: bool
    def __init__(self, parent: _Optional[int] = ..., name: _Optional[bytes] = ..., new_parent: _Optional[int] = ..., new_name: _Optional[bytes] = ..., inode: _Optional[int] = ..., replaced_inode: _Optional[int] = ..., exchange: _Optional[bool] = ...) -> None: ...

class AttributesSet(_message.Message):
    __slots__ = ("inode", "mode", "uid", "gid", "atime_ns", "mtime_ns", "ctime_ns")
    INODE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    ATIME_NS_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    CTIME_NS_FIELD_NUMBER: _ClassVar[int]
    inode: int
    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    def __init__(self, inode: _Optional[int] = ..., mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., atime_ns: _Optional[int] = ..., mtime_ns: _Optional[int] = ..., ctime_ns: _Optional[int] = ...) -> None: ...

class XattrSet(_message.Message):
    __slots__ = ("inode", "name", "value")
    INODE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    inode: int
    name: bytes
    value: bytes
    def __init__(self, inode: _Optional[int] = ..., name: _Optional[bytes] = ..., value: _Optional[bytes] = ...) -> None: ...

class XattrRemoved(_message.Message):
    __slots__ = ("inode", "name")
    INODE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    inode: int
    name: bytes
    def __init__(self, inode: _Optional[int] = ..., name: _Optional[bytes] = ...) -> None: ...

class StripesAllocated(_message.Message):
    __slots__ = ("session_id", "inode", "stripes")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    STRIPES_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    inode: int
    stripes: _containers.RepeatedCompositeFieldContainer[_types_pb2.Stripe]
    def __init__(self, session_id: _Optional[int] = ..., inode: _Optional[int] = ..., stripes: _Optional[_Iterable[_Union[_types_pb2.Stripe, _Mapping]]] = ...) -> None: ...

class StripesAbandoned(_message.Message):
    __slots__ = ("stripe_ids",)
    STRIPE_IDS_FIELD_NUMBER: _ClassVar[int]
    stripe_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, stripe_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class FileWritten(_message.Message):
    __slots__ = ("inode", "stripes", "extents", "size_bytes", "mtime_ns")
    INODE_FIELD_NUMBER: _ClassVar[int]
    STRIPES_FIELD_NUMBER: _ClassVar[int]
    EXTENTS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    inode: int
    stripes: _containers.RepeatedCompositeFieldContainer[_types_pb2.Stripe]
    extents: _containers.RepeatedCompositeFieldContainer[_types_pb2.Extent]
    size_bytes: int
    mtime_ns: int
    def __init__(self, inode: _Optional[int] = ..., stripes: _Optional[_Iterable[_Union[_types_pb2.Stripe, _Mapping]]] = ..., extents: _Optional[_Iterable[_Union[_types_pb2.Extent, _Mapping]]] = ..., size_bytes: _Optional[int] = ..., mtime_ns: _Optional[int] = ...) -> None: ...

class FileTruncated(_message.Message):
    __slots__ = ("inode", "size_bytes", "mtime_ns")
    INODE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    inode: int
    size_bytes: int
    mtime_ns: int
    def __init__(self, inode: _Optional[int] = ..., size_bytes: _Optional[int] = ..., mtime_ns: _Optional[int] = ...) -> None: ...

class OrphanFreed(_message.Message):
    __slots__ = ("inode",)
    INODE_FIELD_NUMBER: _ClassVar[int]
    inode: int
    def __init__(self, inode: _Optional[int] = ...) -> None: ...

class ChunksCollected(_message.Message):
    __slots__ = ("disk", "stripe_ids")
    DISK_FIELD_NUMBER: _ClassVar[int]
    STRIPE_IDS_FIELD_NUMBER: _ClassVar[int]
    disk: int
    stripe_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, disk: _Optional[int] = ..., stripe_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class StripeReplaced(_message.Message):
    __slots__ = ("inode", "stripes", "old_stripe_id")
    INODE_FIELD_NUMBER: _ClassVar[int]
    STRIPES_FIELD_NUMBER: _ClassVar[int]
    OLD_STRIPE_ID_FIELD_NUMBER: _ClassVar[int]
    inode: int
    stripes: _containers.RepeatedCompositeFieldContainer[_types_pb2.Stripe]
    old_stripe_id: int
    def __init__(self, inode: _Optional[int] = ..., stripes: _Optional[_Iterable[_Union[_types_pb2.Stripe, _Mapping]]] = ..., old_stripe_id: _Optional[int] = ...) -> None: ...

class DiskForgotten(_message.Message):
    __slots__ = ("disk", "node")
    DISK_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    disk: int
    node: int
    def __init__(self, disk: _Optional[int] = ..., node: _Optional[int] = ...) -> None: ...

class MasterElected(_message.Message):
    __slots__ = ("epoch", "node")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    node: int
    def __init__(self, epoch: _Optional[int] = ..., node: _Optional[int] = ...) -> None: ...

class NumbersSkipped(_message.Message):
    __slots__ = ("last_inode",)
    LAST_INODE_FIELD_NUMBER: _ClassVar[int]
    last_inode: int
    def __init__(self, last_inode: _Optional[int] = ...) -> None: ...
