"""A restore looks at the node's disks before it changes any."""

from pathlib import Path

import pytest

from wormfs.core import errors as er
from wormfs.core.types import Policy
from wormfs.metadata.machine import Machine
from wormfs.node.config import load_node_config
from wormfs.node.restore import restore_metadata
from wormfs.rpc.v1 import cluster_pb2
from wormfs.store.disk import Disk


async def backup_with(tmp_path: Path, uuids: list[str]) -> Path:
    """A backup of cluster `c` that knows disks of these uuids."""
    (tmp_path / "lost").mkdir()
    machine = Machine.open([tmp_path / "lost"], copies=1)
    machine.form_cluster("c", "c", Policy(1, 0, 65536))
    for uuid in uuids:
        machine.register_disk(cluster_pb2.DiskInfo(uuid=uuid, node=1, path="/d"))
    await machine.snapshot()
    (file,) = (tmp_path / "lost" / "metadata" / "snapshots").iterdir()
    machine.close()
    return file


def disk_of(path: Path, cluster_id: str, number: int) -> str:
    """A disk folder that has a number; its uuid."""
    disk = Disk.open(path)
    if number:
        disk.assign(cluster_id=cluster_id, node=1, number=number)
    disk.close()
    return disk.uuid


def node_yaml(tmp_path: Path, disks: list[Path], extra: str = "") -> Path:
    file = tmp_path / "node.yaml"
    paths = "".join(f"  - {disk}\n" for disk in disks)
    file.write_text(f"name: n\nlisten: 127.0.0.1:1\ndisks:\n{paths}{extra}", encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("cluster_id", "known", "extra", "error", "told"),
    [
        ("other", True, "", er.WrongClusterError, "is a disk of cluster other, the backup is of cluster c"),
        ("c", False, "", er.WrongClusterError, "keep it, and take it out of the configuration"),
        ("c", True, "join: [127.0.0.1:2]\n", er.ConfigError, "another one keeps the metadata"),
    ],
)
async def test_a_restore_refuses_disks_that_do_not_fit(
    tmp_path: Path, cluster_id: str, known: bool, extra: str, error: type[Exception], told: str
) -> None:
    uuid = disk_of(tmp_path / "d", cluster_id, 1)
    file = await backup_with(tmp_path, [uuid] if known else ["x" * 36])
    config = load_node_config(node_yaml(tmp_path, [tmp_path / "d"], extra))
    with pytest.raises(error, match=told):
        await restore_metadata(config, file)
    assert not (tmp_path / "d" / "metadata").exists()


async def test_disks_of_the_cluster_and_fresh_ones_take_the_metadata(tmp_path: Path) -> None:
    uuid = disk_of(tmp_path / "d", "c", 1)
    file = await backup_with(tmp_path, [uuid])
    policy = "policy: {k: 1, m: 1}\n"
    disks = [tmp_path / "d", tmp_path / "fresh", tmp_path / "third"]
    config = load_node_config(node_yaml(tmp_path, disks, policy))
    backup = await restore_metadata(config, file)
    restored = Machine.open(disks, copies=2, create=False)
    assert restored.restored.sequence == backup.sequence
    assert restored.metadata_disks() == disks[:2]
    with pytest.raises(er.ExistsError, match="holds metadata already"):
        await restore_metadata(config, file)
