"""node.yaml: what is right, what is wrong and how it is named; the examples of config/."""

import json
import logging
from io import StringIO
from pathlib import Path

import pytest

from wormfs.cli import node as cli
from wormfs.client.options import ClientOptions
from wormfs.core.errors import ConfigError
from wormfs.core.types import Codec, Policy
from wormfs.node.config import NodeConfig, load_node_config
from wormfs.node.logging import set_up_logging
from wormfs.settings.client import ClientSettings, load_client_config
from wormfs.settings.loader import Override

CONFIG = Path(__file__).parents[3] / "config"


def load_text(folder: Path, text: str, *overrides: Override, **environment: str) -> NodeConfig:
    file = folder / "node.yaml"
    file.write_text(text)
    return load_node_config(file, environment=environment, overrides=overrides)


def test_a_small_file_has_defaults(tmp_path: Path) -> None:
    made = load_text(tmp_path, "disks: /srv/a\nname: n\n")
    assert made.disks == (Path("/srv/a"),)
    assert made.is_master
    assert made.stream_addresses() == ["127.0.0.1:7400"]
    assert made.policy.policy() == Policy(4, 2, 1 << 20, Codec.UNSPECIFIED)
    assert (made.lease_s, made.silent_after_s) == (6.0, 3.0)


def test_environment_and_flags_override(tmp_path: Path) -> None:
    made = load_text(
        tmp_path,
        "disks: /srv/a\nname: n\n",
        Override(("policy", "m"), "1", "--set policy.m"),
        WORMFS_NODE_POLICY_K="2",
        WORMFS_NODE_JOIN="a:1,b:2",
        WORMFS_NODE_UNIX_SOCKET="/run/s",
    )
    assert made.policy.policy() == Policy(2, 1, 1 << 20)
    assert made.join == ("a:1", "b:2")
    assert made.stream_addresses()[0] == "unix:/run/s"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("disks: [a, a]\n", "node.yaml:1: disks: /"),
        ("disks: a\npolicy:\n  k: 30\n  m: 20\n", "node.yaml:2: policy: k + m is 50"),
        (
            "disks: a\npolicy:\n  chunk_size: 100\n",
            "node.yaml:2: policy: chunk_size is 100 bytes; it must be",
        ),
        ("disks: a\nlisten: unix:/x\n", "node.yaml:1: listen and grpc_listen are host:port"),
        ("disks: a\nmetadata: {engine: etcd}\n", "node.yaml:2: metadata.engine: expected one of embedded"),
        ("disks: a\nunix_socket: /" + "x" * 120, "node.yaml:1: unix_socket is longer than 107 bytes"),
    ],
)
def test_rules_over_settings_are_named(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, text)
    assert line in caught.value.message


def test_the_command_line_names_problems_and_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "node.yaml"
    file.write_text("disk: /a\nlog: {level: loud}\n")
    assert cli.main(["--config", str(file), "--set", "polcy.k=3"]) == 2
    lines = capsys.readouterr().err.replace(str(tmp_path) + "/", "").splitlines()
    assert lines == [
        "wormfs-node: node.yaml:1: unknown key disk; did you mean disks?",
        "wormfs-node: --set polcy.k: unknown setting polcy.k; did you mean policy.k?",
        "wormfs-node: node.yaml: disks is missing; expected a list of a path",
        "wormfs-node: node.yaml:2: log.level: expected one of debug, info, warning, error, not 'loud'",
    ]
    assert cli.main([]) == 2


@pytest.mark.parametrize(
    "name", ["node.yaml", "single-server.yaml", "cluster-first.yaml", "cluster-more.yaml"]
)
def test_the_example_configurations_are_right(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--config", str(CONFIG / name), "--check"]) == 0
    assert "right" in capsys.readouterr().out


def test_the_example_client_configuration_is_right_and_has_the_clients_options() -> None:
    made = load_client_config(config=CONFIG / "client.yaml", environment={})
    assert made.options == ClientSettings()
    options = {name: getattr(made.options, name) for name in ClientSettings.__dataclass_fields__}
    assert ClientOptions(**options) == ClientOptions()


@pytest.fixture
def logs() -> StringIO:
    return StringIO()


@pytest.mark.parametrize("as_json", [True, False])
def test_logs_are_one_structured_line_each(logs: StringIO, as_json: bool) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        set_up_logging("info", as_json=as_json, node="n", stream=logs)
        logging.getLogger("wormfs.node.x").info("two words, %s", 'a "quote"')
        try:
            int("bad\nthing")
        except ValueError:
            logging.getLogger("other").exception("it failed")
        logging.getLogger("wormfs").debug("not shown")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    first, second = logs.getvalue().splitlines()
    if as_json:
        assert json.loads(first)["message"] == 'two words, a "quote"'
        assert "ValueError" in json.loads(second)["trace"]
    else:
        assert 'level=info node=n part=node.x message="two words, a \\"quote\\""' in first
        assert "level=error" in second
        assert "ValueError" in second
