"""The folder of a dev cluster."""

from pathlib import Path

import pytest

from wormfs.cli import dev_layout
from wormfs.cli.dev_layout import DevFolder, DevSize
from wormfs.core.errors import ConfigError, DeadlineError, NotFoundError
from wormfs.node.config import load_node_config, peer_address
from wormfs.settings.client import load_client_config

_SIZE = DevSize(nodes=3, disks=2, k=4, m=2, engine="embedded")


def test_made_configurations_are_valid_and_distinct(tmp_path: Path) -> None:
    folder = DevFolder(tmp_path / "c")
    folder.path.mkdir()
    folder.make(_SIZE)
    configs = [load_node_config(node.config, environment={}) for node in folder.nodes()]
    assert [config.name for config in configs] == ["node-1", "node-2", "node-3"]
    assert len({config.listen for config in configs} | {config.grpc_listen for config in configs}) == 6
    assert configs[0].is_master
    assert configs[0].policy.policy().m == 2
    assert [config.join for config in configs[1:]] == [(configs[0].listen,)] * 2
    assert all(disk.is_dir() for config in configs for disk in config.disks)
    client = load_client_config(config=folder.client_config, environment={})
    assert client.cluster == folder.addresses() == tuple(config.listen for config in configs)


def test_no_two_of_a_cluster_listen_on_one_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes, their gRPC servers, etcd members and these members' peers: twelve of few ports."""
    monkeypatch.setattr(dev_layout, "_PORTS", range(9_940, 9_970))
    for attempt in range(20):
        folder = DevFolder(tmp_path / str(attempt))
        folder.path.mkdir()
        folder.make(DevSize(nodes=3, disks=1, k=2, m=1, engine="etcd"))
        configs = [load_node_config(node.config, environment={}) for node in folder.nodes()]
        listening = [
            *(config.listen for config in configs),
            *(config.grpc_listen for config in configs),
            *configs[0].metadata.endpoints,
            *map(peer_address, configs[0].metadata.endpoints),
        ]
        assert len(set(listening)) == 12


def test_a_folder_too_deep_for_unix_sockets_goes_without(tmp_path: Path) -> None:
    folder = DevFolder(tmp_path / ("x" * 100))
    folder.path.mkdir()
    folder.make(_SIZE)
    assert load_node_config(folder.node(1).config, environment={}).unix_socket is None


def test_no_cluster_and_no_node_are_named(tmp_path: Path) -> None:
    folder = DevFolder(tmp_path)
    with pytest.raises(NotFoundError, match="no dev cluster"):
        folder.nodes()
    folder.make(_SIZE)
    with pytest.raises(NotFoundError, match="no node 9; it has 1 to 3"):
        folder.node(9)


def test_a_damaged_client_config_is_named(tmp_path: Path) -> None:
    folder = DevFolder(tmp_path)
    folder.client_config.write_text("nonsense", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"client\.yaml"):
        folder.addresses()


def test_two_commands_never_hold_one_folder(tmp_path: Path) -> None:
    with (
        DevFolder(tmp_path).locked(),
        pytest.raises(DeadlineError, match="another"),
        DevFolder(tmp_path).locked(timeout_s=0),
    ):
        pass
    with DevFolder(tmp_path).locked(timeout_s=0):
        pass
