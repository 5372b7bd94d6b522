"""stat(2) and statvfs(3): one device, stable inode numbers, times that never surprise, sizes of the whole."""

from __future__ import annotations

import os
import stat

import pytest

from tests.posix.places import (
    ALL_TYPES,
    DIRECTORY,
    NULL_DEVICE,
    SYMLINK,
    TYPE_BITS,
    Place,
    make,
    opened,
    read_file,
    stamps,
    times_of,
    utimensat,
    write_file,
)
from tests.support.users import ALICE, BOB, as_user


def test_the_top(place: Place) -> None:
    status = os.stat(place.top)
    assert stat.S_ISDIR(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o1777
    assert (status.st_uid, status.st_gid) == (0, 0)
    assert status.st_nlink >= (1 if place.entries_are_sets else 2)


@pytest.mark.parametrize("where", ["top", "inside"])
@pytest.mark.parametrize("kind", ALL_TYPES)
def test_a_fresh_file_of_every_type(place: Place, kind: str, where: str) -> None:
    path = place.path() if where == "top" else f"{place.dir()}/x"
    make(kind, path, 0o751, ALICE, BOB)
    status = os.lstat(path)
    assert stat.S_IFMT(status.st_mode) == TYPE_BITS[kind]
    assert stat.S_IMODE(status.st_mode) == (0o777 if kind == SYMLINK else 0o751)
    assert (status.st_uid, status.st_gid) == (ALICE, BOB)
    assert status.st_nlink == (2 if kind == DIRECTORY else 1)
    assert status.st_rdev == (NULL_DEVICE if kind in {"char", "block"} else 0)
    assert status.st_dev == os.stat(place.top).st_dev
    assert status.st_blksize >= 512
    if kind == SYMLINK:
        assert status.st_size == len("nowhere")
    elif kind != DIRECTORY:
        assert status.st_size == 0


@pytest.mark.parametrize("kind", ALL_TYPES)
def test_every_way_of_asking_has_the_same_answer(place: Place, kind: str) -> None:
    path = place.make(kind, uid=ALICE)
    status = os.lstat(path)
    with opened(path, os.O_PATH | os.O_NOFOLLOW) as fd:
        assert os.fstat(fd) == status
    with opened(place.top, os.O_RDONLY | os.O_DIRECTORY) as fd:
        assert os.stat(os.path.basename(path), dir_fd=fd, follow_symlinks=False) == status
    assert as_user(BOB, lambda: tuple(os.lstat(path))) == tuple(status)


def test_inode_numbers_are_unique_and_stable(room: str) -> None:
    inodes = {}
    for number in range(100):
        path = f"{room}/{number}"
        write_file(path, b"x")
        inodes[path] = os.lstat(path).st_ino
    assert len(set(inodes.values())) == 100
    for path, inode in inodes.items():
        write_file(path, b"again")
        os.chmod(path, 0o600)
        os.rename(path, f"{path}.new")
        assert os.lstat(f"{path}.new").st_ino == inode


def test_links_of_a_directory_count_its_subdirectories(place: Place) -> None:
    path = place.dir()
    for number in range(5):
        make("dir", f"{path}/d{number}")
        make("file", f"{path}/f{number}")
        assert os.lstat(path).st_nlink == 3 + number
        assert os.lstat(f"{path}/d{number}").st_nlink == 2
    for number in range(5):
        os.rmdir(f"{path}/d{number}")
        assert os.lstat(path).st_nlink == 6 - number


@pytest.mark.parametrize("size", [0, 1, 4096, 100_000])
def test_the_size_is_what_was_written(place: Place, size: int) -> None:
    path = place.file(data=b"x" * size)
    assert os.stat(path).st_size == size
    with opened(path) as fd:
        assert os.fstat(fd).st_size == size


def test_reading_moves_an_old_atime_or_leaves_it_but_nothing_else(place: Place) -> None:
    """relatime, noatime and direct I/O differ; mtime and ctime never move by reading."""
    path = place.file(data=b"data")
    utimensat(path, (1_000_000_000, 0), (1_100_000_000, 0))
    with stamps(path, kept=("mtime", "ctime")):
        read_file(path)
    assert times_of(path)["atime"] >= 1_000_000_000 * 10**9


@pytest.mark.parametrize("kind", ["dir", "symlink"])
def test_reading_a_directory_or_a_symlink_stamps_nothing_else(place: Place, kind: str) -> None:
    path = place.make(kind)
    with stamps(path, kept=("mtime", "ctime")):
        (os.listdir if kind == "dir" else os.readlink)(path)
        os.lstat(path)


def test_times_are_about_now(place: Place) -> None:
    import time

    path = place.file()
    now = time.time_ns()
    assert all(abs(moment - now) < 5 * 10**9 for moment in times_of(path).values())


def test_statvfs(place: Place) -> None:
    inside = place.dir()
    path = place.file()
    answers = [os.statvfs(place.top), os.statvfs(inside), os.statvfs(path)]
    with opened(path) as fd:
        answers.append(os.fstatvfs(fd))
    for answer in answers:
        assert answer.f_namemax == 255
        assert answer.f_bsize >= 512
        assert answer.f_frsize >= 512
        assert answer.f_blocks >= answer.f_bfree >= answer.f_bavail > 0
        assert answer.f_files >= answer.f_ffree >= 0
        assert answer.f_fsid == answers[0].f_fsid
    assert as_user(ALICE, lambda: os.statvfs(place.top).f_blocks) > 0


def test_a_mount_is_nosuid_and_nodev(place: Place) -> None:
    flags = os.statvfs(place.top).f_flag
    if place.on_mount:
        assert flags & os.ST_NOSUID
        assert flags & os.ST_NODEV
    assert not flags & os.ST_RDONLY


def test_statvfs_sees_what_is_written(place: Place) -> None:
    """Only the direction: others use the same disk at the same time."""
    path = place.file()
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"x" * (1 << 20))
        os.fsync(fd)
        answer = os.fstatvfs(fd)
        assert answer.f_bfree < answer.f_blocks
