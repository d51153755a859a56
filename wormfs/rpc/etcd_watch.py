"""A watch of etcd keys that outlives the member it is connected to."""

import logging
import math
import re
from types import TracebackType
from weakref import WeakKeyDictionary

import trio

from wormfs.core.errors import NotPermittedError, StaleError, UnavailableError
from wormfs.rpc.etcd_channel import STATUS, CallFailedError, WatchStream
from wormfs.rpc.etcd_endpoints import EtcdEndpoints
from wormfs.rpc.etcd_types import EtcdEvents, event_of
from wormfs.rpc.v1 import etcd_pb2

log = logging.getLogger(__name__)

_QUIET_MAX_S = 1.0  # then the member is asked for a sign of life
_PROBE_TIMEOUT_S = 1.5
_PAUSE_MIN_S = 0.05
_PAUSE_MAX_S = 1.0
_SETTLED_S = 2.0  # a member may take a watch for so long before it knows that its leader is gone
_FAILED_AT_S: WeakKeyDictionary[EtcdEndpoints, float] = WeakKeyDictionary()
"""Clusters whose watches fail now: that is told once, however many watches are begun meanwhile."""
_STATUS_IN_WORDS = re.compile(r"rpc error: code = (?P<code>\w+) desc = (?P<details>.*)", re.DOTALL)


class EtcdWatch:
    """Changes of a key or range, in order and without gaps, from a revision on: an async iterator.

    A member that dies, hangs (noticed within 2.5 s) or has no leader is left for another one; that goes on
    for as long as none can be had: bound the wait with a cancel scope. A cancelled wait loses nothing,
    the next one goes on behind what was given. Raises NotPermittedError; UnavailableError when the client
    is closed; StaleError when the next revision was compacted (which can be while nothing of
    this range happened: read the range anew and watch from its revision + 1).
    """

    def __init__(self, endpoints: EtcdEndpoints, key: bytes, range_end: bytes, start_revision: int) -> None:
        self._endpoints = endpoints
        self._key = key
        self._range_end = range_end
        self._next_revision = start_revision
        self._stream: WatchStream | None = None
        self._token = ""  # the stream's
        self._denied = False  # the last one was, for want of a valid token or of the right
        self._parts: list[etcd_pb2.EtcdEvent] = []  # of a revision that has not come whole yet
        self._pause_s = _PAUSE_MIN_S

    def __enter__(self) -> "EtcdWatch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> "EtcdWatch":
        return self

    async def __anext__(self) -> EtcdEvents:
        while True:
            stream = self._stream or await self._open()
            reply = await self._receive(stream)
            if isinstance(reply, CallFailedError):
                await self._failed(stream, reply)
            elif reply.canceled:
                await self._cancelled(stream, reply)
            else:
                self._pause_s, self._denied = _PAUSE_MIN_S, False
                self._works(stream)
                events = self._whole(reply)
                if events:
                    self._next_revision = events[-1].kv.mod_revision + 1
                    return EtcdEvents(events[-1].kv.mod_revision, tuple(map(event_of, events)))

    def close(self) -> None:
        """End the stream. Iterating on opens another."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None
        self._parts = []

    async def _open(self) -> WatchStream:
        while True:
            try:
                self._token = await self._endpoints.token()
                break
            except UnavailableError:
                if self._endpoints.closed:
                    raise
                await self._pause()
        create = etcd_pb2.EtcdWatchCreateRequest(
            key=self._key, range_end=self._range_end, start_revision=self._next_revision, fragment=True
        )
        request = etcd_pb2.EtcdWatchRequest(create=create)
        self._stream = self._endpoints.best().watch(request, self._token)
        return self._stream

    async def _receive(self, stream: WatchStream) -> etcd_pb2.EtcdWatchReply | CallFailedError:
        """The next reply, or how the stream ended; a member that gives no sign of life ends it too."""
        received: etcd_pb2.EtcdWatchReply | CallFailedError
        handed_over = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_when_dead, stream)
                try:
                    received = await stream.receive()
                except CallFailedError as failure:
                    received = failure
                nursery.cancel_scope.cancel()
            handed_over = True
        finally:
            if not handed_over:  # cancelled, perhaps with a reply in hand: the next stream brings it again
                self.close()
        return received

    def _whole(self, reply: etcd_pb2.EtcdWatchReply) -> list[etcd_pb2.EtcdEvent]:
        """The events of whole revisions; the last revision of a fragment waits for its rest."""
        events = [*self._parts, *reply.events]
        self._parts = []
        if reply.fragment and events:
            last = events[-1].kv.mod_revision
            self._parts = [event for event in events if event.kv.mod_revision == last]
            events = events[: -len(self._parts)]
        return events

    async def _cancelled(self, stream: WatchStream, reply: etcd_pb2.EtcdWatchReply) -> None:
        if reply.compact_revision:
            self.close()
            raise StaleError(
                f"etcd at {stream.endpoint.address}: cannot watch from revision {self._next_revision}, "
                f"history before {reply.compact_revision} was compacted; read the keys anew"
            )
        await self._failed(stream, _failure_of(stream.endpoint.address, reply.cancel_reason))

    async def _failed(self, stream: WatchStream, failure: CallFailedError) -> None:
        """Leave the stream, and wait a little before the next; raises what another would not mend."""
        self.close()
        if failure.wants_token or failure.code == "PERMISSION_DENIED":
            # some versions answer so, too, when the token is not valid any more: try once with a new one
            if self._denied or not self._endpoints.reject_token(self._token):
                raise NotPermittedError(f"{failure}; the user may not watch these keys")
            self._denied = True
            return
        if not failure.passing:
            raise failure.as_error() from None
        stream.endpoint.failed()
        level = logging.DEBUG if self._endpoints in _FAILED_AT_S else logging.INFO
        log.log(level, "watch from revision %d moves on: %s", self._next_revision, failure)
        _FAILED_AT_S[self._endpoints] = trio.current_time()
        await self._pause()

    def _works(self, stream: WatchStream) -> None:
        """A member with a leader has given a sign of life."""
        failed_at_s = _FAILED_AT_S.get(self._endpoints, math.inf)
        if trio.current_time() >= failed_at_s + _SETTLED_S:
            del _FAILED_AT_S[self._endpoints]
            log.info("watches work again, at etcd's %s", stream.endpoint.address)

    async def _end_when_dead(self, stream: WatchStream) -> None:
        """Close a stream whose member, after a time of quiet, does not answer or has no leader."""
        while True:
            await trio.sleep(_QUIET_MAX_S)
            try:
                request = etcd_pb2.EtcdStatusRequest()
                reply = await stream.endpoint.call(STATUS, request, timeout_s=_PROBE_TIMEOUT_S)
                problem = "" if reply.leader else f"etcd at {stream.endpoint.address} knows no leader"
            except (CallFailedError, UnavailableError) as error:
                problem = str(error)
            if problem:
                log.debug("a quiet watch is ended: %s", problem)
                stream.close()
                return
            self._works(stream)

    async def _pause(self) -> None:
        await trio.sleep(self._pause_s)
        self._pause_s = min(self._pause_s * 2, _PAUSE_MAX_S)


def _failure_of(endpoint: str, reason: str) -> CallFailedError:
    """Why etcd ended a watch: in words, or with a gRPC status inside of them (Go's names of the codes)."""
    status = _STATUS_IN_WORDS.search(reason)
    if status is None:
        return CallFailedError(endpoint, "UNAVAILABLE", reason or "the watch was ended")
    code = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", status["code"]).upper()
    return CallFailedError(endpoint, code, status["details"])
