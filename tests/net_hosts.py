"""Hosts on a network of their own, for tests: network namespaces on one bridge, and what packets they lose.

Needs root, and iproute2 alone. Names begin as told, so that two runs never meet; the addresses are
seen within the namespaces only.
"""

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.packet_filter import Drop, Way, bytecode

_TOOL_S = 30
_WAYS: dict[Way, str] = {"in": "ingress", "out": "egress"}
BRIDGE = "bridge"


class NetHosts:
    """`hosts`: name -> IPv4 address (of one /24). The bridge is a host too: faults never touch it."""

    def __init__(self, prefix: str, hosts: dict[str, str], bridge_address: str) -> None:
        self._prefix = prefix
        self.addresses = dict(hosts)
        self._bridge_address = bridge_address
        self._made: list[str] = []

    def make(self) -> None:
        """Make it all; `remove` has to follow, also when this failed."""
        self._add(BRIDGE)
        self._ip(BRIDGE, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
        self._ip(BRIDGE, "address", "add", f"{self._bridge_address}/24", "dev", "br0")
        self._ip(BRIDGE, "link", "set", "br0", "up")
        for host, address in self.addresses.items():
            self._add(host)
            # One packet is one frame: a share of lost packets means what it does on a wire.
            self._ip(
                BRIDGE, "link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", self.name(host)
            )
            self._ip(BRIDGE, "link", "set", host, "master", "br0", "up", "gso_max_segs", "1")
            self._ip(host, "address", "add", f"{address}/24", "dev", "eth0")
            self._ip(host, "link", "set", "eth0", "up", "gso_max_segs", "1")
            _run(*self.within(host), "tc", "qdisc", "add", "dev", "eth0", "clsact")

    def remove(self) -> None:
        """Delete the namespaces, and with them all within; processes there must have ended."""
        for host in reversed(self._made):
            _run("ip", "netns", "delete", self.name(host))
        self._made.clear()

    def name(self, host: str) -> str:
        """Its namespace's name."""
        return f"{self._prefix}-{host}"

    def within(self, host: str) -> Sequence[str]:
        """What to put before a command that is to run on this host: its network, and nothing else of it."""
        return ("nsenter", f"--net={Path('/run/netns') / self.name(host)}")

    def lose(self, host: str, drops: Iterable[Drop]) -> None:
        """From now on this host's interface loses these packets, and no others."""
        wanted = list(drops)
        for way, hook in _WAYS.items():
            code = bytecode(wanted, way)
            _run(
                *self.within(host), "tc", "filter", "replace", "dev", "eth0", hook,
                "handle", "1", "prio", "1", "protocol", "all", "bpf", "da", "bytecode", code,
            )  # fmt: skip

    def _add(self, host: str) -> None:
        _run("ip", "netns", "add", self.name(host))
        self._made.append(host)
        self._ip(host, "link", "set", "lo", "up")

    def _ip(self, host: str, *arguments: str) -> None:
        _run("ip", "-n", self.name(host), *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_TOOL_S)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)} exited {done.returncode}: {done.stdout}{done.stderr}")
