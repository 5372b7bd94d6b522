"""open(2) on what is there already: flags against types, truncation, descriptors and what they allow."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from tests.posix.places import (
    ALL_TYPES,
    NOT_DIRECTORIES,
    Place,
    exists,
    make,
    mode_of,
    open_close,
    opened,
    read_file,
    stamps,
    write_file,
)
from tests.support.users import ALICE, BOB, ROOT, as_user, errno_as, errno_of_call, raises_errno

WRITING = {
    "wronly": os.O_WRONLY,
    "rdwr": os.O_RDWR,
    "append": os.O_WRONLY | os.O_APPEND,
    "trunc": os.O_WRONLY | os.O_TRUNC,
    "creat": os.O_WRONLY | os.O_CREAT,
    "creat-trunc": os.O_RDWR | os.O_CREAT | os.O_TRUNC,
}


@pytest.mark.parametrize("flags", WRITING.values(), ids=WRITING)
def test_a_directory_cannot_be_written(place: Place, flags: int) -> None:
    path = place.dir(mode=0o777)
    assert errno_of_call(os.open, path, flags) == errno.EISDIR
    assert errno_as(ALICE, os.open, path, flags) == errno.EISDIR


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDONLY | os.O_DIRECTORY, os.O_PATH | os.O_DIRECTORY])
def test_a_directory_can_be_opened_for_reading(place: Place, flags: int) -> None:
    with opened(place.dir(), flags) as fd:
        assert stat.S_ISDIR(os.fstat(fd).st_mode)
        with raises_errno(errno.EISDIR, errno.EBADF):
            os.read(fd, 1)
        with raises_errno(errno.EBADF):
            os.write(fd, b"x")


def test_the_top_itself_can_be_opened(place: Place) -> None:
    with opened(place.top, os.O_RDONLY | os.O_DIRECTORY) as fd:
        assert os.fstat(fd).st_ino == os.lstat(place.top).st_ino
    with raises_errno(errno.EISDIR):
        os.open(place.top, os.O_RDWR)


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_o_directory_wants_a_directory(place: Place, kind: str) -> None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_NOFOLLOW
    assert errno_of_call(os.open, place.make(kind), flags) == errno.ENOTDIR


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_CREAT])
def test_o_nofollow_refuses_a_symlink(room: str, flags: int) -> None:
    target = make("file", f"{room}/target")
    os.symlink("target", f"{room}/link")
    assert errno_of_call(os.open, f"{room}/link", flags | os.O_NOFOLLOW) == errno.ELOOP
    with opened(target, flags | os.O_NOFOLLOW) as fd:
        assert os.fstat(fd).st_ino == os.lstat(target).st_ino


def test_o_path_opens_the_symlink_itself(room: str) -> None:
    os.symlink("target", f"{room}/link")
    with opened(f"{room}/link", os.O_PATH | os.O_NOFOLLOW) as fd:
        assert stat.S_ISLNK(os.fstat(fd).st_mode)
        assert os.readlink("", dir_fd=fd) == "target"


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
@pytest.mark.parametrize("kind", ALL_TYPES)
def test_o_path_needs_no_permission(place: Place, kind: str, flags: int) -> None:
    path = place.make(kind, mode=0, uid=ALICE)

    def through_o_path() -> tuple[int, int]:
        with opened(path, os.O_PATH | os.O_NOFOLLOW) as fd:
            with raises_errno(errno.EBADF):
                os.read(fd, 1)
            return os.fstat(fd).st_ino, errno_of_call(os.fchmod, fd, 0o600)

    assert as_user(BOB, through_o_path) == (os.lstat(path).st_ino, errno.EBADF)
    if kind != "symlink":
        expected = errno.EISDIR if kind == "dir" and flags != os.O_RDONLY else errno.EACCES
        assert errno_as(BOB, os.open, path, flags | os.O_NONBLOCK) == expected


def test_opening_a_socket_is_enxio(place: Place) -> None:
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        assert errno_of_call(os.open, place.make("socket"), flags) == errno.ENXIO


def test_a_fifo_without_a_reader_is_enxio(place: Place) -> None:
    path = place.make("fifo")
    assert errno_of_call(os.open, path, os.O_WRONLY | os.O_NONBLOCK) == errno.ENXIO
    with opened(path, os.O_RDONLY | os.O_NONBLOCK), opened(path, os.O_WRONLY | os.O_NONBLOCK):
        pass


def test_a_missing_file_is_enoent(room: str) -> None:
    for flags in (
        os.O_RDONLY,
        os.O_WRONLY,
        os.O_RDWR,
        os.O_WRONLY | os.O_TRUNC,
        os.O_RDONLY | os.O_DIRECTORY,
    ):
        assert errno_of_call(os.open, f"{room}/missing", flags) == errno.ENOENT
    assert os.listdir(room) == []


def test_o_creat_opens_what_exists_without_touching_it(place: Place) -> None:
    parent = place.dir()
    path = make("file", f"{parent}/f", 0o640, ALICE)
    write_file(path, b"content")
    with stamps(parent, kept=("mtime", "ctime")), stamps(path, kept=("mtime", "ctime")):
        open_close(path, os.O_CREAT | os.O_RDWR, 0o777)
    assert read_file(path) == b"content"
    assert mode_of(path) == 0o640


def test_o_creat_through_a_dangling_symlink_creates_the_target(room: str) -> None:
    os.symlink("target", f"{room}/link")
    open_close(f"{room}/link", os.O_CREAT | os.O_WRONLY)
    assert sorted(os.listdir(room)) == ["link", "target"]
    assert stat.S_ISREG(os.lstat(f"{room}/target").st_mode)


def test_o_excl_does_not_follow_a_dangling_symlink(room: str) -> None:
    os.symlink("target", f"{room}/link")
    assert errno_of_call(os.open, f"{room}/link", os.O_CREAT | os.O_EXCL | os.O_WRONLY) == errno.EEXIST
    assert os.listdir(room) == ["link"]


@pytest.mark.parametrize("size", [0, 1, 4096, 100_000])
@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_CREAT, os.O_RDWR | os.O_APPEND])
def test_o_trunc_empties_and_stamps(place: Place, flags: int, size: int) -> None:
    path = place.file(data=b"x" * size, mode=0o640, uid=ALICE)
    inode = os.lstat(path).st_ino
    with stamps(path, "mtime", "ctime"):
        open_close(path, flags | os.O_TRUNC, 0o777)
    status = os.lstat(path)
    assert (status.st_size, status.st_ino, stat.S_IMODE(status.st_mode)) == (0, inode, 0o640)
    assert (status.st_uid, status.st_gid) == (ALICE, ALICE)


def test_o_trunc_without_permission_keeps_the_data(place: Place) -> None:
    path = place.file(data=b"precious", mode=0o444, uid=ALICE)
    for uid in (ALICE, BOB):
        assert errno_as(uid, os.open, path, os.O_WRONLY | os.O_TRUNC) == errno.EACCES
    assert read_file(path) == b"precious"


def test_o_trunc_clears_set_id_bits_for_a_user(place: Place) -> None:
    path = place.file(data=b"x", mode=0o6777, uid=ALICE)
    as_user(BOB, open_close, path, os.O_WRONLY | os.O_TRUNC)
    assert mode_of(path) == 0o777


@pytest.mark.parametrize("kind", ["file", "fifo"])
def test_a_descriptor_allows_only_its_own_direction(place: Place, kind: str) -> None:
    path = place.make(kind)
    if kind == "file":
        write_file(path, b"data")
    with (
        opened(path, os.O_RDONLY | os.O_NONBLOCK) as reader,
        opened(path, os.O_WRONLY | os.O_NONBLOCK) as writer,
    ):
        with raises_errno(errno.EBADF):
            os.write(reader, b"x")
        with raises_errno(errno.EBADF):
            os.read(writer, 1)
        if kind == "file":
            with raises_errno(errno.EBADF):
                os.pread(writer, 1, 0)
            with raises_errno(errno.EBADF):
                os.pwrite(reader, b"x", 0)
            with raises_errno(errno.EBADF, errno.EINVAL):
                os.ftruncate(reader, 0)


def test_several_descriptors_have_their_own_offsets(place: Place) -> None:
    path = place.file(data=b"0123456789")
    with opened(path) as first, opened(path) as second:
        assert os.read(first, 4) == b"0123"
        assert os.read(second, 2) == b"01"
        assert os.read(first, 4) == b"4567"
        duplicate = os.dup(first)
        assert os.read(duplicate, 1) == b"8"
        os.close(duplicate)
        assert os.read(first, 4) == b"9"
        assert os.read(first, 4) == b""


def test_what_one_descriptor_writes_another_reads_at_once(place: Place) -> None:
    path = place.file()
    with opened(path, os.O_WRONLY) as writer, opened(path) as reader:
        for number in range(20):
            os.write(writer, b"%03d" % number)
            assert os.pread(reader, 3, 3 * number) == b"%03d" % number
            assert os.fstat(reader).st_size == 3 * (number + 1)


def test_another_process_sees_a_write_at_once(place: Place) -> None:
    path = place.file(mode=0o666)
    for number in range(5):
        as_user(ALICE, write_file, path, b"%d" % number)
        assert read_file(path) == b"%d" % number
        assert as_user(BOB, read_file, path) == b"%d" % number


@pytest.mark.parametrize(("uid", "expected"), [(ALICE, 0), (ROOT, 0), (BOB, errno.EPERM)])
def test_o_noatime_is_for_the_owner(place: Place, uid: int, expected: int) -> None:
    path = place.file(data=b"x", mode=0o666, uid=ALICE)
    assert errno_as(uid, open_close, path, os.O_RDONLY | os.O_NOATIME) == expected


@pytest.mark.parametrize("flags", [os.O_SYNC, os.O_DSYNC, os.O_NOCTTY | os.O_NONBLOCK, os.O_CLOEXEC])
def test_other_flags_are_accepted(place: Place, flags: int) -> None:
    path = place.path()
    with opened(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | flags, 0o400) as fd:
        assert os.write(fd, b"data") == 4
    assert read_file(path) == b"data"


def test_o_tmpfile_works_or_is_refused(room: str) -> None:
    """ckfs may refuse it: nobody may depend on it, since most file systems under it lack it too."""
    number = errno_of_call(open_close, room, os.O_TMPFILE | os.O_RDWR, 0o600)
    assert number in {0, errno.EOPNOTSUPP}
    assert os.listdir(room) == []


def test_openat_follows_a_renamed_directory(room: str) -> None:
    make("dir", f"{room}/old")
    with opened(f"{room}/old", os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.rename(f"{room}/old", f"{room}/new")
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=fd))
    assert exists(f"{room}/new/f")


def test_many_files_can_be_open_at_once(room: str) -> None:
    descriptors = []
    try:
        for number in range(200):
            descriptors.append(os.open(f"{room}/{number}", os.O_CREAT | os.O_RDWR))  # noqa: PERF401 - closed below
        for number, fd in enumerate(descriptors):
            os.write(fd, b"%d" % number)
        for number, fd in enumerate(descriptors):
            assert os.pread(fd, 10, 0) == b"%d" % number
    finally:
        for fd in descriptors:
            os.close(fd)
