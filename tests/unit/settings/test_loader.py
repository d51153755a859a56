"""The loader names every problem with its place, and later sources win."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from wormfs.core.errors import ConfigError
from wormfs.settings.client import load_client_config
from wormfs.settings.kinds import (
    ADDRESS,
    BOOLEAN,
    PATH,
    TEXT,
    choice,
    duration,
    integer,
    is_address,
    list_of,
    parse_duration_s,
    parse_size_bytes,
    size,
)
from wormfs.settings.loader import Override, load, section, setting


@dataclass(frozen=True, slots=True)
class Inner:
    k: int = setting(integer(1, 30), default=4)
    chunk_size_bytes: int = setting(size(64, 1 << 22), default=1 << 20)
    codec: str = setting(choice("auto", "zfec"), default="auto")


@dataclass(frozen=True, slots=True)
class Outer:
    name: str = setting(TEXT)
    disks: tuple[Path, ...] = setting(list_of(PATH))
    listen: str = setting(ADDRESS, default="127.0.0.1:7400")
    lease_s: float = setting(duration(0.1, 60), default=6.0)
    json: bool = setting(BOOLEAN, default=False)
    policy: Inner = section(Inner)  # noqa: RUF009 - it makes a field


GOOD = """\
# a comment
name: node-1
disks: [/srv/a, /srv/b]
lease: 250ms
policy:
  k: 2
  chunk_size: 64KiB
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "node.yaml"
    file.write_text(text)
    return file


def problems_of(folder: Path, text: str, **more: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(Outer, file=write(folder, text), **more)  # type: ignore[arg-type]
    return caught.value.message.replace(str(folder) + "/", "").splitlines()


def test_a_file_is_read_with_units_and_defaults(tmp_path: Path) -> None:
    made = load(Outer, file=write(tmp_path, GOOD))
    assert made == Outer(
        "node-1", (Path("/srv/a"), Path("/srv/b")), lease_s=0.25, policy=Inner(k=2, chunk_size_bytes=65536)
    )


def test_flags_win_over_environment_and_environment_over_the_file(tmp_path: Path) -> None:
    made = load(
        Outer,
        file=write(tmp_path, GOOD),
        environment={
            "WORMFS_NODE_POLICY_K": "7",
            "WORMFS_NODE_NAME": "e",
            "WORMFS_NODE_DISKS": "/x, /y",
            "OTHER": "1",
        },
        prefix="WORMFS_NODE_",
        overrides=[Override(("name",), "flag", "--name")],
    )
    assert (made.name, made.policy.k, made.disks) == ("flag", 7, (Path("/x"), Path("/y")))


def test_all_problems_are_named_at_once_with_their_lines(tmp_path: Path) -> None:
    text = "nmae: x\ndisks: []\nlisten: here\npolicy:\n  k: many\n  chunksize: 1MiB\n  k: 3\nlease: 9 weeks\n"
    assert problems_of(tmp_path, text) == [
        "node.yaml:1: unknown key nmae; did you mean name?",
        "node.yaml:6: unknown key policy.chunksize; did you mean chunk_size?",
        "node.yaml:7: policy.k is given twice, first in line 5",
        "node.yaml: name is missing; expected text",
        "node.yaml:2: disks: expected a list of a path, not an empty one",
        "node.yaml:3: listen: expected an address such as 10.0.0.1:7400 or "
        "unix:/run/wormfs/node.sock, not 'here'",
        "node.yaml:8: lease: expected a duration such as 500ms, 6s or 5m, from 0.1 to 60 seconds, "
        "not '9 weeks' (no such unit: weeks)",
        "node.yaml:5: policy.k: expected a whole number from 1 to 30, not 'many'",
    ]


def test_an_unknown_variable_is_named_with_its_near_miss(tmp_path: Path) -> None:
    lines = problems_of(tmp_path, GOOD, environment={"WORMFS_NODE_LISTN": "x"}, prefix="WORMFS_NODE_")
    assert lines == ["environment WORMFS_NODE_LISTN: names no setting; did you mean WORMFS_NODE_LISTEN?"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: [", "node.yaml:1: is not valid YAML"),
        ("- a\n- b\n", "node.yaml:1: expected a mapping"),
        ("policy: 3\nname: x\ndisks: /a\n", "node.yaml:1: policy: expected a mapping"),
        ("name: 2024-13-45\ndisks: /a\n", "node.yaml:1: name: expected text"),
        ("name: &a [*a]\ndisks: /a\n", "node.yaml:1: "),
        ("name: !!python/object:os.system x\ndisks: /a\n", "node.yaml:1: name: expected text"),
        ("name: 5\ndisks: /a\n", "node.yaml:1: name: expected text, not 5"),
    ],
)
def test_broken_files_give_one_clear_line(tmp_path: Path, text: str, line: str) -> None:
    assert problems_of(tmp_path, text)[0].startswith(line)


def test_an_empty_or_absent_file_is_named(tmp_path: Path) -> None:
    assert problems_of(tmp_path, "")[0] == "node.yaml: name is missing; expected text"
    with pytest.raises(ConfigError, match="No such file"):
        load(Outer, file=tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("1MiB", 1 << 20), (" 4 kB ", 4000), ("1.5KiB", 1536), (9, 9)]
)
def test_sizes(text: object, size_bytes: int) -> None:
    assert parse_size_bytes(text) == size_bytes


@pytest.mark.parametrize("text", ["1 parsec", "-1", "MiB", True, None, [], "0.3b"])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        parse_size_bytes(text)


def test_durations() -> None:
    assert [parse_duration_s(text) for text in ("6s", "250ms", "5m", "1h", 2, "1.5")] == [
        6, 0.25, 300, 3600, 2, 1.5,
    ]  # fmt: skip


def test_addresses() -> None:
    good = ["10.0.0.1:7400", "[::1]:7", "host.example:0", "unix:/run/x"]
    bad = ["host", ":7", "a:b", "::1:7", "unix:x", "a:70000", ""]
    assert [is_address(text) for text in good + bad] == [True] * len(good) + [False] * len(bad)


def test_client_sources_in_their_order(tmp_path: Path) -> None:
    user = tmp_path / "wormfs" / "client.yaml"
    user.parent.mkdir()
    system = tmp_path / "system.yaml"
    env = {"XDG_CONFIG_HOME": str(tmp_path)}

    def cluster(**more: object) -> tuple[str, ...]:
        made = load_client_config(**({"environment": env, "system_file": system} | more))  # type: ignore[arg-type]
        return made.cluster

    with pytest.raises(ConfigError, match="no cluster is named"):
        cluster()
    system.write_text("cluster: s:1\n")
    assert cluster() == ("s:1",)
    user.write_text("cluster: [u:1, u:2]\noptions: {deadline: 5s}\n")
    assert cluster() == ("u:1", "u:2")
    env["WORMFS_CLUSTER"] = "e:1,unix:/run/e"
    assert cluster() == ("e:1", "unix:/run/e")
    named = tmp_path / "named.yaml"
    named.write_text("cluster: n:1\n")
    assert cluster(config=named) == ("n:1",)
    assert cluster(config=named, cluster="f:1,f:2") == ("f:1", "f:2")
