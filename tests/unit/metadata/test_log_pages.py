"""What is read at once from the log in etcd fits a message, however full its batches are."""

from types import SimpleNamespace
from typing import Any

import pytest

from wormfs.metadata.etcd_keys import EtcdKeys
from wormfs.metadata.etcd_log import ENTRY_MAX_BYTES, PAGE_BATCHES, EtcdLog
from wormfs.rpc import etcd_channel
from wormfs.rpc.v1 import etcd_pb2, replication_pb2

pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize("entry_bytes", [100, 5000, ENTRY_MAX_BYTES])
def test_a_page_of_full_batches_fits_a_message(entry_bytes: int) -> None:
    outside: Any = SimpleNamespace(last_sequence=0, ended="")
    keys = EtcdKeys("cluster")
    log = EtcdLog(outside, outside, keys, outside, b"")
    payload = bytes(entry_bytes)
    for sequence in range(1, (1 << 20) // entry_bytes + 3):
        log.append(sequence, payload)
    batch = log._next_batch()
    assert len(batch) < log.last_sequence  # it is full
    value = replication_pb2.LogBatch(first_sequence=1, entries=[record.payload for record in batch])
    page = etcd_pb2.EtcdRangeReply()
    for _ in range(PAGE_BATCHES):
        page.kvs.add(key=keys.batch(1), value=value.SerializeToString())
    size_bytes = page.ByteSize()
    assert size_bytes < etcd_channel._MESSAGE_MAX_BYTES
