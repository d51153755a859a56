"""Medians and limits of bench rows, and what `python -m benches.run` refuses."""

import pytest

from benches import run
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
