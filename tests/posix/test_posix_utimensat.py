"""utimensat(2): which times, who may set them, and for symlinks themselves."""

from __future__ import annotations

import errno
import os
import time

import pytest

from tests.posix.places import (
    ALL_TYPES,
    AT_SYMLINK_NOFOLLOW,
    NOT_SYMLINKS,
    UTIME_NOW,
    UTIME_OMIT,
    Place,
    opened,
    stamps,
    times_of,
    utimensat,
)
from tests.support.users import ALICE, BOB, ROOT, errno_as, errno_of_call

SECOND = 1_000_000_000
NOW = (0, UTIME_NOW)
OMIT = (0, UTIME_OMIT)
FIXED = (1_600_000_000, 123_456_789)
OTHER = (1_500_000_000, 1)


def _ns(moment: tuple[int, int]) -> int:
    return moment[0] * SECOND + moment[1]


@pytest.mark.parametrize("where", ["top", "inside"])
@pytest.mark.parametrize("kind", ALL_TYPES)
def test_nanoseconds_on_every_type(place: Place, kind: str, where: str) -> None:
    path = place.make(kind) if where == "top" else place.make(kind, f"{_sub(place)}/x")
    with stamps(path, "ctime"):
        utimensat(path, FIXED, OTHER, AT_SYMLINK_NOFOLLOW)
    times = times_of(path)
    assert (times["atime"], times["mtime"]) == (_ns(FIXED), _ns(OTHER))


def _sub(place: Place) -> str:
    return os.path.basename(place.dir()).removeprefix(place.prefix)


@pytest.mark.parametrize(
    "moment",
    [
        (0, 0),
        (0, 1),
        (1, 999_999_999),
        (2**31 - 1, 500),
        (2**31, 7),
        (2**32, 42),
        (2**33, 999_999_999),
        (-1, 0),
        (-1, 999_999_999),
        (-(2**31), 0),
    ],
)
def test_any_moment(place: Place, moment: tuple[int, int]) -> None:
    """Before 1970 and after 2038 too."""
    path = place.file()
    utimensat(path, moment, moment)
    times = times_of(path)
    assert (times["atime"], times["mtime"]) == (_ns(moment), _ns(moment))


@pytest.mark.parametrize("kind", NOT_SYMLINKS)
@pytest.mark.parametrize(
    ("atime", "mtime"),
    [
        (NOW, NOW),
        (NOW, OMIT),
        (OMIT, NOW),
        (FIXED, OMIT),
        (OMIT, FIXED),
        (NOW, FIXED),
        (FIXED, NOW),
        (OMIT, OMIT),
    ],
)
def test_now_and_omit(place: Place, kind: str, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    path = place.make(kind)
    utimensat(path, OTHER, OTHER)
    before = times_of(path)
    earliest = time.time_ns() - SECOND
    utimensat(path, atime, mtime)
    latest = time.time_ns() + SECOND
    after = times_of(path)
    for name, wanted in (("atime", atime), ("mtime", mtime)):
        if wanted == NOW:
            assert earliest < after[name] < latest
        else:
            assert after[name] == (before[name] if wanted == OMIT else _ns(wanted))


def test_omitting_both_stamps_nothing(place: Place) -> None:
    path = place.file()
    with stamps(path, kept=("atime", "mtime", "ctime")):
        utimensat(path, OMIT, OMIT)


@pytest.mark.parametrize("mode", [0o644, 0o666, 0o000])
@pytest.mark.parametrize("kind", NOT_SYMLINKS)
def test_who_may(place: Place, kind: str, mode: int) -> None:
    """Now is for all who may write; a moment of one's choice is for the owner."""
    path = place.make(kind, mode=mode, uid=ALICE)
    writable = mode == 0o666
    table = [
        (ALICE, NOW, NOW, 0),
        (ALICE, FIXED, OTHER, 0),
        (ALICE, NOW, OMIT, 0),
        (ROOT, FIXED, OTHER, 0),
        (ROOT, NOW, NOW, 0),
        (BOB, NOW, NOW, 0 if writable else errno.EACCES),
        (BOB, FIXED, OTHER, errno.EPERM),
        (BOB, NOW, OMIT, errno.EPERM),
        (BOB, OMIT, NOW, errno.EPERM),
        (BOB, FIXED, OMIT, errno.EPERM),
        (BOB, OMIT, OMIT, 0),
    ]
    got = [errno_as(uid, utimensat, path, atime, mtime) for uid, atime, mtime, _ in table]
    assert got == [expected for *_, expected in table]


def test_a_refusal_changes_nothing(place: Place) -> None:
    path = place.file(uid=ALICE)
    with stamps(path, kept=("atime", "mtime", "ctime")):
        assert errno_as(BOB, utimensat, path, FIXED, FIXED) == errno.EPERM
        assert errno_as(BOB, os.utime, path) == errno.EACCES


def test_a_symlink_has_times_of_its_own(room: str) -> None:
    with open(f"{room}/f", "wb"):
        pass
    os.symlink("f", f"{room}/link")
    utimensat(f"{room}/link", FIXED, FIXED)
    utimensat(f"{room}/link", OTHER, OTHER, AT_SYMLINK_NOFOLLOW)
    assert times_of(f"{room}/f")["mtime"] == _ns(FIXED)
    assert times_of(f"{room}/link")["mtime"] == _ns(OTHER)
    assert os.readlink(f"{room}/link") == "f"


def test_through_a_descriptor(place: Place) -> None:
    path = place.file()
    with opened(path) as fd:
        os.utime(fd, ns=(_ns(FIXED), _ns(OTHER)))
        assert (times_of(fd)["atime"], times_of(fd)["mtime"]) == (_ns(FIXED), _ns(OTHER))
    assert times_of(path)["mtime"] == _ns(OTHER)


def test_times_set_while_writing_are_kept_after_the_close(place: Place) -> None:
    """What ``cp -p`` and tar do: write, set the times, close."""
    path = place.path()
    with opened(path, os.O_CREAT | os.O_WRONLY) as fd:
        os.write(fd, b"data")
        os.utime(fd, ns=(_ns(FIXED), _ns(OTHER)))
    assert times_of(path)["mtime"] == _ns(OTHER)


@pytest.mark.parametrize("nanoseconds", [-1, SECOND, 2 * SECOND])
def test_nanoseconds_out_of_range_are_einval(place: Place, nanoseconds: int) -> None:
    path = place.file()
    assert errno_of_call(utimensat, path, (0, nanoseconds), OTHER) == errno.EINVAL
    assert errno_of_call(utimensat, path, OTHER, (0, nanoseconds)) == errno.EINVAL


def test_the_top_itself(place: Place) -> None:
    utimensat(place.top, FIXED, OTHER)
    assert times_of(place.top)["mtime"] == _ns(OTHER)
    assert errno_as(ALICE, utimensat, place.top, FIXED, FIXED) == errno.EPERM
    place.dir()
    assert times_of(place.top)["mtime"] > _ns(FIXED)


def test_times_survive_rename_link_and_chmod(room: str) -> None:
    path = f"{room}/f"
    with open(path, "wb"):
        pass
    utimensat(path, FIXED, OTHER)
    os.chmod(path, 0o600)
    os.chown(path, ALICE, ALICE)
    os.link(path, f"{room}/g")
    os.rename(path, f"{room}/h")
    assert times_of(f"{room}/h")["mtime"] == _ns(OTHER)
    assert times_of(f"{room}/g")["atime"] == _ns(FIXED)
