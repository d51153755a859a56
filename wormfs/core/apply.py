"""Applying events to a state. Never decides: every choice is in the event.

`apply` is total over events that were decided on the same state; anything else means that log and
state do not belong together: DataLossError, so that no replica diverges silently.
"""

from collections.abc import Callable
from typing import Any

from wormfs.core import events as ev
from wormfs.core.content import plan_truncate, plan_write
from wormfs.core.errors import DataLossError
from wormfs.core.limits import ROOT_INODE
from wormfs.core.namespace import attributes_set, entries_changed, made_inode, relinked, root_inode
from wormfs.core.records import Allocation, DiskRecord, Inode, NodeRecord
from wormfs.core.state import At, ContentChange, State


def apply(state: State, event: ev.Event, at: At, change: ContentChange | None = None) -> None:
    """Change the state by one event.

    `change`: what a content event does, when the caller worked it out on this very state.
    Raises DataLossError when the event cannot follow this state (log and state do not belong together).
    """
    if isinstance(event, ev.FileWritten):
        _file_written(state, event, at, change)
    elif isinstance(event, ev.FileTruncated):
        _file_truncated(state, event, at, change)
    else:
        _APPLY[type(event)](state, event, at)


def _inode(state: State, inode: int) -> Inode:
    row = state.inode(inode)
    if row is None:
        raise DataLossError(f"the log names inode {inode}, which the state does not have")
    return row


def _cluster_formed(state: State, event: ev.ClusterFormed, at: At) -> None:
    state.set_cluster(event.cluster_id, event.name)
    state.set_policy(event.policy)
    state.put_inode(root_inode(event.policy.stripe_size_bytes, at))
    state.use_inode(ROOT_INODE)


def _policy_set(state: State, event: ev.PolicySet, _at: At) -> None:
    state.set_policy(event.policy)


def _node_registered(state: State, event: ev.NodeRegistered, _at: At) -> None:
    state.put_node(
        NodeRecord(event.number, event.name, event.addresses, event.grpc_address, event.machine_id)
    )


def _disk_registered(state: State, event: ev.DiskRegistered, _at: At) -> None:
    state.put_disk(DiskRecord(event.number, event.uuid, event.node, event.path))


def _session_opened(state: State, event: ev.SessionOpened, _at: At) -> None:
    state.put_session(event.session_id, event.label)
    state.use_session_id(event.session_id)


def _session_closed(state: State, event: ev.SessionClosed, _at: At) -> None:
    for allocation in state.allocations_of(event.session_id):
        _to_garbage(state, allocation)
    state.delete_session(event.session_id)


def _to_garbage(state: State, allocation: Allocation) -> None:
    state.delete_allocation(allocation.stripe_id)
    state.add_garbage(allocation.inode, allocation.stripe_id, allocation.disks)


def _inode_made(state: State, event: ev.InodeMade, at: At) -> None:
    row = made_inode(event, at)
    parent = _inode(state, event.parent)
    state.put_inode(row)
    state.use_inode(event.inode)
    state.put_entry(event.parent, event.name, event.inode)
    state.put_inode(entries_changed(parent, 1 if row.is_dir else 0, at))


def _entry_linked(state: State, event: ev.EntryLinked, at: At) -> None:
    state.put_inode(relinked(_inode(state, event.inode), 1, at))
    state.put_entry(event.parent, event.name, event.inode)
    state.put_inode(entries_changed(_inode(state, event.parent), 0, at))


def _unlinked(state: State, row: Inode, at: At) -> None:
    after = relinked(row, -1, at)
    state.put_inode(after)
    if not after.nlink:
        state.add_orphan(row.inode)


def _entry_removed(state: State, event: ev.EntryRemoved, at: At) -> None:
    row = _inode(state, event.inode)
    state.delete_entry(event.parent, event.name)
    _unlinked(state, row, at)
    state.put_inode(entries_changed(_inode(state, event.parent), -1 if row.is_dir else 0, at))


def _entry_renamed(state: State, event: ev.EntryRenamed, at: At) -> None:
    row = _inode(state, event.inode)
    replaced = _inode(state, event.replaced_inode) if event.replaced_inode else None
    old_delta = -1 if row.is_dir else 0  # subdirectories the old and the new parent gain
    new_delta = 1 if row.is_dir else 0
    state.put_inode(
        row._replace(parent=event.new_parent if row.is_dir else 0, ctime_ns=at.time_ns, change=at.sequence)
    )
    if replaced is not None and replaced.is_dir:
        new_delta -= 1
    if event.exchange and replaced is not None:
        state.put_entry(event.parent, event.name, replaced.inode)
        parent = event.parent if replaced.is_dir else 0
        state.put_inode(replaced._replace(parent=parent, ctime_ns=at.time_ns, change=at.sequence))
        old_delta += 1 if replaced.is_dir else 0
    else:
        state.delete_entry(event.parent, event.name)
        if replaced is not None:
            _unlinked(state, replaced, at)
    state.put_entry(event.new_parent, event.new_name, event.inode)
    state.put_inode(entries_changed(_inode(state, event.parent), old_delta, at))
    state.put_inode(entries_changed(_inode(state, event.new_parent), new_delta, at))


def _attributes_set(state: State, event: ev.AttributesSet, at: At) -> None:
    state.put_inode(attributes_set(_inode(state, event.inode), event, at))


def _xattr_changed(state: State, inode: int, at: At) -> None:
    state.put_inode(_inode(state, inode)._replace(ctime_ns=at.time_ns, change=at.sequence))


def _xattr_set(state: State, event: ev.XattrSet, at: At) -> None:
    _xattr_changed(state, event.inode, at)
    state.put_xattr(event.inode, event.name, event.value)


def _xattr_removed(state: State, event: ev.XattrRemoved, at: At) -> None:
    _xattr_changed(state, event.inode, at)
    state.delete_xattr(event.inode, event.name)


def _stripes_allocated(state: State, event: ev.StripesAllocated, _at: At) -> None:
    for stripe in event.stripes:
        state.put_allocation(
            Allocation(
                stripe.stripe_id,
                event.session_id,
                event.inode,
                stripe.codec,
                stripe.k,
                stripe.m,
                stripe.disks,
            )
        )
        state.use_stripe_id(stripe.stripe_id)


def _stripes_abandoned(state: State, event: ev.StripesAbandoned, _at: At) -> None:
    for stripe_id in event.stripe_ids:
        allocation = state.allocation(stripe_id)
        if allocation is None:
            raise DataLossError(f"the log abandons stripe {stripe_id}, which the state does not have")
        _to_garbage(state, allocation)


def _content_changed(state: State, change: ContentChange) -> None:
    inode = change.inode.inode
    for stripe in change.freed:
        state.add_garbage(inode, stripe.stripe_id, stripe.disks)
    if change.freed:
        state.delete_stripes(inode, [stripe.index for stripe in change.freed])
    for stripe in change.stripes:
        state.put_stripe(inode, stripe)
    if change.removed:
        state.delete_extents(inode, change.removed)
    for extent in change.extents:
        state.put_extent(inode, extent.offset_bytes, extent.data)
    state.put_inode(change.inode)


def _file_written(state: State, event: ev.FileWritten, at: At, change: ContentChange | None) -> None:
    if change is None:
        change = plan_write(state, _inode(state, event.inode), event, at)
    for stripe in event.stripes:
        state.delete_allocation(stripe.stripe_id)
    _content_changed(state, change)


def _file_truncated(state: State, event: ev.FileTruncated, at: At, change: ContentChange | None) -> None:
    if change is None:
        change = plan_truncate(state, _inode(state, event.inode), event, at)
    _content_changed(state, change)


def _orphan_freed(state: State, event: ev.OrphanFreed, at: At) -> None:
    row = _inode(state, event.inode)
    if row.is_file:
        cut = ev.FileTruncated(event.inode, 0, row.mtime_ns)
        _content_changed(state, plan_truncate(state, row, cut, at))
    state.delete_xattrs(event.inode)
    state.delete_orphan(event.inode)
    state.delete_inode(event.inode)


def _chunks_collected(state: State, event: ev.ChunksCollected, _at: At) -> None:
    state.delete_garbage(event.disk, event.stripe_ids)


def _stripe_replaced(state: State, event: ev.StripeReplaced, _at: At) -> None:
    (stripe,) = event.stripes
    old = state.stripe(event.inode, stripe.index)
    if old is None or old.stripe_id != event.old_stripe_id:
        raise DataLossError(f"the log replaces stripe {event.old_stripe_id}, which the state does not have")
    state.delete_allocation(stripe.stripe_id)
    state.add_garbage(event.inode, old.stripe_id, old.disks)
    state.put_stripe(event.inode, stripe)


def _disk_forgotten(state: State, event: ev.DiskForgotten, _at: At) -> None:
    state.delete_disk(event.disk)
    if event.node:
        state.delete_node(event.node)


def _master_elected(state: State, event: ev.MasterElected, _at: At) -> None:
    state.set_epoch(event.epoch, event.node)


def _numbers_skipped(state: State, event: ev.NumbersSkipped, _at: At) -> None:
    state.use_inode(event.last_inode)


_APPLY: dict[type, Callable[[State, Any, At], None]] = {
    ev.ClusterFormed: _cluster_formed,
    ev.PolicySet: _policy_set,
    ev.NodeRegistered: _node_registered,
    ev.DiskRegistered: _disk_registered,
    ev.SessionOpened: _session_opened,
    ev.SessionClosed: _session_closed,
    ev.InodeMade: _inode_made,
    ev.EntryLinked: _entry_linked,
    ev.EntryRemoved: _entry_removed,
    ev.EntryRenamed: _entry_renamed,
    ev.AttributesSet: _attributes_set,
    ev.XattrSet: _xattr_set,
    ev.XattrRemoved: _xattr_removed,
    ev.StripesAllocated: _stripes_allocated,
    ev.StripesAbandoned: _stripes_abandoned,
    ev.OrphanFreed: _orphan_freed,
    ev.ChunksCollected: _chunks_collected,
    ev.StripeReplaced: _stripe_replaced,
    ev.DiskForgotten: _disk_forgotten,
    ev.MasterElected: _master_elected,
    ev.NumbersSkipped: _numbers_skipped,
}
