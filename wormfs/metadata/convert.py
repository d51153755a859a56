"""Between protocol messages and the core's records and events. On the hot path: keep it flat."""

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, NamedTuple

from wormfs.core import events as ev
from wormfs.core.errors import NewerProgramError
from wormfs.core.records import Extent, Inode, Stripe
from wormfs.core.types import Codec, Policy
from wormfs.rpc.v1 import event_pb2, types_pb2


def attributes_message(row: Inode) -> types_pb2.Attributes:
    """An inode's attributes as clients see them."""
    return types_pb2.Attributes(
        inode=row[0],
        mode=row[2],
        nlink=row[3],
        uid=row[4],
        gid=row[5],
        rdev=row[6],
        size_bytes=row[7],
        allocated_bytes=row[8],
        atime_ns=row[9],
        mtime_ns=row[10],
        ctime_ns=row[11],
        change=row[12],
        stripe_size_bytes=row[13],
    )


def stripe_message(stripe: Stripe) -> types_pb2.Stripe:
    """A stripe's record."""
    return types_pb2.Stripe(
        index=stripe[0],
        stripe_id=stripe[1],
        codec=stripe[2],  # type: ignore[arg-type]
        k=stripe[3],
        m=stripe[4],
        chunk_length_bytes=stripe[5],
        length_bytes=stripe[6],
        valid_bytes=stripe[7],
        disks=stripe[8],
    )


def stripe_record(message: types_pb2.Stripe) -> Stripe:
    """A stripe's record from its message."""
    return Stripe(
        message.index,
        message.stripe_id,
        message.codec,
        message.k,
        message.m,
        message.chunk_length_bytes,
        message.length_bytes,
        message.valid_bytes,
        tuple(message.disks),
    )


def extent_messages(extents: Iterable[Extent]) -> list[types_pb2.Extent]:
    """Extents with their bytes."""
    return [types_pb2.Extent(offset_bytes=offset, data=data) for offset, data in extents]


def extent_records(messages: Iterable[types_pb2.Extent]) -> tuple[Extent, ...]:
    """Extents from their messages."""
    return tuple(Extent(message.offset_bytes, message.data) for message in messages)


def policy_message(policy: Policy) -> types_pb2.Policy:
    """A policy."""
    return types_pb2.Policy(
        k=policy.k,
        m=policy.m,
        chunk_size_bytes=policy.chunk_size_bytes,
        codec=int(policy.codec),  # type: ignore[arg-type]
    )


def policy_record(message: types_pb2.Policy) -> Policy:
    """A policy from its message."""
    return Policy(message.k, message.m, message.chunk_size_bytes, Codec(message.codec))


_FILL: dict[str, Callable[[Any, Any], object]] = {
    "policy": lambda message, policy: message.CopyFrom(policy_message(policy)),
    "stripes": lambda messages, stripes: messages.extend([stripe_message(stripe) for stripe in stripes]),
    "extents": lambda messages, extents: [
        messages.add(offset_bytes=offset, data=data) for offset, data in extents
    ],
    "addresses": lambda messages, addresses: messages.extend(addresses),
    "stripe_ids": lambda messages, stripe_ids: messages.extend(stripe_ids),
}
_TO_RECORD: dict[str, Callable[[Any], Any]] = {
    "policy": policy_record,
    "stripes": lambda messages: tuple(stripe_record(message) for message in messages),
    "extents": extent_records,
    "addresses": tuple,
    "stripe_ids": tuple,
}
_OPTIONAL = {ev.AttributesSet: ("mode", "uid", "gid", "atime_ns", "mtime_ns")}


class _Shape(NamedTuple):
    """How one kind of event goes to its message and back; field names are the same on both sides."""

    kind: str  # the field of Event's oneof
    event: type[Any]
    names: tuple[str, ...]
    get: Callable[[Any], tuple[Any, ...]]
    to_record: tuple[tuple[int, Callable[[Any], Any]], ...]  # of fields that are no plain values, by place
    optional: tuple[tuple[int, str], ...]


def _shape(event: type[Any]) -> _Shape:
    names = tuple(event.__dataclass_fields__)
    kind = "".join("_" + letter.lower() if letter.isupper() else letter for letter in event.__name__)[1:]
    getter = attrgetter(*names)
    get = getter if len(names) > 1 else (lambda value: (getter(value),))
    to_record = tuple((at, _TO_RECORD[name]) for at, name in enumerate(names) if name in _TO_RECORD)
    optional = tuple((names.index(name), name) for name in _OPTIONAL.get(event, ()))
    return _Shape(kind, event, names, get, to_record, optional)


_SHAPES = {event: _shape(event) for event in ev.Event.__args__}
_BY_KIND = {shape.kind: shape for shape in _SHAPES.values()}


def fill_event(message: event_pb2.Event, event: ev.Event) -> None:
    """Make an empty message an event's log record: where it is to stand, so that nothing is copied."""
    shape = _SHAPES[type(event)]
    body = getattr(message, shape.kind)
    body.SetInParent()
    for name, value in zip(shape.names, shape.get(event), strict=True):
        fill = _FILL.get(name)
        if fill is not None:
            if value:
                fill(getattr(body, name), value)
        elif value is not None:
            setattr(body, name, value)


def event_record(message: event_pb2.Event) -> ev.Event:
    """An event from its log record. NewerProgramError when this program does not know its kind."""
    kind = message.WhichOneof("kind")
    if kind is None:
        raise NewerProgramError("the log holds an event of a newer program: upgrade WormFS")
    shape = _BY_KIND[kind]
    body = getattr(message, kind)
    values = list(shape.get(body))
    for at, to_record in shape.to_record:
        values[at] = to_record(values[at])
    for at, name in shape.optional:
        if not body.HasField(name):
            values[at] = None
    event: ev.Event = shape.event(*values)
    return event
