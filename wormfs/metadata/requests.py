"""The Metadata service's requests as functions: queries to replies, commands to decisions and replies.

A command's reply is made from its decision, before the log has it: it goes into the log with it.
"""

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from wormfs.core.errors import InvalidError, NotDirectoryError, NotFoundError, NoXattrError
from wormfs.core.limits import FILE_MAP_PAGE_DEFAULT, FILE_SIZE_MAX_BYTES, LISTING_PAGE_DEFAULT
from wormfs.core.namespace import (
    check_content,
    check_name,
    decide_link,
    decide_make_node,
    decide_remove_dir,
    decide_remove_xattr,
    decide_rename,
    decide_set_attr,
    decide_set_xattr,
    decide_unlink,
    directory,
    existing_inode,
)
from wormfs.core.records import Inode
from wormfs.core.state import At, Decision
from wormfs.core.writing import (
    WrittenStripe,
    decide_commit_write,
    decide_replace_stripe,
    decide_truncate,
)
from wormfs.metadata.convert import attributes_message, extent_messages, extent_records, stripe_message
from wormfs.metadata.sqlite_state import SqliteState
from wormfs.rpc.v1 import filesystem_pb2 as fs
from wormfs.rpc.v1 import metadata_pb2 as md
from wormfs.rpc.v1 import types_pb2

LISTING_PAGE_MAX = 10_000
MAP_PAGE_MAX = 4096


def resolve_child(state: SqliteState, parent: int, name: bytes) -> Inode:
    """The inode behind a name, '.' and '..' included."""
    holder = directory(state, parent)
    if name == b".":
        return holder
    if name == b"..":
        return directory(state, holder.parent)
    found = state.entry(parent, name)
    row = None if found is None else state.inode(found)
    if row is None:
        check_name(name)
        raise NotFoundError(f"no entry {name!r} in directory {parent}")
    return row


def map_reply(state: SqliteState, row: Inode, first: int = 0, count: int = 0) -> md.FileMapReply:
    """A page of a file's map: its stripes, and every extent within."""
    count = min(count or FILE_MAP_PAGE_DEFAULT, MAP_PAGE_MAX)
    reply = md.FileMapReply(
        attributes=attributes_message(row), first_index=first, count=count, sequence=state.applied
    )
    size = row.stripe_size_bytes
    if row.allocated_bytes and first * size < FILE_SIZE_MAX_BYTES:
        for stripe in state.stripes_from(row.inode, first, count):
            if stripe.index >= first + count:
                break
            reply.stripes.append(stripe_message(stripe))
        reply.extents.extend(extent_messages(state.extents(row.inode, first * size, (first + count) * size)))
    return reply


def _attr_reply(row: Inode, sequence: int) -> fs.AttrReply:
    return fs.AttrReply(attributes=attributes_message(row), sequence=sequence)


# --- queries ------------------------------------------------------------------------------------


def _lookup(state: SqliteState, request: fs.LookupRequest) -> Message:
    return _attr_reply(resolve_child(state, request.parent, request.name), state.applied)


def _get_attr(state: SqliteState, request: fs.GetAttrRequest) -> Message:
    return _attr_reply(existing_inode(state, request.inode), state.applied)


def _page_limit(request: fs.ReadDirRequest) -> int:
    return min(request.limit or LISTING_PAGE_DEFAULT, LISTING_PAGE_MAX)


def _read_dir(state: SqliteState, request: fs.ReadDirRequest) -> Message:
    row = existing_inode(state, request.inode)
    if not row.is_dir:
        raise NotDirectoryError(f"inode {request.inode} is not a directory")
    limit = _page_limit(request)
    reply = fs.ReadDirReply()
    page = state.listing(request.inode, request.after, limit + 1)
    reply.end = len(page) <= limit
    add = reply.entries.add
    for name, child in page[:limit]:
        if request.want_attributes:
            add(name=name, inode=child.inode, mode=child.mode, attributes=attributes_message(child))
        else:
            add(name=name, inode=child.inode, mode=child.mode)
    return reply


def _read_link(state: SqliteState, request: fs.ReadLinkRequest) -> Message:
    row = existing_inode(state, request.inode)
    if not row.target:
        raise InvalidError(f"inode {request.inode} is not a symlink")
    return fs.ReadLinkReply(target=row.target)


def _get_xattr(state: SqliteState, request: fs.GetXattrRequest) -> Message:
    existing_inode(state, request.inode)
    value = state.xattr(request.inode, request.name)
    if value is None:
        raise NoXattrError(f"inode {request.inode} has no attribute {request.name!r}")
    return fs.GetXattrReply(value=value)


def _list_xattrs(state: SqliteState, request: fs.ListXattrsRequest) -> Message:
    existing_inode(state, request.inode)
    return fs.ListXattrsReply(names=state.xattr_names(request.inode))


def _get_file_map(state: SqliteState, request: md.GetFileMapRequest) -> Message:
    row = existing_inode(state, request.inode)
    check_content(row)
    return map_reply(state, row, request.first_index, request.count)


def _acquire_write_lease(state: SqliteState, request: md.AcquireWriteLeaseRequest) -> Message:
    row = existing_inode(state, request.inode)
    check_content(row)
    return map_reply(state, row)


QUERIES: dict[type[Message], Callable[[SqliteState, Any], Message]] = {
    fs.LookupRequest: _lookup,
    fs.GetAttrRequest: _get_attr,
    fs.ReadDirRequest: _read_dir,
    fs.ReadLinkRequest: _read_link,
    fs.GetXattrRequest: _get_xattr,
    fs.ListXattrsRequest: _list_xattrs,
    md.GetFileMapRequest: _get_file_map,
    md.AcquireWriteLeaseRequest: _acquire_write_lease,
}


# --- commands -----------------------------------------------------------------------------------


def _make_node(state: SqliteState, at: At, request: fs.MakeNodeRequest) -> Decision:
    return decide_make_node(
        state,
        at,
        parent=request.parent,
        name=request.name,
        mode=request.mode,
        uid=request.uid,
        gid=request.gid,
        rdev=request.rdev,
        target=request.target,
        exclusive=request.exclusive,
    )


def _optional(request: fs.SetAttrRequest) -> dict[str, int]:
    return {
        field.name: value for field, value in request.ListFields() if field.name not in ("caller", "inode")
    }


def _set_attr(state: SqliteState, at: At, request: fs.SetAttrRequest) -> Decision:
    return decide_set_attr(state, at, inode=request.inode, **_optional(request))


def _link(state: SqliteState, at: At, request: fs.LinkRequest) -> Decision:
    return decide_link(state, at, inode=request.inode, parent=request.parent, name=request.name)


def _unlink(state: SqliteState, at: At, request: fs.UnlinkRequest) -> Decision:
    return decide_unlink(state, at, parent=request.parent, name=request.name)


def _remove_dir(state: SqliteState, at: At, request: fs.RemoveDirRequest) -> Decision:
    return decide_remove_dir(state, at, parent=request.parent, name=request.name)


def _rename(state: SqliteState, at: At, request: fs.RenameRequest) -> Decision:
    return decide_rename(
        state,
        at,
        parent=request.parent,
        name=request.name,
        new_parent=request.new_parent,
        new_name=request.new_name,
        flags=request.flags,
    )


def _set_xattr(state: SqliteState, at: At, request: fs.SetXattrRequest) -> Decision:
    return decide_set_xattr(
        state, at, inode=request.inode, name=request.name, value=request.value, flags=request.flags
    )


def _remove_xattr(state: SqliteState, at: At, request: fs.RemoveXattrRequest) -> Decision:
    return decide_remove_xattr(state, at, inode=request.inode, name=request.name)


def _open_file(state: SqliteState, at: At, request: md.OpenFileRequest) -> Decision:
    row = existing_inode(state, request.inode)
    check_content(row)
    if request.truncate:
        return decide_truncate(state, at, inode=request.inode)
    return Decision((), row)


def _commit_write(state: SqliteState, at: At, request: md.CommitWriteRequest) -> Decision:
    return decide_commit_write(
        state,
        at,
        session_id=request.caller.session_id,
        inode=request.inode,
        stripes=[
            WrittenStripe(stripe.index, stripe.stripe_id, stripe.length_bytes, stripe.valid_bytes)
            for stripe in request.stripes
        ],
        extents=extent_records(request.extents),
        size_bytes=request.size_bytes,
        mtime_ns=request.mtime_ns,
    )


def _replace_stripe(state: SqliteState, _: At, request: md.ReplaceStripeRequest) -> Decision:
    return decide_replace_stripe(
        state,
        inode=request.inode,
        holder=request.holder,
        index=request.index,
        old_stripe_id=request.old_stripe_id,
        new_stripe_id=request.new_stripe_id,
    )


COMMANDS: dict[type[Message], Callable[[SqliteState, At, Any], Decision]] = {
    fs.MakeNodeRequest: _make_node,
    fs.SetAttrRequest: _set_attr,
    fs.LinkRequest: _link,
    fs.UnlinkRequest: _unlink,
    fs.RemoveDirRequest: _remove_dir,
    fs.RenameRequest: _rename,
    fs.SetXattrRequest: _set_xattr,
    fs.RemoveXattrRequest: _remove_xattr,
    md.OpenFileRequest: _open_file,
    md.CommitWriteRequest: _commit_write,
    md.ReplaceStripeRequest: _replace_stripe,
}

GROWING = frozenset(
    (
        fs.MakeNodeRequest,
        fs.LinkRequest,
        fs.RenameRequest,
        fs.SetXattrRequest,
        md.CommitWriteRequest,
    )
)
"""Commands refused when the metadata's disk is nearly full; those that free space are not."""

REPLIES: dict[type[Message], type[Message]] = {
    fs.MakeNodeRequest: md.FileMapReply,
    fs.SetAttrRequest: fs.AttrReply,
    fs.LinkRequest: fs.AttrReply,
    fs.UnlinkRequest: md.DirectoriesReply,
    fs.RemoveDirRequest: md.DirectoriesReply,
    fs.RenameRequest: md.DirectoriesReply,
    fs.SetXattrRequest: types_pb2.Empty,
    fs.RemoveXattrRequest: types_pb2.Empty,
    md.OpenFileRequest: md.FileMapReply,
    md.CommitWriteRequest: fs.AttrReply,
    md.ReplaceStripeRequest: types_pb2.Empty,
    md.AllocateStripesRequest: md.AllocateStripesReply,
}
"""What each command is answered with."""


def command_reply(state: SqliteState, decision: Decision, kind: type[Message], sequence: int) -> Message:
    """A command's reply, the state being the one before it. `sequence`: what it will stand at."""
    row = decision.inode
    if row is None or kind is types_pb2.Empty or kind is md.DirectoriesReply:
        return kind()
    if kind is fs.AttrReply:
        return _attr_reply(row, sequence)
    if not decision.events:
        return map_reply(state, row)
    # A new or emptied file: no stripes, no extents.
    return md.FileMapReply(
        attributes=attributes_message(row),
        count=FILE_MAP_PAGE_DEFAULT,
        sequence=sequence,
        created=decision.created,
    )


# --- which inodes a request reads or changes ----------------------------------------------------


def request_targets(state: SqliteState, request: Message) -> tuple[int, ...]:
    """Inodes whose attributes or content a request will read or change; none for what is not there."""
    if isinstance(request, fs.ReadDirRequest):
        if not request.want_attributes:
            return ()
        page = state.entry_page(request.inode, request.after, _page_limit(request))
        return tuple(inode for _, inode in page)
    found: list[int | None] = []
    if isinstance(request, fs.RenameRequest):
        found = [
            state.entry(request.parent, request.name),
            state.entry(request.new_parent, request.new_name),
        ]
    elif isinstance(request, fs.LookupRequest | fs.MakeNodeRequest | fs.UnlinkRequest | fs.RemoveDirRequest):
        found = [state.entry(request.parent, request.name)]
    elif isinstance(request, fs.GetXattrRequest | fs.ListXattrsRequest | fs.ReadLinkRequest):
        return ()
    else:
        found = [getattr(request, "inode", None)]
    return tuple(inode for inode in found if inode is not None)
