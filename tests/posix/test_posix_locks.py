"""flock(2) and fcntl(2) record locks between processes."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

import pytest

from tests.posix.places import Place, opened
from tests.support.users import ALICE, BOB, as_user, errno_as

EX, SH = fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_SH | fcntl.LOCK_NB
BUSY = {errno.EAGAIN, errno.EACCES}


def _flock(path: str, how: int) -> None:
    with opened(path, os.O_RDWR) as fd:
        fcntl.flock(fd, how)


def _lockf(path: str, how: int, start: int = 0, length: int = 0) -> None:
    with opened(path, os.O_RDWR) as fd:
        fcntl.lockf(fd, how, length, start)


@pytest.mark.parametrize(
    ("held", "wanted", "granted"), [(EX, EX, False), (EX, SH, False), (SH, EX, False), (SH, SH, True)]
)
def test_flock_between_processes(place: Place, held: int, wanted: int, granted: bool) -> None:
    path = place.file(mode=0o666)
    with opened(path, os.O_RDWR) as fd:
        fcntl.flock(fd, held)
        assert errno_as(ALICE, _flock, path, wanted) == (0 if granted else errno.EWOULDBLOCK)
        fcntl.flock(fd, fcntl.LOCK_UN)
        assert errno_as(ALICE, _flock, path, wanted) == 0


@pytest.mark.parametrize(
    ("held", "wanted", "granted"), [(EX, EX, False), (EX, SH, False), (SH, EX, False), (SH, SH, True)]
)
def test_record_locks_between_processes(place: Place, held: int, wanted: int, granted: bool) -> None:
    path = place.file(data=b"x" * 100, mode=0o666)
    with opened(path, os.O_RDWR) as fd:
        fcntl.lockf(fd, held, 10, 20)
        got = errno_as(ALICE, _lockf, path, wanted, 25, 10)
        assert got == 0 if granted else got in BUSY
        assert errno_as(ALICE, _lockf, path, wanted, 0, 20) == 0
        assert errno_as(ALICE, _lockf, path, wanted, 30, 0) == 0
        fcntl.lockf(fd, fcntl.LOCK_UN, 10, 20)
        assert errno_as(ALICE, _lockf, path, wanted, 0, 0) == 0


def test_closing_releases(place: Place) -> None:
    path = place.file(mode=0o666)
    with opened(path, os.O_RDWR) as fd:
        fcntl.flock(fd, EX)
    assert errno_as(ALICE, _flock, path, EX) == 0
    with opened(path, os.O_RDWR) as fd:
        fcntl.lockf(fd, EX)
    assert errno_as(ALICE, _lockf, path, EX) == 0


def test_two_descriptors_of_one_process_conflict_in_flock_only(place: Place) -> None:
    path = place.file()
    with opened(path, os.O_RDWR) as first, opened(path, os.O_RDWR) as second:
        fcntl.flock(first, EX)
        assert as_user(0, lambda: 1) == 1
        try:
            fcntl.flock(second, EX)
        except BlockingIOError:
            pass
        else:
            raise AssertionError("both hold an exclusive flock")
        fcntl.lockf(first, EX)
        fcntl.lockf(second, EX)


def test_getlk_names_the_holder(place: Place) -> None:
    path = place.file(mode=0o666)
    layout = "hhqqi4x"

    def ask() -> int:
        with opened(path, os.O_RDWR) as fd:
            request = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = struct.unpack(layout, fcntl.fcntl(fd, fcntl.F_GETLK, request))
            return int(pid) if kind != fcntl.F_UNLCK else 0

    with opened(path, os.O_RDWR) as fd:
        fcntl.lockf(fd, EX)
        assert as_user(BOB, ask) == os.getpid()
    assert as_user(BOB, ask) == 0


def test_directories_can_be_flocked(place: Place) -> None:
    path = place.dir()
    with opened(path, os.O_RDONLY) as first, opened(path, os.O_RDONLY) as second:
        fcntl.flock(first, EX)
        assert as_user(0, lambda: _try(second)) == errno.EWOULDBLOCK


def _try(fd: int) -> int:
    try:
        fcntl.flock(fd, EX)
    except OSError as error:
        return error.errno or 0
    return 0
