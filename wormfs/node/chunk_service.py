"""The Chunks service: this node's disks, over streams and gRPC."""

from collections import OrderedDict
from collections.abc import Callable

from wormfs.codec.chunk_format import ChunkHeader
from wormfs.core.errors import (
    ChunkError,
    InvalidError,
    NotFoundError,
    StaleError,
    UnavailableError,
    WrongClusterError,
)
from wormfs.core.types import ChunkKey
from wormfs.node.drain import Drain
from wormfs.rpc import methods as m
from wormfs.rpc.registry import Answer, DataBuffer, Registry, RequestContext
from wormfs.rpc.v1 import chunk_pb2
from wormfs.store.buffer_pool import BufferPool, ChunkBuffer
from wormfs.store.chunk_store import ChunkStore

_REMEMBERED_DELETES = 200_000
_LIST_MAX = 10_000
_DELETE_MAX = 10_000


def key_from(chunk: chunk_pb2.ChunkId) -> ChunkKey:
    """The core's type of a chunk's name."""
    return ChunkKey(chunk.file, chunk.stripe_id, chunk.index)


def id_from(key: ChunkKey) -> chunk_pb2.ChunkId:
    """The message of a chunk's name."""
    return chunk_pb2.ChunkId(file=key.file, stripe_id=key.stripe_id, index=key.index)


class ChunkService:
    """Handlers over a ChunkStore.

    A chunk deleted once is never accepted again: stripe ids are never used twice, so a put that
    comes after the delete is a late one of a stripe given up, and would stay as a leftover.

    `store` is asked for at each request: None until the node has joined its cluster.
    """

    def __init__(
        self,
        store: Callable[[], ChunkStore | None],
        pool: BufferPool,
        drain: Drain,
        found_damaged: Callable[[int, ChunkKey], None] = lambda _disk, _key: None,
    ) -> None:
        self._get_store = store
        self._pool = pool
        self._drain = drain
        self._found_damaged = found_damaged  # told of chunks that should be there and cannot be read
        self._deleted: OrderedDict[tuple[int, ChunkKey], None] = OrderedDict()

    def register(self, registry: Registry) -> None:
        """Add the handlers."""
        registry.add(m.CHUNKS_PUT_CHUNK, self._put, allocate=self._pool.acquire)
        registry.add(m.CHUNKS_GET_CHUNK, self._get)
        registry.add(m.CHUNKS_DELETE_CHUNKS, self._delete)
        registry.add(m.CHUNKS_LIST_CHUNKS, self._list)

    def _store(self) -> ChunkStore:
        store = self._get_store()
        if store is None:
            raise UnavailableError("this node has not joined its cluster yet; its log says why")
        return store

    async def _put(
        self, _: RequestContext, request: chunk_pb2.PutChunkRequest, data: DataBuffer | None
    ) -> chunk_pb2.PutChunkReply:
        buffer = self._buffer(request, data)
        try:
            store = self._store()
            if request.cluster_id != store.cluster_id:
                raise WrongClusterError(
                    f"the chunk is for cluster {request.cluster_id}, this node belongs to {store.cluster_id}"
                )
            header = ChunkHeader(
                cluster_id=request.cluster_id,
                file=request.chunk.file,
                stripe_id=request.chunk.stripe_id,
                stripe_index=request.stripe_index,
                stripe_size_bytes=request.stripe_size_bytes,
                chunk_index=request.chunk.index,
                k=request.k,
                m=request.m,
                codec=request.codec,
                stripe_length_bytes=request.stripe_length_bytes,
                chunk_length_bytes=buffer.length_bytes,
                checksums=request.checksums,
            )
            name = (request.disk, header.key)
            if name not in self._deleted:
                with self._drain.work():
                    await store.put(request.disk, header, buffer)
            if name in self._deleted:  # before, or while it was written
                await store.delete(request.disk, [header.key])
                raise StaleError(f"stripe {header.stripe_id} was given up before its chunk arrived")
        finally:
            buffer.release()
        return chunk_pb2.PutChunkReply()

    def _buffer(self, request: chunk_pb2.PutChunkRequest, data: DataBuffer | None) -> ChunkBuffer:
        if isinstance(data, ChunkBuffer):
            return data
        plain = data.data if data is not None else request.data
        buffer = self._pool.acquire(len(plain))
        buffer.data[:] = plain
        if data is not None:
            data.release()
        return buffer

    async def _get(
        self, _: RequestContext, request: chunk_pb2.GetChunkRequest, __: DataBuffer | None
    ) -> Answer[chunk_pb2.GetChunkReply]:
        key = key_from(request.chunk)
        store = self._store()
        try:
            found = await store.get(request.disk, key, request.offset_bytes, request.length_bytes)
        except (ChunkError, NotFoundError):
            # Who asks by an old map may want a disk that is another node's now: nothing is wrong with that.
            if (request.disk, key) not in self._deleted and store.serves(request.disk):
                self._found_damaged(request.disk, key)
            raise
        reply = chunk_pb2.GetChunkReply(offset_bytes=found.offset_bytes, checksums=found.checksums)
        return Answer(reply, (found.data,), found.release)

    async def _delete(
        self, _: RequestContext, request: chunk_pb2.DeleteChunksRequest, __: DataBuffer | None
    ) -> chunk_pb2.DeleteChunksReply:
        if len(request.chunks) > _DELETE_MAX:
            raise InvalidError(f"at most {_DELETE_MAX} chunks can be deleted at once")
        keys = [key_from(chunk) for chunk in request.chunks]
        for key in keys:
            self._deleted[request.disk, key] = None
        while len(self._deleted) > _REMEMBERED_DELETES:
            self._deleted.popitem(last=False)
        failed = await self._store().delete(request.disk, keys)
        return chunk_pb2.DeleteChunksReply(failed=[id_from(key) for key in failed])

    async def _list(
        self, _: RequestContext, request: chunk_pb2.ListChunksRequest, __: DataBuffer | None
    ) -> chunk_pb2.ListChunksReply:
        page = await self._store().list(
            request.disk, request.after, min(request.limit, _LIST_MAX), request.verify
        )
        return chunk_pb2.ListChunksReply(
            chunks=[
                chunk_pb2.ChunkInfo(
                    chunk=id_from(info.key),
                    length_bytes=info.length_bytes,
                    path=info.path,
                    problem=info.problem,
                )
                for info in page.chunks
            ],
            next=page.next,
        )
