"""Who has a file open, and who counts it when it has no name any more, as the file itself says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckfs.names import Inode, MountId, Uid
from ckfs.policy.quota import Amount
from ckfs.store import nameless
from ckfs.store.nameless import Left, Mark, Standing

OWN, OTHER = MountId(b"0123456789abcdef"), MountId(b"fedcba9876543210")
LEFT = Left(Uid(2101), Inode(1 << 60), Amount(8192, 1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    return path


@pytest.fixture
def asking(path: Path) -> Iterator[int]:
    """A descriptor by which nothing is held."""
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_a_file_is_held_by_each_descriptor_until_that_is_closed(path: Path, asking: int, flags: int) -> None:
    assert not nameless.is_held(asking)
    fds = [os.open(path, flags) for _ in range(3)]
    for fd in fds:
        nameless.hold(fd)
    for fd in fds:
        assert nameless.is_held(asking)
        os.close(fd)
    assert not nameless.is_held(asking)


def test_a_second_descriptor_of_the_same_opening_holds_it_too(path: Path, asking: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    nameless.hold(fd)
    second = os.dup(fd)
    os.close(fd)
    assert nameless.is_held(asking)
    os.close(second)
    assert not nameless.is_held(asking)


def test_who_asks_is_not_told_of_himself(path: Path) -> None:
    fd, other = os.open(path, os.O_RDONLY), os.open(path, os.O_RDONLY)
    nameless.hold(fd)
    assert not nameless.is_held(fd)
    nameless.hold(other)
    assert nameless.is_held(fd)
    nameless.let_go(other)
    assert not nameless.is_held(fd)
    os.close(fd)
    os.close(other)


@pytest.mark.parametrize("mark", [Mark(None), Mark(OWN), Mark(OWN, LEFT)])
def test_a_mark_says_what_was_said(asking: int, mark: Mark) -> None:
    assert nameless.mark_of(asking) is None
    assert nameless.is_first_to_mark(asking, mark)
    assert not nameless.is_first_to_mark(asking, Mark(OTHER))
    assert nameless.mark_of(asking) == mark


def test_how_a_file_stands_to_its_keeper(path: Path, asking: int) -> None:
    nameless.put_mark(asking, Mark(OWN))
    fd = os.open(path, os.O_RDONLY)
    nameless.hold(fd)
    assert nameless.look_at(asking, OWN, LEFT) is Standing.HELD
    assert nameless.mark_of(asking) == Mark(OWN, LEFT)  # others may take over
    assert nameless.look_at(asking, OTHER, LEFT) is Standing.TAKEN_OVER
    os.close(fd)
    assert nameless.look_at(asking, OWN, LEFT) is Standing.FREE
