from wormfs.rpc.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ResolveRequest(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    def __init__(self, path: _Optional[bytes] = ...) -> None: ...

class LookupRequest(_message.Message):
    __slots__ = ("caller", "parent", "name")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    caller: _types_pb2.Caller
    parent: int
    name: bytes
    def __init__(self, caller: _Optional[_Union[_types_pb2.Caller, _Mapping]] = ..., parent: _Optional[int] = ..., name: _Optional[bytes] = ...) -> None: ...

class GetAttrRequest(_message.Message):
    __slots__ = ("caller", "inode")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    caller: _types_pb2.Caller
    inode: int
    def __init__(self, caller: _Optional[_Union[_types_pb2.Caller, _Mapping]] = ..., inode: _Optional[int] = ...) -> None: ...

class AttrReply(_message.Message):
    __slots__ = ("attributes", "sequence")
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    attributes: _types_pb2.Attributes
    sequence: int
    def __init__(self, attributes: _Optional[_Union[_types_pb2.Attributes, _Mapping]] = ..., sequence: _Optional[int] = ...) -> None: ...

class SetAttrRequest(_message.Message):
    __slots__ = ("caller", "inode", "mode", "uid", "gid", "size_bytes", "atime_ns", "mtime_ns", "ctime_ns")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ATIME_NS_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    CTIME_NS_FIELD_NUMBER: _ClassVar[int]
    caller: _types_pb2.Caller
    inode: int
    mode: int
    uid: int
    gid: int
    size_bytes: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    def __init__(self, caller: _Optional[_Union[_types_pb2.Caller, _Mapping]] = ..., inode: _Optional[int] = ..., mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., size_bytes: _Optional[int] = ..., atime_ns: _Optional[int] = ..., mtime_ns: _Optional[int] = ..., ctime_ns: _Optional[int] = ...) -> None: ...

class MakeNodeRequest(_message.Message):
    __slots__ = ("caller", "parent", "name", "mode", "uid", "gid", "rdev", "target", "exclusive", "open")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    RDEV_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    EXCLUSIVE_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    caller: _types_pb2.Caller
    parent: int
    name: bytes
    mode: int
    uid: int
    gid: int
    rdev: int
    target: bytes
    exclusive: bool
    open: bool
    def __init__(self, caller: _Optional[_Union[_types_pb2.Caller, _Mapping]] = ..., parent: _Optional[int] = ..., name: _Optional[bytes] = ..., mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., rdev: _Optional[int] = ..., target: _Optional[bytes] = ..., exclusive: _Optional[bool] = ..., open: _Optional[bool] = ...) -> None: ...

class CreateRequest(_message.Message):
    __slots__ = ("parent", "name", "mode", "uid", "gid", "flags")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    parent: int
    name: bytes
    mode: int
    uid: int
    gid: int
    flags: int
    def __init__(self, parent: _Optional[int] = ..., name: _Optional[bytes] = ..., mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., flags: _Optional[int] = ...) -> None: ...

class OpenRequest(_message.Message):
    __slots__ = ("inode", "flags")
    INODE_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    inode: int
    flags: int
    def __init__(self, inode: _Optional[int] = ..., flags: _Optional[int] = ...) -> None: ...

class OpenReply(_message.Message):
    __slots__ = ("attributes", "handle")
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    attributes: _types_pb2.Attributes
    handle: int
    def __init__(self, attributes: _Optional[_Union[_types_pb2.Attributes, _Mapping]] = ..., handle: _Optional[int] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("handle",)
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    handle: int
    def __init__(self, handle: _Optional[int] = ...) -> None: ...

class ReadRequest(_message.Message):
    __slots__ = ("handle", "offset_bytes", "length_bytes")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    handle: int
    offset_bytes: int
    length_bytes: int
    def __init__(self, handle: _Optional[int] = ..., offset_bytes: _Optional[int] = ..., length_bytes: _Optional[int] = ...) -> None: ...

class ReadReply(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class WriteRequest(_message.Message):
    __slots__ = ("handle", "offset_bytes", "data")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    handle: int
    offset_bytes: int
    data: bytes
    def __init__(self, handle: _Optional[int] = ..., offset_bytes: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class WriteReply(_message.Message):
    __slots__ = ("written_bytes",)
    WRITTEN_BYTES_FIELD_NUMBER: _ClassVar[int]
    written_bytes: int
    def __init__(self, written_bytes: _Optional[int] = ...) -> None: ...

class FlushRequest(_message.Message):
    __slots__ = ("handle",)
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    handle: int
    def __init__(self, handle: _Optional[int] = ...) -> None: ...

class FsyncRequest(_message.Message):
    __slots__ = ("handle", "data_only")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    DATA_ONLY_FIELD_NUMBER: _ClassVar[int]
    handle: int
    data_only: bool
    def __init__(self, handle: _Optional[int] = ..., data_only: _Optional[bool] = ...) -> None: ...

class ReadDirRequest(_message.Message):
    __slots__ = ("caller", "inode", "after", "limit", "want_attributes")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    WANT_ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    caller: _types_pb2.Caller
    inode: int
    after: bytes
    limit: int
    want_attributes: bool
    def __init__(self, caller: _Optional[_Union[_types_pb2.Caller, _Mapping]] = ..., inode: _Optional[int] = ..., after: _Optional[bytes] = ..., limit: _Optional[int] = ..., want_attributes: _Optional[bool] = ...) -> None: ...

class DirEntry(_message.Message):
    __slots__ = ("name", "inode", "mode", "attributes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    name: bytes
    inode: int
    mode: int
    attributes: _types_pb2.Attributes
    def __init__(self, name: _Optional[bytes] = ..., inode: _Optional[int] = ..., mode: _Optional[int] = ..., attributes: _Optional[_Union[_types_pb2.Attributes, _Mapping]] = ...) -> None: ...

class ReadDirReply(_message.Message):
    __slots__ = ("entries", "end")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[DirEntry]
    end: bool
    def __init__(self, entries: _Optional[_Iterable[_Union[DirEntry, _Mapping]]] = ..., end: _Optional[bool] = ...) -> None: ...

class ReadLinkRequest(_message.Message):
    __slots__ = ("caller", "inode")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    caller: _types_pb2.Caller
    inode: int
    def __init__(self, caller: _Optional[_Union[_types_pb2.Caller, _Mapping]] = ..., inode: _Optional[int] = ...) -> None: ...

class ReadLinkReply(_message.Message):
    __slots__ = ("target",)
    TARGET_FIELD_NUMBER: _ClassVar[int]
    target: bytes
    def __init__(self, target: _Optional[bytes] = ...) -> None: ...

class LinkRequest(_message.Message):
    __slots__ = ("caller", "inode", "parent", "name")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    caller: _types_pb2.Caller
    inode: int
    parent: int
    name: bytes
    def __init__(self, caller: _Optional[_Union[_types_pb2.Caller, _Mapping]] = ..., inode: _Optional[int] = ..., parent: _Optional[int] = ..., name: _Optional[bytes] = ...) -> None: ...

class RenameRequest(_message.Message):
    __slots__ = ("caller", "parent", "name", "new_parent", "new_name", "flags")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NEW_PARENT_FIELD_NUMBER: _ClassVar[int]
    NEW_NAME_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    caller: _types_pb2.Caller
    parent: int
    name: bytes
    new_parent: int
    new_name: bytes
    flags: int
    def __init__(self, caller: _Optional[_Union[_types_pb2.Caller, _Mapping]] = ..., parent: _Optional[int] = ..., name: _Optional[bytes] = ..., new_parent: _Optional[int] = ..., new_name: _Optional[bytes] = ..., flags: _Optional[int] = ...) -> None: ...

class UnlinkRequest(_message.Message):
    __slots__ = ("caller", "parent", "name")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    caller: _types_pb2.Caller
    parent: int
    name: bytes
    def __init__(self, caller: _Optional[_Union[_types_pb2.Caller, _Mapping]] = ..., parent: _Optional[int] = ..., name: _Optional[bytes] = ...) -> None: ...

class RemoveDirRequest(_message.Message):
    __slots__ = ("caller", "parent", "name")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    caller: _types_pb2.Caller
    parent: int
    name: bytes
    def __init__(self, caller: _Optional[_Union[_types_pb2.Caller, _Mapping]] = ..., parent: _Optional[int] = ..., name: _Optional[bytes] = ...) -> None: ...

class SetXattrRequest(_message.Message):
    __slots__ = ("caller", "inode", "name", "value", "flags")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    caller: _types_pb2.Caller
    inode: int
    name: bytes
    value: bytes
    flags: int
    def __init__(self, caller: _Optional[_Union[_types_pb2.Caller, _Mapping]] = ..., inode: _Optional[int] = ..., name: _Optional[bytes] = ..., value: _Optional[bytes] = ..., flags: _Optional[int] = ...) -> None: ...

class GetXattrRequest(_message.Message):
    __slots__ = ("caller", "inode", "name")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    caller: _types_pb2.Caller
    inode: int
    name: bytes
    def __init__(self, caller: _Optional[_Union[_types_pb2.Caller, _Mapping]] = ..., inode: _Optional[int] = ..., name: _Optional[bytes] = ...) -> None: ...

class GetXattrReply(_message.Message):
    __slots__ = ("value",)
    VALUE_FIELD_NUMBER: _ClassVar[int]
    value: bytes
    def __init__(self, value: _Optional[bytes] = ...) -> None: ...

class ListXattrsRequest(_message.Message):
    __slots__ = ("caller", "inode")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    caller: _types_pb2.Caller
    inode: int
    def __init__(self, caller: _Optional[_Union[_types_pb2.Caller, _Mapping]] = ..., inode: _Optional[int] = ...) -> None: ...

class ListXattrsReply(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, names: _Optional[_Iterable[bytes]] = ...) -> None: ...

class RemoveXattrRequest(_message.Message):
    __slots__ = ("caller", "inode", "name")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    caller: _types_pb2.Caller
    inode: int
    name: bytes
    def __init__(self, caller: _Optional[_Union[_types_pb2.Caller, _Mapping]] = ..., inode: _Optional[int] = ..., name: _Optional[bytes] = ...) -> None: ...

class StatFsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatFsReply(_message.Message):
    __slots__ = ("total_bytes", "free_bytes", "inode_count", "free_inodes")
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    INODE_COUNT_FIELD_NUMBER: _ClassVar[int]
    FREE_INODES_FIELD_NUMBER: _ClassVar[int]
    total_bytes: int
    free_bytes: int
    inode_count: int
    free_inodes: int
    def __init__(self, total_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., inode_count: _Optional[int] = ..., free_inodes: _Optional[int] = ...) -> None: ...
