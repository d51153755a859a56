"""A client of an etcd cluster, for trio tasks: etcd's v3 API, at whichever member answers."""

from dataclasses import replace
from types import TracebackType

import trio

from wormfs.core.errors import (
    InvalidError,
    NotFoundError,
    StaleError,
    UnavailableError,
)
from wormfs.rpc import etcd_types
from wormfs.rpc.etcd_channel import STATUS, CallFailedError, EtcdEndpoint, EtcdMethod, credentials_of
from wormfs.rpc.etcd_endpoints import EtcdEndpoints
from wormfs.rpc.etcd_tls_check import tls_problem
from wormfs.rpc.etcd_types import (
    Compare,
    EtcdLease,
    EtcdMember,
    EtcdOptions,
    EtcdRange,
    EtcdStatus,
    EtcdTxn,
    Operation,
)
from wormfs.rpc.etcd_watch import EtcdWatch
from wormfs.rpc.v1 import etcd_pb2

_RANGE = EtcdMethod("/etcdserverpb.KV/Range", etcd_pb2.EtcdRangeReply)
_RANGE_LOCAL = replace(_RANGE, needs_leader=False)
_TXN = EtcdMethod("/etcdserverpb.KV/Txn", etcd_pb2.EtcdTxnReply, repeatable=False)
_COMPACT = EtcdMethod("/etcdserverpb.KV/Compact", etcd_pb2.EtcdCompactReply)
# A lease granted twice is one that nobody uses, and that ends by itself.
_LEASE_GRANT = EtcdMethod("/etcdserverpb.Lease/LeaseGrant", etcd_pb2.EtcdLeaseGrantReply)
_LEASE_REVOKE = EtcdMethod("/etcdserverpb.Lease/LeaseRevoke", etcd_pb2.EtcdLeaseRevokeReply)
_LEASE_RENEW = EtcdMethod("/etcdserverpb.Lease/LeaseKeepAlive", etcd_pb2.EtcdLeaseKeepAliveReply)
_MEMBER_LIST = EtcdMethod(
    "/etcdserverpb.Cluster/MemberList", etcd_pb2.EtcdMemberListReply, needs_leader=False
)
_MEMBER_ADD = EtcdMethod("/etcdserverpb.Cluster/MemberAdd", etcd_pb2.EtcdMemberAddReply, repeatable=False)
_MEMBER_REMOVE = EtcdMethod("/etcdserverpb.Cluster/MemberRemove", etcd_pb2.EtcdMemberRemoveReply)
# Its messages have the very fields of MemberRemove's.
_MEMBER_PROMOTE = EtcdMethod("/etcdserverpb.Cluster/MemberPromote", etcd_pb2.EtcdMemberRemoveReply)


def check_options(options: EtcdOptions) -> None:
    """Raises ConfigError for TLS files that cannot be used; asks nobody."""
    credentials_of(options)


class EtcdClient:
    """Calls and watches; use it as an async context manager, from one trio run.

    Every call ends within `timeout_s` (by default the options'), whatever the members do. It is made at
    one endpoint; one that does not take it, or (when doing it twice does no harm: all but `txn` and
    `add_member`) does not answer, is left for the next one, and asked last from then on.

    Every call may raise: UnavailableError, DeadlineError (one of its kind) when no answer came;
    NotPermittedError when etcd refuses the user; NoSpaceError under etcd's NOSPACE alarm;
    TooLargeError; InvalidError. Raises ConfigError for TLS files that cannot be used.
    """

    def __init__(self, options: EtcdOptions) -> None:
        self._options = options
        self._endpoints = EtcdEndpoints(options)

    async def __aenter__(self) -> "EtcdClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End calls and watches under way, which then raise UnavailableError, and the connections."""
        self._endpoints.close()

    async def explained(self, error: UnavailableError) -> str:
        """The error's message, or what is wrong with TLS when that is why nobody answers. Takes seconds."""
        return await tls_problem(self._options) or error.message

    # Keys

    async def range(
        self,
        key: bytes,
        range_end: bytes = b"",
        *,
        limit: int = 0,
        revision: int = 0,
        keys_only: bool = False,
        serializable: bool = False,
        timeout_s: float | None = None,
    ) -> EtcdRange:
        """Read a key, or those in [key, range_end), at most `limit` of them (0: all).

        `revision`: as they were then (0: now), StaleError when that was compacted. `serializable`: from
        the member's own state, which may be old, and does not need a quorum.
        """
        request = etcd_pb2.EtcdRangeRequest(
            key=key,
            range_end=range_end,
            limit=limit,
            revision=revision,
            keys_only=keys_only,
            serializable=serializable,
        )
        reply = await self._endpoints.call(_RANGE_LOCAL if serializable else _RANGE, request, timeout_s)
        return etcd_types.range_of(reply, reply.header.revision)

    async def txn(
        self,
        compares: tuple[Compare, ...] | list[Compare],
        success: tuple[Operation, ...] | list[Operation],
        failure: tuple[Operation, ...] | list[Operation] = (),
        *,
        timeout_s: float | None = None,
    ) -> EtcdTxn:
        """Do `success` when all compares hold, else `failure`, as one step.

        Raises UncertainError when it was sent and no answer came: it was done, was not, or may yet be
        (a cancelled call is the same). Any other error means that nothing was done: UnavailableError, too;
        NotFoundError for a lease that is gone.
        """
        request = etcd_pb2.EtcdTxnRequest(compares=compares, success=success, failure=failure)
        reply = await self._endpoints.call(_TXN, request, timeout_s)
        revision = reply.header.revision
        responses = tuple(etcd_types.response_of(each, revision) for each in reply.replies)
        return EtcdTxn(reply.succeeded, revision, responses)

    async def compact(self, revision: int, *, timeout_s: float | None = None) -> None:
        """Forget what keys were before this revision; no harm when that was done already.

        Raises InvalidError for a revision that is yet to come.
        """
        request = etcd_pb2.EtcdCompactRequest(revision=revision)
        try:
            await self._endpoints.call(_COMPACT, request, timeout_s)
        except StaleError:
            return

    def watch(self, key: bytes, range_end: bytes = b"", *, start_revision: int) -> EtcdWatch:
        """The changes of a key, or of those in [key, range_end), from this revision (1 or more) on.

        `with client.watch(...) as watch: async for events in watch: ...`
        """
        if start_revision < 1:
            raise InvalidError(f"etcd: cannot watch from revision {start_revision}; the first is 1")
        return EtcdWatch(self._endpoints, key, range_end, start_revision)

    # Leases

    async def grant_lease(self, ttl_s: int, *, timeout_s: float | None = None) -> EtcdLease:
        """A new lease; etcd may make it longer (its minimum is 1.5 election timeouts, rounded up)."""
        request = etcd_pb2.EtcdLeaseGrantRequest(ttl_s=ttl_s)
        reply = await self._endpoints.call(_LEASE_GRANT, request, timeout_s)
        return EtcdLease(reply.id, reply.ttl_s)

    async def renew_lease(self, lease: int, *, timeout_s: float | None = None) -> int:
        """Let a lease begin anew. Returns the seconds it has now; 0: it is gone, with its keys.

        Etcd counts from some time after this call began.
        """
        request = etcd_pb2.EtcdLeaseKeepAliveRequest(id=lease)
        reply = await self._endpoints.call(_LEASE_RENEW, request, timeout_s)
        return max(0, reply.ttl_s)

    async def revoke_lease(self, lease: int, *, timeout_s: float | None = None) -> None:
        """End a lease and its keys now; no harm when it has ended."""
        try:
            await self._endpoints.call(_LEASE_REVOKE, etcd_pb2.EtcdLeaseRevokeRequest(id=lease), timeout_s)
        except NotFoundError:
            return

    # Members

    async def status(self, *, timeout_s: float | None = None) -> tuple[EtcdStatus, ...]:
        """How each endpoint's member is, in the endpoints' order. Raises nothing; see `problem`."""
        found: dict[str, EtcdStatus] = {}
        limit_s = self._options.timeout_s if timeout_s is None else timeout_s

        async def ask(endpoint: EtcdEndpoint) -> None:
            try:
                reply = await endpoint.call(STATUS, etcd_pb2.EtcdStatusRequest(), timeout_s=limit_s)
                found[endpoint.address] = etcd_types.status_of(endpoint.address, reply)
            except (CallFailedError, UnavailableError) as error:
                found[endpoint.address] = EtcdStatus(endpoint.address, problem=str(error))

        async with trio.open_nursery() as nursery:
            for endpoint in self._endpoints.all:
                nursery.start_soon(ask, endpoint)
        return tuple(found[endpoint.address] for endpoint in self._endpoints.all)

    async def members(self, *, timeout_s: float | None = None) -> tuple[EtcdMember, ...]:
        """The members, as the one asked knows them."""
        reply = await self._endpoints.call(_MEMBER_LIST, etcd_pb2.EtcdMemberListRequest(), timeout_s)
        return tuple(map(etcd_types.member_of, reply.members))

    async def add_member(
        self, peer_urls: tuple[str, ...], *, learner: bool = False, timeout_s: float | None = None
    ) -> EtcdMember:
        """Make room for a member that is started afterwards. Raises UncertainError, as `txn`."""
        request = etcd_pb2.EtcdMemberAddRequest(peer_urls=peer_urls, is_learner=learner)
        reply = await self._endpoints.call(_MEMBER_ADD, request, timeout_s)
        return etcd_types.member_of(reply.member)

    async def remove_member(self, member: int, *, timeout_s: float | None = None) -> None:
        """Take a member out for good; no harm when it is not there."""
        try:
            await self._endpoints.call(_MEMBER_REMOVE, etcd_pb2.EtcdMemberRemoveRequest(id=member), timeout_s)
        except NotFoundError:
            return

    async def promote_member(self, member: int, *, timeout_s: float | None = None) -> None:
        """Give a learner its vote. Raises NotFoundError; WormError while it is not in step with the others.

        Raises WormError, too, for one that has its vote.
        """
        await self._endpoints.call(_MEMBER_PROMOTE, etcd_pb2.EtcdMemberRemoveRequest(id=member), timeout_s)
