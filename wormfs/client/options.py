"""What a client of the cluster may tune."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """Deadlines and memory limits of one client; every remote call sits under one of the deadlines."""

    deadline_s: float = 30.0
    """A metadata operation fails with an errno when the master did not answer within it."""
    chunk_read_s: float = 4.0
    """One chunk's read; past it the chunk counts as missing for this read."""
    chunk_write_s: float = 8.0
    """One chunk's write; past it the stripe is placed anew without that disk."""
    straggler_s: float = 2.0
    """Once k+1 chunks of a stripe are durable, the others have this long before it is placed anew."""
    hedge_s: float = 0.3
    """A read still waiting for a chunk after this fetches parity as well."""
    early_answers: bool = True
    """Take answers before the log has them on several servers, and keep them for the next master: a change
    that was not synced is lost only if the master and this client fail together."""
    connect_s: float = 2.0
    suspect_s: float = 5.0
    """A node that failed is asked last for this long."""
    cache_bytes: int = 64 << 20
    """Decoded stripes kept for reading, readahead included."""
    block_cache_bytes: int = 16 << 20
    """Checksum blocks kept for small random reads."""
    readahead_stripes: int = 3
    stores_in_flight: int = 3
    """Stripes being encoded and sent at one time; writers wait beyond it."""
    dirty_bytes: int = 64 << 20
    """Unsent bytes of partly written stripes; past it the oldest are written back."""
