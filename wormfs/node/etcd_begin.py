"""How an etcd member without data may begin: with all others, behind an existing cluster, or not at all.

What etcd 3.4 does: `new`, while others say that this member has run: it refuses. `new`, while
no other answers: it starts, and may vote against what it had promised. `existing` under the old
identity: it joins, then panics. `existing` after it was added: it is filled from the others.
"""

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from wormfs.core.errors import ConfigError, DataLossError, UnavailableError
from wormfs.node import etcd_command, etcd_queries
from wormfs.node.config import MetadataConfig, peer_address
from wormfs.node.etcd_queries import ListedMember

_ANSWER_S = 2.0


@dataclass(frozen=True, slots=True)
class Beginning:
    """etcd's --initial-cluster-state, and --initial-cluster as (name, peer URL) pairs."""

    state: str
    cluster: tuple[tuple[str, str], ...]


def configured(metadata: MetadataConfig) -> Beginning:
    """The cluster that every server derives from its configuration; a member with data ignores it."""
    return Beginning(
        "new",
        tuple((each, etcd_command.url(metadata, peer_address(each))) for each in metadata.endpoints),
    )


async def without_data(
    metadata: MetadataConfig, tls: ssl.SSLContext | None, data: Path, *, has_run: bool
) -> Beginning:
    """How the member may begin; `has_run`: this node has been in the cluster before.

    Raises ConfigError when the others' cluster does not know it, DataLossError when it may not come back
    as what it was, UnavailableError when only the others could tell.
    """
    own = etcd_command.url(metadata, peer_address(metadata.member))
    answers = await _ask_others(metadata, tls)
    formed = [each for each in answers if any(member.client_urls for member in each)]
    if not formed:
        if has_run and len(metadata.endpoints) == 1:
            raise DataLossError(
                f"{data} is empty, but this node has been in the cluster before, and its etcd "
                "member is the only one: what it held is lost; bring the folder back"
            )
        if has_run:
            raise UnavailableError(
                f"{data} is empty, but this node has been in the cluster before: its etcd member "
                "does not start until another one tells whether it may"
            )
        return configured(metadata)  # all begin now, or nobody does yet
    for answer in formed:
        for member in answer:
            if own in member.peer_urls:
                return _as_listed(metadata, data, member, answer)
    raise ConfigError(
        f"metadata.member {metadata.member} is no member of the etcd cluster that the other endpoints form: "
        "run `wormfs members add --node-config FILE` with this node's configuration, then start it again"
    )


def _as_listed(
    metadata: MetadataConfig, data: Path, own: ListedMember, members: Sequence[ListedMember]
) -> Beginning:
    if own.client_urls:
        raise DataLossError(
            f"{data} is empty, but {metadata.member} has been a member of the etcd cluster: its data is "
            f"lost, and it may not come back as what it was: run `wormfs members remove {metadata.member} "
            "--node-config FILE` and `wormfs members add --node-config FILE` with this node's configuration, "
            "then start it again"
        )
    if own.name:
        return configured(metadata)  # one of those that began together
    # etcd compares the list with the cluster's, which need not be the configuration's.
    cluster = [
        (metadata.member if each is own else each.name or url.partition("//")[2], url)
        for each in members
        for url in each.peer_urls
    ]
    return Beginning("existing", tuple(cluster))


async def _ask_others(metadata: MetadataConfig, tls: ssl.SSLContext | None) -> list[list[ListedMember]]:
    answers: list[list[ListedMember]] = []

    async def ask(endpoint: str) -> None:
        answer = await etcd_queries.members(peer_address(endpoint), tls, timeout_s=_ANSWER_S)
        if answer is not None:
            answers.append(answer)

    async with trio.open_nursery() as nursery:
        for endpoint in metadata.endpoints:
            if endpoint != metadata.member:
                nursery.start_soon(ask, endpoint)
    return answers
