"""How a managed etcd member is called: its program, the program's version, its command line."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from wormfs.core.errors import ConfigError
from wormfs.node.config import MetadataConfig, peer_address

_QUOTA_BYTES = 4 << 30
_REQUEST_BYTES = 8 << 20
# etcd keeps this many entries, and 5,000 more, in memory: ours may be hundreds of KiB each.
_SNAPSHOT_ENTRIES = 5_000
_VERSION_S = 10.0
_OLDEST = (3, 4, 0)
# A member killed under load could come back without committed data (etcd's own warning of 2022).
_LOSES_DATA = ((3, 5, 0), (3, 5, 2))


def find_binary(configured: Path | None) -> Path:
    """The configured program, else etcd on PATH, else the one beside Python's. Raises ConfigError."""
    if configured is not None:
        found = shutil.which(configured.absolute())
        if found is None:
            raise ConfigError(f"metadata.binary: {configured} is no program that can be run")
        return Path(found)
    found = shutil.which("etcd") or shutil.which(Path(sys.executable).parent / "etcd")
    if found is None:
        raise ConfigError(
            "there is no etcd on PATH: install it (Debian: etcd-server; its own service is not needed), "
            "or name the program in metadata.binary"
        )
    return Path(found).absolute()


async def check_version(binary: Path) -> None:
    """Raises ConfigError for an etcd that is too old, or known to lose data, and for what is no etcd."""
    try:
        with trio.fail_after(_VERSION_S):
            ended = await trio.run_process(
                [binary, "--version"],
                capture_stdout=True,
                stderr=subprocess.DEVNULL,
                check=False,
                env=environment(os.environ),
            )
    except OSError as error:
        raise ConfigError(f"{binary} cannot be run: {error.strerror}") from None
    except trio.TooSlowError:
        raise ConfigError(f"{binary} --version does not answer within {_VERSION_S:g} s") from None
    match = re.search(rb"etcd Version: (\d+)\.(\d+)\.(\d+)", ended.stdout)
    if match is None:
        raise ConfigError(f"{binary} --version does not answer as etcd does; name etcd in metadata.binary")
    version = tuple(map(int, match.groups()))
    shown = ".".join(map(str, version))
    if version < _OLDEST:
        raise ConfigError(f"{binary} is etcd {shown}; 3.4 or newer is needed")
    if _LOSES_DATA[0] <= version <= _LOSES_DATA[1]:
        raise ConfigError(
            f"{binary} is etcd {shown}, which can lose committed data when it is killed: "
            "use another version (3.4.23 is the tested one), and name it in metadata.binary"
        )


def check_files(metadata: MetadataConfig) -> None:
    """Raises ConfigError for a certificate or key that cannot be read."""
    for name in ("ca_file", "cert_file", "key_file"):
        path: Path | None = getattr(metadata, name)
        if path is not None and not os.access(path, os.R_OK):
            raise ConfigError(f"metadata.{name}: {path} cannot be read")


def environment(ours: Mapping[str, str]) -> dict[str, str]:
    """Our variables without those that would change etcd's settings, or send its peers through a proxy."""
    return {
        name: value
        for name, value in ours.items()
        if not name.startswith("ETCD_") and not name.lower().endswith("_proxy")
    }


def data_argument(data: Path) -> str:
    """What tells on a command line whose member it is."""
    return f"--data-dir={data}"


def url(metadata: MetadataConfig, address: str) -> str:
    """The URL of an address, by whether TLS is on."""
    return f"{'https' if metadata.ca_file else 'http'}://{address}"


def command(
    metadata: MetadataConfig,
    binary: Path,
    data: Path,
    *,
    token: str,
    state: str,
    cluster: Sequence[tuple[str, str]],
) -> list[str]:
    """The command line of the member; `token` is the cluster's name.

    `state` is etcd's --initial-cluster-state, `cluster` its --initial-cluster: (name, peer URL) pairs.
    """
    arguments = [
        str(binary),
        f"--name={metadata.member}",
        data_argument(data),
        f"--listen-client-urls={url(metadata, _bound(metadata.member))}",
        f"--advertise-client-urls={url(metadata, metadata.member)}",
        f"--listen-peer-urls={url(metadata, _bound(peer_address(metadata.member)))}",
        f"--initial-advertise-peer-urls={url(metadata, peer_address(metadata.member))}",
        f"--initial-cluster={','.join(f'{name}={peer}' for name, peer in cluster)}",
        f"--initial-cluster-token=wormfs-{token}",
        f"--initial-cluster-state={state}",
        "--auto-compaction-retention=0",  # the metadata log compacts itself
        f"--quota-backend-bytes={_QUOTA_BYTES}",
        f"--max-request-bytes={_REQUEST_BYTES}",
        f"--snapshot-count={_SNAPSHOT_ENTRIES}",
        "--pre-vote=true",  # a member that comes back does not unseat a working leader
        "--logger=zap",
        "--log-outputs=stderr",
    ]
    if metadata.ca_file and metadata.cert_file and metadata.key_file:
        for role in ("", "peer-"):
            arguments += [
                f"--{role}trusted-ca-file={metadata.ca_file.absolute()}",
                f"--{role}cert-file={metadata.cert_file.absolute()}",
                f"--{role}key-file={metadata.key_file.absolute()}",
                f"--{role}client-cert-auth=true",
            ]
    return arguments


def _bound(address: str) -> str:
    """etcd binds addresses, not names; a name's server listens on all of its addresses."""
    host, _, port = address.rpartition(":")
    is_address = host == "localhost" or host.startswith("[") or re.fullmatch(r"[\d.]+", host)
    return address if is_address else f"0.0.0.0:{port}"
