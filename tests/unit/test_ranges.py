"""Which parts of a file were written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckfs.fs.ranges import Ranges

MOST = 60
WAYS = st.lists(
    st.tuples(st.sampled_from(["add", "cut"]), st.integers(0, MOST), st.integers(0, MOST)), max_size=30
)


def ranges(*parts: tuple[int, int]) -> Ranges:
    made = Ranges()
    for begin, end in parts:
        made.add(begin, end)
    return made


@pytest.mark.parametrize(
    ("parts", "count"),
    [
        ([], 0),
        ([(0, 4)], 1),
        ([(0, 4), (4, 8)], 1),
        ([(4, 8), (0, 4)], 1),
        ([(0, 4), (5, 8)], 2),
        ([(0, 4), (8, 12), (4, 8)], 1),
        ([(0, 4), (8, 12), (2, 20)], 1),
        ([(0, 20), (5, 6)], 1),
        ([(3, 3)], 0),
    ],
)
def test_ranges_that_touch_are_one(parts: list[tuple[int, int]], count: int) -> None:
    assert len(ranges(*parts)) == count


@pytest.mark.parametrize(
    ("begin", "end", "amount", "reach"),
    [
        (0, 20, 0, 0),
        (0, 20, 2, 2),
        (0, 20, 4, 8),  # up to what was written, and through it
        (0, 20, 5, 9),
        (4, 20, 0, 8),  # what was written costs nothing
        (4, 20, 100, 20),
        (6, 7, 0, 7),
    ],
)
def test_how_far_an_amount_reaches(begin: int, end: int, amount: int, reach: int) -> None:
    assert ranges((4, 8)).reach(begin, end, amount) == reach


@given(WAYS, st.integers(0, MOST), st.integers(0, MOST), st.integers(0, MOST))
def test_they_are_the_offsets_that_were_added(
    ways: list[tuple[str, int, int]], one: int, other: int, amount: int
) -> None:
    made, known = Ranges(), set[int]()
    for way, begin, end in ways:
        if way == "add":
            made.add(begin, end)
            known |= set(range(begin, end))
        else:
            made.cut(end)
            known -= set(range(end, MOST + 1))
    begin, end = sorted((one, other))
    missing = [at for at in range(begin, end) if at not in known]
    assert made.missing(begin, end) == len(missing)
    assert made.reach(begin, end, amount) == (missing[amount] if amount < len(missing) else end)
    assert len(made) == sum(at in known and at - 1 not in known for at in range(MOST + 1))
    assert made.touches(begin, end) == any(at in known for at in range(begin - 1, end + 1))
