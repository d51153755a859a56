"""The members of a cluster's etcd: listed, taken out, added, given their vote.

A lost member is taken out first, then another one added: etcd takes none in while one is silent. It is
added as a learner, which has no vote, so that a mistake in its address cannot cost the quorum; its node
promotes it when it is in step with the others.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import trio

from wormfs.core.errors import (
    ConfigError,
    ExistsError,
    NotFoundError,
    UnavailableError,
    WormError,
)
from wormfs.node import etcd_command
from wormfs.node.config import MetadataConfig, peer_address
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.rpc.etcd_types import EtcdMember, EtcdOptions, EtcdStatus

CHANGE_S = 15.0
"""etcd changes nothing until its members were connected to each other for 5 s."""
ELECTION_S = 5.0
"""While the members elect a leader all of them look ill; that takes less."""
_LOOK_PAUSE_S = 0.25
_PROMOTE_PAUSE_S = 0.5
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MemberState:
    """A member as the cluster knows it, and as it is: `problem` is empty for a healthy one."""

    member: EtcdMember
    status: EtcdStatus
    problem: str

    @property
    def name(self) -> str:
        """What to call it: of one that never ran, where its peers would find it."""
        return self.member.name or _address(self.member.peer_urls[0])

    @property
    def leads(self) -> bool:
        """Whether it is the leader, by its own word."""
        return not self.problem and self.status.leader == self.member.id

    @property
    def votes(self) -> bool:
        """Whether it counts for the quorum."""
        return not self.member.is_learner

    def known_as(self, name: str) -> bool:
        """Whether `name` is its name, its id in hexadecimal, or one of its addresses."""
        urls = (*self.member.client_urls, *self.member.peer_urls)
        return name in (self.name, f"{self.member.id:x}", *map(_address, urls))


def options_of(metadata: MetadataConfig, *, endpoints: Sequence[str] = ()) -> EtcdOptions:
    """How to reach etcd, at `endpoints` or those of the configuration. Raises ConfigError."""
    return EtcdOptions(
        endpoints=tuple(endpoints) or metadata.endpoints,
        ca_file=metadata.ca_file,
        cert_file=metadata.cert_file,
        key_file=metadata.key_file,
        user=metadata.user,
        password=metadata.password(),
    )


def healthy_voters(states: Sequence[MemberState]) -> tuple[int, int]:
    """How many members with a vote are healthy, and how many there are."""
    voters = [state for state in states if state.votes]
    return sum(not state.problem for state in voters), len(voters)


def quorum(voters: int) -> int:
    """How many of so many members must be healthy for anything to be written."""
    return voters // 2 + 1


async def member_states(metadata: MetadataConfig) -> list[MemberState]:
    """All members, by name. Needs one that answers, no quorum. Raises UnavailableError, NotPermittedError."""
    options = options_of(metadata)
    async with EtcdClient(options) as client:
        try:
            members = await client.members()
        except UnavailableError as error:
            raise UnavailableError(await client.explained(error)) from None
    addresses = [_address(url) for member in members for url in member.client_urls]
    statuses: dict[str, EtcdStatus] = {}
    if addresses:
        async with EtcdClient(replace(options, endpoints=tuple(dict.fromkeys(addresses)))) as client:
            statuses = {status.endpoint: status for status in await client.status()}
    return sorted((_state_of(member, statuses) for member in members), key=lambda state: state.name)


async def _states_once(
    metadata: MetadataConfig, good: Callable[[Sequence[MemberState]], bool]
) -> list[MemberState]:
    """As member_states, once they are good, or have not been for longer than an election takes."""
    until_s = trio.current_time() + ELECTION_S
    while True:
        states = await member_states(metadata)
        if good(states) or trio.current_time() > until_s:
            return states
        await trio.sleep(_LOOK_PAUSE_S)


def _state_of(member: EtcdMember, statuses: dict[str, EtcdStatus]) -> MemberState:
    if not member.client_urls:
        nothing = EtcdStatus("", problem="it was added, and has not been started yet")
        return MemberState(member, nothing, nothing.problem)
    asked = [statuses[_address(url)] for url in member.client_urls]
    status = next((each for each in asked if not each.problem), asked[0])
    problem = status.problem
    if not problem and status.member_id != member.id:
        problem = "another member answers at its address"
    elif not problem and not status.leader:
        problem = "it knows no leader, too few members are up"
    elif not problem and status.alarms:
        problem = ", ".join(status.alarms)
    return MemberState(member, status, problem)


def removal_problem(states: Sequence[MemberState], leaving: MemberState) -> str:
    """Why this member may not be taken out now; empty when it may."""
    healthy, voters = healthy_voters(states)
    if healthy < quorum(voters):
        return (
            f"only {healthy} of {voters} members are healthy, and etcd changes nothing without "
            f"{quorum(voters)}: bring a member back"
        )
    stay_healthy, staying = healthy_voters([state for state in states if state is not leaving])
    if not staying:
        return "it is the only member: nothing would be left"
    if stay_healthy < quorum(staying):
        return (
            f"of the {staying} others only {stay_healthy} are healthy, and {quorum(staying)} must "
            "be: bring one back, or take out the silent one instead"
        )
    return ""


async def remove_member(metadata: MetadataConfig, name: str) -> MemberState:
    """Take a member out for good; which one it was.

    Raises NotFoundError; UnavailableError when that would cost the quorum, or there is none.
    """

    def found(states: Sequence[MemberState]) -> MemberState | None:
        return next((state for state in states if state.known_as(name)), None)

    def good(states: Sequence[MemberState]) -> bool:
        leaving = found(states)
        return leaving is None or not removal_problem(states, leaving)

    states = await _states_once(metadata, good)
    leaving = found(states)
    if leaving is None:
        known = ", ".join(state.name for state in states)
        raise NotFoundError(f"etcd has no member {name}; it has {known}")
    problem = removal_problem(states, leaving)
    if problem:
        raise UnavailableError(f"member {leaving.name} stays: {problem}")
    others = [_address(url) for each in states if each is not leaving for url in each.member.client_urls]
    async with EtcdClient(options_of(metadata, endpoints=others)) as client:
        await client.remove_member(leaving.member.id, timeout_s=CHANGE_S)
    return leaving


async def add_member(metadata: MetadataConfig) -> bool:
    """Make room for the managed member of this configuration; False when that was done before.

    Raises ConfigError when no managed member is configured, ExistsError for one that is in the cluster,
    UnavailableError while another member is silent or a learner.
    """
    if not metadata.managed:
        raise ConfigError("the configuration has no managed etcd member to be added (metadata.managed)")
    url = etcd_command.url(metadata, peer_address(metadata.member))
    others = [each for each in metadata.endpoints if each != metadata.member]
    if not others:
        raise ConfigError("metadata.endpoints names no other member: there is no cluster to be added to")
    asked = replace_endpoints(metadata, others)
    states = await _states_once(asked, lambda states: not any(state.problem for state in states))
    for state in states:
        if url in state.member.peer_urls:
            if not state.member.name:
                return False
            raise ExistsError(
                f"{metadata.member} is a member of the etcd cluster already; if it lost its data, first run "
                f"`wormfs members remove {metadata.member}`"
            )
    for state in states:
        if state.problem:
            raise UnavailableError(
                f"etcd takes no member in while one is not well: {state.name} ({state.problem}); start it, "
                f"or run `wormfs members remove {state.name}`"
            )
        if not state.votes:
            raise UnavailableError(f"etcd takes one learner at a time: {state.name} has not caught up yet")
    async with EtcdClient(options_of(asked)) as client:
        await client.add_member((url,), learner=True, timeout_s=CHANGE_S)
    return True


async def promote(metadata: MetadataConfig) -> None:
    """Let this node's member have its vote, as soon as it is in step with the others. Returns with it."""
    async with (
        EtcdClient(options_of(metadata, endpoints=[metadata.member])) as own,
        EtcdClient(options_of(metadata)) as client,
    ):
        while True:
            status = (await own.status())[0]
            if not status.problem:
                if not status.is_learner:
                    return
                try:
                    await client.promote_member(status.member_id)
                except WormError as error:  # not in step yet: etcd says nothing else
                    log.debug("the etcd member has no vote yet: %s", error.message)
                else:
                    log.info("its etcd member has caught up, and has a vote now")
                    return
            await trio.sleep(_PROMOTE_PAUSE_S)


def replace_endpoints(metadata: MetadataConfig, endpoints: Sequence[str]) -> MetadataConfig:
    """The same settings with other endpoints; the member is not this process's business then."""
    return replace(metadata, endpoints=tuple(endpoints), managed=False, member="", folder=None, binary=None)


def _address(url: str) -> str:
    return url.partition("//")[2]
