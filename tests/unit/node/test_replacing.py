"""Repair's switch of a stripe: what it keeps, when it refuses, and who is told."""

from pathlib import Path

import trio

from tests.unit.node.serving import Mount, Served, join, serving
from wormfs.rpc import methods as m
from wormfs.rpc.v1 import metadata_pb2, types_pb2


async def write_stripe(mount: Mount, inode: int) -> types_pb2.Stripe:
    """A committed stripe of 100,000 bytes, and an extent over its first bytes."""
    allocate = metadata_pb2.AllocateStripesRequest(inode=inode, count=1)
    (stripe,) = (await mount.command(m.METADATA_ALLOCATE_STRIPES, allocate)).stripes
    stripe.length_bytes = stripe.valid_bytes = 100_000
    commit = metadata_pb2.CommitWriteRequest(inode=inode, stripes=[stripe], size_bytes=100_000)
    commit.extents.add(offset_bytes=0, data=b"over")
    await mount.command(m.METADATA_COMMIT_WRITE, commit)
    return stripe


def allocate(served: Served, holder: int, inode: int) -> int:
    request = metadata_pb2.AllocateStripesRequest(inode=inode, count=1)
    request.caller.session_id = holder
    chosen = types_pb2.Stripe(codec=types_pb2.CODEC_ZFEC, k=2, m=1, disks=[4, 3, 2])
    reply = served.machine.allocate(request, [chosen]).reply
    assert isinstance(reply, metadata_pb2.AllocateStripesReply)
    return reply.stripes[0].stripe_id


def replacing(holder: int, inode: int, old: int, new: int) -> metadata_pb2.ReplaceStripeRequest:
    return metadata_pb2.ReplaceStripeRequest(inode=inode, holder=holder, old_stripe_id=old, new_stripe_id=new)


async def test_a_replaced_stripe_changes_the_map_and_nothing_else(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.mount() as mount:
        join(served.members, "n", ["u1", "u2", "u3", "u4"])
        inode = (await mount.create(b"f")).attributes.inode
        old = await write_stripe(mount, inode)
        before = await mount.getattr(inode)
        holder = served.machine.open_session("repair")
        new = allocate(served, holder, inode)
        assert await served.master.replace_stripe(replacing(holder, inode, old.stripe_id, new))
        recall = await mount.recalled()  # the writer commits first, then its map is recalled
        assert recall.data
        assert [each.write_lease for each in mount.recalls] == [True, False]
        assert await mount.getattr(inode) == before
        reply = await mount.call(m.METADATA_GET_FILE_MAP, metadata_pb2.GetFileMapRequest(inode=inode))
        (stripe,) = reply.stripes
        assert (stripe.stripe_id, list(stripe.disks), stripe.valid_bytes) == (new, [4, 3, 2], 100_000)
        assert [each.data for each in reply.extents] == [b"over"]
        garbage = {
            (disk, each.stripe_id)
            for disk in served.machine.garbage_disks()
            for each in served.machine.garbage(disk)
        }
        assert garbage == {(disk, old.stripe_id) for disk in old.disks}
        assert stripe.codec == types_pb2.CODEC_ZFEC


async def test_a_stripe_written_meanwhile_is_left_alone(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.mount() as mount:
        join(served.members, "n", ["u1", "u2", "u3", "u4"])
        inode = (await mount.create(b"f")).attributes.inode
        old = await write_stripe(mount, inode)
        holder = served.machine.open_session("repair")
        new = allocate(served, holder, inode)
        newer = await write_stripe(mount, inode)
        assert not await served.master.replace_stripe(replacing(holder, inode, old.stripe_id, new))
        assert served.machine.stripe_by_id(inode, newer.stripe_id) is not None
        assert served.machine.is_allocated(new)
        served.machine.abandon(holder, [new])
        assert not served.machine.is_allocated(new)


async def test_a_truncation_meanwhile_stays(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.mount() as mount:
        join(served.members, "n", ["u1", "u2", "u3", "u4"])
        inode = (await mount.create(b"f")).attributes.inode
        old = await write_stripe(mount, inode)
        holder = served.machine.open_session("repair")
        new = allocate(served, holder, inode)
        cut = m.METADATA_SET_ATTR.request(inode=inode, size_bytes=5)
        await mount.command(m.METADATA_SET_ATTR, cut)
        assert await served.master.replace_stripe(replacing(holder, inode, old.stripe_id, new))
        stripe = served.machine.stripe_by_id(inode, new)
        assert stripe is not None
        assert (stripe.valid_bytes, stripe.length_bytes) == (5, 100_000)
        assert (await mount.getattr(inode)).size_bytes == 5


async def test_the_only_session_is_recalled_too(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.mount() as mount:
        join(served.members, "n", ["u1", "u2", "u3", "u4"])
        inode = (await mount.create(b"f")).attributes.inode
        old = await write_stripe(mount, inode)
        await mount.call(
            m.METADATA_CLOSE_FILES,
            metadata_pb2.CloseFilesRequest(session_id=mount.session, inodes=[inode], number=1),
        )
        mount.holding = True
        holder = served.machine.open_session("repair")
        new = allocate(served, holder, inode)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.master.replace_stripe, replacing(holder, inode, old.stripe_id, new))
            recall = await mount.recalled()
            assert (recall.inode, recall.data, recall.write_lease) == (inode, True, False)
            await mount.answer(recall)
