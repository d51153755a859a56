"""Client configuration: which cluster a command or a mount talks to, and how.

Sources, the first that is there wins for the cluster's addresses: the `--cluster` flag, the
WORMFS_CLUSTER variable, the file of `--config`, ~/.config/wormfs/client.yaml,
/etc/wormfs/client.yaml.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wormfs.core.errors import ConfigError
from wormfs.settings.kinds import ADDRESS, BOOLEAN, duration, integer, list_of, size
from wormfs.settings.loader import Override, load, section, setting

SYSTEM_FILE = Path("/etc/wormfs/client.yaml")


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """The `options` of client.yaml: field by field those of client/options.py, which explains them."""

    deadline_s: float = setting(duration(1, 3600), default=30.0)
    chunk_read_s: float = setting(duration(0.1, 600), default=4.0)
    chunk_write_s: float = setting(duration(0.1, 600), default=8.0)
    straggler_s: float = setting(duration(0.1, 600), default=2.0)
    hedge_s: float = setting(duration(0.001, 600), default=0.3)
    early_answers: bool = setting(BOOLEAN, default=True)
    connect_s: float = setting(duration(0.1, 600), default=2.0)
    suspect_s: float = setting(duration(0.1, 600), default=5.0)
    cache_bytes: int = setting(size(0, 1 << 40), default=64 << 20)
    block_cache_bytes: int = setting(size(0, 1 << 40), default=16 << 20)
    readahead_stripes: int = setting(integer(0, 64), default=3)
    stores_in_flight: int = setting(integer(1, 64), default=3)
    dirty_bytes: int = setting(size(1 << 20, 1 << 40), default=64 << 20)


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """client.yaml."""

    cluster: tuple[str, ...] = setting(list_of(ADDRESS), default=())
    options: ClientSettings = section(ClientSettings)  # noqa: RUF009 - it makes a field


def user_file(environment: Mapping[str, str]) -> Path:
    """Where the user's own client.yaml lies: in XDG_CONFIG_HOME, else ~/.config."""
    home = environment.get("XDG_CONFIG_HOME") or str(
        Path(environment.get("HOME", "~")).expanduser() / ".config"
    )
    return Path(home) / "wormfs" / "client.yaml"


def load_client_config(
    *,
    cluster: str | None = None,
    config: Path | None = None,
    environment: Mapping[str, str] | None = None,
    system_file: Path = SYSTEM_FILE,
) -> ClientConfig:
    """The client's configuration; `cluster` and `config` are the flags, None where not given.

    Raises ConfigError when a source is wrong or no source names a cluster.
    """
    env = os.environ if environment is None else environment
    overrides = []
    if cluster is not None:
        overrides.append(Override(("cluster",), cluster, "--cluster"))
    file = config
    if file is None:
        file = next((path for path in (user_file(env), system_file) if path.is_file()), None)
    # The explicit file of --config outranks the variable; the variable outranks the default files.
    variables = {name: env[name] for name in env if config is None or name != "WORMFS_CLUSTER"}
    made = load(
        ClientConfig,
        file=file,
        environment=variables,
        prefix="WORMFS_",
        strict_environment=False,
        overrides=overrides,
    )
    if made.cluster:
        return made
    looked = config or f"{user_file(env)} and {system_file}"
    raise ConfigError(
        "no cluster is named: give --cluster ADDR[,ADDR], set WORMFS_CLUSTER, "
        f"or write `cluster:` into {looked}"
    )
