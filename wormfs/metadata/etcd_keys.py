"""Where a cluster's log and mastership lie in etcd (docs/many-servers.md)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EtcdKeys:
    """The keys of the cluster of that name."""

    cluster_name: str

    def _key(self, name: str) -> bytes:
        return f"wormfs/{self.cluster_name}/{name}".encode()

    @property
    def epoch(self) -> bytes:
        """The newest mastership's number, decimal."""
        return self._key("epoch")

    @property
    def leader(self) -> bytes:
        """The master's LeaderRecord, bound to its lease."""
        return self._key("leader")

    @property
    def head(self) -> bytes:
        """The LogHead."""
        return self._key("head")

    @property
    def floor(self) -> bytes:
        """Entries up to this sequence, decimal, were trimmed."""
        return self._key("floor")

    @property
    def begun(self) -> bytes:
        """A LogHead: behind which entry this log was begun, and the lowest epoch of its entries."""
        return self._key("begun")

    @property
    def replicas(self) -> bytes:
        """What the keys of all replicas begin with."""
        return self._key("replicas/")

    def replica(self, node_name: str) -> bytes:
        """The ReplicaRecord of a node."""
        return self.replicas + node_name.encode()

    @property
    def log(self) -> bytes:
        """What the keys of all batches begin with."""
        return self._key("log/")

    def batch(self, last_sequence: int) -> bytes:
        """The batch that ends with that entry: keys sort as their entries do."""
        return self.log + f"{last_sequence:016x}".encode()
