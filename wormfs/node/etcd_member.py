"""The etcd member of this node: started, watched, started again, and ended with a clean stop.

The member does not die with the node: it runs in a session of its own, and a node that starts takes a
running one over. Only a stop that was asked for ends it: nodes that all end by one error (an event of a
newer program) must not take the quorum along. FOLDER holds `data/` (etcd's), `etcd.log`, `pid` (process
id and start time) and `lock`, which the node that looks after the member holds.

A member that lost its data must not come back under its old identity: it would vote without
remembering what it had promised, and committed data could be lost. See etcd_begin.
"""

import fcntl
import logging
import os
import shutil
import signal
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from wormfs.core.errors import ConfigError, DiskError, UnavailableError, WormError
from wormfs.node import etcd_begin, etcd_command, etcd_output, etcd_process, etcd_queries
from wormfs.node.config import MetadataConfig
from wormfs.node.etcd_changes import promote
from wormfs.node.etcd_process import EtcdProcess

log = logging.getLogger(__name__)

START_WAIT_S = 10.0
STOP_WAIT_S = 10.0
_KILL_WAIT_S = 10.0
_BACK_OFF_MIN_S = 1.0
_BACK_OFF_MAX_S = 30.0
_LOG_CHECK_S = 60.0
_ANSWER_S = 2.0
_HEALTH_POLL_S = 0.2
_FREE_BYTES = 256 << 20  # two write-ahead files of 64 MB, made at once, and the database


class EtcdMember:
    """Runs the member `metadata.member`. `has_run`: this node has been in the cluster before.

    With `has_run` an empty folder is a lost member even while no other member can be asked.
    """

    def __init__(
        self,
        metadata: MetadataConfig,
        *,
        cluster_name: str,
        has_run: bool = False,
        start_wait_s: float = START_WAIT_S,
    ) -> None:
        """Raises ConfigError when `metadata` is not one of a managed member."""
        if not metadata.managed or metadata.folder is None:
            raise ConfigError("metadata: no managed etcd member is configured")
        self._metadata = metadata
        self._cluster_name = cluster_name
        self._has_run = has_run
        self._start_wait_s = start_wait_s
        self._folder = metadata.folder.absolute()
        self._data = self._folder / "data"
        self._log_file = self._folder / "etcd.log"
        self._pid_file = self._folder / "pid"
        self._binary = Path()
        self._tls: ssl.SSLContext | None = None
        self._process: EtcdProcess | None = None
        self._log_start = 0
        self._scope = trio.CancelScope()
        self._ended: trio.Event | None = None
        self._announced = False
        self._refused: ConfigError | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the member running until `stop` or cancellation, which leaves it running.

        Started when the member is well, or after `start_wait_s`: others may have to come first. Raises
        before that: ConfigError (no etcd, a wrong version, another cluster), DiskError (the folder),
        UnavailableError (another node looks after it), DataLossError (its data is gone, and what to do).
        ConfigError, too, for a member that was taken out of the cluster; noticed later, that is a line in
        the log, and the node goes on without a member.
        """
        self._ended = trio.Event()
        try:
            self._binary = etcd_command.find_binary(self._metadata.binary)
            await etcd_command.check_version(self._binary)
            etcd_command.check_files(self._metadata)
            self._tls = etcd_queries.tls_context(self._metadata)
            await trio.to_thread.run_sync(self._make_folder)
            with _locked(self._folder), self._scope:
                await self._begin()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._announce, task_status)
                    nursery.start_soon(self._bound_log)
                    await self._supervise()
                    nursery.cancel_scope.cancel()  # it has been taken out of the cluster
            if self._refused is not None:
                raise self._refused
        finally:
            self._ended.set()

    async def stop(self) -> None:
        """The node is done with it: `end` it, but leave it running while an error is on its way.

        Call it in the `finally` of what the member is run for: a cancellation is a stop that was asked for.
        """
        if not _error_under_way():
            await self.end()
        elif self._process is not None:
            log.warning(
                "after an error its etcd member (process %d) goes on; only a clean stop of the node ends it",
                self._process.pid,
            )

    async def end(self) -> None:
        """End the member: SIGTERM, after 10 s SIGKILL. Returns when it is gone, even in a cancelled scope."""
        with trio.CancelScope(shield=True):
            self._scope.cancel()
            if self._ended is not None:
                await self._ended.wait()
            process, self._process = self._process, None
            if process is None:
                return
            for number, wait_s in ((signal.SIGTERM, STOP_WAIT_S), (signal.SIGKILL, _KILL_WAIT_S)):
                process.send(number)
                with trio.move_on_after(wait_s):
                    await process.wait()
                    self._pid_file.unlink(missing_ok=True)
                    log.info("its etcd member stopped")
                    return
                log.warning("its etcd member (process %d) did not end by %s", process.pid, number.name)

    # The start

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._data.mkdir(mode=0o700, exist_ok=True)
            probe = self._folder / ".probe"
            probe.write_bytes(bytes(4096))
            probe.unlink()
            free_bytes = shutil.disk_usage(self._folder).free
        except OSError as error:
            raise DiskError(
                f"metadata.folder {self._folder}: etcd's member cannot keep its data there: {error.strerror}"
            ) from None
        if free_bytes < _FREE_BYTES and not self._has_data():
            raise DiskError(
                f"metadata.folder {self._folder} has {free_bytes >> 20} MiB free; etcd's member needs "
                f"{_FREE_BYTES >> 20} MiB to begin with: make room"
            )

    def _has_data(self) -> bool:
        return any(self._data.glob("member/wal/*.wal"))  # what etcd itself goes by

    async def _begin(self) -> None:
        """Take the running member over, else start it. Raises as `run` does."""
        found = etcd_process.find_running(self._pid_file, etcd_command.data_argument(self._data))
        if found is not None:
            self._adopt(found)
            return
        try:
            await self._start()
        except UnavailableError as error:
            log.error("%s", error.message)  # _supervise tries again

    def _adopt(self, found: EtcdProcess) -> None:
        self._process = found
        self._has_run = True
        self._log_start = etcd_output.length(self._log_file)
        etcd_process.record(self._pid_file, found)
        log.info("took over its etcd member, process %d", found.pid)
        wanted = etcd_command.command(
            self._metadata, self._binary, self._data, token=self._cluster_name, state="", cluster=()
        )
        differ = [
            argument.partition("=")[0]
            for argument in wanted[1:]
            if not argument.startswith("--initial-") and argument not in found.arguments()
        ]
        if differ:
            log.warning(
                "its etcd member runs with other settings (%s) until the next clean stop", ", ".join(differ)
            )

    async def _start(self) -> None:
        """Start the process. Raises ConfigError, DiskError, DataLossError, UnavailableError."""
        await trio.to_thread.run_sync(self._make_folder)
        self._has_run = self._has_run or self._has_data()
        beginning = etcd_begin.configured(self._metadata)  # with data etcd ignores it
        if not self._has_data():
            beginning = await etcd_begin.without_data(
                self._metadata, self._tls, self._data, has_run=self._has_run
            )
        etcd_output.bound(self._log_file)
        self._log_start = etcd_output.length(self._log_file)
        command = etcd_command.command(
            self._metadata,
            self._binary,
            self._data,
            token=self._cluster_name,
            state=beginning.state,
            cluster=beginning.cluster,
        )
        try:
            self._process = etcd_process.start(command, self._log_file, etcd_command.environment(os.environ))
            etcd_process.record(self._pid_file, self._process)
        except OSError as error:
            raise DiskError(f"{self._binary} cannot be started in {self._folder}: {error.strerror}") from None
        log.info("started its etcd member, process %d, with %s", self._process.pid, self._binary)

    # While it runs

    async def _announce(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.move_on_after(self._start_wait_s) as waited:
            await self._wait_healthy()
        if waited.cancelled_caught:
            log.warning(
                "its etcd member is not well after %g s: a majority of %s must run; going on without",
                self._start_wait_s,
                ", ".join(self._metadata.endpoints),
            )
        self._announced = True
        task_status.started()
        await self._wait_healthy()
        self._has_run = True
        log.info("its etcd member is well")
        await promote(self._metadata)

    async def _wait_healthy(self) -> None:
        while True:  # nothing tells us but asking
            if await etcd_queries.is_healthy(self._metadata.member, self._tls, timeout_s=_ANSWER_S):
                return
            await trio.sleep(_HEALTH_POLL_S)

    async def _bound_log(self) -> None:
        while True:
            await trio.sleep(_LOG_CHECK_S)
            await trio.to_thread.run_sync(etcd_output.bound, self._log_file)

    async def _supervise(self) -> None:
        """Start it again whenever it dies; returns when it was taken out of the cluster."""
        delay_s = _BACK_OFF_MIN_S
        while True:
            if self._process is not None:
                began = trio.current_time()
                how = await self._process.wait()
                self._process = None
                if await trio.to_thread.run_sync(etcd_output.says_removed, self._log_file, self._log_start):
                    self._taken_out()
                    return
                if trio.current_time() - began > _BACK_OFF_MAX_S:
                    delay_s = _BACK_OFF_MIN_S
                words = await trio.to_thread.run_sync(etcd_output.last_words, self._log_file, self._log_start)
                log.error("its etcd member died (%s): %s; starting it again in %g s", how, words, delay_s)
            await trio.sleep(delay_s)
            delay_s = min(2 * delay_s, _BACK_OFF_MAX_S)
            try:
                await self._start()
            except WormError as error:
                log.error("its etcd member cannot be started: %s", error.message)

    def _taken_out(self) -> None:
        self._pid_file.unlink(missing_ok=True)
        message = (
            f"metadata.member {self._metadata.member} was taken out of the etcd cluster and may not come "
            f"back as what it was: remove {self._data}, run `wormfs members add --node-config FILE` with "
            "this node's configuration, then start it again"
        )
        if self._announced:
            log.error("%s; until then it goes on without its own etcd member", message)
        else:
            self._refused = ConfigError(message)


def _error_under_way() -> bool:
    """Whether the caller's `finally` was entered by an error, not by a cancellation."""
    error = sys.exception()
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is not None
    return error is not None and not isinstance(error, trio.Cancelled)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold FOLDER/lock. Raises UnavailableError when another node does, DiskError."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DiskError(f"{folder}/lock cannot be opened: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UnavailableError(f"another wormfs-node looks after the etcd member in {folder}") from None
        yield
    finally:
        os.close(descriptor)
