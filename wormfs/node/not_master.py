"""What a node with the etcd engine does while it is not the master, whatever else its role is."""

import logging
from typing import NoReturn

import trio

from wormfs.core.errors import NotMasterError, WormError
from wormfs.node.membership import Membership
from wormfs.node.parts import NodeParts
from wormfs.rpc.methods import METHODS, REPLICATION_ACKNOWLEDGE, REPLICATION_FOLLOW
from wormfs.rpc.registry import DataBuffer, Registry, RequestContext

GOODBYE_S = 2.0
_MASTER_SERVICES = ("wormfs.v1.Metadata/", "wormfs.v1.Cluster/")
_MASTER_METHODS = (REPLICATION_FOLLOW.name, REPLICATION_ACKNOWLEDGE.name)
log = logging.getLogger(__name__)


def serve_as_not_master(parts: NodeParts, who_is: str, membership: Membership | None = None) -> None:
    """Refuse what only the master serves; `who_is` tells callers what to expect.

    `membership` passes on what a member can.
    """
    role = Registry()
    if membership is not None:
        membership.register(role)

    async def refuse(_: RequestContext, __: object, ___: DataBuffer | None) -> NoReturn:
        raise NotMasterError(f"{parts.config.name} is not the metadata master; {who_is}")

    for method in METHODS:
        masters = method.name.startswith(_MASTER_SERVICES) or method.name in _MASTER_METHODS
        if masters and not method.server_streaming and role.named(method.name) is None:
            role.add(method, refuse)
    parts.registry.set_role(role)


async def say_goodbye(membership: Membership | None) -> None:
    """Tell the master, if there is one, that this node's disks go; not for long."""
    if membership is None:
        return
    with trio.move_on_after(GOODBYE_S):
        try:
            await membership.say_goodbye()
        except WormError as error:
            log.debug("the master was not told of the stop: %s", error.message)
