"""Moving a stopped node's metadata from the embedded engine to etcd."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import trio

from wormfs.core.errors import ConfigError, DiskError, UnavailableError, WormError
from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.metadata.etcd_seed import seed
from wormfs.metadata.replica import Replica
from wormfs.metadata.restored_state import refuse_metadata
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
    with disks_of(config) as disks:
        if not any(disk.cluster_id for disk in disks):
            raise DiskError(f"{config.disks[0]}: no disk of a cluster; migrate on the node with the metadata")
        return await with_etcd(config, lambda client: seed_from(config, disks, client))


async def start_member(config: NodeConfig) -> None:
    """Start the etcd member that this stopped node looks after, and leave it running for the node.

    So that a majority is there before anything is in etcd: nodes without any metadata would begin a new
    cluster. Raises ConfigError (not a managed one), ExistsError (this node has metadata, so its member has
    been in the cluster: what it must not forget is EtcdMember's to judge), and as EtcdMember.run().
    """
    if not config.metadata.managed:
        raise ConfigError(f"{config.name}: metadata.managed is not set: this node looks after no etcd member")
    refuse_metadata(config.disks)

    async def nothing(_: EtcdClient) -> int:
        return 0

    await with_etcd(config, nothing)


async def seed_from(config: NodeConfig, disks: list[Disk], client: EtcdClient) -> int:
    """Begin etcd's log behind what these disks hold; its last entry. Raises as `seed`."""
    replica = await trio.to_thread.run_sync(Replica.open, [disk.path for disk in disks])
    try:
        await seed(client, EtcdKeys(config.cluster.name), replica)
        return replica.sequence
    finally:
        replica.close()


@contextmanager
def disks_of(config: NodeConfig) -> Iterator[list[Disk]]:
    """The disks of a stopped node, locked: a running one is refused. Raises DiskError, WrongClusterError."""
    disks: list[Disk] = []
    try:
        for path in config.disks:
            disks.append(Disk.open(path, new_where_mounted=config.mounted_disks))
        yield disks
    finally:
        for disk in disks:
            disk.close()


async def with_etcd(config: NodeConfig, work: Callable[[EtcdClient], Awaitable[int]]) -> int:
    """Do something with etcd as this node reaches it; a managed member is started, and left running.

    Raises what `work` does, and as EtcdMember.run().
    """
    member = etcd_member(config, has_run=False)
    outcome: int | WormError = 0
    async with trio.open_nursery() as nursery, EtcdClient(etcd_options(config)) as client:
        try:
            if member is not None:
                await nursery.start(member.run)
            outcome = await work(client)
        except UnavailableError as error:
            outcome = UnavailableError(await client.explained(error))
        except WormError as error:  # raised below: a nursery would wrap it
            outcome = error
        nursery.cancel_scope.cancel()
    if isinstance(outcome, WormError):
        raise outcome
    return outcome
