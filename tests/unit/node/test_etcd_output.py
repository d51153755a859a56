"""The etcd member's log: bounded, and read for its last words."""

import json
from pathlib import Path

from wormfs.node import etcd_output


def line(level: str, **fields: str) -> str:
    return json.dumps({"level": level, "ts": "now", **fields}) + "\n"


def test_a_log_over_its_limit_is_put_aside_while_etcd_appends_on(tmp_path: Path) -> None:
    file = tmp_path / "etcd.log"
    etcd_output.bound(file, 10)  # none yet: nothing to do
    with file.open("ab", buffering=0) as etcd:
        etcd.write(b"x" * 10)
        etcd_output.bound(file, 10)
        assert file.read_bytes() == b"x" * 10
        etcd.write(b"y")
        etcd_output.bound(file, 10)
        etcd.write(b"after")
    assert file.read_bytes() == b"after"
    assert (tmp_path / "etcd.log.old").read_bytes() == b"x" * 10 + b"y"


def test_last_words_are_the_last_complaints_since_the_start_with_advice(tmp_path: Path) -> None:
    file = tmp_path / "etcd.log"
    file.write_text(line("error", msg="of the run before"))
    start = etcd_output.length(file)
    assert etcd_output.last_words(file, start) == "its log says nothing"
    with file.open("a") as etcd:
        etcd.write(line("info", msg="fine") + line("warn", msg="one") + line("warn", msg="two"))
        etcd.write(line("fatal", msg="three", error="wal: no space left on device", stacktrace="long"))
        etcd.write("goroutine 1 [running]:\n")
    assert etcd_output.last_words(file, start) == (
        f"one; two; three: wal: no space left on device; make room on the file system of {tmp_path}"
    )
    assert etcd_output.last_words(file, 10**9).startswith("one; two;")  # begun anew meanwhile


def test_without_complaints_the_last_line_is_shown_short(tmp_path: Path) -> None:
    file = tmp_path / "etcd.log"
    assert etcd_output.last_words(file) == "its log cannot be read: No such file or directory"
    file.write_text(line("info", msg="fine") + "[1, 2]\n" + "panic: " + "x" * 1000 + "\n\n")
    assert etcd_output.last_words(file) == "panic: " + "x" * 293
