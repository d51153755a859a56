"""Beginning a cluster's log in etcd behind what a replica holds: a move from another engine, or a restore.

Other nodes may still hold replicas of before, and of entries that the one seeded from never had. The key
`begun` tells them: an entry of this log is up to its sequence, or of its epoch or a later one.
"""

from wormfs.core.errors import DataLossError, ExistsError, InvalidError
from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.metadata.etcd_log import head_value
from wormfs.metadata.replica import Replica
from wormfs.metadata.restored_state import EPOCH_STEP
from wormfs.metadata.state_files import epoch_at
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.rpc.etcd_types import compare_absent, put
from wormfs.rpc.v1 import replication_pb2


async def refuse_log(client: EtcdClient, keys: EtcdKeys) -> None:
    """Raise ExistsError when etcd has anything of a cluster of this name; UnavailableError."""
    for key in (keys.head, keys.epoch, keys.leader, keys.floor):
        if (await client.range(key, keys_only=True)).kvs:
            raise ExistsError(
                f"etcd holds the metadata log of a cluster named {keys.cluster_name} already; "
                "nothing was changed"
            )


async def seed(client: EtcdClient, keys: EtcdKeys, replica: Replica) -> None:
    """Let etcd's log go on behind this replica, whose entries etcd is told to have trimmed.

    The replica is then the only one that holds them, until others have taken its snapshot. Raises
    ExistsError when etcd has a log of this name already, InvalidError for an empty replica,
    UnavailableError (nothing or all of it was done: ask again).
    """
    state = replica.keeper.state
    if not replica.sequence or not replica.cluster_id:
        raise InvalidError("this node holds no metadata that etcd's log could go on behind")
    head = head_value(replica.sequence, state.epoch)
    if state.restored.sequence and replica.sequence == state.restored.sequence + 1:
        # Just restored: the last entry is the restore itself, of an epoch of its own.
        common, epoch = state.restored.sequence, state.epoch
    else:
        common, epoch = replica.sequence, state.epoch + EPOCH_STEP
    names = (keys.head, keys.epoch, keys.leader, keys.floor)
    answer = await client.txn(
        [compare_absent(name) for name in names],
        [
            put(keys.head, head),
            put(keys.epoch, str(epoch).encode()),
            put(keys.floor, str(replica.sequence).encode()),
            put(keys.begun, head_value(common, epoch)),
        ],
    )
    if answer.succeeded:
        return
    found = (await client.range(keys.head)).kvs
    if [kv.value for kv in found] != [head]:  # ours, when an earlier try had no answer
        raise ExistsError(
            f"etcd holds the metadata log of a cluster named {keys.cluster_name} already; nothing was changed"
        )


async def refuse_other_history(client: EtcdClient, keys: EtcdKeys, replica: Replica) -> None:
    """Raise DataLossError when the replica holds entries that etcd's log never had; UnavailableError.

    Only to be asked while nothing is appended to the replica.
    """
    found = (await client.range(keys.head)).kvs
    if not found:
        return  # an empty etcd: nothing could be mixed
    head = replication_pb2.LogHead.FromString(found[0].value)
    begun = replication_pb2.LogHead()
    for kv in (await client.range(keys.begun)).kvs:
        begun = replication_pb2.LogHead.FromString(kv.value)
    if replica.sequence > begun.sequence and _epoch_of(replica) < begun.epoch:
        raise DataLossError(
            f"the log in etcd was begun anew behind entry {begun.sequence}, this node's metadata replica "
            f"holds entries up to {replica.sequence} of before: they are not mixed; {_WHAT_TO_DO}"
        )
    if replica.sequence > head.sequence:
        raise DataLossError(
            f"this node's metadata replica ends at entry {replica.sequence}, the log in etcd at "
            f"{head.sequence}: etcd has lost data, or was set up anew; {_WHAT_TO_DO}"
        )


def _epoch_of(replica: Replica) -> int:
    """The epoch of the replica's last entry; one without room for a state is asked for its log alone."""
    if replica.keeper.is_lost:
        return epoch_at(replica.log, replica.sequence)
    return replica.keeper.state.applied_epoch


_WHAT_TO_DO = (
    "if the replica is not needed, move the folder `metadata` of this node's disks away and start it again"
)
