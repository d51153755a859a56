"""Mastership against a real member of etcd that stops answering."""

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from tests.etcd_members import EtcdMembers
from wormfs.metadata.election import GIVE_UP_S, LEASE_TTL_S, RESIGN_TIMEOUT_S, Mastership, campaign
from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.rpc.etcd_client import EtcdClient
from wormfs.rpc.etcd_types import EtcdOptions
from wormfs.rpc.v1 import replication_pb2

_WAIT_S = 30.0


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdMembers]:
    with EtcdMembers(tmp_path_factory.mktemp("etcd")) as made:
        yield made


@pytest.fixture
async def client(members: EtcdMembers) -> AsyncIterator[EtcdClient]:
    async with EtcdClient(EtcdOptions(endpoints=members.endpoints)) as made:
        yield made


async def elect(client: EtcdClient, cluster: Path) -> Mastership:
    candidate = replication_pb2.LeaderRecord(name="node-1")
    mastership = await campaign(client, EtcdKeys(cluster.name), candidate)
    assert mastership is not None
    return mastership


async def test_a_master_gives_up_when_etcd_does_not_answer(
    members: EtcdMembers, client: EtcdClient, tmp_path: Path
) -> None:
    """Who asks a master that hears nothing of etcd must not wait for it for ever."""
    mastership = await elect(client, tmp_path)
    members.pause(0)
    try:
        begun_s = time.monotonic()
        with trio.fail_after(_WAIT_S):
            await mastership.keep()
        took_s = time.monotonic() - begun_s
        with trio.fail_after(RESIGN_TIMEOUT_S / 2):
            await mastership.resign()
    finally:
        members.mend()
    assert "cannot be renewed" in mastership.ended
    assert not mastership.is_sure()
    assert took_s > LEASE_TTL_S, "it gave up while its lease surely lived"


async def test_a_short_silence_of_etcd_does_not_end_a_mastership(
    members: EtcdMembers, client: EtcdClient, tmp_path: Path
) -> None:
    mastership = await elect(client, tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mastership.keep)
        members.pause(0)
        await trio.sleep(GIVE_UP_S)  # the length of the silence is what is tried here
        members.mend()
        with trio.fail_after(_WAIT_S):
            await mastership.moved()
        assert not mastership.ended
        assert mastership.is_sure()
        nursery.cancel_scope.cancel()
