"""How a handle's reads are told apart: sequential ones get whole stripes, random ones blocks."""

from wormfs.client.file_reader import SEQUENTIAL_REACH_BYTES, ReadPattern

_PAGE = 4096
_MIB = 1 << 20


def test_small_reads_from_the_start_are_sequential_at_once() -> None:
    pattern = ReadPattern()
    assert all(pattern.note(number * _PAGE, _PAGE) for number in range(4))
    assert pattern.run_bytes == 4 * _PAGE


def test_small_reads_after_a_jump_are_sequential_from_the_third_on() -> None:
    pattern = ReadPattern()
    far = 100 * SEQUENTIAL_REACH_BYTES
    told = [pattern.note(far + number * _PAGE, _PAGE) for number in range(5)]
    assert told == [False, False, False, True, True]


def test_large_reads_from_the_start_are_sequential_at_once() -> None:
    pattern = ReadPattern()
    assert pattern.note(0, _MIB)


def test_two_random_reads_that_come_near_each_other_are_no_run() -> None:
    pattern = ReadPattern()
    far = 100 * SEQUENTIAL_REACH_BYTES
    assert not pattern.note(far, _PAGE)
    assert not pattern.note(far + _MIB, _PAGE)
    assert not pattern.note(far // 2, _PAGE)
    assert pattern.run_bytes == 0


def test_readahead_out_of_order_stays_sequential() -> None:
    pattern = ReadPattern()
    offsets = [0, 2 * _MIB, _MIB, 3 * _MIB]
    assert all(pattern.note(offset, _MIB) for offset in offsets)
