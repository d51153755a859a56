"""The etcd log engine, as the master appends to it.

An entry counts when etcd has it. `append` only puts it into the next group; one transaction at a
time carries all that came meanwhile. What etcd has goes to the node's own copy of the log (an
EmbeddedLog), which is what restarts, snapshots and reads of old entries use.
"""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager

import trio

from wormfs.core.errors import InvalidError, NotMasterError, TooLargeError, UnavailableError, WormError
from wormfs.metadata.election import Mastership
from wormfs.metadata.embedded_log import EmbeddedLog
from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.metadata.log_port import LogRecord
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.rpc.etcd_types import compare_absent, compare_value, get, put
from wormfs.rpc.v1 import replication_pb2

ENTRY_MAX_BYTES = 1 << 20
BATCH_MAX_BYTES = 1 << 20
"""One request's worth: etcd's own default takes requests of 1.5 MiB."""
RETRY_S = 0.1
APPEND_TIMEOUT_S = 1.0
"""One try. What a member had passed on to a leader that died is never answered; it is sent again."""
log = logging.getLogger(__name__)


def head_value(sequence: int, epoch: int) -> bytes:
    """What the head key holds after an append."""
    return replication_pb2.LogHead(sequence=sequence, epoch=epoch).SerializeToString()


class EtcdLog:
    """Implements wormfs.metadata.log_port.EventLog for one mastership. `run` must be running."""

    def __init__(
        self, local: EmbeddedLog, client: EtcdClient, keys: EtcdKeys, mastership: Mastership, head: bytes
    ) -> None:
        """`local` holds all that etcd has; `head` is the head key's value, empty before the first entry."""
        self._local = local
        self._client = client
        self._keys = keys
        self._mastership = mastership
        self._head = head
        self._pending: list[LogRecord] = []  # appended, not known to be in etcd; the first are on their way
        self._committed = local.last_sequence
        self._appended = trio.Event()
        self._moved = trio.Event()
        self._held_back = 0  # `settled` blocks that wait or run
        self._open = trio.Event()
        self.batch_count = 0
        self.listeners: list[Callable[[Sequence[LogRecord]], None]] = []
        """Called with every batch that is in etcd, in order; must not raise."""

    @property
    def last_sequence(self) -> int:
        """The last entry appended."""
        return self._pending[-1].sequence if self._pending else self._committed

    @property
    def durable_sequence(self) -> int:
        """Entries up to this one are in etcd."""
        return self._committed

    @property
    def settled_sequence(self) -> int:
        """Entries up to this one cannot be taken back."""
        return self._committed

    def append(self, sequence: int, payload: bytes) -> None:
        """Order the next entry. Raises NotMasterError, TooLargeError with nothing appended."""
        if self._mastership.ended:
            raise self._not_master()
        if sequence != self.last_sequence + 1:
            raise InvalidError(f"entry {sequence} cannot follow {self.last_sequence}")
        if len(payload) > ENTRY_MAX_BYTES:
            raise TooLargeError(
                f"a metadata change of {len(payload)} bytes; the log in etcd takes {ENTRY_MAX_BYTES}"
            )
        self._pending.append(LogRecord(sequence, payload))
        self._appended.set()

    def _not_master(self) -> NotMasterError:
        return NotMasterError(f"this node is not the metadata master any more: {self._mastership.ended}")

    def read(self, after: int) -> Iterator[LogRecord]:
        """Entries behind `after`, those not in etcd yet too."""
        yield from self._local.read(after)
        yield from [record for record in self._pending if record.sequence > after]

    async def watch(self, after: int) -> AsyncGenerator[LogRecord, None]:
        """Entries behind `after` for ever, as they are in etcd."""
        async for record in self._local.watch(after):
            yield record

    def trim(self, through: int) -> None:
        """The node's own copy; etcd's is trimmed when enough replicas hold it."""
        self._local.trim(through)

    async def wait_durable(self, sequence: int) -> None:
        """Return when entries up to `sequence` are in etcd. NotMasterError: they may be, or not."""
        while self._committed < sequence:
            if self._mastership.ended:
                raise self._not_master()
            await self._moved.wait()

    # --- answering ----------------------------------------------------------------------------

    async def admit(self) -> None:
        """Wait while appends are held back, before a command is decided."""
        while self._held_back:
            await self._open.wait()

    async def confirm(self) -> None:
        """Return when what was seen so far may be told: all of it is in etcd, and we are still master.

        Raises NotMasterError.
        """
        await self.wait_durable(self.last_sequence)
        while not self._mastership.is_sure():
            if self._mastership.ended:
                raise self._not_master()
            await self._mastership.moved()

    @asynccontextmanager
    async def settled(self) -> AsyncIterator[None]:
        """A moment when nothing is pending; the body must not switch."""
        self._held_back += 1
        try:
            while self._pending:
                await self.wait_durable(self.last_sequence)
            yield
        finally:
            self._held_back -= 1
            if not self._held_back:
                self._open.set()
                self._open = trio.Event()

    # --- the writer ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Carry entries to etcd until the mastership ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wake_at_end)
            while not self._mastership.ended:
                if self._pending:
                    await self._commit(self._next_batch())
                else:
                    self._appended = trio.Event()
                    await self._appended.wait()
            nursery.cancel_scope.cancel()

    async def _wake_at_end(self) -> None:
        while not self._mastership.ended:
            await self._mastership.moved()
        self._appended.set()
        self._notify()

    def _next_batch(self) -> list[LogRecord]:
        size_bytes = 0
        for count, record in enumerate(self._pending):
            size_bytes += len(record.payload)
            if size_bytes > BATCH_MAX_BYTES and count:
                return self._pending[:count]
        return list(self._pending)

    async def _commit(self, batch: list[LogRecord]) -> None:
        last = batch[-1].sequence
        head = head_value(last, self._mastership.epoch)
        value = replication_pb2.LogBatch(
            first_sequence=batch[0].sequence, entries=[record.payload for record in batch]
        )
        epoch = str(self._mastership.epoch).encode()
        same_head = (
            compare_value(self._keys.head, self._head) if self._head else compare_absent(self._keys.head)
        )
        compares = [compare_value(self._keys.epoch, epoch), same_head]
        changes = [put(self._keys.batch(last), value.SerializeToString()), put(self._keys.head, head)]
        silent = False
        while not self._mastership.ended:
            try:
                answer = await self._client.txn(
                    compares, changes, [get(self._keys.head)], timeout_s=APPEND_TIMEOUT_S
                )
            except UnavailableError as error:
                # Whether it was done shows when it is tried again: by then the head is ours.
                if not silent:
                    log.warning("etcd does not take the log's entries: %s", error.message)
                silent = True
                await trio.sleep(RETRY_S)
                continue
            except WormError as error:
                self._mastership.end(f"etcd refuses the log's entries: {error.message}")
                return
            found = [kv.value for each in answer.ranges for kv in each.kvs]
            if answer.succeeded or found == [head]:
                self._done(batch, head)
            else:
                self._mastership.end("another node has become master")
            return

    def _done(self, batch: list[LogRecord], head: bytes) -> None:
        self._head = head
        self.batch_count += 1
        try:
            for record in batch:
                self._local.append(record.sequence, record.payload)
        except WormError as error:
            # They are in etcd and will be followed from there; this node cannot lead without its copy.
            self._mastership.end(f"its own copy of the log fails: {error.message}")
        self._committed = self._local.last_sequence
        del self._pending[: len(batch)]
        self._notify()
        for listener in self.listeners:
            listener(batch)

    def _notify(self) -> None:
        self._moved.set()
        self._moved = trio.Event()
