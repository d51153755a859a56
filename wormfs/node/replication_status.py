"""What `status` says of the metadata's replicas."""

from collections.abc import Callable

from wormfs.metadata.etcd_trim import LogTrimmer
from wormfs.metadata.replica_table import ReplicaTable
from wormfs.rpc.v1 import cluster_pb2 as pb


class ReplicationStatus:
    """One mastership's replicas, for people."""

    def __init__(self, table: ReplicaTable, trimmer: LogTrimmer, committed: Callable[[], int]) -> None:
        self._table = table
        self._trimmer = trimmer
        self._committed = committed

    def fill(self, reply: pb.StatusReply) -> None:
        """Set the fields about replicas; `map` is set. One is online while its node is and it reports."""
        up = {node.name for node in reply.map.nodes if node.online}
        for view in self._table.views():
            reply.replicas.add(
                name=view.name,
                online=view.online and view.name in up,
                applied_sequence=view.applied,
                durable_sequence=view.durable,
                lags=view.lags and view.name in up,
            )
        reply.replicas_needed = self._table.needed
        reply.replicas_holding = self._table.holding()
        reply.log_floor = self._trimmer.floor
        reply.log_bytes = self._trimmer.log_bytes

    def warnings(self, reply: pb.StatusReply) -> list[str]:
        """What is wrong with them, one line each; the cluster is degraded when there is any."""
        if self._table.settling:
            return []
        found = []
        if reply.replicas_holding < reply.replicas_needed:
            found.append(
                f"{reply.replicas_holding} of {len(reply.replicas)} replicas hold the metadata log durably, "
                f"{reply.replicas_needed} should before it is trimmed in etcd, where it grows "
                f"({reply.log_bytes >> 20} MiB now): bring nodes back, or forget the disks of lost ones"
            )
        up = {node.name for node in reply.map.nodes if node.online}
        for replica in reply.replicas:
            if replica.lags:
                found.append(
                    f"the metadata replica of {replica.name} lags: it holds entry "
                    f"{replica.durable_sequence} of {self._committed()} durably"
                )
            elif not replica.online and replica.name in up:
                found.append(
                    f"the metadata replica of {replica.name} does not report; its node's log says why"
                )
        return found
