"""Every method of every service: its full name and its message types.

Streams and gRPC share this table; proto/wormfs/v1 says what each method does. The constants
are written by hand and checked against the descriptors by tests/unit/rpc/test_methods.py.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from wormfs.rpc.v1 import (
    chunk_pb2,
    cluster_pb2,
    filesystem_pb2,
    metadata_pb2,
    replication_pb2,
    types_pb2,
)

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)


def number_of(name: str) -> int:
    """The 32 bits that stand for a method's or a pushed message's full name in a stream frame."""
    return zlib.crc32(name.encode())


@dataclass(frozen=True, slots=True, eq=False)
class Method(Generic[Request, Reply]):
    """One method: `name` is `service/method` as in a gRPC path, without the first slash."""

    name: str
    request: type[Request]
    reply: type[Reply]
    client_streaming: bool = False
    server_streaming: bool = False
    number: int = field(init=False)  # names the method in a stream frame: CRC32 of `name`

    def __post_init__(self) -> None:
        object.__setattr__(self, "number", number_of(self.name))


METADATA_OPEN_SESSION = Method(
    "wormfs.v1.Metadata/OpenSession", metadata_pb2.OpenSessionRequest, metadata_pb2.OpenSessionReply
)
METADATA_RENEW_SESSION = Method(
    "wormfs.v1.Metadata/RenewSession", metadata_pb2.RenewSessionRequest, metadata_pb2.RenewSessionReply
)
METADATA_CLOSE_SESSION = Method(
    "wormfs.v1.Metadata/CloseSession", metadata_pb2.CloseSessionRequest, types_pb2.Empty
)
METADATA_RECALL_DONE = Method(
    "wormfs.v1.Metadata/RecallDone", metadata_pb2.RecallDoneRequest, types_pb2.Empty
)
METADATA_LOOKUP = Method("wormfs.v1.Metadata/Lookup", filesystem_pb2.LookupRequest, filesystem_pb2.AttrReply)
METADATA_GET_ATTR = Method(
    "wormfs.v1.Metadata/GetAttr", filesystem_pb2.GetAttrRequest, filesystem_pb2.AttrReply
)
METADATA_SET_ATTR = Method(
    "wormfs.v1.Metadata/SetAttr", filesystem_pb2.SetAttrRequest, filesystem_pb2.AttrReply
)
METADATA_READ_DIR = Method(
    "wormfs.v1.Metadata/ReadDir", filesystem_pb2.ReadDirRequest, filesystem_pb2.ReadDirReply
)
METADATA_MAKE_NODE = Method(
    "wormfs.v1.Metadata/MakeNode", filesystem_pb2.MakeNodeRequest, metadata_pb2.FileMapReply
)
METADATA_READ_LINK = Method(
    "wormfs.v1.Metadata/ReadLink", filesystem_pb2.ReadLinkRequest, filesystem_pb2.ReadLinkReply
)
METADATA_LINK = Method("wormfs.v1.Metadata/Link", filesystem_pb2.LinkRequest, filesystem_pb2.AttrReply)
METADATA_RENAME = Method(
    "wormfs.v1.Metadata/Rename", filesystem_pb2.RenameRequest, metadata_pb2.DirectoriesReply
)
METADATA_UNLINK = Method(
    "wormfs.v1.Metadata/Unlink", filesystem_pb2.UnlinkRequest, metadata_pb2.DirectoriesReply
)
METADATA_REMOVE_DIR = Method(
    "wormfs.v1.Metadata/RemoveDir", filesystem_pb2.RemoveDirRequest, metadata_pb2.DirectoriesReply
)
METADATA_SET_XATTR = Method("wormfs.v1.Metadata/SetXattr", filesystem_pb2.SetXattrRequest, types_pb2.Empty)
METADATA_GET_XATTR = Method(
    "wormfs.v1.Metadata/GetXattr", filesystem_pb2.GetXattrRequest, filesystem_pb2.GetXattrReply
)
METADATA_LIST_XATTRS = Method(
    "wormfs.v1.Metadata/ListXattrs", filesystem_pb2.ListXattrsRequest, filesystem_pb2.ListXattrsReply
)
METADATA_REMOVE_XATTR = Method(
    "wormfs.v1.Metadata/RemoveXattr", filesystem_pb2.RemoveXattrRequest, types_pb2.Empty
)
METADATA_STAT_FS = Method(
    "wormfs.v1.Metadata/StatFs", filesystem_pb2.StatFsRequest, filesystem_pb2.StatFsReply
)
METADATA_OPEN_FILE = Method(
    "wormfs.v1.Metadata/OpenFile", metadata_pb2.OpenFileRequest, metadata_pb2.FileMapReply
)
METADATA_CLOSE_FILES = Method(
    "wormfs.v1.Metadata/CloseFiles", metadata_pb2.CloseFilesRequest, types_pb2.Empty
)
METADATA_GET_FILE_MAP = Method(
    "wormfs.v1.Metadata/GetFileMap", metadata_pb2.GetFileMapRequest, metadata_pb2.FileMapReply
)
METADATA_ACQUIRE_WRITE_LEASE = Method(
    "wormfs.v1.Metadata/AcquireWriteLease", metadata_pb2.AcquireWriteLeaseRequest, metadata_pb2.FileMapReply
)
METADATA_ALLOCATE_STRIPES = Method(
    "wormfs.v1.Metadata/AllocateStripes",
    metadata_pb2.AllocateStripesRequest,
    metadata_pb2.AllocateStripesReply,
)
METADATA_COMMIT_WRITE = Method(
    "wormfs.v1.Metadata/CommitWrite", metadata_pb2.CommitWriteRequest, filesystem_pb2.AttrReply
)
METADATA_SYNC = Method("wormfs.v1.Metadata/Sync", metadata_pb2.SyncRequest, types_pb2.Empty)

CLUSTER_FORGET_DISK = Method("wormfs.v1.Cluster/ForgetDisk", cluster_pb2.ForgetDiskRequest, types_pb2.Empty)

FILESYSTEM_RESOLVE = Method(
    "wormfs.v1.FileSystem/Resolve", filesystem_pb2.ResolveRequest, filesystem_pb2.AttrReply
)
FILESYSTEM_LOOKUP = Method(
    "wormfs.v1.FileSystem/Lookup", filesystem_pb2.LookupRequest, filesystem_pb2.AttrReply
)
FILESYSTEM_GET_ATTR = Method(
    "wormfs.v1.FileSystem/GetAttr", filesystem_pb2.GetAttrRequest, filesystem_pb2.AttrReply
)
FILESYSTEM_SET_ATTR = Method(
    "wormfs.v1.FileSystem/SetAttr", filesystem_pb2.SetAttrRequest, filesystem_pb2.AttrReply
)
FILESYSTEM_CREATE = Method(
    "wormfs.v1.FileSystem/Create", filesystem_pb2.CreateRequest, filesystem_pb2.OpenReply
)
FILESYSTEM_OPEN = Method("wormfs.v1.FileSystem/Open", filesystem_pb2.OpenRequest, filesystem_pb2.OpenReply)
FILESYSTEM_RELEASE = Method("wormfs.v1.FileSystem/Release", filesystem_pb2.ReleaseRequest, types_pb2.Empty)
FILESYSTEM_READ = Method("wormfs.v1.FileSystem/Read", filesystem_pb2.ReadRequest, filesystem_pb2.ReadReply)
FILESYSTEM_READ_STREAM = Method(
    "wormfs.v1.FileSystem/ReadStream",
    filesystem_pb2.ReadRequest,
    filesystem_pb2.ReadReply,
    server_streaming=True,
)
FILESYSTEM_WRITE = Method(
    "wormfs.v1.FileSystem/Write", filesystem_pb2.WriteRequest, filesystem_pb2.WriteReply
)
FILESYSTEM_WRITE_STREAM = Method(
    "wormfs.v1.FileSystem/WriteStream",
    filesystem_pb2.WriteRequest,
    filesystem_pb2.WriteReply,
    client_streaming=True,
)
FILESYSTEM_FLUSH = Method("wormfs.v1.FileSystem/Flush", filesystem_pb2.FlushRequest, types_pb2.Empty)
FILESYSTEM_FSYNC = Method("wormfs.v1.FileSystem/Fsync", filesystem_pb2.FsyncRequest, types_pb2.Empty)
FILESYSTEM_READ_DIR = Method(
    "wormfs.v1.FileSystem/ReadDir", filesystem_pb2.ReadDirRequest, filesystem_pb2.ReadDirReply
)
FILESYSTEM_MAKE_NODE = Method(
    "wormfs.v1.FileSystem/MakeNode", filesystem_pb2.MakeNodeRequest, filesystem_pb2.AttrReply
)
FILESYSTEM_READ_LINK = Method(
    "wormfs.v1.FileSystem/ReadLink", filesystem_pb2.ReadLinkRequest, filesystem_pb2.ReadLinkReply
)
FILESYSTEM_LINK = Method("wormfs.v1.FileSystem/Link", filesystem_pb2.LinkRequest, filesystem_pb2.AttrReply)
FILESYSTEM_RENAME = Method("wormfs.v1.FileSystem/Rename", filesystem_pb2.RenameRequest, types_pb2.Empty)
FILESYSTEM_UNLINK = Method("wormfs.v1.FileSystem/Unlink", filesystem_pb2.UnlinkRequest, types_pb2.Empty)
FILESYSTEM_REMOVE_DIR = Method(
    "wormfs.v1.FileSystem/RemoveDir", filesystem_pb2.RemoveDirRequest, types_pb2.Empty
)
FILESYSTEM_SET_XATTR = Method(
    "wormfs.v1.FileSystem/SetXattr", filesystem_pb2.SetXattrRequest, types_pb2.Empty
)
FILESYSTEM_GET_XATTR = Method(
    "wormfs.v1.FileSystem/GetXattr", filesystem_pb2.GetXattrRequest, filesystem_pb2.GetXattrReply
)
FILESYSTEM_LIST_XATTRS = Method(
    "wormfs.v1.FileSystem/ListXattrs", filesystem_pb2.ListXattrsRequest, filesystem_pb2.ListXattrsReply
)
FILESYSTEM_REMOVE_XATTR = Method(
    "wormfs.v1.FileSystem/RemoveXattr", filesystem_pb2.RemoveXattrRequest, types_pb2.Empty
)
FILESYSTEM_STAT_FS = Method(
    "wormfs.v1.FileSystem/StatFs", filesystem_pb2.StatFsRequest, filesystem_pb2.StatFsReply
)

CHUNKS_PUT_CHUNK = Method("wormfs.v1.Chunks/PutChunk", chunk_pb2.PutChunkRequest, chunk_pb2.PutChunkReply)
CHUNKS_GET_CHUNK = Method("wormfs.v1.Chunks/GetChunk", chunk_pb2.GetChunkRequest, chunk_pb2.GetChunkReply)
CHUNKS_DELETE_CHUNKS = Method(
    "wormfs.v1.Chunks/DeleteChunks", chunk_pb2.DeleteChunksRequest, chunk_pb2.DeleteChunksReply
)
CHUNKS_LIST_CHUNKS = Method(
    "wormfs.v1.Chunks/ListChunks", chunk_pb2.ListChunksRequest, chunk_pb2.ListChunksReply
)

CLUSTER_GET_CLUSTER_MAP = Method(
    "wormfs.v1.Cluster/GetClusterMap", cluster_pb2.GetClusterMapRequest, cluster_pb2.ClusterMap
)
CLUSTER_REGISTER_NODE = Method(
    "wormfs.v1.Cluster/RegisterNode", cluster_pb2.RegisterNodeRequest, cluster_pb2.RegisterNodeReply
)
CLUSTER_HEARTBEAT = Method(
    "wormfs.v1.Cluster/Heartbeat", cluster_pb2.HeartbeatRequest, cluster_pb2.HeartbeatReply
)
CLUSTER_GET_STATUS = Method(
    "wormfs.v1.Cluster/GetStatus", cluster_pb2.GetStatusRequest, cluster_pb2.StatusReply
)
CLUSTER_GET_POLICY = Method("wormfs.v1.Cluster/GetPolicy", cluster_pb2.GetPolicyRequest, types_pb2.Policy)
CLUSTER_SET_POLICY = Method("wormfs.v1.Cluster/SetPolicy", cluster_pb2.SetPolicyRequest, types_pb2.Policy)
CLUSTER_LOCATE = Method("wormfs.v1.Cluster/Locate", cluster_pb2.LocateRequest, cluster_pb2.LocateReply)
CLUSTER_FSCK = Method(
    "wormfs.v1.Cluster/Fsck", cluster_pb2.FsckRequest, cluster_pb2.FsckReply, server_streaming=True
)

REPLICATION_FOLLOW = Method(
    "wormfs.v1.Replication/Follow", replication_pb2.FollowRequest, replication_pb2.FollowReply
)
REPLICATION_ACKNOWLEDGE = Method(
    "wormfs.v1.Replication/Acknowledge",
    replication_pb2.AcknowledgeRequest,
    replication_pb2.AcknowledgeReply,
)
REPLICATION_GET_SNAPSHOT = Method(
    "wormfs.v1.Replication/GetSnapshot",
    replication_pb2.GetSnapshotRequest,
    replication_pb2.GetSnapshotReply,
)
REPLICATION_DIGEST = Method(
    "wormfs.v1.Replication/Digest", replication_pb2.DigestRequest, replication_pb2.DigestReply
)

METHODS: tuple[Method[Any, Any], ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Method)
)
PUSHED: Mapping[int, type[Message]] = {
    number_of(message.DESCRIPTOR.full_name): message
    for message in (metadata_pb2.Recall, metadata_pb2.KeepEntries, replication_pb2.Events)
}
"""What a server may push on a stream, by the number in its frame."""
PUSHED_WITH_REPLY = frozenset({number_of(metadata_pb2.KeepEntries.DESCRIPTOR.full_name)})
"""Parts of the reply behind them: a client does not count them as pushes."""
