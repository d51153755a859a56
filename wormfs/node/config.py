"""A node's configuration: node.yaml, WORMFS_NODE_... variables, flags."""

import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from wormfs.core.errors import ConfigError
from wormfs.core.limits import (
    CHUNK_ALIGNMENT_BYTES,
    CHUNK_SIZE_DEFAULT_BYTES,
    CHUNK_SIZE_MAX_BYTES,
    STRIPE_SIZE_MAX_BYTES,
    STRIPE_WIDTH_MAX,
)
from wormfs.core.types import Codec, Policy
from wormfs.node.logging import LEVELS
from wormfs.settings.kinds import (
    ADDRESS,
    BOOLEAN,
    FULL_TEXT,
    PATH,
    choice,
    duration,
    integer,
    list_of,
    optional,
    size,
)
from wormfs.settings.loader import Override, load, section, setting

ENVIRONMENT_PREFIX = "WORMFS_NODE_"
_UNIX_PATH_MAX_BYTES = 107  # sun_path of unix(7), without its NUL
_CODECS = {"auto": Codec.UNSPECIFIED, "zfec": Codec.ZFEC, "isal": Codec.ISAL_CAUCHY}


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """`cluster:`, read when the first node forms the cluster."""

    name: str = setting(FULL_TEXT, default="wormfs")


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """`policy:`, read when the first node forms the cluster."""

    k: int = setting(integer(1, STRIPE_WIDTH_MAX), default=4)
    m: int = setting(integer(0, STRIPE_WIDTH_MAX - 1), default=2)
    chunk_size_bytes: int = setting(
        size(CHUNK_ALIGNMENT_BYTES, CHUNK_SIZE_MAX_BYTES), default=CHUNK_SIZE_DEFAULT_BYTES
    )
    codec: str = setting(choice(*_CODECS), default="auto")

    def __post_init__(self) -> None:
        problem = policy_problem(self.policy())
        if problem:
            raise ConfigError(problem)

    def policy(self) -> Policy:
        """The same as the core's type."""
        return Policy(self.k, self.m, self.chunk_size_bytes, _CODECS[self.codec])


def policy_problem(policy: Policy) -> str:
    """What is wrong with a policy, in one line; empty when nothing is."""
    if policy.k < 1:
        return f"k is {policy.k}; a stripe needs at least 1 data chunk"
    if policy.k + policy.m > STRIPE_WIDTH_MAX:
        return f"k + m is {policy.k + policy.m}; a stripe has at most {STRIPE_WIDTH_MAX} chunks"
    chunk = policy.chunk_size_bytes
    if not CHUNK_ALIGNMENT_BYTES <= chunk <= CHUNK_SIZE_MAX_BYTES:
        return (
            f"chunk_size is {chunk} bytes; it lies between {CHUNK_ALIGNMENT_BYTES} and {CHUNK_SIZE_MAX_BYTES}"
        )
    if chunk % CHUNK_ALIGNMENT_BYTES:
        return f"chunk_size is {chunk} bytes; it must be a multiple of {CHUNK_ALIGNMENT_BYTES}"
    if policy.stripe_size_bytes > STRIPE_SIZE_MAX_BYTES:
        return (
            f"k * chunk_size is {policy.stripe_size_bytes >> 20} MiB; "
            f"a stripe holds at most {STRIPE_SIZE_MAX_BYTES >> 20} MiB"
        )
    return ""


@dataclass(frozen=True, slots=True)
class MetadataConfig:
    """`metadata:`."""

    engine: str = setting(choice("embedded"), default="embedded")


@dataclass(frozen=True, slots=True)
class LogConfig:
    """`log:`."""

    level: str = setting(choice(*LEVELS), default="info")
    json: bool = setting(BOOLEAN, default=False)


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """node.yaml; config/node.yaml explains every key."""

    disks: tuple[Path, ...] = setting(list_of(PATH))
    name: str = setting(FULL_TEXT, default="")
    listen: str = setting(ADDRESS, default="127.0.0.1:7400")
    advertise: str = setting(optional(ADDRESS), default="")
    unix_socket: Path | None = setting(optional(PATH), default=None)  # noqa: RUF009 - it makes a field
    grpc_listen: str = setting(optional(ADDRESS), default="")
    grpc_advertise: str = setting(optional(ADDRESS), default="")
    join: tuple[str, ...] = setting(list_of(ADDRESS), default=())
    cluster: ClusterConfig = section(ClusterConfig)  # noqa: RUF009 - it makes a field
    policy: PolicyConfig = section(PolicyConfig)  # noqa: RUF009
    metadata: MetadataConfig = section(MetadataConfig)  # noqa: RUF009
    log: LogConfig = section(LogConfig)  # noqa: RUF009
    lease_s: float = setting(duration(1, 60), default=6.0)
    silent_after_s: float = setting(duration(1, 600), default=3.0)
    drain_s: float = setting(duration(0, 600), default=10.0)
    repair_after_s: float = setting(duration(1, 30 * 86400), default=300.0)
    repair_rate_bytes: int = setting(size(0, 1 << 40), default=256 << 20)

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", socket.gethostname())
        if not self.unix_socket:
            object.__setattr__(self, "unix_socket", None)
        elif len(os.fsencode(self.unix_socket)) > _UNIX_PATH_MAX_BYTES:
            raise ConfigError(
                f"unix_socket is longer than {_UNIX_PATH_MAX_BYTES} bytes, which unix sockets cannot have"
            )
        places = [path.absolute() for path in self.disks]
        for path in places:
            if places.count(path) > 1:
                raise ConfigError(f"disks: {path} is named twice; each disk is its own folder")
        if self.listen.startswith("unix:") or self.grpc_listen.startswith("unix:"):
            raise ConfigError("listen and grpc_listen are host:port; a unix socket goes into unix_socket")

    @property
    def is_master(self) -> bool:
        """The first node, without `join`, holds the metadata."""
        return not self.join

    def stream_addresses(self) -> list[str]:
        """Where the stream server listens."""
        return [*([f"unix:{self.unix_socket}"] if self.unix_socket else []), self.listen]


def load_node_config(
    file: Path | None, *, environment: Mapping[str, str] | None = None, overrides: Iterable[Override] = ()
) -> NodeConfig:
    """Read a node's configuration. Raises ConfigError, a line for each problem."""
    return load(
        NodeConfig,
        file=file,
        environment=os.environ if environment is None else environment,
        prefix=ENVIRONMENT_PREFIX,
        overrides=overrides,
    )
