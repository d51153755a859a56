"""node.yaml: what is right, what is wrong and how it is named; the examples of config/."""

import dataclasses
import json
import logging
import re
from io import StringIO
from pathlib import Path

import pytest
import yaml

from wormfs.cli import node as cli
from wormfs.client.options import ClientOptions
from wormfs.core.errors import ConfigError
from wormfs.core.types import Codec, Policy
from wormfs.node.config import NodeConfig, load_node_config, peer_address
from wormfs.node.logging import set_up_logging
from wormfs.settings.client import ClientSettings, load_client_config
from wormfs.settings.loader import Override, key_of

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
        (
            "disks: a\nmetadata: {engine: x}\n",
            "node.yaml:2: metadata.engine: expected one of embedded, etcd, not 'x'",
        ),
        ("disks: a\nmetadata: {engine: etcd}\n", "node.yaml:2: metadata: endpoints is missing"),
        (
            "disks: a\nmetadata: {endpoints: a:1}\n",
            "node.yaml:2: metadata: endpoints: only for `engine: etcd`",
        ),
        (
            "disks: /a\nmetadata: {engine: etcd, endpoints: a:1, managed: yes, member: a:1, folder: /a/e}\n",
            "node.yaml:1: metadata.folder /a/e and the disk /a lie within each other",
        ),
        ("disks: a\nlisten: 0.0.0.0:7400\n", "node.yaml:1: listen is 0.0.0.0:7400: set `advertise`"),
        ("disks: a\nunix_socket: /" + "x" * 120, "node.yaml:1: unix_socket is longer than 107 bytes"),
    ],
)
def test_rules_over_settings_are_named(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, text)
    assert line in caught.value.message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("endpoints: [a:1, a:1]", "endpoints: a:1 is named twice"),
        ("endpoints: [unix:/x]", "endpoints: unix:/x is no host:port"),
        ("endpoints: ['a=b,c:1']", "endpoints: a=b,c:1 is no host:port"),
        ("endpoints: [a:65535]", "endpoints: a:65535 has port 65535; it lies between 1 and 65534"),
        ("endpoints: [a:1]\n  member: a:1", "member: only for `managed: true`"),
        ("endpoints: [a:1]\n  folder: /f\n  binary: /b", "folder, binary: only for `managed: true`"),
        ("endpoints: [a:1]\n  managed: true", "member is missing"),
        ("endpoints: [a:1, b:1]\n  managed: true\n  member: c:1", "member is c:1, which is none of"),
        ("endpoints: [a:1]\n  managed: true\n  member: a:1", "folder is missing"),
        (
            "endpoints: [a:1, a:2]\n  managed: true\n  member: a:1\n  folder: /f",
            "endpoints: a:2 is where the member a:1 talks to its peers",
        ),
        (
            "endpoints: [a:1]\n  managed: true\n  member: a:1\n  folder: /f\n  ca_file: /c",
            "ca_file needs cert_file and key_file too",
        ),
        ("endpoints: [a:1]\n  ca_file: /c\n  cert_file: /d", "cert_file and key_file belong together"),
        ("endpoints: [a:1]\n  cert_file: /d\n  key_file: /k", "cert_file needs ca_file too"),
        ("endpoints: [a:1]\n  user: root", "user and password_file belong together"),
    ],
)
def test_rules_of_the_etcd_engine_are_named(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, f"disks: /srv/a\nname: n\nmetadata:\n  engine: etcd\n  {text}\n")
    assert f"node.yaml:3: metadata: {line}" in caught.value.message


def test_every_server_of_an_etcd_cluster_has_the_same_lines_but_one(tmp_path: Path) -> None:
    text = (
        "disks: /srv/a\nname: n\nmetadata:\n  engine: etcd\n  endpoints: ['10.0.0.1:2379', '[::1]:2379']\n"
        "  managed: true\n  folder: /srv/etcd\n"
    )
    made = load_text(tmp_path, text, WORMFS_NODE_METADATA_MEMBER="[::1]:2379").metadata
    assert (made.endpoints, made.member) == (("10.0.0.1:2379", "[::1]:2379"), "[::1]:2379")
    assert (made.folder, made.binary, made.ca_file) == (Path("/srv/etcd"), None, None)
    assert peer_address(made.member) == "[::1]:2380"
    assert peer_address("10.0.0.1:2379") == "10.0.0.1:2380"


def test_with_etcd_no_node_is_master_by_configuration(tmp_path: Path) -> None:
    text = "disks: /srv/a\nname: n\nmetadata: {engine: etcd, endpoints: [a:1]}\n"
    assert not load_text(tmp_path, text).is_master
    assert not load_text(tmp_path, "disks: /srv/a\nname: n\njoin: a:1\n").is_master


def test_the_password_is_read_from_its_file_and_never_shown(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("Geheim 7\n")
    text = (
        "disks: /srv/a\nname: n\nmetadata: {engine: etcd, endpoints: [a:1], user: worm, password_file: "
        f"{secret}}}\n"
    )
    made = load_text(tmp_path, text)
    assert made.metadata.password() == "Geheim 7"
    assert "Geheim" not in repr(made)
    secret.write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        made.metadata.password()
    secret.unlink()
    with pytest.raises(ConfigError, match=f"{secret} cannot be read: No such file"):
        made.metadata.password()


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
    "name",
    ["node.yaml", "single-server.yaml", "cluster-first.yaml", "cluster-more.yaml", "cluster-etcd.yaml"],
)
def test_the_example_configurations_are_right(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--config", str(CONFIG / name), "--check"]) == 0
    assert "right" in capsys.readouterr().out


def test_check_reads_the_files_that_the_etcd_client_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "node.yaml"
    for more, missing in (("user: worm, password_file: ", "password"), ("ca_file: ", "ca.pem")):
        file.write_text(
            f"disks: /srv/a\nmetadata: {{engine: etcd, endpoints: [a:1], {more}{tmp_path / missing}}}\n",
            encoding="utf-8",
        )
        assert cli.main(["--config", str(file), "--check"]) == 2
        shown = capsys.readouterr().err
        assert str(tmp_path / missing) in shown
        assert shown.count("\n") == 1


def test_the_example_client_configuration_is_right_and_has_the_clients_options() -> None:
    made = load_client_config(config=CONFIG / "client.yaml", environment={})
    assert made.options == ClientSettings()
    options = {name: getattr(made.options, name) for name in ClientSettings.__dataclass_fields__}
    assert ClientOptions(**options) == ClientOptions()


def test_the_example_client_configuration_names_each_option_with_its_default(tmp_path: Path) -> None:
    text = (CONFIG / "client.yaml").read_text(encoding="utf-8")
    uncommented = re.sub(r"^  # (?=[a-z_]+: \S+ +# )", "  ", text, flags=re.MULTILINE)
    named = set(yaml.safe_load(uncommented)["options"])
    assert named == {key_of(field.name) for field in dataclasses.fields(ClientSettings)}
    file = tmp_path / "client.yaml"
    file.write_text(uncommented, encoding="utf-8")
    assert load_client_config(config=file, environment={}).options == ClientSettings()


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
