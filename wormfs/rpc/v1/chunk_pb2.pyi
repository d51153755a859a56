from wormfs.rpc.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ChunkId(_message.Message):
    __slots__ = ("file", "stripe_id", "index")
    FILE_FIELD_NUMBER: _ClassVar[int]
    STRIPE_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    file: int
    stripe_id: int
    index: int
    def __init__(self, file: _Optional[int] = ..., stripe_id: _Optional[int] = ..., index: _Optional[int] = ...) -> None: ...

class PutChunkRequest(_message.Message):
    __slots__ = ("cluster_id", "disk", "chunk", "k", "m", "codec", "stripe_index", "stripe_size_bytes", "stripe_length_bytes", "checksums", "data")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    M_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    STRIPE_INDEX_FIELD_NUMBER: _ClassVar[int]
    STRIPE_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STRIPE_LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    disk: int
    chunk: ChunkId
    k: int
    m: int
    codec: _types_pb2.Codec
    stripe_index: int
    stripe_size_bytes: int
    stripe_length_bytes: int
    checksums: bytes
    data: bytes
    def __init__(self, cluster_id: _Optional[str] = ..., disk: _Optional[int] = ..., chunk: _Optional[_Union[ChunkId, _Mapping]] = ..., k: _Optional[int] = ..., m: _Optional[int] = ..., codec: _Optional[_Union[_types_pb2.Codec, str]] = ..., stripe_index: _Optional[int] = ..., stripe_size_bytes: _Optional[int] = ..., stripe_length_bytes: _Optional[int] = ..., checksums: _Optional[bytes] = ..., data: _Optional[bytes] = ...) -> None: ...

class PutChunkReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetChunkRequest(_message.Message):
    __slots__ = ("disk", "chunk", "offset_bytes", "length_bytes")
    DISK_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    disk: int
    chunk: ChunkId
    offset_bytes: int
    length_bytes: int
    def __init__(self, disk: _Optional[int] = ..., chunk: _Optional[_Union[ChunkId, _Mapping]] = ..., offset_bytes: _Optional[int] = ..., length_bytes: _Optional[int] = ...) -> None: ...

class GetChunkReply(_message.Message):
    __slots__ = ("offset_bytes", "checksums", "data")
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset_bytes: int
    checksums: bytes
    data: bytes
    def __init__(self, offset_bytes: _Optional[int] = ..., checksums: _Optional[bytes] = ..., data: _Optional[bytes] = ...) -> None: ...

class DeleteChunksRequest(_message.Message):
    __slots__ = ("disk", "chunks")
    DISK_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    disk: int
    chunks: _containers.RepeatedCompositeFieldContainer[ChunkId]
    def __init__(self, disk: _Optional[int] = ..., chunks: _Optional[_Iterable[_Union[ChunkId, _Mapping]]] = ...) -> None: ...

class DeleteChunksReply(_message.Message):
    __slots__ = ("failed",)
    FAILED_FIELD_NUMBER: _ClassVar[int]
    failed: _containers.RepeatedCompositeFieldContainer[ChunkId]
    def __init__(self, failed: _Optional[_Iterable[_Union[ChunkId, _Mapping]]] = ...) -> None: ...

class ListChunksRequest(_message.Message):
    __slots__ = ("disk", "after", "limit", "verify")
    DISK_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    disk: int
    after: bytes
    limit: int
    verify: bool
    def __init__(self, disk: _Optional[int] = ..., after: _Optional[bytes] = ..., limit: _Optional[int] = ..., verify: _Optional[bool] = ...) -> None: ...

class ChunkInfo(_message.Message):
    __slots__ = ("chunk", "length_bytes", "path", "problem")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    chunk: ChunkId
    length_bytes: int
    path: str
    problem: str
    def __init__(self, chunk: _Optional[_Union[ChunkId, _Mapping]] = ..., length_bytes: _Optional[int] = ..., path: _Optional[str] = ..., problem: _Optional[str] = ...) -> None: ...

class ListChunksReply(_message.Message):
    __slots__ = ("chunks", "next")
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[ChunkInfo]
    next: bytes
    def __init__(self, chunks: _Optional[_Iterable[_Union[ChunkInfo, _Mapping]]] = ..., next: _Optional[bytes] = ...) -> None: ...
