"""Sessions, leases and recalls over real streams and a real machine."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from google.protobuf.message import Message

from tests.unit.metadata.test_lost_state import bar, fail_writes, unbar
from tests.unit.node.serving import FILE, POLICY, Mount, join, serving
from wormfs.core.errors import (
    NotFoundError,
    NotMasterError,
    NotPermittedError,
    SessionExpiredError,
    StaleError,
    UnavailableError,
)
from wormfs.rpc import methods as m
from wormfs.rpc.grpc_client import call
from wormfs.rpc.grpc_server import serve_grpc
from wormfs.rpc.registry import Registry
from wormfs.rpc.v1 import filesystem_pb2, metadata_pb2, types_pb2


async def test_another_sessions_cached_name_is_recalled_before_the_reply(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.mount() as one, served.mount() as two:
        two.holding = True
        with pytest.raises(NotFoundError):
            await two.lookup(b"f")
        async with trio.open_nursery() as nursery:
            done = trio.Event()

            async def create() -> None:
                await one.create(b"f")
                done.set()

            nursery.start_soon(create)
            recall = await two.recalled()
            assert (recall.inode, list(recall.names)) == (1, [b"f"])
            assert not done.is_set()
            await two.getattr(1)  # others' requests, and its own, go on meanwhile
            assert not done.is_set()
            await two.answer(recall)
            with trio.fail_after(5):
                await done.wait()


@pytest.mark.parametrize("change", ["chmod", "unlink"])
async def test_nobody_is_told_of_a_change_that_a_cache_still_denies(tmp_path: Path, change: str) -> None:
    """Neither by an answer nor by an error: who was told may tell another, who then asks a stale mount."""
    async with serving(tmp_path) as served, served.mount() as one, served.mount() as two:
        inode = (await one.create(b"f")).attributes.inode
        await two.lookup(b"f")
        two.holding = True
        told = []

        async def look(mount: Mount) -> None:
            try:
                told.append((await mount.lookup(b"f")).mode)
            except NotFoundError:
                told.append(0)

        async def unlink() -> None:
            await one.command(m.METADATA_UNLINK, filesystem_pb2.UnlinkRequest(parent=1, name=b"f"))

        async with served.mount() as third, trio.open_nursery() as nursery:
            nursery.start_soon(one.chmod, inode, 0o600) if change == "chmod" else nursery.start_soon(unlink)
            recall = await two.recalled()
            nursery.start_soon(look, third)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert told == []
            with trio.fail_after(5):
                await look(two)  # who is recalled is not held up
            new = [0o100600 if change == "chmod" else 0]
            assert told == new
            for each in two.recalls:
                await two.answer(each)
            assert recall in two.recalls
        assert told == new * 2


async def test_a_write_lease_is_recalled_and_the_holder_can_commit(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.mount() as writer, served.mount() as reader:
        writer.holding = True
        made = await writer.create(b"f")
        assert (made.created, made.write_lease) == (True, True)
        inode = made.attributes.inode
        sizes = []
        async with trio.open_nursery() as nursery:

            async def look() -> None:
                sizes.append((await reader.lookup(b"f")).size_bytes)

            nursery.start_soon(look)
            nursery.start_soon(look)
            recall = await writer.recalled()
            assert recall.write_lease
            await writer.commit(inode, b"hello")
            assert sizes == []
            await writer.answer(recall)
        assert sizes == [5, 5]
        assert len(writer.recalls) == 1
        with pytest.raises(StaleError):
            await writer.commit(inode, b"too late")


async def test_taking_a_write_lease_recalls_readers_whole_and_in_one_round(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.mount() as one, served.mount() as two:
        inode = (await one.create(b"f")).attributes.inode
        reply = await two.take_lease(inode)
        assert reply.write_lease
        assert [(r.write_lease, r.attributes, r.data) for r in one.recalls if r.inode == inode] == [
            (True, True, True)
        ]
        assert (await one.create(b"f", exclusive=False)).write_lease
        assert any(recall.write_lease for recall in two.recalls)


async def test_two_writers_take_turns(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.mount() as one, served.mount() as two:
        inode = (await one.create(b"f")).attributes.inode

        async def write(mount: Mount) -> None:
            for _ in range(20):
                assert (await mount.take_lease(inode)).write_lease

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, one)
                nursery.start_soon(write, two)


async def test_a_recalled_sessions_queued_request_passes(tmp_path: Path) -> None:
    """Its answer may depend on that very request: neither may wait for the other."""
    async with serving(tmp_path) as served, served.mount() as a, served.mount() as b, served.mount() as c:
        c.holding = b.holding = True
        inode = (await c.create(b"f")).attributes.inode
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.take_lease, inode)  # recalls c's lease, holds the gate
            first = await c.recalled()

            async def read_then_answer() -> None:
                await b.getattr(inode)

            nursery.start_soon(read_then_answer)  # queued behind a
            await c.answer(first)
        assert served.master.leases.writers.get(inode, 0) in (0, a.session)


async def test_an_unreachable_session_holds_others_up_until_its_lease_ends(tmp_path: Path) -> None:
    async with serving(tmp_path, lease_s=1.0, address="127.0.0.1:0") as served, served.mount() as one:
        async with served.mount() as gone:
            inode = (await gone.create(b"f")).attributes.inode
        started_s = trio.current_time()
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.keep_alive)
                await one.getattr(inode)
                nursery.cancel_scope.cancel()
        assert trio.current_time() - started_s < 2.0
        assert served.master.leases.lapsed == {gone.session}


async def test_a_session_that_was_silent_comes_back_for_its_answers(tmp_path: Path) -> None:
    """Cut off for longer than its lease: what it had done is told when asked again, and done once."""
    async with serving(tmp_path, lease_s=0.5, address="127.0.0.1:0") as served:
        async with served.mount() as one:
            inode = (await one.create(b"f")).attributes.inode
            done = await one.commit(inode, b"hello")
            with trio.fail_after(5):
                while not served.master.leases.lapsed:  # noqa: ASYNC110 - the table has no event
                    await trio.sleep(0.05)
            with pytest.raises(UnavailableError, match="resume it"):
                await one.getattr(inode)
            renewal = metadata_pb2.RenewSessionRequest(session_id=one.session)
            assert not (await one.call(m.METADATA_RENEW_SESSION, renewal)).known
            session = one.session
            resumed = await one.open_session(session, open_inodes=[inode], write_leases=[inode])
            assert resumed.resumed
            assert not resumed.granted_write_leases
            one.operation -= 1  # the same operation, sent again
            assert await one.commit(inode, b"hello") == done
            with pytest.raises(StaleError):
                await one.commit(inode, b"a new one, without the lease")
            one.operation = 0
            assert (await one.create(b"f")).created
        assert served.master.leases.is_open(inode)


async def test_a_session_that_stays_away_ends(tmp_path: Path) -> None:
    async with serving(tmp_path, lease_s=0.5, address="127.0.0.1:0") as served:
        served.master.leases.keep_s = 0.5
        async with served.mount() as gone:
            inode = (await gone.create(b"f")).attributes.inode
        with trio.fail_after(5):
            while served.machine.sessions():  # noqa: ASYNC110 - the table has no event
                await trio.sleep(0.05)
        assert not served.master.leases.is_open(inode)
        assert not served.master.leases.lapsed


async def test_a_session_ends_at_once_when_its_process_is_gone(tmp_path: Path) -> None:
    async with serving(tmp_path, lease_s=30.0) as served, served.mount() as one:
        await one.getattr(1)
        script = (
            "import sys, trio\n"
            "from tests.unit.node.serving import Served\n"
            "async def main():\n"
            "    async with Served(None, None, None, sys.argv[1]).mount() as mount:\n"
            "        await mount.create(b'f')\n"
            "        print('ready', flush=True)\n"
            "        await trio.sleep_forever()\n"
            "trio.run(main)\n"
        )
        process = subprocess.Popen(  # noqa: ASYNC220 - starting one is fast
            [sys.executable, "-c", script, served.address], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        try:
            assert await trio.to_thread.run_sync(process.stdout.readline) == "ready\n"
        finally:
            process.kill()
            await trio.to_thread.run_sync(process.wait)
            process.stdout.close()
        with trio.fail_after(5):
            await one.lookup(b"f")


async def test_a_live_process_keeps_its_session_over_a_lost_connection(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.mount() as one:
        async with served.mount() as two:
            inode = (await two.create(b"f")).attributes.inode
        async with trio.open_nursery() as nursery, served.mount(session=False) as again:
            nursery.start_soon(one.getattr, inode)
            reply = await again.open_session(two.session, open_inodes=[inode], write_leases=[inode])
            assert reply.resumed
            assert list(reply.granted_write_leases) == [inode]
            # the recall that could not be delivered, or the one made now, arrives here
            assert (await again.recalled()).write_lease
            nursery.cancel_scope.cancel()


async def test_nothing_is_served_after_a_restart_until_known_sessions_resumed(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.mount() as one:
        known = one.session
        inode = (await one.create(b"f")).attributes.inode
    async with serving(tmp_path) as served, served.mount() as new:
        looked = trio.Event()

        async def look() -> None:
            assert (await new.lookup(b"f")).size_bytes == 2
            looked.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            async with served.mount(session=False) as old:
                old.holding = True
                reply = await old.open_session(known, open_inodes=[inode], write_leases=[inode])
                assert list(reply.granted_write_leases) == [inode]
                recall = await old.recalled()  # the look waited: its first act is to recall
                assert not looked.is_set()
                old.operation = 100
                await old.commit(inode, b"ab")
                await old.answer(recall)
                with trio.fail_after(5):
                    await looked.wait()


async def test_a_commit_done_under_the_master_before_is_told_without_its_lease(tmp_path: Path) -> None:
    """Its answer was lost with that master, and so is what the master knew of leases."""
    async with serving(tmp_path) as served, served.mount() as one:
        session, operation = one.session, one.operation + 2
        inode = (await one.create(b"f")).attributes.inode
        done = await one.commit(inode, b"hello")
    async with serving(tmp_path) as served, served.mount(session=False) as one:
        assert (await one.open_session(session, open_inodes=[inode])).resumed
        one.operation = operation - 1  # the same operation, sent again
        assert await one.commit(inode, b"hello") == done
        sequence = served.machine.sequence
        one.operation = operation - 1
        assert await one.commit(inode, b"whatever it says") == done
        with pytest.raises(StaleError):
            await one.commit(inode, b"a new one, without the lease")
        assert served.machine.sequence == sequence
        assert (await one.getattr(inode)).size_bytes == 5


async def test_an_unknown_session_is_told(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.mount() as one:
        one.session = 999
        with pytest.raises(SessionExpiredError):
            await one.getattr(1)
        reply = await one.call(m.METADATA_RENEW_SESSION, metadata_pb2.RenewSessionRequest(session_id=999))
        assert not reply.known


async def test_a_retried_operation_is_done_once_and_waits_for_the_first_ones_recalls(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as served, served.mount() as one, served.mount() as two:
        inode = (await one.create(b"f")).attributes.inode
        two.holding = True
        await two.getattr(inode)  # one's write lease is given up meanwhile
        request = filesystem_pb2.SetAttrRequest(inode=inode, mode=0o600)
        request.caller.operation = 50
        with trio.move_on_after(0.2):
            await one.call(m.METADATA_SET_ATTR, request)
        recall = two.recalls[-1]
        done = trio.Event()
        async with trio.open_nursery() as nursery:

            async def again() -> None:
                await one.call(m.METADATA_SET_ATTR, request)
                done.set()

            nursery.start_soon(again)
            await one.getattr(1)
            assert not done.is_set()
            await two.answer(recall)
            with trio.fail_after(5):
                await done.wait()
        sequence = served.machine.sequence
        await one.call(m.METADATA_SET_ATTR, request)
        assert served.machine.sequence == sequence


async def test_stripes_are_allocated_on_live_disks_only(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.mount() as one:
        inode = (await one.create(b"f")).attributes.inode
        request = metadata_pb2.AllocateStripesRequest(inode=inode, count=3)
        with pytest.raises(UnavailableError, match="0 of 0 disks are online"):
            await one.command(m.METADATA_ALLOCATE_STRIPES, request)
        join(served.members, "n1", ["u1", "u2"])
        join(served.members, "n2", ["u3", "u4"])
        reply = await one.command(m.METADATA_ALLOCATE_STRIPES, request)
        assert len(reply.stripes) == 3
        for stripe in reply.stripes:
            assert (stripe.k, stripe.m, len(set(stripe.disks))) == (POLICY.k, POLICY.m, 3)
        request.suspect_disks.append(1)
        reply = await one.command(m.METADATA_ALLOCATE_STRIPES, request)
        assert all(1 not in stripe.disks for stripe in reply.stripes)


async def test_what_is_unlinked_but_open_is_kept_until_closed(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.mount() as one:
        inode = (await one.create(b"f")).attributes.inode
        await one.command(m.METADATA_UNLINK, filesystem_pb2.UnlinkRequest(parent=1, name=b"f"))
        assert served.master.leases.is_open(inode)
        assert served.machine.orphans(0, 10) == [inode]
        await one.call(
            m.METADATA_CLOSE_FILES,
            metadata_pb2.CloseFilesRequest(session_id=one.session, inodes=[inode], number=1),
        )
        assert not served.master.leases.is_open(inode)


async def test_a_late_attempt_on_an_old_connection_does_nothing(tmp_path: Path) -> None:
    """Refused on the new connection, it may not be done after all when the old one's comes to its turn."""
    async with serving(tmp_path) as served, served.mount() as old, served.mount(session=False) as new:
        await new.open_session(old.session)
        link = filesystem_pb2.LinkRequest(inode=1, parent=1, name=b"no")
        with pytest.raises(NotPermittedError):
            await new.command(m.METADATA_LINK, link)
        sequence = served.machine.sequence
        with pytest.raises(UnavailableError, match="resume it"):
            await old.create(b"late")
        request = metadata_pb2.AllocateStripesRequest(inode=1, count=1)
        attempts: tuple[tuple[m.Method[Any, Any], Message], ...] = (
            (m.METADATA_ALLOCATE_STRIPES, request),
            (m.METADATA_CLOSE_FILES, metadata_pb2.CloseFilesRequest(session_id=old.session, inodes=[1])),
            (m.METADATA_SYNC, metadata_pb2.SyncRequest(session_id=old.session)),
            (m.METADATA_CLOSE_SESSION, metadata_pb2.CloseSessionRequest(session_id=old.session)),
            (m.METADATA_RENEW_SESSION, metadata_pb2.RenewSessionRequest(session_id=old.session)),
            (m.METADATA_RECALL_DONE, metadata_pb2.RecallDoneRequest(session_id=old.session, recall_id=1)),
        )
        for method, message in attempts:
            with pytest.raises(UnavailableError, match="resume it"):
                await old.call(method, message)
        assert served.machine.sequence == sequence
        assert served.machine.has_session(new.session)
        assert (await new.create(b"f")).created


async def test_an_attempt_that_waits_while_its_session_moves_on_does_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.mount() as holder, served.mount() as old:
        holder.holding = True
        inode = (await holder.create(b"f")).attributes.inode
        async with trio.open_nursery() as nursery, served.mount(session=False) as new:

            async def late() -> None:
                with pytest.raises(UnavailableError, match="resume it"):
                    await old.chmod(inode, 0o600)

            nursery.start_soon(late)
            recall = await holder.recalled()
            await new.open_session(old.session)
            before = served.machine.sequence
            await holder.answer(recall)
        assert served.machine.sequence == before


async def test_what_a_change_did_to_one_file_is_not_told_while_a_cache_denies_what_it_did_to_another(
    tmp_path: Path,
) -> None:
    """A rename over a file: whoever sees that this one has no name left must find the other in its place."""
    async with serving(tmp_path) as served, served.mount() as one, served.mount() as two:
        over = (await one.create(b"over")).attributes.inode
        await one.create(b"f")
        two.holding = True
        await two.lookup(b"f")  # and of the directory, but not of the file that loses its name
        async with trio.open_nursery() as nursery:
            request = filesystem_pb2.RenameRequest(parent=1, name=b"f", new_parent=1, new_name=b"over")
            nursery.start_soon(one.command, m.METADATA_RENAME, request)
            await two.recalled()
            told = []

            async def look() -> None:
                told.append((await one.getattr(over)).nlink)

            nursery.start_soon(look)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert told == []
            for each in two.recalls:
                await two.answer(each)
        assert told == [0]
        assert served.master.leases.recalls == {}


@pytest.mark.parametrize("waits_for", ["a recall", "another's turn", "the grace"])
async def test_what_waits_for_others_ends_with_the_mastership(tmp_path: Path, waits_for: str) -> None:
    """Who else would end the wait tells the next master."""
    if waits_for == "the grace":
        async with serving(tmp_path) as served, served.mount():
            pass
    async with serving(tmp_path) as served, served.mount() as one, served.mount() as two:
        if waits_for != "the grace":
            two.holding = True
            inode = (await two.create(b"f")).attributes.inode
        refused = 0

        async def ask() -> None:
            nonlocal refused
            with pytest.raises(NotMasterError, match="master no more"):
                await (one.lookup(b"f") if waits_for == "the grace" else one.take_lease(inode))
            refused += 1

        count = 2 if waits_for == "another's turn" else 1
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for _ in range(count):
                    nursery.start_soon(ask)
                if waits_for != "the grace":
                    await two.recalled()
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert refused == 0
                served.mastership.cancel()
        assert refused == count


async def test_no_session_is_opened_when_the_mastership_is_over(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.mount(session=False) as one:
        served.mastership.cancel()
        with pytest.raises(NotMasterError, match="master no more"):
            await one.open_session()


async def test_over_grpc_there_is_no_session(tmp_path: Path) -> None:
    """Callers over gRPC are served as nobody's session; a number that is somebody else's is refused."""
    async with serving(tmp_path) as served, served.mount() as one, trio.open_nursery() as nursery:
        registry = Registry()
        served.master.register(registry)
        address = await nursery.start(serve_grpc, registry, "127.0.0.1:0")

        def ask(session: int) -> metadata_pb2.FileMapReply:
            request = filesystem_pb2.MakeNodeRequest(parent=1, name=b"%d" % session, mode=FILE)
            request.caller.session_id = session
            return call(address, m.METADATA_MAKE_NODE, request, timeout_s=5)

        assert (await trio.to_thread.run_sync(ask, 0)).created
        with pytest.raises(UnavailableError, match="resume it"):
            await trio.to_thread.run_sync(ask, one.session)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("label", ["", "repair"])
async def test_a_sessions_number_over_grpc_does_nothing(tmp_path: Path, label: str) -> None:
    """Not even that of a session which has no connection: its change would be recalled from nobody."""
    async with serving(tmp_path) as served, served.mount() as mount, trio.open_nursery() as nursery:
        number = served.machine.open_session(label) if label else 999
        with pytest.raises(NotFoundError):
            await mount.lookup(b"f")
        registry = Registry()
        served.master.register(registry)
        address = await nursery.start(serve_grpc, registry, "127.0.0.1:0")
        caller = types_pb2.Caller(session_id=number, operation=1)
        made = filesystem_pb2.MakeNodeRequest(parent=1, name=b"f", mode=FILE, caller=caller)
        asked: list[tuple[m.Method[Any, Any], Any]] = [
            (m.METADATA_GET_ATTR, filesystem_pb2.GetAttrRequest(inode=1, caller=caller)),
            (m.METADATA_MAKE_NODE, made),
        ]
        for method, request in asked:
            with pytest.raises(SessionExpiredError):
                await trio.to_thread.run_sync(call, address, method, request, 5.0)
        with pytest.raises(NotFoundError):
            served.machine.execute(filesystem_pb2.LookupRequest(parent=1, name=b"f"))
        nursery.cancel_scope.cancel()


async def test_resuming_on_the_same_connection_costs_no_descriptors(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.mount() as mount:
        await mount.renew()
        before = len(os.listdir("/proc/self/fd"))
        for attempt in range(1, 51):
            request = metadata_pb2.OpenSessionRequest(session_id=mount.session, attempt=attempt)
            await mount.call(m.METADATA_OPEN_SESSION, request)
        assert len(os.listdir("/proc/self/fd")) - before < 5


async def test_a_change_in_the_log_is_recalled_although_its_state_was_lost(tmp_path: Path) -> None:
    """It is done, and answered when it is asked again, which recalls nothing."""
    async with serving(tmp_path) as served, served.mount() as one, served.mount() as two:
        inode = (await one.create(b"f")).attributes.inode
        await one.commit(inode, b"old")
        opened = await two.call(m.METADATA_OPEN_FILE, metadata_pb2.OpenFileRequest(inode=inode))
        assert opened.attributes.size_bytes == 3
        two.recalls.clear()
        keeper = served.machine.keeper
        disks = keeper.member_disks()
        fail_writes(keeper)
        for disk in disks:
            bar(disk)
        request = filesystem_pb2.SetAttrRequest(inode=inode, size_bytes=1)
        request.caller.operation = 50
        with pytest.raises(UnavailableError):
            await one.call(m.METADATA_SET_ATTR, request)
        for disk in disks:
            unbar(disk)
        with trio.fail_after(10):
            while keeper.is_lost:  # noqa: ASYNC110 - the keeper has no event
                await trio.sleep(0.05)
        assert (await one.call(m.METADATA_SET_ATTR, request)).attributes.size_bytes == 1
        assert [recall.inode for recall in two.recalls] == [inode]


async def test_a_session_that_ends_while_the_state_is_lost_is_closed_later(
    tmp_path: Path,
) -> None:
    """Else the stripes it was given would stay its own until the next restart."""
    async with serving(tmp_path) as served, served.mount() as one, served.mount() as two:
        keeper = served.machine.keeper
        disks = keeper.member_disks()
        fail_writes(keeper)
        for disk in disks:
            bar(disk)
        with pytest.raises(UnavailableError):
            await one.create(b"f")
        await two.call(m.METADATA_CLOSE_SESSION, metadata_pb2.CloseSessionRequest(session_id=two.session))
        for disk in disks:
            unbar(disk)
        with trio.fail_after(10):
            while keeper.is_lost or served.machine.has_session(two.session):  # noqa: ASYNC110 - no event
                await trio.sleep(0.05)
        assert served.machine.has_session(one.session)
