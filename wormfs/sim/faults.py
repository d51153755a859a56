"""Faults: what goes wrong when, drawn from the seed before the run begins, and how it is done."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

import trio

from wormfs.sim.client import SimClient
from wormfs.sim.etcd import NAME as ETCD
from wormfs.sim.etcd import SimEtcd
from wormfs.sim.front import LEASE_S
from wormfs.sim.network import Network, Weather
from wormfs.sim.node import SimNode

FAULTS_MEAN = 12
USURP_MAX_S = 6.0
BASE_DELAYS_S = (0.0005, 0.002, 0.02, 0.1)


@dataclass(frozen=True, slots=True)
class Fault:
    """`kind` names a method of Faults; `node` and `client` are indexes for it to use."""

    at_s: float
    kind: str
    node: int
    client: int
    lasts_s: float
    amount: float  # between 0 and 1, for the fault to make something of


KINDS = {
    "kill": 4,
    "power": 3,
    "stop_cleanly": 2,
    "freeze": 4,
    "cut_etcd": 4,
    "cut_etcd_one_way": 4,
    "flap_etcd": 2,
    "cut_client": 2,
    "cut_client_one_way": 2,
    "isolate": 2,
    "usurp": 3,
    "no_quorum": 3,
    "bad_weather": 3,
    "die_with_answers": 9,
    "kill_client": 2,
    "miss_a_master": 3,
    "full_disk": 2,
    "jump_wall": 2,
    "jump_boot": 1,
    "compact": 1,
    "snapshot": 2,
}


def plan(random: Random, *, nodes: int, clients: int, length_s: float) -> list[Fault]:
    """The faults of a run, in order."""
    count = random.randrange(FAULTS_MEAN // 2, FAULTS_MEAN * 3 // 2 + 1)
    kinds = random.choices(list(KINDS), list(KINDS.values()), k=count)
    return sorted(
        (
            Fault(
                random.uniform(2.0, length_s),
                kind,
                random.randrange(nodes),
                random.randrange(clients),
                random.choice((0.1, 0.6, 2.5, 6.0)) * random.uniform(0.5, 1.5),
                random.random(),
            )
            for kind in kinds
        ),
        key=lambda fault: fault.at_s,
    )


class Faults:
    """Does faults to a world, each for its time; what it did is undone when `run` returns."""

    def __init__(
        self, etcd: SimEtcd, network: Network, nodes: list[SimNode], clients: list[SimClient]
    ) -> None:
        self._etcd = etcd
        self._network = network
        self._nodes = nodes
        self._clients = clients
        self._random = etcd.random
        self._quorum_faults = 0
        network.weather.delay_s = self._random.choice(BASE_DELAYS_S)
        self._weathers = [network.weather]

    async def run(self, faults: list[Fault]) -> None:
        """Do them all; they overlap."""
        async with trio.open_nursery() as nursery:
            for fault in faults:
                await trio.sleep(max(0.0, fault.at_s - trio.current_time()))
                node = self._target(fault)
                self._etcd.trace.note("fault", f"{fault.kind} {node.name} {fault.lasts_s:.3f} s")
                does: Callable[[Fault, SimNode], Awaitable[None]] = getattr(self, f"_{fault.kind}")
                nursery.start_soon(does, fault, node)

    def _target(self, fault: Fault) -> SimNode:
        """Mostly the master, of whom there is more to break."""
        if fault.amount < 0.6:
            return next((node for node in self._nodes if node.epoch), self._nodes[fault.node])
        return self._nodes[fault.node]

    # --- processes ----------------------------------------------------------------------------

    async def _kill(self, fault: Fault, node: SimNode) -> None:
        if node.is_up:
            node.crash(power=False)
            await trio.sleep(fault.lasts_s)
            await node.start()

    async def _power(self, fault: Fault, node: SimNode) -> None:
        if node.is_up:
            node.crash(power=True)
            await trio.sleep(fault.lasts_s)
            await node.start()

    async def _stop_cleanly(self, fault: Fault, node: SimNode) -> None:
        if node.is_up:
            await node.stop()
            await trio.sleep(fault.lasts_s)
            await node.start()

    async def _freeze(self, fault: Fault, node: SimNode) -> None:
        process = node.process
        if not process.is_stopped:
            process.stop()
            await trio.sleep(fault.lasts_s)
            process.go_on()

    async def _kill_client(self, fault: Fault, _: SimNode) -> None:
        self._clients[fault.client].die()

    async def _die_with_answers(self, fault: Fault, _: SimNode) -> None:
        """Have the master answer what etcd does not get; kill it, and perhaps its successors and clients.

        The clients act at once; the last one killed stays away for the fault's time.
        """
        random = self._random
        killed: list[SimNode] = []
        while master := next((node for node in self._nodes if node.epoch and node.is_up), None):
            links = [(master.name, ETCD), (ETCD, master.name)]
            for link in links:
                self._network.cut(*link)
            if not killed:
                stirred = self._clients if fault.amount < 0.3 else [self._clients[fault.client]]
                for _wave in range(6):
                    for client in stirred:
                        client.stir.notify()
                    await trio.sleep(random.random() * 0.2)
                if fault.amount > 0.7:
                    self._clients[fault.client].die()
            master.crash(power=False)
            for link in links:
                self._network.mend(*link)
            killed.append(master)
            if len(killed) == len(self._nodes) - 1 or random.random() < 0.5:
                break
            with trio.move_on_after(USURP_MAX_S):
                while not any(node.epoch for node in self._nodes):
                    await self._etcd.changed.wait()
                await trio.sleep(random.choice((0.01, 0.1, 1.0, 4.0)) * random.random())
        for node in killed[:-1]:
            await node.start()
        await trio.sleep(fault.lasts_s)
        for node in killed[-1:]:
            await node.start()

    async def _miss_a_master(self, fault: Fault, node: SimNode) -> None:
        """Let a client keep what the master after the next must not order: one that served was in between."""
        client = self._clients[fault.client]
        master = next((each for each in self._nodes if each.epoch and each.is_up), node)
        links = [(master.name, ETCD), (ETCD, master.name)]
        for link in links:
            self._network.cut(*link)
        client.stir.notify()
        await trio.sleep(0.3 + self._random.random())
        apart = [
            link for each in self._nodes for link in ((client.name, each.name), (each.name, client.name))
        ]
        for link in apart:
            self._network.cut(*link)
        master.crash(power=False)
        for link in links:
            self._network.mend(*link)
        await trio.sleep(LEASE_S + 3.0 + self._random.random() * 4)
        for other in self._clients:
            if other is not client:
                other.stir.notify()
        await trio.sleep(self._random.random())
        for each in self._nodes:
            if each.epoch and each is not master:
                each.crash(power=False)
        for link in apart:
            self._network.mend(*link)
        await trio.sleep(min(fault.lasts_s, 2.0))
        for each in self._nodes:
            await each.start()

    # --- links --------------------------------------------------------------------------------

    async def _cut(self, links: list[tuple[str, str]], lasts_s: float) -> None:
        for link in links:
            self._network.cut(*link)
        await trio.sleep(lasts_s)
        for link in links:
            self._network.mend(*link)

    async def _cut_etcd(self, fault: Fault, node: SimNode) -> None:
        await self._cut([(node.name, ETCD), (ETCD, node.name)], fault.lasts_s)

    async def _cut_etcd_one_way(self, fault: Fault, node: SimNode) -> None:
        link = (node.name, ETCD) if fault.client % 2 else (ETCD, node.name)
        await self._cut([link], fault.lasts_s)

    async def _flap_etcd(self, fault: Fault, node: SimNode) -> None:
        ends_s = trio.current_time() + fault.lasts_s
        while trio.current_time() < ends_s:
            await self._cut([(node.name, ETCD), (ETCD, node.name)], self._random.random())
            await trio.sleep(self._random.random() * 0.3)

    async def _cut_client(self, fault: Fault, node: SimNode) -> None:
        client = self._clients[fault.client].name
        await self._cut([(client, node.name), (node.name, client)], fault.lasts_s)

    async def _cut_client_one_way(self, fault: Fault, node: SimNode) -> None:
        client = self._clients[fault.client].name
        link = (client, node.name) if fault.amount < 0.3 else (node.name, client)
        await self._cut([link], fault.lasts_s)

    async def _isolate(self, fault: Fault, node: SimNode) -> None:
        others = [ETCD, *(client.name for client in self._clients)]
        links = [(node.name, other) for other in others] + [(other, node.name) for other in others]
        await self._cut(links, fault.lasts_s)

    async def _usurp(self, fault: Fault, node: SimNode) -> None:
        """Cut the master off until another wins, who then stands still: the old one may think it goes on."""
        links = [(node.name, ETCD), (ETCD, node.name)]
        for link in links:
            self._network.cut(*link)
        winner = None
        with trio.move_on_after(USURP_MAX_S):
            while winner is None:
                await self._etcd.changed.wait()
                winner = next(
                    (other for other in self._nodes if other.is_elected and other is not node), None
                )
        if winner is not None:
            await trio.sleep(self._random.expovariate(1 / 0.005))
            winner.process.stop()
        for link in links:
            self._network.mend(*link)
        if winner is not None:
            process = winner.process
            await trio.sleep(min(fault.lasts_s, 3.0))
            process.go_on()

    async def _bad_weather(self, fault: Fault, _: SimNode) -> None:
        weather = Weather(
            delay_s=0.002 + 0.3 * fault.amount**2,
            slow_share=0.2,
            slow_s=4.0,
            lost_share=0.2 * fault.amount,
            doubled_share=0.1,
        )
        self._weathers.append(weather)
        self._network.weather = weather
        await trio.sleep(fault.lasts_s)
        self._weathers.remove(weather)
        self._network.weather = self._weathers[-1]

    # --- etcd, clocks, disks ------------------------------------------------------------------

    async def _no_quorum(self, fault: Fault, _: SimNode) -> None:
        self._quorum_faults += 1
        self._etcd.lose_quorum()
        await trio.sleep(fault.lasts_s)
        self._quorum_faults -= 1
        if not self._quorum_faults:
            self._etcd.find_quorum()

    async def _compact(self, _: Fault, __: SimNode) -> None:
        self._etcd.store.compact(self._etcd.store.revision)

    async def _jump_wall(self, fault: Fault, node: SimNode) -> None:
        node.clock.jump_wall((fault.amount - 0.5) * 10_000)

    async def _jump_boot(self, fault: Fault, node: SimNode) -> None:
        node.clock.jump_boot(fault.lasts_s)

    async def _full_disk(self, fault: Fault, node: SimNode) -> None:
        node.disk.fill()
        await trio.sleep(fault.lasts_s)
        node.disk.free()

    async def _snapshot(self, _: Fault, node: SimNode) -> None:
        """Not a fault, but a moment when much can go wrong."""
        node.take_snapshot()
