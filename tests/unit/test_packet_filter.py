"""The packet filter's programs, run by a small machine of our own on packets made by hand."""

import ipaddress
import struct

import pytest

from tests.packet_filter import Drop, Way, bytecode

HERE, PEER, OTHER = "10.99.0.1", "10.99.0.2", "10.99.0.3"


def packet(source: str, goal: str, source_port: int, goal_port: int, protocol: int = 6) -> bytes:
    addresses = ipaddress.IPv4Address(source).packed + ipaddress.IPv4Address(goal).packed
    header = bytes([0x45, 0]) + bytes(7) + bytes([protocol]) + bytes(2) + addresses
    return bytes(12) + b"\x08\x00" + header + struct.pack(">HH", source_port, goal_port)


ARP = bytes(12) + b"\x08\x06" + bytes(28)


def is_dropped(code: str, frame: bytes, chance: float = 0.0) -> bool:
    program = [tuple(map(int, each.split())) for each in code.split(",")[1:]]
    assert int(code.split(",", 1)[0]) == len(program)
    at = value = 0
    while True:
        op, true, false, number = program[at]
        at += 1
        if op == 0x06:
            return number == 2
        if op in (0x15, 0x35):
            at += true if (value == number if op == 0x15 else value >= number) else false
        elif number >= 0xFFFFF000:
            value = int(chance * 2**32)
        else:
            length = {0x20: 4, 0x28: 2, 0x30: 1}[op]
            assert number + length <= len(frame)
            value = int.from_bytes(frame[number : number + length], "big")


@pytest.mark.parametrize("way", ["in", "out"])
def test_without_a_rule_of_its_way_all_passes(way: Way) -> None:
    code = bytecode([Drop("out" if way == "in" else "in")], way)
    assert not is_dropped(code, packet(PEER, HERE, 1, 2))
    assert not is_dropped(code, ARP)


def test_a_bare_rule_drops_all() -> None:
    code = bytecode([Drop("in")], "in")
    assert is_dropped(code, packet(PEER, HERE, 1, 2))
    assert is_dropped(code, ARP)


def test_a_peer_and_its_ports_alone_are_hit() -> None:
    drops = [Drop("in", PEER, 2379), Drop("in", PEER, 2380), Drop("out", OTHER)]
    coming, going = bytecode(drops, "in"), bytecode(drops, "out")
    for port in (2379, 2380):
        assert is_dropped(coming, packet(PEER, HERE, port, 40_000))
        assert is_dropped(coming, packet(PEER, HERE, 40_000, port))
        assert not is_dropped(coming, packet(PEER, HERE, 40_000, port, protocol=17))
        assert not is_dropped(coming, packet(OTHER, HERE, port, 40_000))
    assert not is_dropped(coming, packet(PEER, HERE, 7400, 40_000))
    assert not is_dropped(coming, ARP)
    assert is_dropped(going, packet(HERE, OTHER, 7400, 40_000))
    assert not is_dropped(going, packet(OTHER, HERE, 7400, 40_000))
    assert not is_dropped(going, packet(HERE, PEER, 2379, 40_000))


def test_a_share_is_a_matter_of_chance() -> None:
    code = bytecode([Drop("out", share=0.3)], "out")
    assert is_dropped(code, ARP, chance=0.29)
    assert not is_dropped(code, ARP, chance=0.31)
