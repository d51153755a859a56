"""Beginning a cluster's log in etcd behind what a replica holds: a move from another engine, or a restore."""

from wormfs.core.errors import ExistsError, InvalidError
from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.metadata.etcd_log import head_value
from wormfs.metadata.replica import Replica
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.rpc.etcd_types import compare_absent, put


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
    names = (keys.head, keys.epoch, keys.leader, keys.floor)
    answer = await client.txn(
        [compare_absent(name) for name in names],
        [
            put(keys.head, head),
            put(keys.epoch, str(state.epoch).encode()),
            put(keys.floor, str(replica.sequence).encode()),
        ],
    )
    if answer.succeeded:
        return
    found = (await client.range(keys.head)).kvs
    if [kv.value for kv in found] != [head]:  # ours, when an earlier try had no answer
        raise ExistsError(
            f"etcd holds the metadata log of a cluster named {keys.cluster_name} already; nothing was changed"
        )
