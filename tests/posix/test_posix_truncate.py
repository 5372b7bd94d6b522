"""truncate(2), ftruncate(2) and posix_fallocate(3): sizes, zeros, times, rights."""

from __future__ import annotations

import errno
import os
import resource
import signal

import pytest

from tests.posix.places import Place, mode_of, opened, read_file, stamps
from tests.support.users import ALICE, BOB, ROOT, as_user, errno_as, errno_of_call

SIZES = (0, 1, 511, 4095, 4096, 4097, 65_536, 131_073)
CONTENT = bytes(range(256)) * 300


def _truncate(path: str, size: int, way: str) -> None:
    if way == "path":
        os.truncate(path, size)
    else:
        with opened(path, os.O_WRONLY) as fd:
            os.ftruncate(fd, size)


@pytest.fixture(params=["path", "descriptor"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("before", SIZES)
def test_shrinking_keeps_the_head_and_growing_adds_zeros(
    place: Place, way: str, before: int, size: int
) -> None:
    path = place.file(data=(CONTENT * 2)[:before])
    _truncate(path, size, way)
    assert os.lstat(path).st_size == size
    assert read_file(path) == (CONTENT * 2)[: min(before, size)].ljust(size, b"\0")


def test_what_was_cut_off_never_comes_back(place: Place, way: str) -> None:
    path = place.file(data=b"x" * 10_000)
    _truncate(path, 5_000, way)
    _truncate(path, 10_000, way)
    assert read_file(path) == b"x" * 5_000 + bytes(5_000)


@pytest.mark.parametrize("size", [0, 50, 100, 200])
def test_it_stamps_mtime_and_ctime_also_for_the_same_size(place: Place, way: str, size: int) -> None:
    path = place.file(data=b"x" * 100)
    with stamps(path, "mtime", "ctime"):
        _truncate(path, size, way)


def test_a_failed_one_stamps_nothing(place: Place) -> None:
    path = place.file(data=b"data", uid=ALICE)
    with stamps(path, kept=("mtime", "ctime")):
        assert errno_as(BOB, os.truncate, path, 0) == errno.EACCES
    assert read_file(path) == b"data"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("dir", {errno.EISDIR}),
        ("fifo", {errno.EINVAL}),
        ("socket", {errno.EINVAL}),
        ("char", {errno.EINVAL}),
        ("block", {errno.EINVAL}),
        ("symlink", {errno.ENOENT}),
    ],
)
def test_only_regular_files(place: Place, kind: str, expected: set[int]) -> None:
    assert errno_of_call(os.truncate, place.make(kind), 0) in expected


@pytest.mark.parametrize("size", [-1, -(2**62)])
def test_a_negative_size_is_einval(place: Place, way: str, size: int) -> None:
    path = place.file(data=b"data")
    assert errno_of_call(_truncate, path, size, way) == errno.EINVAL
    assert read_file(path) == b"data"


def test_more_than_any_file_system_holds_is_efbig(place: Place, way: str) -> None:
    path = place.file(data=b"data")
    if place.kind == "gluster":  # its bricks are in memory, where a file may be as large as any number says
        assert errno_of_call(_truncate, path, 2**63 - 1, way) == 0
        assert os.lstat(path).st_size == 2**63 - 1
        return
    assert errno_of_call(_truncate, path, 2**63 - 1, way) in {errno.EFBIG, errno.EINVAL}
    assert read_file(path) == b"data"


def test_a_descriptor_for_reading_is_einval(place: Place) -> None:
    with opened(place.file(data=b"data")) as fd:
        assert errno_of_call(os.ftruncate, fd, 0) in {errno.EINVAL, errno.EBADF}


@pytest.mark.parametrize(
    ("uid", "mode", "expected"),
    [
        (ALICE, 0o444, errno.EACCES),
        (BOB, 0o644, errno.EACCES),
        (BOB, 0o646, 0),
        (ROOT, 0, 0),
        (ALICE, 0o200, 0),
    ],
)
def test_it_needs_write_permission(place: Place, uid: int, mode: int, expected: int) -> None:
    path = place.file(data=b"data", mode=mode, uid=ALICE)
    assert errno_as(uid, os.truncate, path, 1) == expected
    assert os.lstat(path).st_size == (4 if expected else 1)


def test_through_a_descriptor_the_mode_no_longer_matters(place: Place) -> None:
    path = place.path()

    def create_read_only_and_truncate() -> None:
        with opened(path, os.O_CREAT | os.O_WRONLY, 0o400) as fd:
            os.write(fd, b"data")
            os.ftruncate(fd, 2)

    as_user(ALICE, create_read_only_and_truncate)
    assert read_file(path) == b"da"


@pytest.mark.parametrize("uid", [ALICE, BOB])
@pytest.mark.parametrize("size", [0, 100])
def test_set_id_bits_are_cleared_for_users(place: Place, way: str, uid: int, size: int) -> None:
    path = place.file(data=b"data", mode=0o6777, uid=ALICE)
    as_user(uid, _truncate, path, size, way)
    assert mode_of(path) == 0o777


def test_an_open_descriptor_sees_the_new_size(place: Place) -> None:
    path = place.file(data=b"0123456789")
    with opened(path, os.O_RDWR) as fd:
        os.truncate(path, 4)
        assert os.pread(fd, 100, 0) == b"0123"
        assert os.fstat(fd).st_size == 4
        os.truncate(path, 6)
        assert os.pread(fd, 100, 0) == b"0123\0\0"
        as_user(ROOT, os.truncate, path, 1)
        assert os.pread(fd, 100, 0) == b"0"


def test_the_offset_of_a_descriptor_stays(place: Place) -> None:
    with opened(place.file(data=b"0123456789"), os.O_RDWR) as fd:
        os.lseek(fd, 8, os.SEEK_SET)
        os.ftruncate(fd, 2)
        assert os.read(fd, 10) == b""
        os.write(fd, b"x")
        assert os.pread(fd, 100, 0) == b"01" + bytes(6) + b"x"


@pytest.mark.parametrize("act", ["truncate", "write", "pwrite"])
def test_the_callers_file_size_limit_is_efbig(place: Place, act: str) -> None:
    path = place.file(data=b"x" * 100, mode=0o666)

    def limited() -> int:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
        with opened(path, os.O_RDWR) as fd:
            if act == "truncate":
                return errno_of_call(os.ftruncate, fd, 201)
            if act == "pwrite":
                return errno_of_call(os.pwrite, fd, b"x", 200)
            os.lseek(fd, 190, os.SEEK_SET)
            assert os.write(fd, b"y" * 20) == 10
            return errno_of_call(os.write, fd, b"y")

    assert as_user(ALICE, limited) == errno.EFBIG
    assert os.lstat(path).st_size == (200 if act == "write" else 100)


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (0, 65_536), (50, 10_000), (1 << 20, 4096)])
def test_fallocate_makes_room(place: Place, offset: int, length: int) -> None:
    path = place.file(data=b"x" * 100)
    with opened(path, os.O_RDWR) as fd:
        os.posix_fallocate(fd, offset, length)
        assert os.fstat(fd).st_size == max(100, offset + length)
        assert os.fstat(fd).st_blocks * 512 >= length
        assert os.pread(fd, 100, 0) == b"x" * 100
        tail = max(offset, 100)
        assert os.pread(fd, length, tail) == bytes(max(0, offset + length - tail))


@pytest.mark.parametrize(("offset", "length"), [(-1, 10), (0, -1), (-5, -5)])
def test_fallocate_of_nonsense_is_einval(place: Place, offset: int, length: int) -> None:
    with opened(place.file(), os.O_RDWR) as fd:
        assert errno_of_call(os.posix_fallocate, fd, offset, length) == errno.EINVAL


def test_fallocate_of_nothing_is_einval(place: Place) -> None:
    with opened(place.file(), os.O_RDWR) as fd:
        assert errno_of_call(os.posix_fallocate, fd, 0, 0) == errno.EINVAL
        assert os.fstat(fd).st_size == 0


def test_fallocate_needs_a_descriptor_for_writing(place: Place) -> None:
    with opened(place.file(data=b"x"), os.O_RDONLY) as fd:
        assert errno_of_call(os.posix_fallocate, fd, 0, 100) == errno.EBADF
