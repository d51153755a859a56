"""Connections from the master to the nodes, by node number, made on demand."""

import trio

from wormfs.client.options import ClientOptions
from wormfs.client.peers import Peer, machine_id, usable_addresses
from wormfs.core.errors import NotFoundError
from wormfs.node.members import Members


class NodeLinks:
    """The peers of all registered nodes, the own one included: local disks are reached alike."""

    def __init__(self, members: Members, nursery: trio.Nursery) -> None:
        self._members = members
        self._nursery = nursery
        self._options = ClientOptions()
        self._machine_id = machine_id()
        self._peers: dict[int, Peer] = {}

    def of_node(self, number: int) -> Peer:
        """The node's peer; NotFoundError for one that never registered."""
        for node in self._members.map().nodes:
            if node.number == number:
                addresses = usable_addresses(node, self._machine_id)
                peer = self._peers.get(number)
                if peer is None or peer.addresses != addresses:
                    peer = self._peers[number] = Peer(addresses, self._nursery, self._options)
                return peer
        raise NotFoundError(f"node number {number} is not registered")

    def of_disk(self, disk: int) -> Peer:
        """The peer of the disk's node."""
        return self.of_node(self._members.node_of(disk))
