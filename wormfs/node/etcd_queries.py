"""The two questions a node asks etcd members over HTTP: who is in the cluster, and are you well."""

import http.client
import json
import ssl
from dataclasses import dataclass

import trio

from wormfs.core.errors import ConfigError
from wormfs.node.config import MetadataConfig

_ANSWER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ListedMember:
    """A member as the cluster knows it. One that never ran has no client URLs; one just added, no name."""

    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]


def tls_context(metadata: MetadataConfig) -> ssl.SSLContext | None:
    """None without TLS. Raises ConfigError for certificates that cannot be used."""
    if metadata.ca_file is None:
        return None
    try:
        context = ssl.create_default_context(cafile=metadata.ca_file)
        if metadata.cert_file is not None:
            context.load_cert_chain(metadata.cert_file, metadata.key_file, password="")  # never ask for one
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"metadata: ca_file, cert_file and key_file cannot be used together: {error.strerror or error}"
        ) from None
    return context


async def is_healthy(address: str, tls: ssl.SSLContext | None, *, timeout_s: float) -> bool:
    """Whether the member at this client address answers that it is in a cluster with a leader."""
    answer = await _get(address, "/health", tls, timeout_s)
    return isinstance(answer, dict) and answer.get("health") == "true"


async def members(
    peer_address: str, tls: ssl.SSLContext | None, *, timeout_s: float
) -> list[ListedMember] | None:
    """The members of the cluster, as the member at this peer address knows them; None: no answer."""
    answer = await _get(peer_address, "/members", tls, timeout_s)
    if not isinstance(answer, list):
        return None
    return [
        ListedMember(
            str(each.get("name", "")),
            tuple(map(str, each.get("peerURLs") or ())),
            tuple(map(str, each.get("clientURLs") or ())),
        )
        for each in answer
        if isinstance(each, dict)
    ]


async def _get(address: str, path: str, tls: ssl.SSLContext | None, timeout_s: float) -> object:
    """The JSON answer; None when there is none in time."""
    with trio.move_on_after(timeout_s):
        return await trio.to_thread.run_sync(_get_sync, address, path, tls, timeout_s, abandon_on_cancel=True)
    return None


def _get_sync(address: str, path: str, tls: ssl.SSLContext | None, timeout_s: float) -> object:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    connection = (
        http.client.HTTPSConnection(host, int(port), timeout=timeout_s, context=tls)
        if tls
        else http.client.HTTPConnection(host, int(port), timeout=timeout_s)
    )
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        return json.loads(connection.getresponse().read(_ANSWER_BYTES))
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
