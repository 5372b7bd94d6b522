"""Attributes by descriptor of a file that has lost its last name, on a store that then answers ESTALE as GlusterFS does."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ckfs.store import attributes

NAME, OTHER = b"user.ckfs", b"user.ckfs.w.1"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "image"


@pytest.fixture
def fd(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """An open file. Its attributes by the descriptor are there only as long as it has a name."""
    opened = os.open(path, os.O_RDWR | os.O_CREAT)

    def losing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(where: int | bytes, *args: object, **options: object) -> object:
            if isinstance(where, int) and not os.fstat(where).st_nlink:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return real(where, *args, **options)

        return call

    for name in ("getxattr", "setxattr", "listxattr", "removexattr"):
        monkeypatch.setattr(os, name, losing(getattr(os, name)))
    yield opened
    os.close(opened)


def test_what_was_remembered_is_read_and_can_be_changed(path: Path, fd: int) -> None:
    attributes.remember(fd, "a file", NAME, b"first")
    path.unlink()
    assert attributes.get(fd, NAME) == b"first"
    attributes.put(fd, NAME, b"second")
    attributes.put(fd, OTHER, b"1")
    assert attributes.get(fd, NAME) == b"second"
    assert attributes.names(fd) == [NAME, OTHER]
    attributes.remove(fd, OTHER)
    assert attributes.get_or_none(fd, OTHER) is None


def test_what_ckfs_noted_while_there_was_a_name_is_known_too(path: Path, fd: int) -> None:
    """Without the marks of who writes nobody would know with what a removed file counts."""
    attributes.remember(fd, "a file", NAME, b"first")
    attributes.put(fd, OTHER, b"4096 1")
    attributes.put(fd, b"user.note", b"a user's")
    attributes.remember(fd, "a file", NAME, b"second")
    path.unlink()
    assert (attributes.names(fd), attributes.get(fd, OTHER)) == ([NAME, OTHER], b"4096 1")


def test_what_others_have_taken_away_meanwhile_is_forgotten(path: Path, fd: int) -> None:
    attributes.remember(fd, "a file", NAME, b"first")
    attributes.put(fd, NAME, b"first")
    attributes.put(fd, OTHER, b"1")
    os.removexattr(path, OTHER)
    attributes.names(fd)
    path.unlink()
    assert attributes.names(fd) == [NAME]


def test_what_is_there_is_not_made_and_what_is_not_there_not_removed(path: Path, fd: int) -> None:
    attributes.remember(fd, "a file", NAME, b"first")
    path.unlink()
    with pytest.raises(FileExistsError):
        attributes.create(fd, NAME, b"second")
    with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
        attributes.remove(fd, OTHER)


def test_what_is_remembered_of_one_file_does_not_stay_with_the_next(path: Path, fd: int) -> None:
    attributes.remember(fd, "a file", NAME, b"first")
    path.unlink()
    attributes.put(fd, OTHER, b"1")
    attributes.remember(fd, "another file", NAME, b"another")
    assert (attributes.names(fd), attributes.get(fd, NAME)) == ([NAME], b"another")


@pytest.mark.parametrize("call", ["put", "create", "get", "remove"])
def test_a_users_own_attributes_are_not_remembered(path: Path, fd: int, call: str) -> None:
    """He has as many as he likes, of 64 KiB each."""
    attributes.remember(fd, "a file", NAME, b"first")
    path.unlink()
    value = [b"value"] if call in ("put", "create") else []
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        getattr(attributes, call)(fd, b"user.note", *value)


def test_a_file_with_a_name_is_asked_itself(path: Path, fd: int) -> None:
    attributes.remember(fd, "a file", NAME, b"remembered")
    assert attributes.get_or_none(fd, NAME) is None
    attributes.put(fd, NAME, b"kept")
    assert os.getxattr(path, NAME) == b"kept"
