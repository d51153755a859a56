"""A node with the etcd engine: it follows the master, or is it.

The roles take turns for the node's whole life; what both need (disks, chunks, gateway, servers, the
replica) stays. docs/many-servers.md has the whole picture.
"""

import logging
import random
import uuid
from contextlib import suppress
from typing import NoReturn

import trio

from wormfs.client.peers import usable_addresses
from wormfs.core.errors import (
    DataLossError,
    StaleError,
    UnavailableError,
    WrongClusterError,
)
from wormfs.metadata.election import Mastership, campaign, current_leader
from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.metadata.etcd_log import EtcdLog
from wormfs.metadata.etcd_seed import refuse_other_history
from wormfs.metadata.etcd_trim import LogTrimmer
from wormfs.metadata.replica import Replica, TrimmedError, read_floor
from wormfs.metadata.replica_table import ReplicaTable
from wormfs.node.config import NodeConfig
from wormfs.node.etcd_member import EtcdMember
from wormfs.node.follower import Follower
from wormfs.node.followers import Followers
from wormfs.node.master_role import MasterRole
from wormfs.node.membership import Membership
from wormfs.node.not_master import say_goodbye, serve_as_not_master
from wormfs.node.parts import NodeParts
from wormfs.node.replica_service import ReplicaService
from wormfs.node.replication_status import ReplicationStatus
from wormfs.node.snapshot_fetch import fetch_snapshot, peers_of
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.rpc.etcd_types import EtcdOptions, put
from wormfs.rpc.registry import Registry
from wormfs.rpc.v1 import cluster_pb2, replication_pb2

PAUSE_S = 0.3
LEADER_CHECK_S = 2.0
"""The leader's key is looked at so often, whatever the watch on it says."""
NOBODY = "none is known here now: one is elected within seconds when most of etcd's members are up"
log = logging.getLogger(__name__)


class ReplicaRole:
    """Elections and roles of one node."""

    def __init__(self, parts: NodeParts) -> None:
        self._parts = parts
        self._keys = EtcdKeys(parts.config.cluster.name)
        self._seen: cluster_pb2.ClusterMap | None = None  # the newest map of another master
        self._membership: Membership | None = None
        self._told_empty = False
        self._named = False
        self._client: EtcdClient
        self._replica: Replica
        self._nursery: trio.Nursery

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled; started when the servers listen. Raises as run_node()."""
        parts = self._parts
        self._replica = await trio.to_thread.run_sync(Replica.open, [disk.path for disk in parts.disks])
        member = etcd_member(parts.config, has_run=self._replica.sequence > 0)
        try:
            async with (
                trio.open_nursery() as self._nursery,
                EtcdClient(etcd_options(parts.config)) as self._client,
            ):
                if member is not None:
                    await self._nursery.start(member.run)
                await self._nursery.start(self._replica.run)
                ReplicaService(lambda: self._replica).register(parts.registry)
                serve_as_not_master(self._parts, NOBODY)
                await parts.serve(self._nursery)
                self._nursery.start_soon(parts.gateway.run)
                task_status.started()
                await self._take_turns()
        finally:
            with trio.CancelScope(shield=True):
                self._replica.close()
                if member is not None:
                    await member.stop()

    async def _take_turns(self) -> NoReturn:
        silent = False
        while True:
            try:
                # Before it is named, and others ask for it.
                await refuse_other_history(self._client, self._keys, self._replica)
                leader, revision = await current_leader(self._client, self._keys)
                if silent:
                    log.info("etcd answers again")
                silent = False
                if leader is None:
                    await self._campaign()
                else:
                    await self._follow(leader, revision)
            except* UnavailableError as group:  # a role's nursery wraps what went wrong in it
                if not silent:
                    self._nursery.start_soon(self._tell_silent, logging.WARNING, first_of(group))
                silent = True
            await trio.sleep(PAUSE_S * random.random())

    async def _tell_silent(self, level: int, error: UnavailableError) -> None:
        """A task of its own: to find out why takes seconds, in which etcd may be back."""
        log.log(level, "etcd does not answer: %s", await self._client.explained(error))

    async def _name_replica(self) -> None:
        """Tell in etcd that there is a replica here: it counts before the log is trimmed.

        Once the master has let the node in, or nobody is master: not in the place of a namesake.
        """
        if self._named:
            return
        info = self._parts.info
        record = replication_pb2.ReplicaRecord(
            name=info.name, addresses=info.addresses, machine_id=info.machine_id
        )
        await self._client.txn([], [put(self._keys.replica(info.name), record.SerializeToString())])
        self._named = True

    # --- following ----------------------------------------------------------------------------

    async def _follow(self, leader: replication_pb2.LeaderRecord, revision: int) -> None:
        """Follow a master until it is gone."""
        parts = self._parts
        membership = None
        addresses: list[str] = []
        who_is = "it was until it stopped or lost etcd, and the next one is elected when its lease there ends"
        own = leader.name == parts.config.name and list(leader.addresses) == list(parts.info.addresses)
        if not own:  # a namesake is told so by the master
            node = cluster_pb2.NodeInfo(addresses=leader.addresses, machine_id=leader.machine_id)
            addresses = usable_addresses(node, parts.info.machine_id)
            membership = Membership(addresses, parts.info, parts.disks)
            if self._seen is not None:  # who is master now is told even before this node has joined it
                membership.map = naming(self._seen, leader.name)
            who_is = f"{leader.name} is"
            parts.found_damaged = membership.note_damaged
            log.info("%s is the metadata master (epoch %d)", leader.name, leader.epoch)
        serve_as_not_master(self._parts, who_is, membership)
        follower = Follower(
            parts.config.name,
            self._replica,
            self._client,
            self._keys,
            addresses,
            checked=self._check_cluster,
            rescue=self._rescue,
        )
        try:
            async with trio.open_nursery() as nursery:
                if membership is not None:
                    nursery.start_soon(self._belong, membership, follower)
                else:
                    nursery.start_soon(follower.run)
                await self._until_gone(leader, revision)
                nursery.cancel_scope.cancel()
        finally:
            self._membership = None
            if membership is not None and membership.map.nodes:
                self._seen = membership.map
            serve_as_not_master(self._parts, NOBODY)

    async def _belong(self, membership: Membership, follower: Follower) -> None:
        async with trio.open_nursery() as nursery:
            if self._named:
                nursery.start_soon(follower.run)
            await membership.join(nursery)
            if not self._named:  # what it told the master to hold would count as its namesake's
                await self._name_replica()
                nursery.start_soon(follower.run)
            await self._parts.start_store(self._nursery, membership.cluster_id)
            self._membership = membership
            nursery.start_soon(membership.beat)

    async def _rescue(self, floor: int, follower: Follower | None) -> None:
        peers = await peers_of(self._client, self._keys, self._parts.config.name)
        await fetch_snapshot(self._replica, peers, floor, follower)

    def _check_cluster(self) -> None:
        own = ""
        with suppress(UnavailableError):  # without room for its state it follows, and never leads
            own = self._replica.cluster_id
        for disk in self._parts.disks:
            if own and disk.cluster_id and disk.cluster_id != own:
                raise WrongClusterError(
                    f"{disk.path} is a disk of cluster {disk.cluster_id}; the one named "
                    f"{self._keys.cluster_name} in etcd is {own}"
                )

    async def _until_gone(self, leader: replication_pb2.LeaderRecord, revision: int) -> None:
        silent = False
        while True:
            with trio.move_on_after(LEADER_CHECK_S):
                try:
                    with self._client.watch(self._keys.leader, start_revision=revision + 1) as watch:
                        await watch.__anext__()
                except (UnavailableError, StaleError) as error:
                    log.debug("the leader is not watched now: %s", error.message)
                    await trio.sleep(PAUSE_S)
            try:
                now, revision = await current_leader(self._client, self._keys)
            except UnavailableError as error:  # nobody else is elected meanwhile
                if not silent:
                    self._nursery.start_soon(self._tell_silent, logging.INFO, error)
                silent = True
                await trio.sleep(PAUSE_S)
                continue
            silent = False
            if now != leader:
                return

    # --- leading ------------------------------------------------------------------------------

    async def _campaign(self) -> None:
        replica, parts = self._replica, self._parts
        try:
            await replica.catch_up(self._client, self._keys)
        except TrimmedError as error:
            await self._rescue(error.floor, None)
            return
        self._check_cluster()
        if not await self._may_begin():
            return
        await self._name_replica()
        candidate = replication_pb2.LeaderRecord(
            name=parts.config.name, addresses=parts.info.addresses, machine_id=parts.info.machine_id
        )
        mastership = await campaign(self._client, self._keys, candidate)
        if mastership is None:
            return
        try:
            await self._lead(mastership)
        except* TrimmedError as group:
            log.warning("%s", group.exceptions[0])  # the next round takes it
        finally:
            await mastership.resign()
            serve_as_not_master(self._parts, NOBODY)
            replica.follow()

    async def _may_begin(self) -> bool:
        """Whether an empty log in etcd is a new cluster's, not one whose metadata is elsewhere or lost."""
        cluster = self._replica.cluster_id or next(
            (disk.cluster_id for disk in self._parts.disks if disk.cluster_id), ""
        )
        floor = await read_floor(self._client, self._keys)
        if floor > self._replica.sequence:
            await self._rescue(floor, None)
            return False
        if not cluster or (await self._client.range(self._keys.head, keys_only=True)).kvs:
            return True
        if not self._told_empty:
            log.error(
                "etcd has no metadata of a cluster named %s, and this node belongs to cluster %s: move its "
                "metadata there (wormfs metadata migrate), or bring etcd's data back",
                self._keys.cluster_name,
                cluster,
            )
        self._told_empty = True
        return False

    async def _lead(self, mastership: Mastership) -> None:
        """Be master until deposed."""
        parts, replica = self._parts, self._replica
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mastership.keep)
            await replica.catch_up(self._client, self._keys)
            found = (await self._client.range(self._keys.head)).kvs
            head = found[0].value if found else b""
            last = replication_pb2.LogHead.FromString(head)
            if last.epoch > mastership.epoch:  # deposed before it began
                mastership.end("another node has become master")
                nursery.cancel_scope.cancel()
                return
            if last.sequence != replica.sequence:
                raise DataLossError(
                    f"the metadata log in etcd ends at {last.sequence}, this node's copy at "
                    f"{replica.sequence}: etcd has lost data, or was set up anew"
                )
            entries = EtcdLog(replica.log, self._client, self._keys, mastership, head)
            table = ReplicaTable(trio.current_time)
            followers = Followers(table, lambda: entries.durable_sequence)
            trimmer = LogTrimmer(
                self._client,
                self._keys,
                mastership.epoch,
                table,
                own=lambda: (parts.config.name, replica.sequence, replica.log.durable_sequence),
                members=lambda: [node.name for node in machine.nodes()],
            )
            entries.listeners += [trimmer.note, followers.push]
            nursery.start_soon(entries.run)
            machine = replica.lead(entries, mastership.epoch, parts.info.number)
            if not machine.cluster_id:
                machine.form_cluster(
                    str(uuid.uuid4()), parts.config.cluster.name, parts.config.policy.policy()
                )
            status = ReplicationStatus(table, trimmer, lambda: entries.durable_sequence)
            role = MasterRole(parts, machine, self._seen, status)
            await role.register_self()
            await parts.start_store(self._nursery, machine.cluster_id)
            registry = Registry()
            await nursery.start(
                lambda task_status: role.run(registry, confirmed=True, task_status=task_status)
            )
            followers.register(registry)
            parts.registry.set_role(registry)
            nursery.start_soon(trimmer.run)
            log.info("serving the metadata from entry %d on", machine.sequence)
            while not mastership.ended:
                await mastership.moved()
            nursery.cancel_scope.cancel()

    async def say_goodbye(self) -> None:
        """Tell the master that this node's disks go."""
        await say_goodbye(self._membership)


def naming(seen: cluster_pb2.ClusterMap, master: str) -> cluster_pb2.ClusterMap:
    """A map seen before, with another master; empty when that one is not in it."""
    named = cluster_pb2.ClusterMap()
    if any(node.name == master for node in seen.nodes):
        named.CopyFrom(seen)
    for node in named.nodes:
        node.master = node.name == master
    return named


def first_of(group: BaseExceptionGroup[UnavailableError]) -> UnavailableError:
    """The first error, however deep it is."""
    error: UnavailableError | BaseExceptionGroup[UnavailableError] = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def etcd_options(config: NodeConfig) -> EtcdOptions:
    """How the node reaches etcd. Raises ConfigError when its password cannot be read."""
    metadata = config.metadata
    return EtcdOptions(
        endpoints=metadata.endpoints,
        ca_file=metadata.ca_file,
        cert_file=metadata.cert_file,
        key_file=metadata.key_file,
        user=metadata.user,
        password=metadata.password(),
    )


def etcd_member(config: NodeConfig, *, has_run: bool) -> EtcdMember | None:
    """The member that the node looks after, if it does. `has_run`: see EtcdMember."""
    if not config.metadata.managed:
        return None
    return EtcdMember(config.metadata, cluster_name=config.cluster.name, has_run=has_run)
