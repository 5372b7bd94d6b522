"""link(2): one file under several names."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path

import pytest

from tests.posix.places import (
    ALL_TYPES,
    NOT_DIRECTORIES,
    Place,
    exists,
    link_following,
    make,
    mode_of,
    opened,
    read_file,
    stamps,
    write_file,
)
from tests.support.users import ALICE, BOB, ROOT, as_user, errno_as, errno_of_call

PROTECTED = Path("/proc/sys/fs/protected_hardlinks").read_text("ascii").strip() != "0"
"""Whether this kernel lets a user link only what he owns or may read and write."""


@pytest.fixture(params=["top", "one-parent", "two-parents"])
def pair(request: pytest.FixtureRequest, place: Place) -> tuple[str, str]:
    if request.param == "top":
        return place.path("first"), place.path("second")
    inside = _one_set(place)
    first = inside.dir("a", 0o777)
    second = first if request.param == "one-parent" else inside.dir("b", 0o777)
    return f"{first}/first", f"{second}/second"


def _one_set(place: Place) -> Place:
    """A place whose directories are in one set: a file has all its links in one (docs/SEMANTICS.md)."""
    return (
        dataclasses.replace(place, kind="mount", top=place.dir("set", 0o777))
        if place.entries_are_sets
        else place
    )


def _link(source: str, target: str) -> None:
    """Never follows a symlink, so that every type but a directory can be linked."""
    os.link(source, target, follow_symlinks=False)


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_both_names_are_one_file(pair: tuple[str, str], kind: str) -> None:
    first, second = pair
    make(kind, first, 0o640, ALICE)
    _link(first, second)
    assert os.lstat(first) == os.lstat(second)
    assert os.lstat(first).st_nlink == 2
    os.unlink(first)
    assert os.lstat(second).st_nlink == 1


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_linking_stamps_the_file_and_the_new_parent(place: Place, kind: str) -> None:
    inside = _one_set(place)
    old, new = inside.dir(), inside.dir()
    path = make(kind, f"{old}/f")
    with (
        stamps(old, kept=("mtime", "ctime")),
        stamps(new, "mtime", "ctime"),
        stamps(path, "ctime", kept=("mtime",)),
    ):
        _link(path, f"{new}/g")


def test_data_and_attributes_are_shared(pair: tuple[str, str]) -> None:
    first, second = pair
    make("file", first)
    _link(first, second)
    write_file(second, b"through the second name")
    assert read_file(first) == b"through the second name"
    os.chmod(first, 0o604)
    assert mode_of(second) == 0o604
    os.chown(second, ALICE, BOB)
    assert (os.lstat(first).st_uid, os.lstat(first).st_gid) == (ALICE, BOB)
    os.utime(first, ns=(3, 4))
    assert os.lstat(second).st_mtime_ns == 4
    os.setxattr(second, "user.x", b"shared")
    assert os.getxattr(first, "user.x") == b"shared"
    os.truncate(first, 4)
    assert os.lstat(second).st_size == 4


def test_an_open_descriptor_outlives_its_name_but_not_the_file(pair: tuple[str, str]) -> None:
    first, second = pair
    write_file(first, b"")
    with opened(first, os.O_RDWR) as fd:
        _link(first, second)
        os.unlink(first)
        os.write(fd, b"still here")
        assert os.fstat(fd).st_nlink == 1
    assert read_file(second) == b"still here"


def test_many_links(room: str) -> None:
    path = make("file", f"{room}/f")
    for number in range(1, 51):
        os.link(path, f"{room}/{number}")
        assert os.lstat(path).st_nlink == number + 1
    for number in range(50, 0, -1):
        os.unlink(f"{room}/{number}")
        assert os.lstat(path).st_nlink == number


@pytest.mark.parametrize("uid", [ROOT, ALICE])
def test_a_directory_cannot_be_linked(pair: tuple[str, str], uid: int) -> None:
    first, second = pair
    make("dir", first, 0o777, uid)
    assert errno_as(uid, os.link, first, second) == errno.EPERM
    assert not exists(second)


@pytest.mark.parametrize("target_kind", ALL_TYPES)
@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_an_existing_target_is_eexist(pair: tuple[str, str], kind: str, target_kind: str) -> None:
    first, second = pair
    make(kind, first)
    make(target_kind, second)
    before = os.lstat(first), os.lstat(second)
    assert errno_of_call(_link, first, second) == errno.EEXIST
    assert (os.lstat(first), os.lstat(second)) == before


def test_a_link_to_itself_is_eexist(place: Place) -> None:
    path = place.file()
    assert errno_of_call(os.link, path, path) == errno.EEXIST


def test_a_missing_source_is_enoent(pair: tuple[str, str]) -> None:
    assert errno_of_call(os.link, *pair) == errno.ENOENT


def test_linking_a_symlink_links_the_symlink(room: str) -> None:
    make("file", f"{room}/target")
    os.symlink("target", f"{room}/link")
    os.link(f"{room}/link", f"{room}/same", follow_symlinks=False)
    assert os.readlink(f"{room}/same") == "target"
    assert os.lstat(f"{room}/link").st_nlink == 2
    link_following(f"{room}/link", f"{room}/other")
    assert os.lstat(f"{room}/other").st_ino == os.lstat(f"{room}/target").st_ino


def test_the_new_parent_must_be_writable(place: Place) -> None:
    path = make("file", f"{place.dir(mode=0o777)}/f", 0o666, ALICE)
    closed = place.dir()
    with stamps(path, kept=("ctime",)), stamps(closed, kept=("mtime", "ctime")):
        assert errno_as(ALICE, os.link, path, f"{closed}/g") == errno.EACCES
    assert os.lstat(path).st_nlink == 1


def test_the_old_parent_need_not_be_writable(place: Place) -> None:
    inside = _one_set(place)
    path = make("file", f"{inside.dir()}/f", 0o666, ALICE)
    assert errno_as(ALICE, os.link, path, f"{inside.dir(mode=0o777)}/g") == 0


@pytest.mark.parametrize("mode", [0o666, 0o644, 0o600, 0o4777, 0o2777])
def test_linking_somebody_elses_file(room: str, mode: int) -> None:
    """Without protected_hardlinks anybody may; with it, it takes read and write, and no set-id bits."""
    path = make("file", f"{room}/f", mode, ALICE)
    expected = errno.EPERM if PROTECTED and mode != 0o666 else 0
    assert errno_as(BOB, os.link, path, f"{room}/g") == expected
    assert errno_as(ALICE, os.link, path, f"{room}/h") == 0
    assert os.lstat(path).st_uid == ALICE


@pytest.mark.parametrize("kind", ["file", "symlink", "fifo"])
def test_a_user_links_what_is_his_own(place: Place, kind: str) -> None:
    path = place.make(kind, uid=ALICE)
    assert errno_as(ALICE, _link, path, place.path("second")) == 0
    assert os.lstat(path).st_nlink == 2


@pytest.mark.parametrize("owner", [ALICE, BOB])
def test_links_between_directories(place: Place, owner: int) -> None:
    """Between sets the mount answers EXDEV: a file is charged to one owner, and each set can change hands."""
    path = make("file", f"{place.dir(mode=0o777, uid=ALICE)}/f", 0o666, ALICE)
    other = f"{place.dir(mode=0o777, uid=owner)}/g"
    expected = errno.EXDEV if place.entries_are_sets else 0
    assert errno_as(ALICE, os.link, path, other) == expected
    assert exists(other) == (not expected)
    assert os.lstat(path).st_nlink == (1 if expected else 2)


def test_the_links_of_a_renamed_file_stay(room: str) -> None:
    path = make("file", f"{room}/a")
    os.link(path, f"{room}/b")
    make("dir", f"{room}/d")
    os.rename(f"{room}/b", f"{room}/d/c")
    assert os.lstat(f"{room}/d/c") == os.lstat(path)
    make("file", f"{room}/e")
    os.rename(f"{room}/e", path)
    assert os.lstat(f"{room}/d/c").st_nlink == 1


def test_linking_needs_no_permission_on_ones_own_file(room: str) -> None:
    path = make("file", f"{room}/f", 0, ALICE)
    assert as_user(ALICE, os.link, path, f"{room}/g") is None
