"""What every replica serves to others, whatever its role: pieces of its newest snapshot, its digest."""

from collections.abc import Callable

from wormfs.metadata.replica import Replica
from wormfs.metadata.state_copy import StateCopies
from wormfs.node.snapshot_service import SnapshotService
from wormfs.rpc import methods as m
from wormfs.rpc.registry import DataBuffer, Registry, RequestContext
from wormfs.rpc.v1 import replication_pb2 as pb


class ReplicaService:
    """Handlers over a replica; `replica` is asked for at each request."""

    def __init__(self, replica: Callable[[], Replica]) -> None:
        self._snapshots = SnapshotService(lambda: replica().keeper)
        self._copies = StateCopies(replica)

    def register(self, registry: Registry) -> None:
        """Add the handlers."""
        self._snapshots.register(registry)
        registry.add(m.REPLICATION_DIGEST, self._digest)

    async def _digest(
        self, _: RequestContext, request: pb.DigestRequest, __: DataBuffer | None
    ) -> pb.DigestReply:
        if not request.copy_id:
            copy_id, sequence = await self._copies.take()
            return pb.DigestReply(copy_id=copy_id, sequence=sequence)
        digest = await self._copies.digest(request.copy_id, request.at_sequence)
        return pb.DigestReply(copy_id=request.copy_id, sequence=request.at_sequence, digest=digest)
