"""Calls as other users that a small process makes: they are those that a child of this one would have made."""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from pathlib import Path

import pytest

from tests.support import callers, users
from tests.support.callers import Call
from tests.support.payers import until
from tests.support.users import ALICE, BOB, ChildFailed, as_user, errno_of_call, raises_errno

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]


def is_sendable(fn: object, *args: object) -> bool:
    assert callable(fn)
    return callers.is_sendable(Call(ALICE, ALICE, (), None, fn, args))


@pytest.fixture
def here(workdir: Path) -> Path:
    workdir.chmod(0o1777)
    return workdir


def test_what_means_the_same_elsewhere_is_sent(here: Path) -> None:
    assert is_sendable(os.mkdir, str(here / "d"), 0o755)
    assert is_sendable(errno_of_call, os.setxattr, str(here), "user.x", b"value")
    assert is_sendable(partial(os.mkdir, str(here)), 0o700)


def test_what_means_something_here_alone_is_not(here: Path) -> None:
    fd = os.open(here, os.O_RDONLY)
    assert not is_sendable(os.fchmod, fd, 0o700)
    os.close(fd)
    assert not is_sendable(os.listdir, f"/proc/self/fd/{fd}")
    assert not is_sendable(lambda: None)
    assert not is_sendable(pytest.raises, OSError)
    assert not is_sendable(os.mkdir, here)
    assert not is_sendable(os.setxattr, str(here), "user.x", bytes(64 << 10))


def test_it_is_made_as_the_user_with_the_umask_of_who_asks(here: Path) -> None:
    before = os.umask(0o027)
    try:
        as_user(ALICE, os.mkdir, str(here / "d"), gid=BOB)
        as_user(ALICE, os.mkdir, str(here / "e"), umask=0o077)
    finally:
        os.umask(before)
    made = (here / "d").stat()
    assert (made.st_uid, made.st_gid, stat.S_IMODE(made.st_mode)) == (ALICE, BOB, 0o750)
    assert stat.S_IMODE((here / "e").stat().st_mode) == 0o700
    with raises_errno(errno.EACCES):
        as_user(BOB, os.listdir, str(here / "e"))


def test_it_is_made_where_who_asks_stands(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    as_user(ALICE, os.mkdir, "d")
    assert (here / "d").is_dir()


def test_what_it_opened_is_closed_when_it_is_over(here: Path) -> None:
    fifo = str(here / "fifo")
    os.mkfifo(fifo)
    os.chmod(fifo, 0o666)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    as_user(ALICE, os.open, fifo, os.O_WRONLY)
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_one_that_hangs_is_ended(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "CALL_TIMEOUT", 0.1)
    fifo = str(here / "fifo")
    os.mkfifo(fifo)
    os.chmod(fifo, 0o666)
    with pytest.raises(ChildFailed, match="hangs"):
        as_user(ALICE, os.open, fifo, os.O_RDONLY)

    def nobody_waits() -> bool:
        try:
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        except OSError as error:
            return error.errno == errno.ENXIO
        return False

    until(nobody_waits, lambda: "it still waits for a writer")
