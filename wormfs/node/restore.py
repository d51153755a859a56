"""Putting a backup's metadata onto a stopped node, for either engine."""

from pathlib import Path

import trio

from wormfs.core.errors import ConfigError, WormError, WrongClusterError
from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.metadata.etcd_seed import refuse_log
from wormfs.metadata.replica import REPLICA_COPIES
from wormfs.metadata.restored_state import Backup, check_backup, install, refuse_metadata
from wormfs.node.config import NodeConfig
from wormfs.node.migration import disks_of, seed_from, with_etcd
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.store.disk import Disk


async def restore_metadata(config: NodeConfig, file: Path) -> Backup:
    """Put the metadata of the backup `file` onto this node's disks, and behind it etcd's log if it has one.

    Nothing is changed where something would be lost. Raises DataLossError (the file is damaged, cut
    short, or a newer program's), ExistsError (the disks or etcd hold metadata already), WrongClusterError
    (disks of another cluster, or added since), DiskError (the node runs, a disk fails), ConfigError (a
    node that keeps no metadata), UnavailableError (etcd does not answer).
    """
    if config.metadata.engine == "embedded" and not config.is_master:
        raise ConfigError(
            "this node has `join` addresses: another one keeps the metadata; restore there, or take `join` "
            "out of the configuration"
        )
    backup = await trio.to_thread.run_sync(check_backup, file)
    with disks_of(config) as disks:
        for disk in disks:
            if disk.cluster_id not in ("", backup.cluster_id):
                raise WrongClusterError(
                    f"{disk.path} is a disk of cluster {disk.cluster_id}, the backup is of cluster "
                    f"{backup.cluster_id}: nothing was changed"
                )
            if disk.number and disk.uuid not in backup.disk_uuids:
                raise WrongClusterError(
                    f"{disk.path} (disk {disk.number}) is not in the backup: it was added behind event "
                    f"{backup.sequence}, and what it holds is of no file there; keep it, and take it out of "
                    "the configuration"
                )
        refuse_metadata([disk.path for disk in disks])
        if config.metadata.engine == "etcd":
            await with_etcd(config, lambda client: _restore_with_etcd(config, file, disks, client))
        else:
            await _install(file, disks, config.policy.policy().m + 1)
    return backup


async def _install(file: Path, disks: list[Disk], copies: int) -> None:
    paths = [disk.path for disk in disks]
    await trio.to_thread.run_sync(lambda: install(file, paths, copies=min(copies, len(paths))))


async def _restore_with_etcd(config: NodeConfig, file: Path, disks: list[Disk], client: EtcdClient) -> int:
    await refuse_log(client, EtcdKeys(config.cluster.name))
    await _install(file, disks, REPLICA_COPIES)
    try:
        return await seed_from(config, disks, client)
    except WormError as error:
        raise type(error)(
            f"{error.message}; the metadata is on this node's disks, but not in etcd yet: "
            "`wormfs metadata migrate` with the same --node-config does the rest"
        ) from error
