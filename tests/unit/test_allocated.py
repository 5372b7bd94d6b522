"""What is noted of what was allocated of a file: parts, and how they are read and written."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckfs.store import allocated
from ckfs.store.allocated import having, without

RANGES = st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda ends: (min(ends), max(ends)))


def points(parts: allocated.Parts) -> set[int]:
    return {at for begin, end in parts for at in range(begin, end)}


def check_tidy(parts: allocated.Parts) -> None:
    assert all(begin < end for begin, end in parts)
    assert all(one[1] < other[0] for one, other in pairwise(parts))


@given(st.lists(st.tuples(st.booleans(), RANGES), max_size=12))
def test_parts_are_what_was_added_and_not_taken_away(changes: list[tuple[bool, tuple[int, int]]]) -> None:
    parts: allocated.Parts = ()
    model = set[int]()
    for adds, (begin, end) in changes:
        parts = having(parts, begin, end) if adds else without(parts, begin, end)
        model = model | set(range(begin, end)) if adds else model - set(range(begin, end))
        assert points(parts) == model
        check_tidy(parts)


@pytest.fixture
def fd(tmp_path: Path) -> int:
    path = tmp_path / "file"
    path.touch()
    return os.open(path, os.O_RDWR)


@pytest.mark.parametrize("parts", [(), ((0, 4096),), ((4096, 8192), (1 << 60, (1 << 63) - 1))])
def test_what_is_noted_is_read_again(fd: int, parts: allocated.Parts) -> None:
    allocated.note(fd, ((7, 8),))
    allocated.note(fd, parts)
    assert allocated.of(fd) == parts
    assert (allocated.ATTRIBUTE.decode() in os.listxattr(fd)) == bool(parts)
    os.close(fd)


@pytest.mark.parametrize("raw", [b"", b"x", b"0-", b"1-2,", b"-1-2", b"1-2;3-4"])
def test_what_is_damaged_says_nothing(fd: int, raw: bytes) -> None:
    os.setxattr(fd, allocated.ATTRIBUTE, raw)
    assert allocated.of(fd) == ()
    os.close(fd)


@pytest.mark.parametrize(
    ("end", "left"),
    [
        (0, ()),
        (5, ((0, 5),)),
        (10, ((0, 10),)),
        (15, ((0, 10),)),
        (25, ((0, 10), (20, 25))),
        (40, ((0, 10), (20, 30))),
    ],
)
def test_what_is_cut_off_is_noted_no_more(fd: int, end: int, left: allocated.Parts) -> None:
    allocated.note(fd, ((0, 10), (20, 30)))
    allocated.cut(fd, end)
    assert allocated.of(fd) == left
    os.close(fd)


def test_as_many_parts_as_there_may_be_fit_beside_all_else(fd: int) -> None:
    far = (1 << 62) // allocated.MOST
    parts = tuple((number * far, number * far + 4096) for number in range(allocated.MOST))
    os.setxattr(fd, b"user.ckfs", bytes(300))
    os.setxattr(fd, b"user.ckfs.digest", bytes(120))
    allocated.note(fd, parts)
    assert allocated.of(fd) == parts
    os.close(fd)
