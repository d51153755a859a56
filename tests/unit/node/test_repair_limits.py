"""What repair must not do, or forget: over a real node's chunks; and how damage is reported to it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio

from tests.unit.node.one_node import CHUNK_BYTES, ROOMY, OneNode, one_node
from wormfs.client.options import ClientOptions
from wormfs.client.peers import Peer
from wormfs.core.records import Stripe
from wormfs.core.types import ChunkKey
from wormfs.metadata.machine import Machine
from wormfs.node import repair as repair_module
from wormfs.node.cluster_service import ClusterService
from wormfs.node.health import Health
from wormfs.node.membership import DAMAGED_AT_ONCE, Membership, damaged_message
from wormfs.node.repair import Repair
from wormfs.rpc import methods as m
from wormfs.rpc.registry import Registry
from wormfs.rpc.stream_server import serve_streams
from wormfs.rpc.v1 import cluster_pb2, filesystem_pb2

pytestmark = pytest.mark.timeout(30)
STRIPES = 6
CONTENT = Random(5).randbytes(STRIPES * 2 * CHUNK_BYTES)  # as 2+1
NUMBER_TOO_LARGE = 1 << 63


@pytest.fixture(autouse=True)
def quick_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """No round is waited for longer than the others."""
    monkeypatch.setattr(repair_module, "RETRY_MIN_S", 0.02)
    monkeypatch.setattr(repair_module, "RETRY_MAX_S", 0.02)


class Lookups:
    """Notes the chunks' stripes that the machine is asked for from here on."""

    def __init__(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stripe_ids: list[int] = []
        self.streak = self.longest_streak = 0  # of lookups between which no other task ran
        self._look_up = machine.stripe_by_id
        monkeypatch.setattr(machine, "stripe_by_id", self._noted)

    def _noted(self, inode: int, stripe_id: int) -> Stripe | None:
        self.stripe_ids.append(stripe_id)
        self.streak += 1
        self.longest_streak = max(self.longest_streak, self.streak)
        return self._look_up(inode, stripe_id)

    async def watch(self) -> None:
        """Another task."""
        while True:
            await trio.lowlevel.checkpoint()
            self.streak = 0


@asynccontextmanager
async def cluster_service(world: OneNode, repair: Repair, folder: Path) -> AsyncIterator[Peer]:
    """The Cluster service over this repair: who asks it."""
    service = ClusterService(
        world.machine,
        world.members,
        world.master,
        Health(world.machine, world.members),
        world.links,
        repair,
        disk_count=len(world.disks),
        engine="embedded",
    )
    registry = Registry()
    service.register(registry)
    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(serve_streams, registry, [f"unix:{folder}/master"])
        yield Peer(addresses, nursery, ClientOptions())
        nursery.cancel_scope.cancel()


def heartbeat(world: OneNode, *damaged: tuple[int, ChunkKey]) -> cluster_pb2.HeartbeatRequest:
    request = cluster_pb2.HeartbeatRequest(cluster_id=world.machine.cluster_id, node=1)
    request.damaged.extend(damaged_message(disk, key) for disk, key in damaged)
    return request


def disk_state(world: OneNode, disk: int, *, online: bool) -> cluster_pb2.HeartbeatRequest:
    """A heartbeat that says so of a disk."""
    request = heartbeat(world)
    state = cluster_pb2.DISK_STATE_ONLINE if online else cluster_pb2.DISK_STATE_OFFLINE
    request.disks.add(number=disk, state=state, free_bytes=ROOMY)
    return request


def first_chunks(world: OneNode, inode: int) -> list[tuple[int, ChunkKey]]:
    """Disk and name of each stripe's first chunk."""
    return [(each.disks[0], ChunkKey(inode, each.stripe_id, 0)) for each in world.stripes(inode)]


# Stripes that are narrow


async def test_a_stripe_that_cannot_be_widened_is_left_alone(tmp_path: Path) -> None:
    """1+1 on two disks while the third is full: it would be rewritten for ever."""
    async with one_node(tmp_path, [ROOMY, ROOMY, 0]) as world:
        inode = await world.write_file(CONTENT[:CHUNK_BYTES], [1, 2])
        before, number = world.stripes(inode), world.machine.next_stripe_id
        repair = world.repair(after_s=0.0)
        world.nursery.start_soon(repair.run)
        await world.rounds.pass_by(5)
        assert (repair.progress.widened, repair.progress.waiting, repair.progress.stuck) == (0, 1, 1)
        assert "stays 1+1: too few disks have room for more" in repair.status().stuck_reason
        assert world.stripes(inode) == before
        assert world.machine.next_stripe_id == number  # nothing was tried, either


async def test_nothing_is_read_of_a_stripe_that_cannot_be_widened(tmp_path: Path) -> None:
    async with one_node(tmp_path, [ROOMY, ROOMY, 0]) as world:
        inode = await world.write_file(CONTENT[:CHUNK_BYTES], [1, 2])
        (stripe,) = world.stripes(inode)
        for index, disk in enumerate(stripe.disks):  # who reads them is told so, and the node notes it
            world.store.chunk_path(disk, ChunkKey(inode, stripe.stripe_id, index)).unlink()
        repair = world.repair(after_s=0.0)
        world.nursery.start_soon(repair.run)
        await world.rounds.pass_by(3)
        assert "stays 1+1" in repair.status().stuck_reason
        assert world.damaged == []


async def test_a_stripe_that_can_be_widened_is_so_once(tmp_path: Path) -> None:
    async with one_node(tmp_path, [ROOMY] * 3) as world:
        inode = await world.write_file(CONTENT[:CHUNK_BYTES], [1, 2])
        (before,) = world.stripes(inode)
        repair = world.repair(after_s=0.0)
        world.nursery.start_soon(repair.run)
        with trio.fail_after(10):
            while not repair.progress.widened:
                await world.rounds.pass_by(1)
        (after,) = world.stripes(inode)
        assert (after.k, after.m, sorted(after.disks)) == (2, 1, [1, 2, 3])
        assert after.stripe_id > before.stripe_id
        number = world.machine.next_stripe_id
        world.members.touch()
        await world.rounds.pass_by(1)
        assert world.stripes(inode) == [after]
        assert (repair.progress.widened, world.machine.next_stripe_id) == (1, number)
        assert await world.read(inode) == CONTENT[:CHUNK_BYTES]


# What changes meanwhile


async def test_a_file_that_is_removed_while_it_is_to_be_repaired_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A page of stripes may be worked at for minutes."""
    async with one_node(tmp_path) as world:
        inode = await world.write_file(CONTENT, [1, 2, 3])
        repair = world.repair()
        for disk, key in first_chunks(world, inode):
            repair.note_damaged(disk, key)
        stripes_page, pages = world.machine.stripes_page, 0

        def removing(*arguments: object) -> object:
            nonlocal pages
            pages += 1
            page = stripes_page(*arguments)  # type: ignore[arg-type]
            if pages == 2:  # the survey was the first
                chunks = [(disk, key.stripe_id) for disk, key in first_chunks(world, inode)]
                assert len(chunks) == STRIPES
                world.machine.execute(filesystem_pb2.UnlinkRequest(parent=1, name=b"file"))
                assert world.machine.free_orphan(inode)
                for disk in world.machine.garbage_disks():
                    for each in world.machine.garbage(disk):
                        world.store.chunk_path(disk, ChunkKey(*each)).unlink()
            return page

        monkeypatch.setattr(world.machine, "stripes_page", removing)
        world.nursery.start_soon(repair.run)
        await world.rounds.pass_by(1)
        assert pages > 2
        assert (repair.progress.stuck, repair.progress.waiting) == (0, 0)
        assert not [each for each in caplog.records if each.getMessage().startswith("not repaired")]


async def test_damage_reported_during_a_survey_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a stripe that the survey has passed already: the next one counts it."""
    monkeypatch.setattr(repair_module, "PAGE", 2)
    async with one_node(tmp_path) as world:
        inode = await world.write_file(CONTENT, [1, 2, 3])
        repair = world.repair()
        stripes_page, pages = world.machine.stripes_page, 0

        def reporting(*arguments: object) -> object:
            nonlocal pages
            pages += 1
            if pages == 2:
                repair.note_damaged(*first_chunks(world, inode)[0])
            return stripes_page(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(world.machine, "stripes_page", reporting)
        (passed, *others) = world.stripes(inode)
        world.nursery.start_soon(repair.run)
        await world.rounds.pass_by(2)
        assert repair.progress.rebuilt == 1
        after = world.stripes(inode)
        assert after[0].stripe_id > passed.stripe_id
        assert after[1:] == others
        assert await world.read(inode) == CONTENT


async def test_damage_of_a_stripe_that_is_no_more_is_forgotten(tmp_path: Path) -> None:
    async with one_node(tmp_path) as world:
        inode, session = world.make_file()
        world.machine.execute(await world.write(inode, session, CONTENT, [1, 2, 3]))
        repair = world.repair()
        for disk, key in first_chunks(world, inode):
            repair.note_damaged(disk, key)
        world.machine.execute(await world.write(inode, session, CONTENT[::-1], [1, 2, 3]))
        written = world.stripes(inode)
        world.nursery.start_soon(repair.run)
        await world.rounds.pass_by(1)
        assert (repair.progress.rebuilt, repair.status().waiting_stripes, repair._damaged) == (0, 0, {})
        assert world.stripes(inode) == written


async def commit_to_forgotten_disk(world: OneNode, repair: Repair, folder: Path) -> int:
    """Stripes whose chunks were durable on disk 4 when it died are committed once it is forgotten."""
    inode, session = world.make_file()
    commit = await world.write(inode, session, CONTENT, [1, 2, 4])
    died = disk_state(world, 4, online=False)
    async with cluster_service(world, repair, folder) as service:
        await service.call(m.CLUSTER_HEARTBEAT, died, timeout_s=5)
        await service.call(m.CLUSTER_FORGET_DISK, cluster_pb2.ForgetDiskRequest(disk=4), timeout_s=5)
    assert [each.number for each in world.machine.disks()] == [1, 2, 3]
    world.machine.execute(commit)
    assert [each.disks for each in world.stripes(inode)] == [(1, 2, 4)] * STRIPES
    return inode


async def test_stripes_that_are_committed_to_a_forgotten_disk_are_rebuilt(tmp_path: Path) -> None:
    async with one_node(tmp_path) as world:
        repair = world.repair()
        inode = await commit_to_forgotten_disk(world, repair, tmp_path)
        world.nursery.start_soon(repair.run)
        await world.rounds.pass_by(1)
        assert (repair.progress.rebuilt, repair.progress.stuck) == (STRIPES, 0)
        assert {tuple(sorted(each.disks)) for each in world.stripes(inode)} == {(1, 2, 3)}
        assert await world.read(inode) == CONTENT


async def test_a_chunk_on_a_forgotten_disk_is_none_to_rebuild_from(tmp_path: Path) -> None:
    """2+1 while another disk is offline: the stripes wait for it, and are not tried in vain."""
    async with one_node(tmp_path) as world:
        repair = world.repair()
        inode = await commit_to_forgotten_disk(world, repair, tmp_path)
        torn = world.stripes(inode)
        world.members.heartbeat(disk_state(world, 1, online=False))
        world.nursery.start_soon(repair.run)
        await world.rounds.pass_by(1)
        now = repair.progress
        assert (now.rebuilt, now.waiting, now.stuck) == (0, 0, STRIPES)
        assert now.stuck_reason == "fewer than k of their chunks are on disks that are online"
        assert world.stripes(inode) == torn
        world.members.heartbeat(disk_state(world, 1, online=True))
        await world.rounds.pass_by(1)
        assert (now.rebuilt, now.stuck) == (STRIPES, 0)
        assert await world.read(inode) == CONTENT


# Reports of damage


async def test_others_run_between_the_chunks_of_a_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may look through all stripes of a long file."""
    async with one_node(tmp_path) as world:
        inode = await world.write_file(CONTENT, [1, 2, 3])
        repair = world.repair()
        lookups = Lookups(world.machine, monkeypatch)
        chunks = first_chunks(world, inode)
        world.nursery.start_soon(lookups.watch)
        async with cluster_service(world, repair, tmp_path) as service:
            await service.call(m.CLUSTER_HEARTBEAT, heartbeat(world, *chunks), timeout_s=5)
        assert lookups.stripe_ids == [key.stripe_id for _, key in chunks]
        assert lookups.longest_streak <= 2  # trio runs the tasks of one turn in any order


async def test_known_damage_is_not_looked_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with one_node(tmp_path) as world:
        inode = await world.write_file(CONTENT, [1, 2, 3])
        repair = world.repair()
        lookups = Lookups(world.machine, monkeypatch)
        chunks = first_chunks(world, inode)
        for _ in range(3):
            for disk, key in chunks:
                repair.note_damaged(disk, key)
        assert lookups.stripe_ids == [key.stripe_id for _, key in chunks]
        repair.note_damaged(2, ChunkKey(inode, chunks[0][1].stripe_id, 1))  # another chunk of it
        assert lookups.stripe_ids[len(chunks) :] == [chunks[0][1].stripe_id]


async def test_damage_that_cannot_be_noted_is_not_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So much is known that no more is taken; but further chunks of known stripes are."""
    monkeypatch.setattr(repair_module, "DAMAGED_MAX", 2)
    async with one_node(tmp_path) as world:
        inode = await world.write_file(CONTENT, [1, 2, 3])
        repair = world.repair()
        lookups = Lookups(world.machine, monkeypatch)
        for disk, key in first_chunks(world, inode):
            repair.note_damaged(disk, key)
        known = [each.stripe_id for each in world.stripes(inode)[:2]]
        assert lookups.stripe_ids == known
        repair.note_damaged(2, ChunkKey(inode, known[0], 1))
        assert repair._damaged == {known[0]: {0, 1}, known[1]: {0}}


@pytest.mark.parametrize(
    "nonsense",
    [ChunkKey(NUMBER_TOO_LARGE, 1, 0), ChunkKey(1, NUMBER_TOO_LARGE, 0)],
    ids=["inode", "stripe"],
)
async def test_a_chunk_that_no_number_names_breaks_no_heartbeat(tmp_path: Path, nonsense: ChunkKey) -> None:
    """A node asked for such a chunk reports it, and would belong to its cluster no more."""
    async with one_node(tmp_path) as world:
        inode = await world.write_file(CONTENT, [1, 2, 3])
        repair = world.repair()
        damaged = first_chunks(world, inode)[0]
        async with cluster_service(world, repair, tmp_path) as service:
            request = heartbeat(world, (1, nonsense), damaged)
            reply = await service.call(m.CLUSTER_HEARTBEAT, request, timeout_s=5)
        assert reply.message.known
        assert repair._damaged == {damaged[1].stripe_id: {0}}


async def test_a_node_reports_what_it_found_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A heartbeat with all of it would hold the master for long; each chunk is reported once."""
    async with one_node(tmp_path) as world:
        lookups = Lookups(world.machine, monkeypatch)
        async with cluster_service(world, world.repair(), tmp_path) as service:
            own = cluster_pb2.NodeInfo(name="node-1", addresses=world.links.of_node(1).addresses)
            own.number = 1
            membership = Membership(service.addresses, own, world.disks)
            await membership.join(world.nursery)
            found = 2 * DAMAGED_AT_ONCE + 50
            for number in range(found):
                membership.note_damaged(1, ChunkKey(7, number, 0))
            for reported in (DAMAGED_AT_ONCE, 2 * DAMAGED_AT_ONCE, found, found):
                assert await membership._heartbeat()
                assert lookups.stripe_ids == list(range(reported))


async def test_what_came_due_while_a_round_ran_is_looked_at_again(tmp_path: Path) -> None:
    """The round may have looked before that: disks that settled, or one that was given up."""
    async with one_node(tmp_path, [ROOMY] * 3) as world:
        repair = world.repair(after_s=0.0)
        settled_s = trio.current_time()
        repair._changed_s = settled_s
        assert repair._next_look_s(settled_s - 0.1) < 0.1
        assert repair._next_look_s(settled_s + 0.1) == float("inf")
