"""A node that keeps in touch with the master, whoever that is."""

from pathlib import Path

import pytest
import trio

from tests.unit.client.masters import masters
from wormfs.core.errors import UnavailableError
from wormfs.node.master_contact import MasterContact
from wormfs.rpc.methods import CLUSTER_GET_CLUSTER_MAP, METADATA_STAT_FS
from wormfs.rpc.v1 import cluster_pb2, filesystem_pb2

pytestmark = pytest.mark.timeout(30)
CALL_S = 0.3


async def ask(contact: MasterContact) -> filesystem_pb2.StatFsReply:
    request = filesystem_pb2.StatFsRequest()
    return (await contact.call(METADATA_STAT_FS, request, timeout_s=CALL_S)).message


async def ask_until_answered(contact: MasterContact) -> None:
    with trio.fail_after(10):
        while True:
            try:
                await ask(contact)
            except UnavailableError:
                continue
            return


@pytest.mark.parametrize("frozen", [False, True], ids=["deposed", "frozen"])
async def test_the_next_master_is_found_without_the_node_asked_first(tmp_path: Path, frozen: bool) -> None:
    """It joined through the one node that its configuration names, which may never come back."""
    async with masters(tmp_path, nodes=3) as made, trio.open_nursery() as nursery:
        contact = MasterContact(made.addresses[:1], nursery)
        await ask(contact)
        if frozen:
            made.cut_off(0)
        await made.lead(2)
        await ask_until_answered(contact)
        nursery.cancel_scope.cancel()


async def test_nodes_that_came_later_are_asked_too(tmp_path: Path) -> None:
    async with masters(tmp_path, nodes=2) as made, trio.open_nursery() as nursery:
        known, made.addresses = made.addresses, made.addresses[:1]
        contact = MasterContact(known[:1], nursery)
        await ask(contact)
        made.addresses = known
        made.version += 1
        request = cluster_pb2.GetClusterMapRequest()
        contact.learn((await contact.call(CLUSTER_GET_CLUSTER_MAP, request, timeout_s=CALL_S)).message)
        made.cut_off(0)
        await made.lead(1)
        await ask_until_answered(contact)
        nursery.cancel_scope.cancel()


async def test_without_a_master_a_call_says_so(tmp_path: Path) -> None:
    async with masters(tmp_path) as made, trio.open_nursery() as nursery:
        contact = MasterContact(made.addresses, nursery)
        await made.depose()
        with trio.fail_after(5), pytest.raises(UnavailableError, match="master"):
            await ask(contact)
        nursery.cancel_scope.cancel()
