from wormfs.rpc.v1 import types_pb2 as _types_pb2
from wormfs.rpc.v1 import filesystem_pb2 as _filesystem_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OpenSessionRequest(_message.Message):
    __slots__ = ("session_id", "label", "open_inodes", "write_leases", "cached_ms", "keeps_entries", "kept_entries", "attempt")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    OPEN_INODES_FIELD_NUMBER: _ClassVar[int]
    WRITE_LEASES_FIELD_NUMBER: _ClassVar[int]
    CACHED_MS_FIELD_NUMBER: _ClassVar[int]
    KEEPS_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    KEPT_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    label: str
    open_inodes: _containers.RepeatedScalarFieldContainer[int]
    write_leases: _containers.RepeatedScalarFieldContainer[int]
    cached_ms: int
    keeps_entries: bool
    kept_entries: _containers.RepeatedScalarFieldContainer[bytes]
    attempt: int
    def __init__(self, session_id: _Optional[int] = ..., label: _Optional[str] = ..., open_inodes: _Optional[_Iterable[int]] = ..., write_leases: _Optional[_Iterable[int]] = ..., cached_ms: _Optional[int] = ..., keeps_entries: _Optional[bool] = ..., kept_entries: _Optional[_Iterable[bytes]] = ..., attempt: _Optional[int] = ...) -> None: ...

class OpenSessionReply(_message.Message):
    __slots__ = ("session_id", "lease_ms", "resumed", "granted_write_leases", "cluster_id", "entries_lost")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    GRANTED_WRITE_LEASES_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_LOST_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    lease_ms: int
    resumed: bool
    granted_write_leases: _containers.RepeatedScalarFieldContainer[int]
    cluster_id: str
    entries_lost: bool
    def __init__(self, session_id: _Optional[int] = ..., lease_ms: _Optional[int] = ..., resumed: _Optional[bool] = ..., granted_write_leases: _Optional[_Iterable[int]] = ..., cluster_id: _Optional[str] = ..., entries_lost: _Optional[bool] = ...) -> None: ...

class RenewSessionRequest(_message.Message):
    __slots__ = ("session_id", "forgotten")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    FORGOTTEN_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    forgotten: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, session_id: _Optional[int] = ..., forgotten: _Optional[_Iterable[int]] = ...) -> None: ...

class RenewSessionReply(_message.Message):
    __slots__ = ("known", "settled_sequence")
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    SETTLED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    known: bool
    settled_sequence: int
    def __init__(self, known: _Optional[bool] = ..., settled_sequence: _Optional[int] = ...) -> None: ...

class CloseSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    def __init__(self, session_id: _Optional[int] = ...) -> None: ...

class Recall(_message.Message):
    __slots__ = ("recall_id", "inode", "names", "attributes", "data", "write_lease")
    RECALL_ID_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    WRITE_LEASE_FIELD_NUMBER: _ClassVar[int]
    recall_id: int
    inode: int
    names: _containers.RepeatedScalarFieldContainer[bytes]
    attributes: bool
    data: bool
    write_lease: bool
    def __init__(self, recall_id: _Optional[int] = ..., inode: _Optional[int] = ..., names: _Optional[_Iterable[bytes]] = ..., attributes: _Optional[bool] = ..., data: _Optional[bool] = ..., write_lease: _Optional[bool] = ...) -> None: ...

class KeepEntries(_message.Message):
    __slots__ = ("settled_sequence", "first_sequence", "entries")
    SETTLED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    settled_sequence: int
    first_sequence: int
    entries: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, settled_sequence: _Optional[int] = ..., first_sequence: _Optional[int] = ..., entries: _Optional[_Iterable[bytes]] = ...) -> None: ...

class RecallDoneRequest(_message.Message):
    __slots__ = ("session_id", "recall_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    RECALL_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    recall_id: int
    def __init__(self, session_id: _Optional[int] = ..., recall_id: _Optional[int] = ...) -> None: ...

class OpenFileRequest(_message.Message):
    __slots__ = ("caller", "inode", "write", "truncate")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    WRITE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    caller: _types_pb2.Caller
    inode: int
    write: bool
    truncate: bool
    def __init__(self, caller: _Optional[_Union[_types_pb2.Caller, _Mapping]] = ..., inode: _Optional[int] = ..., write: _Optional[bool] = ..., truncate: _Optional[bool] = ...) -> None: ...

class CloseFilesRequest(_message.Message):
    __slots__ = ("session_id", "inodes", "number")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INODES_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    inodes: _containers.RepeatedScalarFieldContainer[int]
    number: int
    def __init__(self, session_id: _Optional[int] = ..., inodes: _Optional[_Iterable[int]] = ..., number: _Optional[int] = ...) -> None: ...

class GetFileMapRequest(_message.Message):
    __slots__ = ("caller", "inode", "first_index", "count")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    caller: _types_pb2.Caller
    inode: int
    first_index: int
    count: int
    def __init__(self, caller: _Optional[_Union[_types_pb2.Caller, _Mapping]] = ..., inode: _Optional[int] = ..., first_index: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class FileMapReply(_message.Message):
    __slots__ = ("attributes", "first_index", "count", "stripes", "extents", "write_lease", "sequence", "created", "parent")
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    STRIPES_FIELD_NUMBER: _ClassVar[int]
    EXTENTS_FIELD_NUMBER: _ClassVar[int]
    WRITE_LEASE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    attributes: _types_pb2.Attributes
    first_index: int
    count: int
    stripes: _containers.RepeatedCompositeFieldContainer[_types_pb2.Stripe]
    extents: _containers.RepeatedCompositeFieldContainer[_types_pb2.Extent]
    write_lease: bool
    sequence: int
    created: bool
    parent: _types_pb2.Attributes
    def __init__(self, attributes: _Optional[_Union[_types_pb2.Attributes, _Mapping]] = ..., first_index: _Optional[int] = ..., count: _Optional[int] = ..., stripes: _Optional[_Iterable[_Union[_types_pb2.Stripe, _Mapping]]] = ..., extents: _Optional[_Iterable[_Union[_types_pb2.Extent, _Mapping]]] = ..., write_lease: _Optional[bool] = ..., sequence: _Optional[int] = ..., created: _Optional[bool] = ..., parent: _Optional[_Union[_types_pb2.Attributes, _Mapping]] = ...) -> None: ...

class DirectoriesReply(_message.Message):
    __slots__ = ("parent", "new_parent", "touched")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NEW_PARENT_FIELD_NUMBER: _ClassVar[int]
    TOUCHED_FIELD_NUMBER: _ClassVar[int]
    parent: _types_pb2.Attributes
    new_parent: _types_pb2.Attributes
    touched: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, parent: _Optional[_Union[_types_pb2.Attributes, _Mapping]] = ..., new_parent: _Optional[_Union[_types_pb2.Attributes, _Mapping]] = ..., touched: _Optional[_Iterable[int]] = ...) -> None: ...

class AcquireWriteLeaseRequest(_message.Message):
    __slots__ = ("caller", "inode")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    caller: _types_pb2.Caller
    inode: int
    def __init__(self, caller: _Optional[_Union[_types_pb2.Caller, _Mapping]] = ..., inode: _Optional[int] = ...) -> None: ...

class AllocateStripesRequest(_message.Message):
    __slots__ = ("caller", "inode", "count", "suspect_disks", "abandoned")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SUSPECT_DISKS_FIELD_NUMBER: _ClassVar[int]
    ABANDONED_FIELD_NUMBER: _ClassVar[int]
    caller: _types_pb2.Caller
    inode: int
    count: int
    suspect_disks: _containers.RepeatedScalarFieldContainer[int]
    abandoned: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, caller: _Optional[_Union[_types_pb2.Caller, _Mapping]] = ..., inode: _Optional[int] = ..., count: _Optional[int] = ..., suspect_disks: _Optional[_Iterable[int]] = ..., abandoned: _Optional[_Iterable[int]] = ...) -> None: ...

class AllocateStripesReply(_message.Message):
    __slots__ = ("stripes",)
    STRIPES_FIELD_NUMBER: _ClassVar[int]
    stripes: _containers.RepeatedCompositeFieldContainer[_types_pb2.Stripe]
    def __init__(self, stripes: _Optional[_Iterable[_Union[_types_pb2.Stripe, _Mapping]]] = ...) -> None: ...

class CommitWriteRequest(_message.Message):
    __slots__ = ("caller", "inode", "stripes", "extents", "size_bytes", "mtime_ns")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    STRIPES_FIELD_NUMBER: _ClassVar[int]
    EXTENTS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    caller: _types_pb2.Caller
    inode: int
    stripes: _containers.RepeatedCompositeFieldContainer[_types_pb2.Stripe]
    extents: _containers.RepeatedCompositeFieldContainer[_types_pb2.Extent]
    size_bytes: int
    mtime_ns: int
    def __init__(self, caller: _Optional[_Union[_types_pb2.Caller, _Mapping]] = ..., inode: _Optional[int] = ..., stripes: _Optional[_Iterable[_Union[_types_pb2.Stripe, _Mapping]]] = ..., extents: _Optional[_Iterable[_Union[_types_pb2.Extent, _Mapping]]] = ..., size_bytes: _Optional[int] = ..., mtime_ns: _Optional[int] = ...) -> None: ...

class ReplaceStripeRequest(_message.Message):
    __slots__ = ("caller", "inode", "holder", "index", "old_stripe_id", "new_stripe_id")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    OLD_STRIPE_ID_FIELD_NUMBER: _ClassVar[int]
    NEW_STRIPE_ID_FIELD_NUMBER: _ClassVar[int]
    caller: _types_pb2.Caller
    inode: int
    holder: int
    index: int
    old_stripe_id: int
    new_stripe_id: int
    def __init__(self, caller: _Optional[_Union[_types_pb2.Caller, _Mapping]] = ..., inode: _Optional[int] = ..., holder: _Optional[int] = ..., index: _Optional[int] = ..., old_stripe_id: _Optional[int] = ..., new_stripe_id: _Optional[int] = ...) -> None: ...

class SyncRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    def __init__(self, session_id: _Optional[int] = ...) -> None: ...
