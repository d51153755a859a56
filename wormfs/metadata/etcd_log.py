"""The etcd log engine, as the master appends to it.

An entry counts when etcd has it. `append` only puts it into the next group; one transaction at a
time carries all that came meanwhile. What etcd has goes to the node's own copy of the log (an
EmbeddedLog), which is what restarts, snapshots and reads of old entries use.

Early answers (docs/many-servers.md): while all entries on their way are operations of one session,
that session may be answered before etcd has them; it keeps them for the next master. So the entries
that were answered early are always the first ones on their way, without a gap, and of one session.
"""

import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager

import trio

from wormfs.core.errors import InvalidError, NotMasterError, TooLargeError, UnavailableError, WormError
from wormfs.core.ordering import EARLY_MAX_ENTRIES
from wormfs.metadata.election import Mastership
from wormfs.metadata.embedded_log import EmbeddedLog
from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.metadata.log_port import UPKEEP, LogRecord
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.rpc.etcd_types import compare_absent, compare_value, get, put
from wormfs.rpc.v1 import replication_pb2

ENTRY_MAX_BYTES = 1 << 20
BATCH_MAX_BYTES = 1 << 20
"""One request's worth: etcd's own default takes requests of 1.5 MiB."""
PAGE_BATCHES = 8
"""Batches read at once: with the framing of their entries a reply must fit 16 MiB."""
RETRY_S = 0.1
APPEND_TIMEOUT_S = 1.0
"""One try. What a member had passed on to a leader that died is never answered; it is sent again."""
LINGER_S = 0.05
"""Entries nobody waits for are carried together after this long: each transaction costs every server."""
EARLY_MAX_BYTES = ENTRY_MAX_BYTES - 4096  # what is ordered anew is a little longer, and must fit
"""With more bytes, or EARLY_MAX_ENTRIES, on their way, answers wait: little hangs on a client's life.

With half of it not sent yet, the next transaction begins at once, before answers have to wait.
"""
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
        self._sessions: list[int] = []  # of each pending entry
        self._pending_of: Counter[int] = Counter()  # how many of each session, see EventLog.append
        self._pending_bytes = 0
        self._unsent = 0  # pending entries that are in no transaction yet, and their bytes
        self._unsent_bytes = 0
        self._waiting = 0  # tasks that wait for entries to be in etcd
        self._wanted = trio.Event()
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

    def append(self, sequence: int, payload: bytes, session: int = 0) -> None:
        """Order the next entry. Raises NotMasterError, TooLargeError with nothing appended."""
        if self._mastership.ended:
            raise self._not_master()
        if sequence != self.last_sequence + 1:
            raise InvalidError(f"entry {sequence} cannot follow {self.last_sequence}")
        if len(payload) > ENTRY_MAX_BYTES:
            raise TooLargeError(
                f"a metadata change of {len(payload)} bytes; the log in etcd takes {ENTRY_MAX_BYTES}"
            )
        if not self._pending:
            self._appended.set()
        self._pending.append(LogRecord(sequence, payload))
        self._sessions.append(session)
        self._pending_of[session] += 1
        self._pending_bytes += len(payload)
        self._unsent += 1
        self._unsent_bytes += len(payload)
        if self._unsent * 2 > EARLY_MAX_ENTRIES or self._unsent_bytes * 2 > EARLY_MAX_BYTES:
            self._wanted.set()

    def give_up(self, reason: str) -> None:
        """End the mastership: this node cannot lead any more."""
        self._mastership.end(reason)

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
        self._waiting += 1
        self._wanted.set()
        try:
            await self._reach(sequence)
        finally:
            self._waiting -= 1

    async def _reach(self, sequence: int) -> None:
        while self._committed < sequence:
            if self._mastership.ended:
                raise self._not_master()
            await self._moved.wait()

    # --- answering ----------------------------------------------------------------------------

    async def admit(self) -> None:
        """Wait while appends are held back, before a command is decided."""
        while self._held_back:
            await self._open.wait()

    async def confirm(self, *, hurry: bool = True) -> None:
        """Return when what was seen so far may be told: all of it is in etcd, and we are still master.

        Raises NotMasterError.
        """
        await (self.wait_durable if hurry else self._reach)(self.last_sequence)
        while not self._mastership.is_sure():
            if self._mastership.ended:
                raise self._not_master()
            await self._mastership.moved()

    def answers_early(self, session: int) -> bool:
        """Whether what was seen so far may be told to a session that keeps the `unsettled` entries."""
        if not self._mastership.is_sure():
            return False
        return not self._pending or (
            session > 0
            and self._pending_of[session] + self._pending_of[UPKEEP]
            == len(self._pending)
            <= EARLY_MAX_ENTRIES
            and self._pending_bytes <= EARLY_MAX_BYTES
        )

    def unsettled(self, after: int) -> Sequence[LogRecord]:
        """Entries behind `after` that etcd may not have, in order."""
        return self._pending[max(0, after - self._committed) :]

    @asynccontextmanager
    async def settled(self) -> AsyncIterator[None]:
        """A moment when nothing is pending; the body must not switch."""
        if self._unsent < len(self._pending) and not self._mastership.ended:
            await self._moved.wait()  # for what is under way, before appends are held back
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
                    await self._linger()
                    self._wanted = trio.Event()
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

    async def _linger(self) -> None:
        """Let more entries come while nobody waits for these."""
        if not self._waiting and not self._wanted.is_set():
            with trio.move_on_after(LINGER_S):
                await self._wanted.wait()

    def _next_batch(self) -> list[LogRecord]:
        size_bytes = 0
        batch: list[LogRecord] = []
        for record in self._pending:
            if size_bytes + len(record.payload) > BATCH_MAX_BYTES and batch:
                break
            size_bytes += len(record.payload)
            batch.append(record)
        self._unsent = len(self._pending) - len(batch)
        self._unsent_bytes = self._pending_bytes - size_bytes
        return batch

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
            self._local.append_all(batch)
        except WormError as error:
            # They are in etcd and will be followed from there; this node cannot lead without its copy.
            self._mastership.end(f"its own copy of the log fails: {error.message}")
        self._committed = self._local.last_sequence
        count = len(batch)
        self._pending_of.subtract(self._sessions[:count])
        self._pending_of = +self._pending_of
        self._pending_bytes -= sum(len(record.payload) for record in batch)
        del self._pending[:count], self._sessions[:count]
        self._notify()
        for listener in self.listeners:
            listener(batch)

    def _notify(self) -> None:
        self._moved.set()
        self._moved = trio.Event()
