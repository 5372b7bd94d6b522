"""Who counts as reading a file from end to end. Offsets in MiB here, times in seconds."""

from __future__ import annotations

import pytest

from ckfs.fs.streams import Stream

MIB = 1 << 20
FILE = 100 * MIB


def reading(*offsets: float, gap_s: float = 0.001) -> Stream:
    """A stream after reads of 1 MiB at *offsets*, the last one at time 1.0."""
    stream = Stream()
    begin = 1.0 - gap_s * (len(offsets) - 1)
    for number, offset in enumerate(offsets):
        stream.read(int(offset * MIB), MIB, begin + number * gap_s)
    return stream


def test_who_has_read_four_mebibytes_in_a_row_streams() -> None:
    assert reading(0, 1, 2, 3).is_running(FILE, 1.0)
    assert not reading(0, 1, 2).is_running(FILE, 1.0)


def test_the_pieces_of_a_read_ahead_may_come_in_any_order() -> None:
    assert reading(1, 0, 3, 2).is_running(FILE, 1.0)


def test_who_jumps_about_does_not_stream() -> None:
    assert not reading(0, 20, 40, 60).is_running(FILE, 1.0)


@pytest.mark.parametrize("size", [4 * MIB, 3 * MIB, 0], ids=["at the end", "past the end", "emptied"])
def test_at_the_end_every_question_is_answered_afresh(size: int) -> None:
    assert not reading(0, 1, 2, 3).is_running(size, 1.0)


def test_who_rests_does_not_stream() -> None:
    assert not reading(0, 1, 2, 3).is_running(FILE, 1.1)
    assert not reading(0, 1, 2, 3, gap_s=0.1).is_running(FILE, 1.0)
