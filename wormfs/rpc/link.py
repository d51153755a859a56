"""One socket that carries frames both ways: the receive buffer and the send queue.

The hot path of every metadata operation and of every chunk byte. What makes it fast:

- One recv takes in many small frames; messages are parsed straight out of the receive buffer.
- Raw data is received into its destination; only what came along with the header is copied.
- A frame sent while nothing is queued goes out at once, without a task switch; what is queued
  meanwhile goes out in one gathering sendmsg.

Invariants: frames leave in the order of the send calls; buffers handed to `send_data` are not
touched after their release() or after `detach`; one task receives at a time.
"""

import contextlib
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import trio

from wormfs.core.errors import UnavailableError
from wormfs.rpc.frames import HEADER_BYTES, Buffer, FrameHeader, parse_header

_RECEIVE_BUFFER_BYTES = 32 * 1024
_SCRATCH = memoryview(bytearray(256 * 1024))  # where unwanted data goes; never read
_GATHER_MAX_BUFFERS = 256
_GATHER_MAX_BYTES = 4 << 20
_QUEUED_FRAMES_MAX = 16_384


class Frame(NamedTuple):
    """A received header and its message; raw data is still to be received."""

    header: FrameHeader
    message: bytes


class DataSink:
    """Where raw data is received: the views in their order, then nowhere."""

    __slots__ = ("_filled", "_views", "received_bytes")

    def __init__(self, views: Sequence[memoryview] = ()) -> None:
        self._views = [view for view in reversed(views) if view.nbytes]
        self._filled = 0
        self.received_bytes = 0

    def target(self, remaining_bytes: int) -> memoryview:
        """Where the next bytes go; asked anew before every receive, for `discard` may have come."""
        if not self._views:
            return _SCRATCH[:remaining_bytes]
        view = self._views[-1]
        end = min(self._filled + remaining_bytes, view.nbytes)
        return view if self._filled == 0 and end == view.nbytes else view[self._filled : end]

    def advance(self, count: int) -> None:
        """`count` bytes were written to the last target."""
        if self._views:
            self.received_bytes += count
            self._filled += count
            if self._filled == self._views[-1].nbytes:
                self._views.pop()
                self._filled = 0

    def discard(self) -> None:
        """The views are gone: never write into them again."""
        self._views.clear()


class Unmade:
    """A frame in the send queue that is made when it is sent."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[], bytes]) -> None:
        self.make = make


class Outgoing:
    """A frame with raw data in the send queue; the buffers belong to its maker until it is done."""

    __slots__ = ("buffers", "release", "started")

    def __init__(self, buffers: list[Buffer], release: Callable[[], None] | None) -> None:
        self.buffers = buffers  # what is still to be sent; empty: done
        self.release = release
        self.started = False

    def done(self) -> None:
        """Nothing of it will be sent any more."""
        self.buffers = []
        release, self.release = self.release, None
        if release is not None:
            release()


class FrameLink:
    """Frames over one non-blocking socket; the tasks that drive it are its owner's."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self._view = memoryview(bytearray(_RECEIVE_BUFFER_BYTES))
        self._start = 0  # the buffer holds received bytes in [start, end)
        self._end = 0
        self._wanted_bytes = HEADER_BYTES
        self._drained = False  # the last receive emptied the socket
        self._queue: deque[bytes | Outgoing | Unmade] = deque()
        self._unmade = 0  # of those in the queue
        self.queued_bytes = 0
        self._writer: trio.lowlevel.Task | None = None  # parked
        self._room: trio.Event | None = None
        self.lost: UnavailableError | None = None  # why nothing can be sent any more

    # Receiving

    def poll(self) -> Frame | None:
        """The next frame if its header and message are received already. Raises ProtocolError."""
        start = self._start
        available = self._end - start
        if available < HEADER_BYTES:
            self._wanted_bytes = HEADER_BYTES
            return None
        header = parse_header(self._view, start)
        size = HEADER_BYTES + header.message_bytes
        if available < size:
            self._wanted_bytes = size
            return None
        self._start = start + size
        return Frame(header, bytes(self._view[start + HEADER_BYTES : start + size]))

    async def receive(self) -> Frame:
        """The next frame. Raises ProtocolError; UnavailableError at the end of the stream."""
        while True:
            frame = self.poll()
            if frame is not None:
                return frame
            self._make_room()
            self._end += await self._receive_into(self._view[self._end :])

    def _make_room(self) -> None:
        """The frame that begins at `start` must fit; a buffer grown for a long message shrinks again."""
        start, end, size = self._start, self._end, self._view.nbytes
        wanted = max(self._wanted_bytes, _RECEIVE_BUFFER_BYTES)
        if start == end:
            self._start = self._end = 0
        elif start + self._wanted_bytes > size:
            self._view[: end - start] = self._view[start:end]
            self._start, self._end = 0, end - start
        if wanted > size or (wanted < size and self._end <= _RECEIVE_BUFFER_BYTES):
            grown = memoryview(bytearray(wanted))
            grown[: self._end] = self._view[: self._end]
            self._view = grown

    async def receive_data(self, length_bytes: int, sink: DataSink) -> None:
        """The raw data behind the last frame, all of it; what `sink` does not want is dropped."""
        remaining = length_bytes
        while remaining:
            buffered = self._end - self._start
            if buffered:
                target = sink.target(min(remaining, buffered))
                count = target.nbytes
                target[:] = self._view[self._start : self._start + count]
                self._start += count
            else:
                if self._drained:
                    await self._wait_readable()
                # Asked only now: while this task waited, the destination may have been taken away.
                target = sink.target(remaining)
                count = self._receive_now(target)
            sink.advance(count)
            remaining -= count

    async def _receive_into(self, target: memoryview) -> int:
        while True:
            if self._drained:
                await self._wait_readable()
            else:  # a peer that sends without pause must not keep this task running for ever
                await trio.lowlevel.checkpoint()
            count = self._receive_now(target)
            if count:
                return count

    def _receive_now(self, target: memoryview) -> int:
        """Bytes received; 0 when there are none yet."""
        try:
            count = self._sock.recv_into(target)
        except BlockingIOError:
            self._drained = True
            return 0
        except OSError as error:
            raise UnavailableError(f"the connection broke: {error.strerror}") from error
        if count == 0:
            raise UnavailableError("the peer closed the connection")
        # Level-triggered: fewer bytes than asked for means that the socket is empty, so the next
        # receive waits at once instead of failing first.
        self._drained = count < target.nbytes
        return count

    async def _wait_readable(self) -> None:
        try:
            await trio.lowlevel.wait_readable(self._fd)
        except (trio.ClosedResourceError, OSError) as error:
            raise UnavailableError("the connection was closed") from error

    # Sending

    def send(self, frame: bytes, *, now: bool) -> None:
        """Send a frame without raw data: at once if `now` and nothing is queued, else with others.

        Raises UnavailableError when the connection is lost or the peer has stopped reading.
        """
        self._check()
        if now and not self._queue:
            try:
                sent = self._sock.send(frame)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                raise self.fail(error) from error
            if sent == len(frame):
                return
            frame = frame[sent:]
        self.queued_bytes += len(frame)
        self._queue.append(frame)
        self.wake()

    def enqueue(self, frame: bytes) -> None:
        """Queue a frame without raw data; the caller calls `flush` or `wake` soon."""
        self._check()
        self.queued_bytes += len(frame)
        self._queue.append(frame)

    def enqueue_unmade(self, make: Callable[[], bytes]) -> None:
        """As `enqueue`, of a frame that is to be made as late as can be; `make` must not raise."""
        self._check()
        self._queue.append(Unmade(make))
        self._unmade += 1

    def send_data(
        self, frame: bytes, data: Sequence[Buffer], release: Callable[[], None] | None = None
    ) -> Outgoing:
        """Send a frame and its raw data; `release` is called when the buffers are no longer needed.

        Raises UnavailableError as `send` does (`release` is then the caller's to call).
        """
        self._check()
        buffers: list[Buffer] = [frame]
        buffers.extend(memoryview(buffer).cast("B") for buffer in data)
        outgoing = Outgoing([buffer for buffer in buffers if len(buffer)], release)
        idle = not self._queue
        self.queued_bytes += sum(map(len, outgoing.buffers))
        self._queue.append(outgoing)
        if not (idle and self.flush()):
            self.wake()
        return outgoing

    def detach(self, outgoing: Outgoing) -> bool:
        """Give the buffers back now. Returns False when nothing of the frame was or will be sent.

        A frame that is sent in part must be sent to its end: the rest is copied.
        """
        if not outgoing.buffers:
            return True
        if not outgoing.started:
            self.queued_bytes -= sum(map(len, outgoing.buffers))
            self._queue.remove(outgoing)
            outgoing.done()
            return False
        outgoing.buffers = [bytes(buffer) for buffer in outgoing.buffers]
        return True

    def _check(self) -> None:
        if self.lost is not None:
            raise UnavailableError(self.lost.message)
        if len(self._queue) >= _QUEUED_FRAMES_MAX:
            raise UnavailableError("the peer has stopped reading")

    def flush(self) -> bool:
        """Send what is queued. Returns False when the socket takes no more now.

        Never raises: a broken connection is noted in `lost`, and the receiving task learns of it.
        """
        if self._unmade:
            self._make_frames()
        budget = _GATHER_MAX_BYTES
        while self._queue and budget > 0:
            buffers = self._gather()
            try:
                sent = self._sock.sendmsg(buffers) if len(buffers) > 1 else self._sock.send(buffers[0])
            except BlockingIOError:
                return False
            except OSError as error:
                self.fail(error)
                return True
            budget -= sent
            self._sent(sent)
        return not self._queue

    def _make_frames(self) -> None:
        for at, entry in enumerate(self._queue):
            if isinstance(entry, Unmade):
                frame = self._queue[at] = entry.make()
                self.queued_bytes += len(frame)
        self._unmade = 0

    def _gather(self) -> list[Buffer]:
        buffers: list[Buffer] = []
        total = 0
        for entry in self._queue:
            if isinstance(entry, bytes):
                buffers.append(entry)
                total += len(entry)
            elif isinstance(entry, Outgoing):
                buffers.extend(entry.buffers)
                total += sum(map(len, entry.buffers))
            if len(buffers) >= _GATHER_MAX_BUFFERS or total >= _GATHER_MAX_BYTES:
                break
        return buffers[:_GATHER_MAX_BUFFERS]

    def _sent(self, count: int) -> None:
        """Take `count` sent bytes from the head of the queue."""
        self.queued_bytes -= count
        queue = self._queue
        while count:
            head = queue[0]
            if isinstance(head, bytes):
                if count < len(head):
                    queue[0] = head[count:]
                    break
                count -= len(head)
                queue.popleft()
                continue
            if not isinstance(head, Outgoing):
                raise TypeError("a frame was sent before it was made")
            head.started = True
            taken = 0
            for buffer in head.buffers:
                if count < len(buffer):
                    break
                count -= len(buffer)
                taken += 1
            del head.buffers[:taken]
            if head.buffers:
                head.buffers[0] = memoryview(head.buffers[0])[count:]
                break
            queue.popleft()
            head.done()
        if self._room is not None:
            self._room.set()
            self._room = None

    def wake(self) -> None:
        """Let the writer's task send what is queued."""
        writer, self._writer = self._writer, None
        if writer is not None:
            trio.lowlevel.reschedule(writer)

    async def write_queued(self) -> None:
        """The writer's loop: ends only when cancelled."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self._writer = None
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            if not self._queue:
                self._writer = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(abort)
            elif not self.flush():
                with contextlib.suppress(trio.ClosedResourceError, OSError):
                    await trio.lowlevel.wait_writable(self._fd)

    async def wait_for_room(self) -> None:
        """Wait until some of the queue was sent, or the connection is lost."""
        if self._queue and self.lost is None:
            if self._room is None:
                self._room = trio.Event()
            await self._room.wait()

    def fail(self, error: OSError) -> UnavailableError:
        """Sending failed: give everything queued back, and end the stream for the receiving task."""
        lost = UnavailableError(f"the connection broke: {error.strerror}")
        self._drop(lost)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        return lost

    def _drop(self, lost: UnavailableError) -> None:
        if self.lost is None:
            self.lost = lost
        queue, self._queue = self._queue, deque()
        self.queued_bytes = self._unmade = 0
        if self._room is not None:
            self._room.set()
            self._room = None
        for entry in queue:
            if isinstance(entry, Outgoing):
                entry.done()

    def close(self) -> None:
        """Close the socket; whatever is queued is given back unsent."""
        self._drop(UnavailableError("the connection was closed"))
        if self._fd >= 0:
            trio.lowlevel.notify_closing(self._fd)
            self._fd = -1
            self._sock.close()
