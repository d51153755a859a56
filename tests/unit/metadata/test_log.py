import errno
import os
import shutil
from contextlib import aclosing
from pathlib import Path

import pytest
import trio
import trio.testing

from wormfs.core.errors import (
    DataLossError,
    InvalidError,
    NewerProgramError,
    NoSpaceError,
    UnavailableError,
    WrongClusterError,
)
from wormfs.metadata import members as files
from wormfs.metadata.embedded_log import EmbeddedLog
from wormfs.metadata.log_port import LogRecord
from wormfs.metadata.segment import SEGMENT_HEADER_BYTES, pack_record

SEGMENT = 64 * 1024


def payload(sequence: int) -> bytes:
    return b"entry %d " % sequence * (sequence % 5 + 1)


def open_log(disks: list[Path], copies: int = 3, **options: bool | int) -> EmbeddedLog:
    return EmbeddedLog.open(disks, copies=copies, segment_bytes=SEGMENT, **options)  # type: ignore[arg-type]


def fill(log: EmbeddedLog, through: int) -> None:
    for sequence in range(log.last_sequence + 1, through + 1):
        log.append(sequence, payload(sequence))


def contents(log: EmbeddedLog) -> list[bytes]:
    return [record.payload for record in log.read(0)]


def right(through: int) -> list[bytes]:
    return [payload(sequence) for sequence in range(1, through + 1)]


def crash(log: EmbeddedLog) -> None:
    """Leave as a killed process does: files as they are, space allocated ahead included."""
    for member in log._members:
        for segment in member.open_files():
            os.close(segment.fd)
    log._members = []


@pytest.fixture
def disks(tmp_path: Path) -> list[Path]:
    made = [tmp_path / f"disk-{number}" for number in range(5)]
    for disk in made:
        disk.mkdir()
    return made


def test_entries_come_back_after_a_crash(disks: list[Path]) -> None:
    log = open_log(disks)
    fill(log, 500)
    assert log.member_disks() == disks[:3]
    crash(log)
    log = open_log(disks)
    assert (log.last_sequence, log.durable_sequence) == (500, 500)
    assert contents(log) == right(500)
    fill(log, 510)
    assert [record.sequence for record in log.read(505)] == [506, 507, 508, 509, 510]
    log.close()


def test_entries_must_follow_each_other(disks: list[Path]) -> None:
    log = open_log(disks)
    with pytest.raises(InvalidError):
        log.append(2, b"x")
    log.close()


async def test_durable_waits_for_the_sync_and_serves_many(disks: list[Path]) -> None:
    log = open_log(disks)
    fill(log, 20)
    assert log.durable_sequence == 0
    async with trio.open_nursery() as nursery:
        for sequence in range(1, 21):
            nursery.start_soon(log.wait_durable, sequence)
    assert log.durable_sequence == 20
    with pytest.raises(InvalidError):
        await log.wait_durable(21)
    log.close()


async def test_watch_sees_old_and_new_entries(disks: list[Path]) -> None:
    log = open_log(disks, copies=1)
    fill(log, 2)
    seen: list[int] = []

    async def follow() -> None:
        async with aclosing(log.watch(0)) as records:
            async for record in records:
                seen.append(record.sequence)
                if record.sequence == 4:
                    return

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await trio.testing.wait_all_tasks_blocked()
            assert seen == [1, 2]
            fill(log, 4)
    assert seen == [1, 2, 3, 4]
    log.close()


def test_a_tail_torn_at_any_byte_is_cut(disks: list[Path], tmp_path: Path) -> None:
    log = open_log(disks[:1], copies=1)
    fill(log, 4)
    whole = SEGMENT_HEADER_BYTES + sum(len(pack_record(0, 0, payload(sequence))) for sequence in range(1, 4))
    end = whole + len(pack_record(4, 0, payload(4)))
    crash(log)
    original = files.segment_path(disks[0], 1).read_bytes()
    for cut in range(whole, end):
        for tail in (b"", bytes(100), b"\xff" * 100):
            shutil.rmtree(disks[1], ignore_errors=True)
            shutil.copytree(disks[0], disks[1])
            files.segment_path(disks[1], 1).write_bytes(original[:cut] + tail)
            log = open_log([disks[1]], copies=1)
            assert contents(log) == right(3)
            log.append(4, b"again")
            crash(log)
            log = open_log([disks[1]], copies=1)
            assert contents(log) == [*right(3), b"again"]
            log.close()


def test_the_longest_copy_wins_and_mends_the_others(disks: list[Path]) -> None:
    log = open_log(disks)
    fill(log, 10)
    crash(log)
    longest = files.segment_path(disks[1], 1).read_bytes()
    for disk in (disks[0], disks[2]):
        files.segment_path(disk, 1).write_bytes(longest[:200])
    log = open_log(disks)
    assert contents(log) == right(10)
    copies = {files.segment_path(disk, 1).read_bytes() for disk in disks[:3]}
    assert len(copies) == 1
    log.close()


def test_copies_damaged_at_different_places_mend_each_other(disks: list[Path]) -> None:
    log = open_log(disks)
    fill(log, 30)
    crash(log)
    for number, disk in enumerate(disks[:3]):
        path = files.segment_path(disk, 1)
        data = bytearray(path.read_bytes())
        data[150 + number * 400] ^= 0x10
        path.write_bytes(data)
    log = open_log(disks)
    assert contents(log) == right(30)
    log.close()


async def test_damage_to_what_was_durable_stops_the_start(disks: list[Path]) -> None:
    log = open_log(disks[:1], copies=1)
    fill(log, 5)
    await log.wait_durable(5)
    fill(log, 6)
    crash(log)
    path = files.segment_path(disks[0], 1)
    data = bytearray(path.read_bytes())
    data[data.index(payload(3))] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataLossError):
        open_log(disks[:1], copies=1)


def test_a_stale_copy_never_counts_again(disks: list[Path]) -> None:
    log = open_log(disks[:2], copies=2)
    fill(log, 5)
    log.drop([disks[1]], "test")
    fill(log, 9)
    crash(log)
    # The stale copy grows longer than the current one: it must not matter.
    with files.segment_path(disks[1], 1).open("r+b") as file:
        file.seek(SEGMENT_HEADER_BYTES)
        for sequence in range(1, 30):
            file.write(pack_record(sequence, 0, b"stale"))
    log = open_log(disks[:2], copies=2)
    assert log.member_disks() == disks[:1]
    assert contents(log) == right(9)
    log.close()


def test_a_lost_copy_is_dropped_at_open(disks: list[Path]) -> None:
    log = open_log(disks)
    fill(log, 5)
    crash(log)
    for disk in disks[:2]:
        shutil.rmtree(disk)
    log = open_log(disks)
    assert (log.member_disks(), contents(log)) == ([disks[2]], right(5))
    log.close()


def test_a_folder_deleted_while_running_is_noticed(disks: list[Path]) -> None:
    log = open_log(disks)
    fill(log, 5)
    assert not log.check_members()
    shutil.rmtree(disks[0])
    shutil.rmtree(disks[1] / "metadata" / "log")
    (disks[1] / "metadata" / "log").mkdir()
    assert log.check_members()
    assert log.member_disks() == [disks[2]]
    fill(log, 8)
    crash(log)
    log = open_log(disks)
    assert contents(log) == right(8)
    log.close()


def test_with_every_copy_gone_appends_say_so(disks: list[Path]) -> None:
    log = open_log(disks[:2], copies=2)
    fill(log, 1)
    for disk in disks[:2]:
        shutil.rmtree(disk)
    log.check_members()
    with pytest.raises(UnavailableError):
        log.append(2, b"x")
    assert log.last_sequence == 1


def test_a_copy_that_errs_is_dropped_before_the_entry_counts(disks: list[Path]) -> None:
    log = open_log(disks)
    fill(log, 3)
    broken = log._members[1]
    assert broken.segment is not None
    os.close(broken.segment.fd)
    broken.segment.fd = os.open("/dev/full", os.O_WRONLY)
    fill(log, 4)
    assert log.member_disks() == [disks[0], disks[2]]
    crash(log)
    membership = files.read_membership(disks[0])
    assert membership is not None
    assert len(membership.members) == 2


def test_when_no_copy_takes_it_nothing_is_appended(disks: list[Path]) -> None:
    log = open_log(disks[:1], copies=1)
    fill(log, 3)
    segment = log._members[0].segment
    assert segment is not None
    sound, segment.fd = segment.fd, os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(NoSpaceError) as caught:
        log.append(4, payload(4))
    assert caught.value.errno == errno.ENOSPC
    os.close(segment.fd)
    segment.fd = sound
    fill(log, 6)
    assert contents(log) == right(6)
    log.close()


def records(first: int, last: int) -> list[LogRecord]:
    return [LogRecord(sequence, payload(sequence)) for sequence in range(first, last + 1)]


def test_a_batch_goes_on_in_the_next_segment(disks: list[Path]) -> None:
    log = open_log(disks)
    log.append_all(records(1, 7_000))
    assert (log.last_sequence, len(files.segments(disks[0]))) == (7_000, 7)
    assert all(
        files.segment_path(disk, first).stat().st_size <= SEGMENT
        for disk in disks[:3]
        for first in files.segments(disk)
    )
    assert contents(log) == right(7_000)
    crash(log)
    log = open_log(disks)
    assert contents(log) == right(7_000)
    log.close()


def test_a_batch_must_be_whole(disks: list[Path]) -> None:
    log = open_log(disks)
    log.append_all([])
    for wrong in ([*records(1, 2), *records(4, 5)], records(2, 3)):
        with pytest.raises(InvalidError, match="cannot follow"):
            log.append_all(wrong)
        assert log.last_sequence == 0
    log.append_all(records(1, 3))
    assert contents(log) == right(3)
    log.close()


def test_of_a_batch_that_no_disk_takes_whole_the_first_entries_count(
    disks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log(disks)
    log.append(1, payload(1))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(NoSpaceError):
            log.append_all(records(2, 7_000))
    last = log.last_sequence
    assert 500 < last < 1_500
    assert contents(log) == right(last)
    log.append_all(records(last + 1, 7_000))
    assert contents(log) == right(7_000)
    log.close()


def test_fewer_disks_than_copies_work(disks: list[Path]) -> None:
    log = open_log(disks[:1], copies=3)
    fill(log, 2)
    assert (log.member_disks(), log.copies_wanted) == (disks[:1], 3)
    log.close()


def test_a_missing_log_is_only_made_when_asked(disks: list[Path]) -> None:
    with pytest.raises(DataLossError):
        open_log(disks, create=False)
    with pytest.raises(UnavailableError):
        open_log([disks[0] / "none"])


def test_disks_of_two_logs_are_refused(disks: list[Path]) -> None:
    for disk in disks[:2]:
        open_log([disk], copies=1).close()
    with pytest.raises(WrongClusterError):
        open_log(disks[:2], copies=2)


def test_segments_follow_each_other_and_are_trimmed_whole(disks: list[Path]) -> None:
    log = open_log(disks[:2], copies=2)
    for sequence in range(1, 31):
        log.append(sequence, bytes([sequence]) * 10_000)
    firsts = files.segments(disks[0])
    assert len(firsts) > 3
    log.trim(firsts[2] - 1)
    assert files.segments(disks[0]) == files.segments(disks[1]) == firsts[2:]
    assert [record.sequence for record in log.read(firsts[2] - 1)] == list(range(firsts[2], 31))
    with pytest.raises(DataLossError):
        list(log.read(1))
    log.close()


def test_an_entry_longer_than_a_segment_has_one_to_itself(disks: list[Path]) -> None:
    log = open_log(disks[:1], copies=1)
    fill(log, 1)
    log.append(2, b"x" * 3 * SEGMENT)
    fill(log, 4)
    crash(log)
    log = open_log(disks[:1], copies=1)
    assert contents(log) == [payload(1), b"x" * 3 * SEGMENT, payload(3), payload(4)]
    log.close()


def test_members_of_a_newer_format_are_told_from_damaged_ones(
    disks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(files, "FORMAT", files.FORMAT + 1)  # a newer program
        open_log(disks).close()
    with pytest.raises(NewerProgramError, match=f"{disks[0]}: metadata format 2 is newer than this program"):
        files.read_membership(disks[0])
    with pytest.raises(NewerProgramError):
        open_log(disks, create=False)
    path = disks[0] / "metadata" / "members.json"
    path.write_bytes(path.read_bytes().replace(b'"generation"', b'"generatiom"'))
    assert files.read_membership(disks[0]) is None
