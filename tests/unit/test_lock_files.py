"""The files in which mounts keep what programs have locked: made, seen, and removed when nobody has them any more."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from fcntl import F_RDLCK, F_UNLCK, F_WRLCK
from pathlib import Path

import pytest

from ckfs.model import Owner
from ckfs.names import Gid, Inode, Uid
from ckfs.store import lockfiles
from ckfs.store.lockfiles import FLOCK_BYTE, LAST_SHARED, LockFiles

INO = Inode(0x7F)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[LockFiles]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield LockFiles(fd, Owner(Uid(os.geteuid()), Gid(os.getegid())))
    os.close(fd)


def test_what_one_mount_has_another_cannot_have(files: LockFiles) -> None:
    one, other = files.open(INO), files.open(INO)
    assert one.set([(0, 9, F_WRLCK), (20, LAST_SHARED, F_RDLCK)])
    assert not other.set([(5, 5, F_RDLCK)])
    assert other.get((5, 30, F_RDLCK)) == (0, 9, F_WRLCK)
    assert other.get((30, 40, F_WRLCK)) == (20, LAST_SHARED, F_RDLCK)
    assert other.get((30, 40, F_RDLCK)) is None
    assert one.set([(0, 9, F_UNLCK)])
    assert other.set([(5, 5, F_WRLCK), (FLOCK_BYTE, FLOCK_BYTE, F_WRLCK)])
    one.close()
    other.close()


def test_a_refused_piece_does_not_keep_the_others_from_being_unlocked(files: LockFiles) -> None:
    one, other = files.open(INO), files.open(INO)
    assert one.set([(0, 0, F_WRLCK)])
    assert other.set([(1, 1, F_WRLCK)])
    assert not other.set([(0, 0, F_WRLCK), (1, 1, F_UNLCK)])
    assert one.set([(1, 1, F_WRLCK)])
    one.close()
    other.close()


def test_the_file_goes_with_the_last_that_has_it(files: LockFiles, tmp_path: Path) -> None:
    one, other = files.open(INO), files.open(INO)
    one.close()
    assert os.listdir(tmp_path) == ["locks-7f"]
    other.close()
    assert os.listdir(tmp_path) == []
    other.close()
    assert other.is_closed


def test_files_of_the_dead_are_cleared_and_those_of_the_living_stay(files: LockFiles, tmp_path: Path) -> None:
    (tmp_path / "locks-1").touch()
    (tmp_path / "copying-1").touch()
    one = files.open(INO)
    files.clear()
    assert sorted(os.listdir(tmp_path)) == ["copying-1", "locks-7f"]
    one.close()


def test_a_file_that_was_removed_in_that_moment_is_made_anew(
    files: LockFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the opening and the lock that keeps it another mount takes its name away."""
    real, removed = lockfiles._set, list[int]()

    def setting(fd: int, kind: int, start: int, end: int) -> bool:
        if not removed:
            removed.append(os.fstat(fd).st_ino)
            (tmp_path / "locks-7f").unlink()
        return real(fd, kind, start, end)

    monkeypatch.setattr(lockfiles, "_set", setting)
    one = files.open(INO)
    assert (tmp_path / "locks-7f").exists()
    other = files.open(INO)
    assert one.set([(0, 0, F_WRLCK)])
    assert not other.set([(0, 0, F_WRLCK)])
    one.close()
    other.close()


def test_many_who_come_and_go_never_miss_each_other(files: LockFiles, tmp_path: Path) -> None:
    inside, wrong = [0], list[str]()

    def work() -> None:
        for _ in range(60):
            one = files.open(INO)
            try:
                if one.set([(0, 0, F_WRLCK)]):
                    inside[0] += 1
                    if inside[0] != 1:
                        wrong.append("two have the lock")
                    os.sched_yield()
                    inside[0] -= 1
            finally:
                one.close()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert os.listdir(tmp_path) == []


def test_a_killed_mount_has_no_locks(files: LockFiles, tmp_path: Path) -> None:
    dies = """
import os, signal, sys
from fcntl import F_WRLCK
from ckfs.model import Owner
from ckfs.names import Gid, Inode, Uid
from ckfs.store.lockfiles import LockFiles
files = LockFiles(os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY), Owner(Uid(os.geteuid()), Gid(os.getegid())))
assert files.open(Inode(0x7F)).set([(0, 9, F_WRLCK)])
print(flush=True)
signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", dies, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        one = files.open(INO)
        assert not one.set([(0, 0, F_RDLCK)])
        process.kill()
        process.wait()
        assert one.set([(0, 0, F_RDLCK)])
    one.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_store_without_locks_is_found_out(
    files: LockFiles, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    assert files.are_kept()
    with monkeypatch.context() as patched:

        def refused(*_: object) -> bytes:
            raise OSError(number, "no locks")

        patched.setattr(fcntl, "fcntl", refused)
        assert not files.are_kept()
        with pytest.raises(OSError, match="no locks") as raised:
            files.open(INO)
        assert raised.value.errno == errno.ENOLCK


def test_no_room_for_the_file_is_no_lock(files: LockFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.EDQUOT, "full")

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(OSError, match="full") as raised:
        files.open(INO)
    assert raised.value.errno == errno.ENOLCK
