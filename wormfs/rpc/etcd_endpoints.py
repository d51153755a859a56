"""Which member of an etcd cluster a call is made at, and under whose authority."""

from typing import Any, TypeVar

import trio
from google.protobuf.message import Message

from wormfs.core.errors import DeadlineError, UncertainError, WormError
from wormfs.rpc.etcd_channel import CallFailedError, EtcdEndpoint, EtcdMethod, credentials_of
from wormfs.rpc.etcd_types import EtcdOptions
from wormfs.rpc.v1 import etcd_pb2

Reply = TypeVar("Reply", bound=Message)

_AUTHENTICATE = EtcdMethod("/etcdserverpb.Auth/Authenticate", etcd_pb2.EtcdAuthenticateReply)
_NO_AUTHENTICATION = "etcdserver: authentication is not enabled"

_PAUSE_S = 0.05  # when no endpoint took the call: an election, a member's restart
_TRY_MIN_S = 0.005  # a try with less time left would only blur why the others failed
_TRIES_MAX = 3  # endpoints that a repeatable call asks within its time when all hang
_RENEWALS_MAX = 2  # of the token, in one call


class EtcdEndpoints:
    """The endpoints of one cluster, the token of our user, and how a call finds one that takes it."""

    def __init__(self, options: EtcdOptions) -> None:
        credentials = credentials_of(options)
        self.all = tuple(
            EtcdEndpoint(address, credentials, options.timeout_s) for address in options.endpoints
        )
        self._options = options
        self._token: str | None = None if options.user else ""  # None: to be got
        self._renewing = trio.Lock()
        self._last_failure: CallFailedError | None = None
        self.closed = False

    def close(self) -> None:
        """End calls, streams and connections."""
        self.closed = True
        for endpoint in self.all:
            endpoint.close()

    def best(self) -> EtcdEndpoint:
        """The one to ask next."""
        return self._in_order()[0]

    def _in_order(self) -> list[EtcdEndpoint]:
        return sorted(self.all, key=lambda endpoint: endpoint.failed_at_s)

    async def call(self, method: EtcdMethod[Reply], request: Any, timeout_s: float | None) -> Reply:
        """One request, one reply, within `timeout_s` (None: the options'). Raises as EtcdClient says."""
        limit_s = self._options.timeout_s if timeout_s is None else timeout_s
        deadline_s = trio.current_time() + limit_s
        renewals_left = _RENEWALS_MAX
        while True:
            token = await self.token(deadline_s)
            try:
                return await self._at_any(method, request, deadline_s, limit_s, token)
            except CallFailedError as failure:
                renewals_left -= 1
                if not failure.wants_token or renewals_left < 0 or not self.reject_token(token):
                    raise failure.as_error() from None

    async def token(self, deadline_s: float | None = None) -> str:
        """The token to send along, empty for none; asked for at most once by all tasks that want it.

        `deadline_s` is on trio's clock. Raises as EtcdClient says.
        """
        if self._token is not None:
            return self._token
        if deadline_s is None:
            deadline_s = trio.current_time() + self._options.timeout_s
        with trio.move_on_at(deadline_s):
            async with self._renewing:
                if self._token is None:
                    self._token = await self._authenticate(deadline_s)
                return self._token
        raise _no_answer(self._last_failure, self._options.timeout_s)

    def reject_token(self, token: str) -> bool:
        """Etcd did not take this token. Returns whether another one can be had."""
        if token == self._token and self._options.user:
            self._token = None
        return bool(self._options.user)

    async def _authenticate(self, deadline_s: float) -> str:
        options = self._options
        request = etcd_pb2.EtcdAuthenticateRequest(name=options.user, password=options.password)
        try:
            reply = await self._at_any(_AUTHENTICATE, request, deadline_s, options.timeout_s, "")
        except CallFailedError as failure:
            if failure.details.startswith(_NO_AUTHENTICATION):
                return ""
            raise failure.as_error() from None
        return reply.token

    async def _at_any(
        self, method: EtcdMethod[Reply], request: Any, deadline_s: float, limit_s: float, token: str
    ) -> Reply:
        """Ask one endpoint after the other until the deadline. Raises CallFailedError when etcd refused."""
        try_s = limit_s / min(len(self.all), _TRIES_MAX) if method.repeatable else limit_s
        failure: CallFailedError | None = None
        while True:
            for endpoint in self._in_order():
                left_s = deadline_s - trio.current_time()
                if left_s < _TRY_MIN_S:
                    raise _no_answer(failure, limit_s) from None
                try:
                    return await endpoint.call(method, request, timeout_s=min(left_s, try_s), token=token)
                except CallFailedError as error:
                    failure = self._last_failure = error
                if failure.passing:
                    endpoint.failed()
                if not method.repeatable and not failure.not_done:
                    raise UncertainError(f"{failure}; whether the request was done is unknown") from None
                if not failure.passing:
                    raise failure
            await trio.sleep(max(0, min(_PAUSE_S, deadline_s - trio.current_time())))


def _no_answer(failure: CallFailedError | None, limit_s: float) -> WormError:
    if failure is None:
        return DeadlineError(f"etcd: no time was left of {limit_s:g} s to ask in")
    kind = type(failure.as_error())
    return kind(f"{failure}; no answer within {limit_s:g} s, are most of its members up?")
