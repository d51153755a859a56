"""A node whose metadata replica meets what a newer program wrote: the replica stands still, the rest goes on.

Chunks are served, and the etcd member is looked after: in a rolling upgrade every old node may meet
such an entry at once, and the cluster must lose neither its data nor etcd's quorum by it. The replica is
opened again by the upgraded program.
"""

import logging
from typing import NoReturn

import trio

from wormfs.client.peers import usable_addresses
from wormfs.core.errors import NewerProgramError, UnavailableError
from wormfs.metadata.election import current_leader
from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.node.membership import Membership
from wormfs.node.not_master import say_goodbye, serve_as_not_master
from wormfs.node.parts import NodeParts
from wormfs.node.replica_role import etcd_member, etcd_options
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.rpc.v1 import cluster_pb2, replication_pb2

LEADER_CHECK_S = 1.0
log = logging.getLogger(__name__)


def is_of_newer_program(error: BaseException) -> bool:
    """Whether a newer WormFS wrote what this one cannot read, and nothing else went wrong."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_of_newer_program, error.exceptions))
    return isinstance(error, NewerProgramError)


class StandingRole:
    """Chunks under whoever is master, no replica. `why` its replica stands still."""

    def __init__(self, parts: NodeParts, why: str) -> None:
        self._parts = parts
        self._why = why
        self._keys = EtcdKeys(parts.config.cluster.name)
        self._membership: Membership | None = None

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled; started when the servers listen. Raises as run_node()."""
        parts = self._parts
        member = etcd_member(parts.config, has_run=True)
        log.error(
            "%s: this node's metadata replica stands still, and it cannot be master; its chunks are served%s",
            self._why,
            ", its etcd member goes on" if member is not None else "",
        )
        try:
            async with (
                trio.open_nursery() as nursery,
                EtcdClient(etcd_options(parts.config)) as client,
            ):
                if member is not None:
                    await nursery.start(member.run)
                serve_as_not_master(parts, "nobody yet is")
                await parts.serve(nursery)
                nursery.start_soon(parts.gateway.run)
                task_status.started()
                await self._serve_masters(client, nursery)
        finally:
            if member is not None:
                with trio.CancelScope(shield=True):
                    await member.stop()

    async def _serve_masters(self, client: EtcdClient, nursery: trio.Nursery) -> NoReturn:
        while True:
            leader = await self._leader(client, None)
            if leader is not None and leader.name != self._parts.config.name:
                await self._belong(leader, client, nursery)
            await trio.sleep(LEADER_CHECK_S)

    async def _leader(
        self, client: EtcdClient, known: replication_pb2.LeaderRecord | None
    ) -> replication_pb2.LeaderRecord | None:
        try:
            return (await current_leader(client, self._keys))[0]
        except UnavailableError as error:  # nobody else is elected meanwhile
            log.debug("etcd does not say who is master: %s", error.message)
            return known

    async def _belong(
        self, leader: replication_pb2.LeaderRecord, client: EtcdClient, services: trio.Nursery
    ) -> None:
        """Be this master's until another one is."""
        parts = self._parts
        node = cluster_pb2.NodeInfo(addresses=leader.addresses, machine_id=leader.machine_id)
        addresses = usable_addresses(node, parts.info.machine_id)
        membership = Membership(addresses, parts.info, parts.disks)
        parts.found_damaged = membership.note_damaged
        serve_as_not_master(parts, f"{leader.name} is", membership)
        log.info("%s is the metadata master (epoch %d)", leader.name, leader.epoch)

        async def belong() -> None:
            await membership.join(nursery)
            await parts.start_store(services, membership.cluster_id)
            self._membership = membership
            await membership.beat()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(belong)
                now: replication_pb2.LeaderRecord | None = leader
                while now == leader:
                    await trio.sleep(LEADER_CHECK_S)
                    now = await self._leader(client, leader)
                nursery.cancel_scope.cancel()
        finally:
            self._membership = None

    async def say_goodbye(self) -> None:
        """Tell the master that this node's disks go."""
        await say_goodbye(self._membership)
