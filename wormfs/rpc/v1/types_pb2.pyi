from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Codec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODEC_UNSPECIFIED: _ClassVar[Codec]
    CODEC_ZFEC: _ClassVar[Codec]
    CODEC_ISAL_CAUCHY: _ClassVar[Codec]
CODEC_UNSPECIFIED: Codec
CODEC_ZFEC: Codec
CODEC_ISAL_CAUCHY: Codec

class Policy(_message.Message):
    __slots__ = ("k", "m", "chunk_size_bytes", "codec")
    K_FIELD_NUMBER: _ClassVar[int]
    M_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    k: int
    m: int
    chunk_size_bytes: int
    codec: Codec
    def __init__(self, k: _Optional[int] = ..., m: _Optional[int] = ..., chunk_size_bytes: _Optional[int] = ..., codec: _Optional[_Union[Codec, str]] = ...) -> None: ...

class Attributes(_message.Message):
    __slots__ = ("inode", "mode", "nlink", "uid", "gid", "rdev", "size_bytes", "allocated_bytes", "atime_ns", "mtime_ns", "ctime_ns", "change", "stripe_size_bytes")
    INODE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    NLINK_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    RDEV_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ALLOCATED_BYTES_FIELD_NUMBER: _ClassVar[int]
    ATIME_NS_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    CTIME_NS_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    STRIPE_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    inode: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size_bytes: int
    allocated_bytes: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    change: int
    stripe_size_bytes: int
    def __init__(self, inode: _Optional[int] = ..., mode: _Optional[int] = ..., nlink: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., rdev: _Optional[int] = ..., size_bytes: _Optional[int] = ..., allocated_bytes: _Optional[int] = ..., atime_ns: _Optional[int] = ..., mtime_ns: _Optional[int] = ..., ctime_ns: _Optional[int] = ..., change: _Optional[int] = ..., stripe_size_bytes: _Optional[int] = ...) -> None: ...

class Stripe(_message.Message):
    __slots__ = ("index", "stripe_id", "codec", "k", "m", "chunk_length_bytes", "length_bytes", "valid_bytes", "disks")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    STRIPE_ID_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    M_FIELD_NUMBER: _ClassVar[int]
    CHUNK_LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    VALID_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISKS_FIELD_NUMBER: _ClassVar[int]
    index: int
    stripe_id: int
    codec: Codec
    k: int
    m: int
    chunk_length_bytes: int
    length_bytes: int
    valid_bytes: int
    disks: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, index: _Optional[int] = ..., stripe_id: _Optional[int] = ..., codec: _Optional[_Union[Codec, str]] = ..., k: _Optional[int] = ..., m: _Optional[int] = ..., chunk_length_bytes: _Optional[int] = ..., length_bytes: _Optional[int] = ..., valid_bytes: _Optional[int] = ..., disks: _Optional[_Iterable[int]] = ...) -> None: ...

class Extent(_message.Message):
    __slots__ = ("offset_bytes", "data")
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset_bytes: int
    data: bytes
    def __init__(self, offset_bytes: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Caller(_message.Message):
    __slots__ = ("session_id", "operation", "acknowledged")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    operation: int
    acknowledged: int
    def __init__(self, session_id: _Optional[int] = ..., operation: _Optional[int] = ..., acknowledged: _Optional[int] = ...) -> None: ...

class Empty(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ErrorReply(_message.Message):
    __slots__ = ("code", "errno", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    ERRNO_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: str
    errno: int
    message: str
    def __init__(self, code: _Optional[str] = ..., errno: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...
