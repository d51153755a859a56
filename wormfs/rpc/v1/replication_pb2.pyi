from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class FollowRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class FollowReply(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    def __init__(self, sequence: _Optional[int] = ...) -> None: ...

class Events(_message.Message):
    __slots__ = ("first_sequence", "entries")
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    first_sequence: int
    entries: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, first_sequence: _Optional[int] = ..., entries: _Optional[_Iterable[bytes]] = ...) -> None: ...

class AcknowledgeRequest(_message.Message):
    __slots__ = ("name", "applied_sequence", "durable_sequence")
    NAME_FIELD_NUMBER: _ClassVar[int]
    APPLIED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    DURABLE_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    applied_sequence: int
    durable_sequence: int
    def __init__(self, name: _Optional[str] = ..., applied_sequence: _Optional[int] = ..., durable_sequence: _Optional[int] = ...) -> None: ...

class AcknowledgeReply(_message.Message):
    __slots__ = ("sequence", "following")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    FOLLOWING_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    following: bool
    def __init__(self, sequence: _Optional[int] = ..., following: _Optional[bool] = ...) -> None: ...

class GetSnapshotRequest(_message.Message):
    __slots__ = ("at_least", "sequence", "offset_bytes", "length_bytes")
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    at_least: int
    sequence: int
    offset_bytes: int
    length_bytes: int
    def __init__(self, at_least: _Optional[int] = ..., sequence: _Optional[int] = ..., offset_bytes: _Optional[int] = ..., length_bytes: _Optional[int] = ...) -> None: ...

class GetSnapshotReply(_message.Message):
    __slots__ = ("sequence", "file_bytes", "data")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    FILE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    file_bytes: int
    data: bytes
    def __init__(self, sequence: _Optional[int] = ..., file_bytes: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class DigestRequest(_message.Message):
    __slots__ = ("copy_id", "at_sequence")
    COPY_ID_FIELD_NUMBER: _ClassVar[int]
    AT_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    copy_id: int
    at_sequence: int
    def __init__(self, copy_id: _Optional[int] = ..., at_sequence: _Optional[int] = ...) -> None: ...

class DigestReply(_message.Message):
    __slots__ = ("copy_id", "sequence", "digest")
    COPY_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    copy_id: int
    sequence: int
    digest: str
    def __init__(self, copy_id: _Optional[int] = ..., sequence: _Optional[int] = ..., digest: _Optional[str] = ...) -> None: ...

class LogHead(_message.Message):
    __slots__ = ("sequence", "epoch")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    epoch: int
    def __init__(self, sequence: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class LogBatch(_message.Message):
    __slots__ = ("first_sequence", "entries")
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    first_sequence: int
    entries: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, first_sequence: _Optional[int] = ..., entries: _Optional[_Iterable[bytes]] = ...) -> None: ...

class LeaderRecord(_message.Message):
    __slots__ = ("name", "epoch", "addresses", "machine_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    MACHINE_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    epoch: int
    addresses: _containers.RepeatedScalarFieldContainer[str]
    machine_id: str
    def __init__(self, name: _Optional[str] = ..., epoch: _Optional[int] = ..., addresses: _Optional[_Iterable[str]] = ..., machine_id: _Optional[str] = ...) -> None: ...

class ReplicaRecord(_message.Message):
    __slots__ = ("name", "addresses", "machine_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    MACHINE_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    machine_id: str
    def __init__(self, name: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., machine_id: _Optional[str] = ...) -> None: ...
