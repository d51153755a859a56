"""One run: a world made from a seed, what happens in it, and what the checkers say of it.

    clients --network--> nodes (real replica, election, log, machine) --network--> fake etcd
                           |
                         disks (real files on tmpfs, faked syncs, space and power)

Faults happen while the clients work. Then everything is mended; the clients must finish within
PROGRESS_S, the replicas come to one sequence and one digest, and every answer given must be explained.
"""

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import cast

import trio
from trio.testing import MockClock

from wormfs.core.errors import UnavailableError
from wormfs.metadata import checks
from wormfs.metadata.replica import Replica
from wormfs.sim.checks import LogWatcher
from wormfs.sim.client import NAMES, SimClient
from wormfs.sim.clocks import MachineClock
from wormfs.sim.determinism import deterministic
from wormfs.sim.disk import SimDisk, faked_disks
from wormfs.sim.etcd import SimEtcd
from wormfs.sim.faults import Faults, plan
from wormfs.sim.history import History
from wormfs.sim.linearizable import linearizable
from wormfs.sim.names_model import initial
from wormfs.sim.network import Network
from wormfs.sim.node import SEGMENT_BYTES, SimNode
from wormfs.sim.processes import stoppable
from wormfs.sim.promises import broken_promises
from wormfs.sim.reader import SimReader
from wormfs.sim.trace import Trace

RATE_SPREAD = 0.03
"""How much faster or slower than true a clock runs at most; the code allows for 10 % between two."""
PROGRESS_S = 60.0
RESTART_S = 1.0
CATCH_UP_S = 30.0


@dataclass(frozen=True, slots=True)
class Size:
    """How much happens in a run."""

    nodes: int = 3
    clients: int = 3
    tasks: int = 2  # of a client: operations it has under way at once
    operations: int = 16  # of a task
    reads: int = 60  # of a client more, which caches what it is told
    length_s: float = 120.0  # simulated, until the last fault has begun


@dataclass
class Report:
    """What came of a run. `problems` is empty when every promise was kept."""

    seed: int
    problems: list[str] = field(default_factory=list)
    commands: int = 0
    faults: int = 0
    simulated_s: float = 0.0
    entries: int = 0
    epochs: int = 0
    losses: int = 0  # clients that died, or were told that answers are lost
    early: int = 0  # entries that were pushed with early answers
    adopted: int = 0  # entries that a master ordered anew
    cached: int = 0  # answers told from a cache
    messages: int = 0
    undecided: bool = False
    trace_digest: str = ""
    trace: list[str] = field(default_factory=list)


class World:
    """Everything of one run."""

    def __init__(self, seed: int, size: Size, folder: Path, trace: Trace, disks: list[SimDisk]) -> None:
        self.size = size
        self.report = Report(seed)
        self._seed = seed
        self._folder = folder
        self._trace = trace
        self._disks = disks
        self._watcher = LogWatcher(self.report.problems)
        self._history = History()
        self._faults = plan(
            self._random("faults"), nodes=size.nodes, clients=size.clients + 1, length_s=size.length_s
        )

    def _random(self, what: str) -> Random:
        """Numbers of their own for each part, so that more of one changes no other."""
        return Random(f"{self._seed} {what}")

    def _rate(self, random: Random) -> float:
        return 1 + random.uniform(-RATE_SPREAD, RATE_SPREAD)

    async def run(self) -> None:
        """Let it happen. Raises nothing that a fault may cause."""
        rates = self._random("clocks")
        async with trio.open_nursery() as nursery:
            network = Network(self._random("network"), self._trace, nursery)
            etcd = SimEtcd(network, self._random("etcd"), self._trace, self._rate(rates))
            etcd.observers.append(self._watcher.revision)
            nursery.start_soon(etcd.run)

            def answered(node: str, epoch: int) -> None:
                self._watcher.answered(etcd.store, node, epoch)

            def failed(node: SimNode, error: Exception) -> None:
                # On a full disk a node may refuse to start; it is started again until it can live.
                if node.was_up or not (node.disk.was_full and isinstance(error, UnavailableError)):
                    self.report.problems.append(f"{node.name} ended: {type(error).__name__}: {error}")
                nursery.start_soon(self._restart, node)

            nodes = []
            for number in range(1, self.size.nodes + 1):
                random = self._random(f"node {number}")
                disk = SimDisk(self._folder / f"node-{number}", random)
                self._disks.append(disk)
                clock = MachineClock(trio.current_time, self._rate(rates))
                nodes.append(
                    SimNode(
                        number, etcd, disk, clock, random, nursery=nursery, failed=failed, answered=answered
                    )
                )
            clients = [
                kind(
                    f"client-{number}",
                    nodes,
                    network,
                    self._random(f"client {number}"),
                    history=self._history,
                    trace=self._trace,
                    problems=self.report.problems,
                )
                for number, kind in enumerate([SimClient] * self.size.clients + [SimReader])
            ]
            reader = cast("SimReader", clients[-1])
            self._history.answered = reader.look_again
            for node in nodes:
                await node.start()
            try:
                await self._happen(etcd, network, nodes, clients)
            finally:
                for node in nodes:
                    node.process.go_on()  # a stopped one would not even end
            self.report.simulated_s = trio.current_time()
            self.report.messages = network.message_count
            nursery.cancel_scope.cancel()
        self.report.early = sum(client.early_count for client in clients)
        self.report.cached = reader.hit_count
        self._judge(clients[0].directories)

    async def _restart(self, node: SimNode) -> None:
        await trio.sleep(RESTART_S)
        await node.start()

    async def _happen(
        self, etcd: SimEtcd, network: Network, nodes: list[SimNode], clients: list[SimClient]
    ) -> None:
        size = self.size
        with trio.move_on_after(PROGRESS_S) as patience:
            for name in (b"x", b"y"):
                inode = await clients[0].make_directory(name)
                for client in clients:
                    client.directories = (*client.directories[1:], inode)[-2:]
        if patience.cancelled_caught:
            self.report.problems.append("no progress: nothing was done before the first fault")
            return
        faults = Faults(etcd, network, nodes, clients)
        async with trio.open_nursery() as nursery:
            for client in clients[:-1]:
                nursery.start_soon(client.run, size.tasks, size.operations, size.length_s / size.operations)
            nursery.start_soon(clients[-1].run, 1, size.reads, size.length_s / size.reads)
            await faults.run(self._faults)
            self._trace.note("world", "all is mended")
            for client in clients:
                client.hurry.set()
            with trio.move_on_after(PROGRESS_S) as patience:
                for client in clients:
                    await client.done.wait()
                await self._look_at_all(clients[0])
                for client in clients:
                    await client.sync()
            if patience.cancelled_caught:
                self.report.problems.append(
                    f"no progress: clients are not done {PROGRESS_S:g} s after the last fault"
                )
            nursery.cancel_scope.cancel()
        await self._compare(nodes)
        for node in nodes:
            await node.stop()
        self._reopen(nodes)

    async def _look_at_all(self, client: SimClient) -> None:
        for directory in client.directories:
            await client.list(directory)
            for name in NAMES:
                await client.lookup(directory, name)

    async def _compare(self, nodes: list[SimNode]) -> None:
        """Wait until all replicas hold the whole log, then compare their digests."""
        last = len(self._watcher.entries)
        with trio.move_on_after(CATCH_UP_S):
            while any(_differs(node, last) for node in nodes):
                await trio.sleep(0.1)
                last = len(self._watcher.entries)
        found = {}
        for node in nodes:
            if node.replica is None:
                self.report.problems.append(f"no progress: {node.name} does not start")
                continue
            if node.replica.keeper.is_lost:
                self.report.problems.append(f"no progress: {node.name} does not make its state again")
                continue
            state = node.replica.keeper.state
            if state.applied < last:
                self.report.problems.append(f"{node.name} is at entry {state.applied} of {last} only")
            state.begin()
            found[node.name] = (state.applied, checks.digest(state))
            self._trace.note(node.name, f"ends at {found[node.name]}")
            for problem in checks.check_namespace(state):
                self.report.problems.append(f"{node.name}: {problem}")
        if len(set(found.values())) > 1:
            self.report.problems.append(f"replicas differ: {found}")
        self._digests = found

    def _reopen(self, nodes: list[SimNode]) -> None:
        """What lies on the disks makes the same state again."""
        for node in nodes:
            replica = Replica.open([node.disk.folder], segment_bytes=SEGMENT_BYTES)
            state = replica.keeper.state
            state.begin()
            again = (state.applied, checks.digest(state))
            before = self._digests.get(node.name)
            if before is not None and again[0] == before[0] and again != before:
                self.report.problems.append(f"{node.name} holds {again} on its disk, not {before}")
            replica.close()

    def _judge(self, directories: tuple[int, ...]) -> None:
        report = self.report
        self._watcher.finish()
        report.commands = len(self._history.calls)
        report.faults = len(self._faults)
        report.entries = len(self._watcher.entries)
        report.epochs = self._watcher.epoch_count
        report.adopted = self._watcher.adopted_count
        report.losses = self._history.losses
        report.problems.extend(broken_promises(self._history.calls, self._watcher.done))
        verdict = linearizable(self._history.calls, initial(directories))
        report.undecided = verdict.undecided
        if not verdict.holds and not verdict.undecided:
            calls = "; ".join(map(str, verdict.stuck[:4]))
            report.problems.append(
                f"not linearizable: {verdict.reached} of {report.commands} calls explained, not {calls}"
            )


def _differs(node: SimNode, sequence: int) -> bool:
    """Whether its state is not at that entry; a master's may be ahead, with a session it has just ended."""
    replica = node.replica
    if replica is None or replica.keeper.is_lost or replica.sequence < sequence:
        return True
    return replica.keeper.state.applied != sequence


@contextmanager
def _scratch() -> Iterator[Path]:
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="wormfs-sim-", dir=shared if shared.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def simulate(
    seed: int, size: Size | None = None, *, keep_trace: bool = False, folder: Path | None = None
) -> Report:
    """Run one seed. The same seed and size give the same trace, given PYTHONHASHSEED=0."""
    disks: list[SimDisk] = []
    logging_was = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with _scratch() as scratch, stoppable(), deterministic(seed), faked_disks(disks):
            clock = MockClock(autojump_threshold=0)
            trace = Trace(trio.current_time, folder or scratch, keep=keep_trace)
            world = World(seed, size or Size(), folder or scratch, trace, disks)
            trio.run(world.run, clock=clock)
            world.report.trace_digest = trace.digest
            world.report.trace = trace.lines
            return world.report
    finally:
        logging.disable(logging_was)
