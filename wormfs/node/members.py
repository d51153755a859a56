"""Who belongs to the cluster and who is alive, on the master: registrations and heartbeats.

Registrations are events in the log; liveness is memory only. A node that has not been heard of
for half of `silent_after_s` is suspected: new chunks go elsewhere if they can. After the whole of it
the node is offline, and its disks with it.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import trio

from wormfs.core.errors import InvalidError, NotFoundError, UnavailableError, WrongClusterError
from wormfs.core.placement import FREE_RESERVE_BYTES, DiskView
from wormfs.core.types import Codec, Policy
from wormfs.metadata.machine import Machine
from wormfs.rpc.v1 import cluster_pb2, types_pb2

log = logging.getLogger(__name__)

LATE_S = 1.5
"""Nobody is suspected sooner: heartbeats come every second, and one may be slow."""


@dataclass(slots=True)
class _NodeLife:
    heard_s: float
    online: bool
    version: str
    load: float
    suspected: bool = False


@dataclass(slots=True)
class _DiskLife:
    online: bool
    total_bytes: int
    free_bytes: int
    problem: str


def policy_from(message: types_pb2.Policy) -> Policy:
    """The core's type of a policy message."""
    return Policy(message.k, message.m, message.chunk_size_bytes, Codec(message.codec))


def _hold_safely(disks: Iterable[DiskView], policy: Policy) -> bool:
    """Whether whole stripes fit on these disks so that they outlive the loss of one of the nodes."""
    needed = FREE_RESERVE_BYTES + policy.chunk_size_bytes
    counts = Counter(disk.node for disk in disks if disk.online and disk.free_bytes >= needed)
    return sum(min(count, max(policy.m, 1)) for count in counts.values()) >= policy.k + policy.m


class Members:
    """Nodes and disks. `changed` is called when someone goes on- or offline or registers."""

    def __init__(
        self, machine: Machine, *, silent_after_s: float, clock_s: Callable[[], float] = trio.current_time
    ) -> None:
        self._machine = machine
        self._silent_after_s = silent_after_s
        self._suspect_after_s = max(silent_after_s / 2, LATE_S)
        self._clock_s = clock_s
        self._nodes: dict[int, _NodeLife] = {}
        self._disks: dict[int, _DiskLife] = {}
        self._listeners: list[Callable[[], None]] = []
        # Grows over restarts too: a client must never take a newer map for an older one.
        self.version = time.time_ns() // 1_000_000
        self.own_node = 0
        self._map: cluster_pb2.ClusterMap | None = None
        self._node_of: dict[int, int] = {}
        self._offline_since_s: dict[int, float] = {}

    def adopt(self, seen: cluster_pb2.ClusterMap) -> None:
        """Begin with who was online in a map of the master before; each must be heard of in time."""
        now_s = self._clock_s()
        # The map may be older than the state: a disk that was forgotten since is no disk any more.
        nodes = {info.number for info in self._machine.nodes()}
        disks = {info.number for info in self._machine.disks()}
        for node in seen.nodes:
            if node.online and node.number in nodes:
                self._nodes[node.number] = _NodeLife(now_s, True, node.version, node.load)
        for disk in seen.disks:
            if disk.number in disks:
                online = disk.state == cluster_pb2.DISK_STATE_ONLINE
                self._disks[disk.number] = _DiskLife(online, disk.total_bytes, disk.free_bytes, disk.problem)
        self.touch()

    def listen(self, changed: Callable[[], None]) -> None:
        """Have `changed` called after every change of who is there."""
        self._listeners.append(changed)

    def touch(self) -> None:
        """Something in the map changed that the listeners care for."""
        self._renew_map()
        self._learn_nodes()
        now_s = self._clock_s()
        self._offline_since_s = {
            disk: self._offline_since_s.get(disk, now_s) for disk in self._node_of if not self.is_online(disk)
        }
        for changed in self._listeners:
            changed()

    def _learn_nodes(self) -> None:
        self._node_of = {info.number: info.node for info in self._machine.disks()}

    def _renew_map(self) -> None:
        self.version += 1
        self._map = None

    # Joining

    def check_cluster(self, cluster_id: str, who: str) -> None:
        """Raise WrongClusterError unless `cluster_id` is this cluster's."""
        own = self._machine.cluster_id
        if cluster_id != own:
            raise WrongClusterError(
                f"{who} belongs to cluster {cluster_id}, this is cluster {own}: "
                "check its `join` addresses and its disks"
            )

    def register(
        self, request: cluster_pb2.RegisterNodeRequest, *, own: bool = False
    ) -> cluster_pb2.RegisterNodeReply:
        """A node joins or comes back: give it and its disks their numbers. `own`: the master's node itself.

        Raises WrongClusterError, InvalidError; UnavailableError while another node is what it says to be.
        """
        node = request.node
        who = f"node {node.name}"
        if request.cluster_id:
            self.check_cluster(request.cluster_id, who)
        if not node.name or not node.addresses or not request.disks:
            raise InvalidError("a node registers with a name, an address and at least one disk")
        uuids = [disk.uuid for disk in request.disks]
        if "" in uuids or len(set(uuids)) < len(uuids):
            raise InvalidError(f"{who}: every disk has a uuid of its own; one folder was copied from another")
        known = {disk.uuid for disk in self._machine.disks()}
        for disk in request.disks:
            if disk.number and disk.uuid not in known:
                restored = self._machine.restored.sequence
                if restored:
                    raise InvalidError(
                        f"{who}: {disk.path} was disk {disk.number}, which the backup that the metadata came "
                        f"back from (event {restored}) does not know: it was added since, or forgotten; take "
                        "it out of the configuration, and keep it as long as its chunks may be wanted"
                    )
                raise InvalidError(
                    f"{who}: {disk.path} was disk {disk.number} and has been forgotten; nothing on it is "
                    "needed: empty the folder to add it as a new disk, or take it out of the configuration"
                )
        self._refuse_namesake(node)
        if not own:  # what it remembers of itself may be old
            self._refuse_copies(request)
        number = self._machine.register_node(node)
        answer = cluster_pb2.RegisterNodeReply(cluster_id=self._machine.cluster_id, node=number)
        for disk in request.disks:
            named = cluster_pb2.DiskInfo()
            named.CopyFrom(disk)
            named.node = number
            named.number = self._machine.register_disk(named)
            answer.disks.append(named)
        self._learn_nodes()
        self._hear(number, answer.disks, node.version, node.load)
        self._miss(number, {disk.number for disk in answer.disks})
        self.touch()
        log.info("%s registered as number %d with %d disks", who, number, len(answer.disks))
        return answer

    def _miss(self, node: int, served: set[int]) -> None:
        """Disks of the node that it does not serve any more: a folder was emptied, a setting taken out."""
        for number, life in self._disks.items():
            if life.online and number not in served and self.node_of(number) == node:
                life.online = False
                life.problem = "its node serves it no more"
                log.warning("disk %d of node number %d is offline: %s", number, node, life.problem)

    def _refuse_namesake(self, node: cluster_pb2.NodeInfo) -> None:
        for known in self._machine.nodes():
            if known.name == node.name and known.number != node.number:
                life = self._nodes.get(known.number)
                if node.number:
                    raise InvalidError(
                        f"a node named {node.name} is in the cluster already (number {known.number}): "
                        "give this one another name"
                    )
                if life is not None and life.online:
                    raise UnavailableError(  # it may have just died, and this one be its successor
                        f"another node named {node.name} is online: stop it, or give this one another name"
                    )

    def _refuse_copies(self, request: cluster_pb2.RegisterNodeRequest) -> None:
        """A disk's folder that was copied has its number and its node's: the one that is served keeps both.

        A node that comes back elsewhere, or a disk that was moved, is let in once the old place is silent.
        """
        node = request.node
        for known in self._machine.nodes():
            if known.number != node.number or list(known.addresses) == list(node.addresses):
                continue
            if self._is_up(known.number):
                raise UnavailableError(
                    f"{request.disks[0].path} is a disk of node {known.name}, which is online at "
                    f"{', '.join(known.addresses)}: if it was copied from there, take it away here; if "
                    f"{node.name} is that node under a new address, stop the other one"
                )
        served = {disk.uuid: disk for disk in self.map().disks if self.is_online(disk.number)}
        for disk in request.disks:
            elsewhere = served.get(disk.uuid)
            if elsewhere is not None and elsewhere.node != node.number and self._is_up(elsewhere.node):
                raise UnavailableError(
                    f"{disk.path} is disk {elsewhere.number}, which node number {elsewhere.node} serves at "
                    f"{elsewhere.path}: if it was copied from there, take it away here; if it was moved, "
                    "take it out of that node's configuration"
                )

    def _is_up(self, node: int) -> bool:
        life = self._nodes.get(node)
        return life is not None and life.online

    def heartbeat(self, request: cluster_pb2.HeartbeatRequest) -> bool:
        """A node says it is alive; False when it must register (again). Raises WrongClusterError."""
        self.check_cluster(request.cluster_id, f"node number {request.node}")
        life = self._nodes.get(request.node)
        if life is None:
            return False
        if any(disk.number and disk.number not in self._disks for disk in request.disks):
            return False
        uuids = {disk.number: disk.uuid for disk in self.map().disks}
        if any(disk.number and disk.uuid and disk.uuid != uuids.get(disk.number) for disk in request.disks):
            return False  # forgotten while it was cut off; its number may be another's, by an older master
        version = request.version or life.version  # older programs do not tell it
        if self._hear(request.node, request.disks, version, request.load):
            self.touch()
        return True

    def _hear(self, node: int, disks: Iterable[cluster_pb2.DiskInfo], version: str, load: float) -> bool:
        """Note what a node says; whether someone came or went by it."""
        life = self._nodes.get(node)
        changed = life is None or not life.online
        if life is not None:
            if changed:
                log.info("node number %d is online again", node)
            elif life.suspected or life.version != version:
                self._renew_map()
        self._nodes[node] = _NodeLife(self._clock_s(), True, version, load)
        for disk in disks:
            if self._node_of.get(disk.number) != node:
                continue  # it was moved to another node, which speaks for it
            online = disk.state == cluster_pb2.DISK_STATE_ONLINE
            before = self._disks.get(disk.number)
            if before is None or before.online != online or before.problem != disk.problem:
                changed = True
                if before is not None:
                    state = "online" if online else "offline"
                    log.warning("disk %d of node number %d is %s: %s", disk.number, node, state, disk.problem)
            self._disks[disk.number] = _DiskLife(online, disk.total_bytes, disk.free_bytes, disk.problem)
        return changed

    def sweep(self) -> None:
        """Suspect nodes that are silent, take them offline when it lasts; called a few times a second."""
        now_s = self._clock_s()
        lost = False
        for number, life in self._nodes.items():
            silent_s = now_s - life.heard_s
            if not life.online or number == self.own_node:
                continue
            if silent_s > self._silent_after_s:
                life.online = life.suspected = False
                lost = True
                log.warning("node number %d is offline: silent for %g s", number, self._silent_after_s)
            elif silent_s > self._suspect_after_s and not life.suspected:
                life.suspected = True
                self._renew_map()
                log.info("node number %d is suspected: silent for %g s", number, self._suspect_after_s)
        if lost:
            self.touch()

    def forget_disk(self, disk: int) -> None:
        """Take a disk that is offline out of the cluster. The caller made sure that no file needs it.

        Raises NotFoundError, and InvalidError for a disk that is online.
        """
        if self.is_online(disk):
            raise InvalidError(f"disk {disk} is online: only a lost disk can be forgotten")
        self._machine.forget_disk(disk)
        self._disks.pop(disk, None)
        nodes = {info.number for info in self._machine.nodes()}
        self._nodes = {number: life for number, life in self._nodes.items() if number in nodes}
        self.touch()
        log.warning("disk %d is forgotten", disk)

    # Views

    def offline(self, for_s: float = 0.0) -> dict[int, float]:
        """Registered disks that have been offline for `for_s` at least, and since when."""
        limit_s = self._clock_s() - for_s
        return {disk: since_s for disk, since_s in self._offline_since_s.items() if since_s <= limit_s}

    def is_online(self, disk: int) -> bool:
        """Whether the disk and its node are there."""
        life = self._disks.get(disk)
        if life is None or not life.online:
            return False
        node = self._nodes.get(self.node_of(disk))
        return node is not None and node.online

    def node_of(self, disk: int) -> int:
        """The number of the disk's node; NotFoundError for an unknown disk."""
        if disk not in self._node_of:
            self._node_of = {info.number: info.node for info in self._machine.disks()}
        try:
            return self._node_of[disk]
        except KeyError:
            raise NotFoundError(f"disk {disk} is not registered") from None

    def map(self) -> cluster_pb2.ClusterMap:
        """The cluster map; not to be changed by the caller."""
        if self._map is None:
            self._map = self._make_map()
        return self._map

    def _make_map(self) -> cluster_pb2.ClusterMap:
        made = cluster_pb2.ClusterMap(
            cluster_id=self._machine.cluster_id,
            name=self._machine.cluster_name,
            version=self.version,
            policy=self._machine.policy_message(),
        )
        for info in self._machine.nodes():
            node = made.nodes.add()
            node.CopyFrom(info)
            life = self._nodes.get(info.number)
            node.online = life is not None and life.online
            if life is not None:
                node.version = life.version
                node.suspected = life.suspected
                node.load = life.load
            node.master = info.number == self.own_node
        for disk_info in self._machine.disks():
            disk = made.disks.add()
            disk.CopyFrom(disk_info)
            self._node_of[disk.number] = disk.node
            online = self.is_online(disk.number)
            disk.state = cluster_pb2.DISK_STATE_ONLINE if online else cluster_pb2.DISK_STATE_OFFLINE
            disk_life = self._disks.get(disk.number)
            if disk_life is not None:
                disk.total_bytes = disk_life.total_bytes
                disk.free_bytes = disk_life.free_bytes
                disk.problem = disk_life.problem
            if not online and not disk.problem:
                life_of_node = self._nodes.get(disk.node)
                up = life_of_node is not None and life_of_node.online
                disk.problem = "its node serves it no more" if up else "its node is silent"
        return made

    def map_with_figures(self) -> cluster_pb2.ClusterMap:
        """The map with load and free space as of the last heartbeats: no change of theirs makes a new one."""
        made = self.map()
        for node in made.nodes:
            if node.number in self._nodes:
                node.load = self._nodes[node.number].load
        for disk in made.disks:
            life = self._disks.get(disk.number)
            if life is not None:
                disk.total_bytes = life.total_bytes
                disk.free_bytes = life.free_bytes
        return made

    def views(self, suspects: Iterable[int] = ()) -> list[DiskView]:
        """Every registered disk, for placement.

        Those of suspected nodes are suspect as long as the others are enough for whole stripes that are
        as safe: who is late for a moment shall not make stripes narrower, or crowd them on fewer nodes.
        """
        doubtful = frozenset(suspects)
        made = [
            DiskView(
                number,
                self.node_of(number),
                life.free_bytes,
                online=self.is_online(number),
                suspect=number in doubtful,
            )
            for number, life in self._disks.items()
        ]
        late = {number for number, life in self._nodes.items() if life.suspected}
        others = [disk for disk in made if disk.node not in late and not disk.suspect]
        if late and _hold_safely(others, self._machine.policy):
            return [replace(disk, suspect=disk.suspect or disk.node in late) for disk in made]
        return made

    def space_bytes(self) -> tuple[int, int]:
        """Total and free bytes of all disks that are online."""
        lives = [life for number, life in self._disks.items() if self.is_online(number)]
        return sum(life.total_bytes for life in lives), sum(life.free_bytes for life in lives)
