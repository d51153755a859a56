"""What a network interface drops, as a classic BPF program for tc(8): `tc filter ... bpf da bytecode`.

Pure. With it iproute2 alone makes every fault; not every kernel has netem, or an action `drop`.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Way = Literal["in", "out"]
"""Seen from the host whose interface it is."""

# Offsets in an Ethernet frame with an IPv4 header without options, which is all that our hosts send.
_ETHERTYPE_AT = 12
_PROTOCOL_AT = 23
_ADDRESS_AT = {"in": 26, "out": 30}  # of the other host: the source of what comes, the goal of what goes
_PORTS_AT = (34, 36)
_IPV4 = 0x0800
_TCP = 6

# Instructions (linux/filter.h) and verdicts (linux/pkt_cls.h).
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30
_JUMP_EQUAL, _JUMP_LESS_NOT, _RETURN = 0x15, 0x35, 0x06
_RANDOM_AT = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM
_PASS, _DROP = 0, 2
_SKIP = -1  # a jump behind the rule, whose length is not known yet


@dataclass(frozen=True, slots=True)
class Drop:
    """Packets to lose: `share` of those that go this way, to or from `peer`, with this TCP `port` at an end.

    Without `peer` and `port` it is everything, ARP too.
    """

    way: Way
    peer: str = ""
    port: int = 0
    share: float = 1.0


_Instruction = tuple[int, int, int, int]


def bytecode(drops: Iterable[Drop], way: Way) -> str:
    """The program for one direction of an interface, as tc wants it."""
    program = [instruction for drop in drops if drop.way == way for instruction in _rule(drop)]
    program.append((_RETURN, 0, 0, _PASS))
    return f"{len(program)}," + ",".join(" ".join(map(str, each)) for each in program)


def _rule(drop: Drop) -> Sequence[_Instruction]:
    code: list[_Instruction] = []
    if drop.peer or drop.port:
        code += [(_LOAD_HALF, 0, 0, _ETHERTYPE_AT), (_JUMP_EQUAL, 0, _SKIP, _IPV4)]
    if drop.peer:
        code += [
            (_LOAD_WORD, 0, 0, _ADDRESS_AT[drop.way]),
            (_JUMP_EQUAL, 0, _SKIP, int(ipaddress.IPv4Address(drop.peer))),
        ]
    if drop.port:
        source_at, goal_at = _PORTS_AT
        code += [
            (_LOAD_BYTE, 0, 0, _PROTOCOL_AT),
            (_JUMP_EQUAL, 0, _SKIP, _TCP),
            (_LOAD_HALF, 0, 0, source_at),
            (_JUMP_EQUAL, 2, 0, drop.port),  # over the test of the other port
            (_LOAD_HALF, 0, 0, goal_at),
            (_JUMP_EQUAL, 0, _SKIP, drop.port),
        ]
    if drop.share < 1:
        code += [(_LOAD_WORD, 0, 0, _RANDOM_AT), (_JUMP_LESS_NOT, _SKIP, 0, int(drop.share * 2**32))]
    code.append((_RETURN, 0, 0, _DROP))
    return [
        (op, *(len(code) - at - 1 if jump == _SKIP else jump for jump in (true, false)), value)  # type: ignore[misc]
        for at, (op, true, false, value) in enumerate(code)
    ]
