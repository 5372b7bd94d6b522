"""The lock of a file that a mount takes for a moment."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ckfs.store import alone
from ckfs.store.alone import alone_in, alone_with

_SHORT_S = 0.05


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    return path


@pytest.fixture
def fd(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def elsewhere(path: Path) -> Iterator[int]:
    """Stands for another process: a descriptor of which the module knows nothing."""
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def is_locked(other: int) -> bool:
    """Whether the file is, otherwise than by the descriptor *other*."""
    try:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(other, fcntl.LOCK_UN)
    return False


def test_the_file_is_locked_within_the_block_and_never_after(fd: int, elsewhere: int) -> None:
    with alone_with(fd) as is_alone:
        assert is_alone
        assert is_locked(elsewhere)
    assert not is_locked(elsewhere)
    with pytest.raises(ZeroDivisionError), alone_with(fd):
        raise ZeroDivisionError
    assert not is_locked(elsewhere)


def test_who_has_it_gets_it_once_more_and_keeps_it_to_the_end(path: Path, fd: int, elsewhere: int) -> None:
    second = os.open(path, os.O_RDONLY)
    with alone_with(fd):
        for inner in (fd, second):
            with alone_with(inner, within_s=0) as is_alone:
                assert is_alone
            assert is_locked(elsewhere)
    assert not is_locked(elsewhere)
    os.close(second)


def test_another_thread_waits_though_the_descriptor_is_the_same(fd: int, elsewhere: int) -> None:
    entered, may_leave = threading.Event(), threading.Event()

    def hold() -> None:
        with alone_with(fd):
            entered.set()
            assert may_leave.wait(60)

    def ask(within_s: float) -> bool:
        with alone_with(fd, within_s=within_s) as is_alone:
            return is_alone

    with ThreadPoolExecutor(2) as threads:
        holding = threads.submit(hold)
        assert entered.wait(60)
        assert not threads.submit(ask, 0).result()
        assert not threads.submit(ask, _SHORT_S).result()
        assert is_locked(elsewhere)  # who asked in vain has given nothing back
        asking = threads.submit(ask, 60)
        may_leave.set()
        assert asking.result()
        holding.result()
    assert not is_locked(elsewhere)


def test_who_keeps_it_elsewhere_is_not_waited_for_long(fd: int, elsewhere: int) -> None:
    fcntl.flock(elsewhere, fcntl.LOCK_EX)
    with alone_with(fd, within_s=_SHORT_S) as is_alone:
        assert not is_alone
        with alone_with(fd, within_s=_SHORT_S) as is_alone:
            assert not is_alone
    assert is_locked(fd)  # it was not given back for him


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF])
def test_a_store_without_locks_says_so_and_hinders_nobody(
    fd: int, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(*_: object) -> None:
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", refused)
    with alone_with(fd) as is_alone:
        assert not is_alone


def test_nothing_is_remembered_of_files_that_nobody_wants(tmp_path: Path, fd: int) -> None:
    directory = os.open(tmp_path, os.O_PATH)
    with alone_with(fd), alone_in([directory, directory]):
        assert len(alone._turns) == 2
    os.close(directory)
    assert not alone._turns
