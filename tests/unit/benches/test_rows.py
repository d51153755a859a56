"""Medians and limits of bench rows, what falls short, and what `python -m benches.run` says at its start."""

import json
from pathlib import Path

import pytest

from benches import etcd, results, run
from benches.results import short_ratios
from benches.rows import Row, medians


def test_median_of_each_row_keeps_its_unit_and_limit() -> None:
    rounds = [{"a": Row(value, "MB/s", limit=4.0)} for value in (9.0, 1.0, 5.0)]
    rounds[0]["b"] = Row(7.0, "op/s")
    assert medians(rounds) == {"a": Row(5.0, "MB/s", limit=4.0), "b": Row(7.0, "op/s")}


def test_no_rounds_have_no_medians() -> None:
    assert medians([]) == {}


@pytest.mark.parametrize(
    ("value", "higher_is_better", "reached"),
    [(4.0, True, True), (3.9, True, False), (4.0, False, True), (4.1, False, False)],
)
def test_limit_is_reached_at_its_very_value(value: float, higher_is_better: bool, reached: bool) -> None:
    assert Row(value, "x", higher_is_better=higher_is_better, limit=4.0).reached is reached


def test_row_without_a_limit_is_reached() -> None:
    assert Row(0.0, "x").reached


def test_unknown_part_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["--only", "codec,disks"])
    assert "no such part: disks" in capsys.readouterr().err


def test_ratios_that_fall_short_are_named() -> None:
    ratios = {"a": 1.0, "b": 1.49, "c": 0.1, "d": 0.1}
    assert short_ratios(ratios, {"a": 1.0, "b": 1.5, "c": 0.0}) == ["b: ratio 1.49 of 1.5"]


def test_figures_are_written_beside_the_machine(tmp_path: Path) -> None:
    path = results.write({"rounds": 3}, prefix="etcd-", root=tmp_path)
    assert path.parent == tmp_path / "bench-results"
    assert path.name.startswith("etcd-")
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["rounds"] == 3
    assert written["machine"].keys() == {"cpus", "kernel", "python"}


def test_a_clone_without_the_peer_is_told_at_once_and_measured_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = run.read_options(["--shared-bench", str(tmp_path)])
    assert options.no_peer
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert f"{tmp_path / 'peers.sh'}" in line
    assert "--shared-bench FOLDER" in line


def test_nothing_is_said_of_a_peer_that_is_there_or_not_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.read_options(["--shared-bench", str(tmp_path), "--no-peer"]).no_peer
    run.read_options(["--shared-bench", str(tmp_path), "--only", "codec"])
    (tmp_path / "peers.sh").touch()
    assert not run.read_options(["--shared-bench", str(tmp_path)]).no_peer
    assert capsys.readouterr().err == ""


def test_a_row_above_its_limit_is_named() -> None:
    within = Row(1.5, "times its size", higher_is_better=False, limit=1.52)
    above = Row(151.0, "MiB", higher_is_better=False, limit=150.0)
    found = run.Results(
        wormfs=[
            {"seq_write_1m_fsync": Row(14, "MB/s"), "small": Row(9, "op/s"), "rand_write_4k_sync": Row(1, "")}
        ],
        peer=[
            {"seq_write_1m_fsync": Row(10, "MB/s"), "small": Row(9, "op/s"), "rand_write_4k_sync": Row(9, "")}
        ],
        own={"space": within, "memory": above},
    )
    assert run.short_rows(found) == [
        "seq_write_1m_fsync: ratio 1.40 of 1.5",
        "memory: 151.00 MiB, at most 150.00",
    ]


def test_metadata_rows_must_reach_the_ratio_of_their_threads() -> None:
    ours = {"create, 1 thread": Row(100.0, "op/s"), "create, 16 threads": Row(100.0, "op/s")}
    theirs = {"create, 1 thread": Row(40.0, "op/s"), "create, 16 threads": Row(40.0, "op/s")}
    found, short = etcd.figures(ours, theirs)
    assert found["create, 1 thread"] == {"wormfs": 100.0, "juicefs": 40.0, "ratio": 2.5}
    assert short == ["create, 16 threads: ratio 2.50 of 5.0"]
    assert etcd.figures(ours, {})[1] == []
