from wormfs.rpc.v1 import types_pb2 as _types_pb2
from wormfs.rpc.v1 import chunk_pb2 as _chunk_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DiskState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DISK_STATE_UNSPECIFIED: _ClassVar[DiskState]
    DISK_STATE_ONLINE: _ClassVar[DiskState]
    DISK_STATE_OFFLINE: _ClassVar[DiskState]
DISK_STATE_UNSPECIFIED: DiskState
DISK_STATE_ONLINE: DiskState
DISK_STATE_OFFLINE: DiskState

class DiskInfo(_message.Message):
    __slots__ = ("number", "uuid", "node", "path", "state", "total_bytes", "free_bytes", "problem")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    UUID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    number: int
    uuid: str
    node: int
    path: str
    state: DiskState
    total_bytes: int
    free_bytes: int
    problem: str
    def __init__(self, number: _Optional[int] = ..., uuid: _Optional[str] = ..., node: _Optional[int] = ..., path: _Optional[str] = ..., state: _Optional[_Union[DiskState, str]] = ..., total_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., problem: _Optional[str] = ...) -> None: ...

class NodeInfo(_message.Message):
    __slots__ = ("number", "name", "addresses", "grpc_address", "online", "master", "version", "machine_id", "suspected", "load")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    GRPC_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ONLINE_FIELD_NUMBER: _ClassVar[int]
    MASTER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MACHINE_ID_FIELD_NUMBER: _ClassVar[int]
    SUSPECTED_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    number: int
    name: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    grpc_address: str
    online: bool
    master: bool
    version: str
    machine_id: str
    suspected: bool
    load: float
    def __init__(self, number: _Optional[int] = ..., name: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., grpc_address: _Optional[str] = ..., online: _Optional[bool] = ..., master: _Optional[bool] = ..., version: _Optional[str] = ..., machine_id: _Optional[str] = ..., suspected: _Optional[bool] = ..., load: _Optional[float] = ...) -> None: ...

class GetClusterMapRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ClusterMap(_message.Message):
    __slots__ = ("cluster_id", "name", "version", "nodes", "disks", "policy")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    DISKS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    name: str
    version: int
    nodes: _containers.RepeatedCompositeFieldContainer[NodeInfo]
    disks: _containers.RepeatedCompositeFieldContainer[DiskInfo]
    policy: _types_pb2.Policy
    def __init__(self, cluster_id: _Optional[str] = ..., name: _Optional[str] = ..., version: _Optional[int] = ..., nodes: _Optional[_Iterable[_Union[NodeInfo, _Mapping]]] = ..., disks: _Optional[_Iterable[_Union[DiskInfo, _Mapping]]] = ..., policy: _Optional[_Union[_types_pb2.Policy, _Mapping]] = ...) -> None: ...

class RegisterNodeRequest(_message.Message):
    __slots__ = ("cluster_id", "node", "disks")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    DISKS_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    node: NodeInfo
    disks: _containers.RepeatedCompositeFieldContainer[DiskInfo]
    def __init__(self, cluster_id: _Optional[str] = ..., node: _Optional[_Union[NodeInfo, _Mapping]] = ..., disks: _Optional[_Iterable[_Union[DiskInfo, _Mapping]]] = ...) -> None: ...

class RegisterNodeReply(_message.Message):
    __slots__ = ("cluster_id", "node", "disks")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    DISKS_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    node: int
    disks: _containers.RepeatedCompositeFieldContainer[DiskInfo]
    def __init__(self, cluster_id: _Optional[str] = ..., node: _Optional[int] = ..., disks: _Optional[_Iterable[_Union[DiskInfo, _Mapping]]] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("cluster_id", "node", "disks", "damaged", "load", "version")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    DISKS_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    node: int
    disks: _containers.RepeatedCompositeFieldContainer[DiskInfo]
    damaged: _containers.RepeatedCompositeFieldContainer[DamagedChunk]
    load: float
    version: str
    def __init__(self, cluster_id: _Optional[str] = ..., node: _Optional[int] = ..., disks: _Optional[_Iterable[_Union[DiskInfo, _Mapping]]] = ..., damaged: _Optional[_Iterable[_Union[DamagedChunk, _Mapping]]] = ..., load: _Optional[float] = ..., version: _Optional[str] = ...) -> None: ...

class DamagedChunk(_message.Message):
    __slots__ = ("disk", "chunk")
    DISK_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    disk: int
    chunk: _chunk_pb2.ChunkId
    def __init__(self, disk: _Optional[int] = ..., chunk: _Optional[_Union[_chunk_pb2.ChunkId, _Mapping]] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ("known",)
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    known: bool
    def __init__(self, known: _Optional[bool] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("map", "master", "engine", "sequence", "durable_sequence", "session_count", "inode_count", "stripe_count", "garbage_chunk_count", "missing_chunk_count", "stripes_one_loss_from_loss", "stripes_lost", "metadata_disks", "metadata_copies_wanted", "warnings", "health", "repair", "replicas", "replicas_needed", "replicas_holding", "log_floor", "log_bytes")
    MAP_FIELD_NUMBER: _ClassVar[int]
    MASTER_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    DURABLE_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SESSION_COUNT_FIELD_NUMBER: _ClassVar[int]
    INODE_COUNT_FIELD_NUMBER: _ClassVar[int]
    STRIPE_COUNT_FIELD_NUMBER: _ClassVar[int]
    GARBAGE_CHUNK_COUNT_FIELD_NUMBER: _ClassVar[int]
    MISSING_CHUNK_COUNT_FIELD_NUMBER: _ClassVar[int]
    STRIPES_ONE_LOSS_FROM_LOSS_FIELD_NUMBER: _ClassVar[int]
    STRIPES_LOST_FIELD_NUMBER: _ClassVar[int]
    METADATA_DISKS_FIELD_NUMBER: _ClassVar[int]
    METADATA_COPIES_WANTED_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    REPAIR_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_NEEDED_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_HOLDING_FIELD_NUMBER: _ClassVar[int]
    LOG_FLOOR_FIELD_NUMBER: _ClassVar[int]
    LOG_BYTES_FIELD_NUMBER: _ClassVar[int]
    map: ClusterMap
    master: str
    engine: str
    sequence: int
    durable_sequence: int
    session_count: int
    inode_count: int
    stripe_count: int
    garbage_chunk_count: int
    missing_chunk_count: int
    stripes_one_loss_from_loss: int
    stripes_lost: int
    metadata_disks: _containers.RepeatedScalarFieldContainer[str]
    metadata_copies_wanted: int
    warnings: _containers.RepeatedScalarFieldContainer[str]
    health: str
    repair: RepairStatus
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaStatus]
    replicas_needed: int
    replicas_holding: int
    log_floor: int
    log_bytes: int
    def __init__(self, map: _Optional[_Union[ClusterMap, _Mapping]] = ..., master: _Optional[str] = ..., engine: _Optional[str] = ..., sequence: _Optional[int] = ..., durable_sequence: _Optional[int] = ..., session_count: _Optional[int] = ..., inode_count: _Optional[int] = ..., stripe_count: _Optional[int] = ..., garbage_chunk_count: _Optional[int] = ..., missing_chunk_count: _Optional[int] = ..., stripes_one_loss_from_loss: _Optional[int] = ..., stripes_lost: _Optional[int] = ..., metadata_disks: _Optional[_Iterable[str]] = ..., metadata_copies_wanted: _Optional[int] = ..., warnings: _Optional[_Iterable[str]] = ..., health: _Optional[str] = ..., repair: _Optional[_Union[RepairStatus, _Mapping]] = ..., replicas: _Optional[_Iterable[_Union[ReplicaStatus, _Mapping]]] = ..., replicas_needed: _Optional[int] = ..., replicas_holding: _Optional[int] = ..., log_floor: _Optional[int] = ..., log_bytes: _Optional[int] = ...) -> None: ...

class ReplicaStatus(_message.Message):
    __slots__ = ("name", "online", "applied_sequence", "durable_sequence", "lags")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ONLINE_FIELD_NUMBER: _ClassVar[int]
    APPLIED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    DURABLE_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LAGS_FIELD_NUMBER: _ClassVar[int]
    name: str
    online: bool
    applied_sequence: int
    durable_sequence: int
    lags: bool
    def __init__(self, name: _Optional[str] = ..., online: _Optional[bool] = ..., applied_sequence: _Optional[int] = ..., durable_sequence: _Optional[int] = ..., lags: _Optional[bool] = ...) -> None: ...

class RepairStatus(_message.Message):
    __slots__ = ("waiting_stripes", "waiting_bytes", "rebuilt_stripes", "rebuilt_bytes", "widened_stripes", "stuck_stripes", "stuck_reason", "pending_disks", "empty_disks")
    WAITING_STRIPES_FIELD_NUMBER: _ClassVar[int]
    WAITING_BYTES_FIELD_NUMBER: _ClassVar[int]
    REBUILT_STRIPES_FIELD_NUMBER: _ClassVar[int]
    REBUILT_BYTES_FIELD_NUMBER: _ClassVar[int]
    WIDENED_STRIPES_FIELD_NUMBER: _ClassVar[int]
    STUCK_STRIPES_FIELD_NUMBER: _ClassVar[int]
    STUCK_REASON_FIELD_NUMBER: _ClassVar[int]
    PENDING_DISKS_FIELD_NUMBER: _ClassVar[int]
    EMPTY_DISKS_FIELD_NUMBER: _ClassVar[int]
    waiting_stripes: int
    waiting_bytes: int
    rebuilt_stripes: int
    rebuilt_bytes: int
    widened_stripes: int
    stuck_stripes: int
    stuck_reason: str
    pending_disks: int
    empty_disks: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, waiting_stripes: _Optional[int] = ..., waiting_bytes: _Optional[int] = ..., rebuilt_stripes: _Optional[int] = ..., rebuilt_bytes: _Optional[int] = ..., widened_stripes: _Optional[int] = ..., stuck_stripes: _Optional[int] = ..., stuck_reason: _Optional[str] = ..., pending_disks: _Optional[int] = ..., empty_disks: _Optional[_Iterable[int]] = ...) -> None: ...

class ForgetDiskRequest(_message.Message):
    __slots__ = ("disk",)
    DISK_FIELD_NUMBER: _ClassVar[int]
    disk: int
    def __init__(self, disk: _Optional[int] = ...) -> None: ...

class GetPolicyRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetPolicyRequest(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: _types_pb2.Policy
    def __init__(self, policy: _Optional[_Union[_types_pb2.Policy, _Mapping]] = ...) -> None: ...

class LocateRequest(_message.Message):
    __slots__ = ("path", "after_index", "limit")
    PATH_FIELD_NUMBER: _ClassVar[int]
    AFTER_INDEX_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    after_index: int
    limit: int
    def __init__(self, path: _Optional[bytes] = ..., after_index: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class ChunkPlace(_message.Message):
    __slots__ = ("index", "node", "disk", "disk_path", "path", "online")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    DISK_PATH_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    ONLINE_FIELD_NUMBER: _ClassVar[int]
    index: int
    node: str
    disk: int
    disk_path: str
    path: str
    online: bool
    def __init__(self, index: _Optional[int] = ..., node: _Optional[str] = ..., disk: _Optional[int] = ..., disk_path: _Optional[str] = ..., path: _Optional[str] = ..., online: _Optional[bool] = ...) -> None: ...

class StripePlace(_message.Message):
    __slots__ = ("stripe", "chunks")
    STRIPE_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    stripe: _types_pb2.Stripe
    chunks: _containers.RepeatedCompositeFieldContainer[ChunkPlace]
    def __init__(self, stripe: _Optional[_Union[_types_pb2.Stripe, _Mapping]] = ..., chunks: _Optional[_Iterable[_Union[ChunkPlace, _Mapping]]] = ...) -> None: ...

class LocateReply(_message.Message):
    __slots__ = ("attributes", "stripes", "inline_bytes", "end")
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    STRIPES_FIELD_NUMBER: _ClassVar[int]
    INLINE_BYTES_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    attributes: _types_pb2.Attributes
    stripes: _containers.RepeatedCompositeFieldContainer[StripePlace]
    inline_bytes: int
    end: bool
    def __init__(self, attributes: _Optional[_Union[_types_pb2.Attributes, _Mapping]] = ..., stripes: _Optional[_Iterable[_Union[StripePlace, _Mapping]]] = ..., inline_bytes: _Optional[int] = ..., end: _Optional[bool] = ...) -> None: ...

class FsckRequest(_message.Message):
    __slots__ = ("verify_data", "collect_unknown")
    VERIFY_DATA_FIELD_NUMBER: _ClassVar[int]
    COLLECT_UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    verify_data: bool
    collect_unknown: bool
    def __init__(self, verify_data: _Optional[bool] = ..., collect_unknown: _Optional[bool] = ...) -> None: ...

class FsckReply(_message.Message):
    __slots__ = ("problem", "kind", "checked", "total", "end")
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CHECKED_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    problem: str
    kind: str
    checked: int
    total: int
    end: bool
    def __init__(self, problem: _Optional[str] = ..., kind: _Optional[str] = ..., checked: _Optional[int] = ..., total: _Optional[int] = ..., end: _Optional[bool] = ...) -> None: ...
