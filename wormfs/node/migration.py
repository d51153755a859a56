"""Moving a stopped node's metadata from the embedded engine to etcd."""

import trio

from wormfs.core.errors import DiskError, WormError
from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.metadata.etcd_seed import seed
from wormfs.metadata.replica import Replica
from wormfs.node.config import NodeConfig
from wormfs.node.replica_role import etcd_member, etcd_options
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.store.disk import Disk


async def migrate_metadata(config: NodeConfig) -> int:
    """Let etcd's log go on behind the metadata on this node's disks; its last entry.

    A managed member is started, and left running for the node. Nothing on the disks changes. Raises
    DiskError (the node runs: its disks are in use), ExistsError (etcd has a log of that name),
    InvalidError (no metadata here), UnavailableError (etcd does not answer).
    """
    disks = [Disk.open(path) for path in config.disks]  # locked: a running node is refused
    try:
        if not any(disk.cluster_id for disk in disks):
            raise DiskError(f"{config.disks[0]}: no disk of a cluster; migrate on the node with the metadata")
        replica = await trio.to_thread.run_sync(Replica.open, [disk.path for disk in disks])
        try:
            await _seed(config, replica)
            return replica.sequence
        finally:
            replica.close()
    finally:
        for disk in disks:
            disk.close()


async def _seed(config: NodeConfig, replica: Replica) -> None:
    member = etcd_member(config, has_run=False)
    failure: WormError | None = None
    async with trio.open_nursery() as nursery, EtcdClient(etcd_options(config)) as client:
        try:
            if member is not None:
                await nursery.start(member.run)
            await seed(client, EtcdKeys(config.cluster.name), replica)
        except WormError as error:  # raised below: a nursery would wrap it
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
