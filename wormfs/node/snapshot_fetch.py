"""A replica that is behind what etcd still has takes the snapshot of another one."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from wormfs.client.peers import machine_id
from wormfs.core.errors import DataLossError, DiskError, NotFoundError, UnavailableError, WormError
from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.metadata.replica import Replica
from wormfs.metadata.snapshots import verify
from wormfs.node.follower import Follower
from wormfs.rpc import methods as m
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.rpc.etcd_types import prefix_end
from wormfs.rpc.stream_client import StreamConnection, open_connection
from wormfs.rpc.v1 import replication_pb2 as pb

PIECE_BYTES = 1 << 20
CONNECT_S = 2.0
MAKE_S = 300.0
"""The peer may have to make the snapshot first."""
PIECE_S = 20.0
log = logging.getLogger(__name__)


async def peers_of(client: EtcdClient, keys: EtcdKeys, own_name: str) -> list[pb.ReplicaRecord]:
    """The other replicas that ever were. Raises UnavailableError."""
    found = await client.range(keys.replicas, prefix_end(keys.replicas))
    records = [pb.ReplicaRecord.FromString(kv.value) for kv in found.kvs]
    return [record for record in records if record.name != own_name]


async def fetch_snapshot(
    replica: Replica, peers: Sequence[pb.ReplicaRecord], floor: int, follower: Follower | None
) -> None:
    """Install the snapshot of a peer, of entry `floor` or later, whichever peer gives one first.

    `follower` keeps the master from trimming what comes behind it. Raises UnavailableError when no peer
    gives one; as Replica.install() when it cannot be installed.
    """
    reasons = []
    for peer in peers:
        holding = trio.CancelScope()
        async with trio.open_nursery() as nursery:

            async def hold(sequence: int, scope: trio.CancelScope = holding) -> None:
                with scope:
                    if follower is not None:
                        await follower.hold(sequence)

            fetched = False
            path = replica.incoming()
            try:
                await _fetch_from(peer, floor, path, lambda sequence: nursery.start_soon(hold, sequence))
                fetched = True
            except WormError as error:
                reasons.append(f"{peer.name}: {error.message}")
            if fetched:
                await replica.install(path)
                log.warning("the metadata replica begins anew with the snapshot of %s", peer.name)
            holding.cancel()
        if fetched:
            return
    raise UnavailableError(
        f"this replica lacks entries that etcd has no longer (up to {floor}), and no other one gives its "
        f"snapshot: {'; '.join(reasons) or 'there is no other one'}; start more nodes"
    )


async def _fetch_from(
    peer: pb.ReplicaRecord, floor: int, path: Path, found_one: Callable[[int], None]
) -> None:
    """Write a peer's snapshot to `path` and check it; `found_one` is told which it is before it comes."""
    same_machine = peer.machine_id == machine_id()
    addresses = [each for each in peer.addresses if same_machine or not each.startswith("unix:")]
    async with open_connection(addresses, timeout_s=CONNECT_S) as connection:
        ask = pb.GetSnapshotRequest(at_least=floor)
        found = (await connection.call(m.REPLICATION_GET_SNAPSHOT, ask, timeout_s=MAKE_S)).message
        if found.sequence < floor:
            raise NotFoundError(f"its newest snapshot is of entry {found.sequence}")
        log.info("fetching the snapshot of entry %d from %s", found.sequence, peer.name)
        found_one(found.sequence)
        await _receive(connection, found, path)
    try:
        info = await trio.to_thread.run_sync(verify, path)
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror}") from error
    if info.sequence != found.sequence:
        raise DataLossError(f"its snapshot of entry {found.sequence} says that it is of {info.sequence}")


async def _receive(connection: StreamConnection, found: pb.GetSnapshotReply, path: Path) -> None:
    """Write the file piece by piece. What a failure leaves is overwritten by the next try."""
    buffer = bytearray(PIECE_BYTES)
    try:
        async with await trio.open_file(path, "wb") as file:
            received_bytes = 0
            while received_bytes < found.file_bytes:
                request = pb.GetSnapshotRequest(
                    sequence=found.sequence, offset_bytes=received_bytes, length_bytes=PIECE_BYTES
                )
                reply = await connection.call(
                    m.REPLICATION_GET_SNAPSHOT, request, timeout_s=PIECE_S, into=[memoryview(buffer)]
                )
                if not reply.data_bytes:
                    raise NotFoundError(f"the snapshot ends at {received_bytes} of {found.file_bytes} bytes")
                await file.write(memoryview(buffer)[: reply.data_bytes])
                received_bytes += reply.data_bytes
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror}") from error
