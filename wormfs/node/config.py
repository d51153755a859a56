"""A node's configuration: node.yaml, WORMFS_NODE_... variables, flags."""

import os
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
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
_ETCD_HOST = re.compile(r"[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]")  # what a member's name in etcd may hold
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
    """`metadata:`. All but `engine` is for the engine etcd; TLS is on when `ca_file` is given."""

    engine: str = setting(choice("embedded", "etcd"), default="embedded")
    endpoints: tuple[str, ...] = setting(list_of(ADDRESS), default=())
    managed: bool = setting(BOOLEAN, default=False)
    member: str = setting(optional(ADDRESS), default="")
    folder: Path | None = setting(optional(PATH), default=None)  # noqa: RUF009 - it makes a field
    binary: Path | None = setting(optional(PATH), default=None)  # noqa: RUF009
    ca_file: Path | None = setting(optional(PATH), default=None)  # noqa: RUF009
    cert_file: Path | None = setting(optional(PATH), default=None)  # noqa: RUF009
    key_file: Path | None = setting(optional(PATH), default=None)  # noqa: RUF009
    user: str = setting(optional(FULL_TEXT), default="")
    password_file: Path | None = setting(optional(PATH), default=None)  # noqa: RUF009

    def __post_init__(self) -> None:
        for name in ("folder", "binary", "ca_file", "cert_file", "key_file", "password_file"):
            object.__setattr__(self, name, getattr(self, name) or None)
        problem = self._etcd_problem() if self.engine == "etcd" else self._embedded_problem()
        if problem:
            raise ConfigError(problem)

    def password(self) -> str:
        """What `password_file` holds, '' without one; never kept here. Raises ConfigError."""
        if self.password_file is None:
            return ""
        try:
            text = self.password_file.read_text(encoding="utf-8").rstrip("\r\n")
        except OSError as error:
            raise ConfigError(
                f"metadata.password_file {self.password_file} cannot be read: {error.strerror}"
            ) from None
        except UnicodeDecodeError:
            raise ConfigError(f"metadata.password_file {self.password_file} is not UTF-8 text") from None
        if not text:
            raise ConfigError(f"metadata.password_file {self.password_file} is empty; it holds the password")
        return text

    def _embedded_problem(self) -> str:
        given = [item.name for item in fields(self) if item.name != "engine" and getattr(self, item.name)]
        return f"{', '.join(given)}: only for `engine: etcd`, and the engine is embedded" if given else ""

    def _etcd_problem(self) -> str:
        if not self.endpoints:
            return "endpoints is missing; engine etcd needs the client addresses of etcd's members"
        for endpoint in self.endpoints:
            problem = _endpoint_problem(endpoint, self.endpoints)
            if problem:
                return problem
        if (self.cert_file is None) != (self.key_file is None):
            return "cert_file and key_file belong together: give both or none"
        if self.cert_file is not None and self.ca_file is None:
            return "cert_file needs ca_file too: the authority that signed the certificates of etcd's members"
        if bool(self.user) != (self.password_file is not None):
            return "user and password_file belong together: give both or none"
        return self._member_problem()

    def _member_problem(self) -> str:
        own = [name for name in ("member", "folder", "binary") if getattr(self, name)]
        if not self.managed:
            return f"{', '.join(own)}: only for `managed: true`" if own else ""
        if not self.member:
            return "member is missing; managed needs the one of endpoints that this node runs"
        if self.member not in self.endpoints:
            return f"member is {self.member}, which is none of endpoints ({', '.join(self.endpoints)})"
        if self.folder is None:
            return "folder is missing; managed needs a folder where etcd's member keeps its data"
        if self.ca_file is not None and self.cert_file is None:
            return "ca_file needs cert_file and key_file too: a managed member shows its certificate"
        peers = {peer_address(endpoint): endpoint for endpoint in self.endpoints}
        for endpoint in self.endpoints:
            if endpoint in peers:
                return (
                    f"endpoints: {endpoint} is where the member {peers[endpoint]} talks to its peers "
                    "(its port + 1); leave a port free behind each"
                )
        return ""


def peer_address(endpoint: str) -> str:
    """Where the managed member of this client address talks to its peers: the next port (2379, 2380)."""
    host, _, port = endpoint.rpartition(":")
    return f"{host}:{int(port) + 1}"


def _endpoint_problem(endpoint: str, endpoints: tuple[str, ...]) -> str:
    host, _, port = endpoint.rpartition(":")
    if endpoint.startswith("unix:") or not _ETCD_HOST.fullmatch(host):
        return f"endpoints: {endpoint} is no host:port"
    if not 1 <= int(port) <= 65534:
        return f"endpoints: {endpoint} has port {port}; it lies between 1 and 65534"
    if endpoints.count(endpoint) > 1:
        return f"endpoints: {endpoint} is named twice"
    return ""


@dataclass(frozen=True, slots=True)
class LogConfig:
    """`log:`."""

    level: str = setting(choice(*LEVELS), default="info")
    json: bool = setting(BOOLEAN, default=False)


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """node.yaml; config/node.yaml explains every key."""

    disks: tuple[Path, ...] = setting(list_of(PATH))
    mounted_disks: bool = setting(BOOLEAN, default=False)
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
        for folder in [self.metadata.folder.absolute()] if self.metadata.folder else []:
            for path in places:
                if folder.is_relative_to(path) or path.is_relative_to(folder):
                    raise ConfigError(
                        f"metadata.folder {folder} and the disk {path} lie within each other; "
                        "etcd's member needs a folder of its own"
                    )
        if (self.advertise or self.listen).rpartition(":")[0] in ("0.0.0.0", "[::]"):
            raise ConfigError(
                f"listen is {self.listen}: set `advertise` to the address others reach this node by"
            )
        if self.listen.startswith("unix:") or self.grpc_listen.startswith("unix:"):
            raise ConfigError("listen and grpc_listen are host:port; a unix socket goes into unix_socket")

    @property
    def is_master(self) -> bool:
        """The embedded engine's first node, without `join`, holds the metadata."""
        return not self.join and self.metadata.engine == "embedded"

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
