from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

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
