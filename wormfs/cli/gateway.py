"""gRPC calls to one node of the cluster, found by its map."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from wormfs.cli.connection import Target, master_map, master_of
from wormfs.core.errors import UnavailableError
from wormfs.rpc.grpc_client import GrpcClient
from wormfs.rpc.methods import Method, Reply, Request


class Gateway:
    """Calls with the user's deadline where none is given. Raises what GrpcClient does."""

    def __init__(self, client: GrpcClient, deadline_s: float) -> None:
        self._client = client
        self._deadline_s = deadline_s

    def call(
        self, method: Method[Request, Reply], request: Request, *, timeout_s: float | None = None
    ) -> Reply:
        """One request, one reply."""
        return self._client.call(method, request, timeout_s=timeout_s or self._deadline_s)

    def stream(
        self, method: Method[Request, Reply], request: Request, *, timeout_s: float
    ) -> Iterator[Reply]:
        """One request, many replies."""
        return self._client.replies(method, request, timeout_s=timeout_s)

    def send(self, method: Method[Request, Reply], requests: Iterable[Request], *, timeout_s: float) -> Reply:
        """Many requests, one reply."""
        return self._client.upload(method, requests, timeout_s=timeout_s)


@contextmanager
def open_gateway(target: Target) -> Iterator[Gateway]:
    """A connection to the master, whose own gateway spares a hop. Raises UnavailableError."""
    master = master_of(master_map(target))
    if not master.grpc_address:
        raise UnavailableError(f"{master.name} serves no gRPC; set grpc_listen in its configuration")
    with GrpcClient(master.grpc_address) as client:
        yield Gateway(client, target.deadline_s)
