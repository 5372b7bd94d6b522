"""symlink(2) and readlink(2): any bytes, any length, and who may follow."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from tests.posix.places import (
    NOT_SYMLINKS,
    Place,
    exists,
    make,
    mode_of,
    owner_of,
    read_file,
    stamps,
    write_file,
)
from tests.support.users import ALICE, BOB, as_user, errno_as, errno_of_call

LENGTHS = (1, 2, 59, 60, 61, 255, 256, 1023, 1024, 4000, 4094, 4095)
"""ext4 keeps up to 59 bytes in the inode; 4095 is PATH_MAX without its NUL."""


@pytest.mark.parametrize("where", ["top", "inside"])
@pytest.mark.parametrize("length", LENGTHS)
def test_a_target_of_any_length(place: Place, length: int, where: str) -> None:
    path = place.path() if where == "top" else f"{place.dir()}/link"
    target = ("/".join(["x" * 99] * 50))[: length - 1] + "e"
    os.symlink(target, path)
    assert os.readlink(path) == target
    status = os.lstat(path)
    assert stat.S_ISLNK(status.st_mode)
    assert status.st_size == length


@pytest.mark.parametrize("length", [4096, 5000])
def test_a_longer_target_is_enametoolong(place: Place, length: int) -> None:
    path = place.path()
    assert errno_of_call(os.symlink, "x" * length, path) == errno.ENAMETOOLONG
    assert not exists(path)


def test_an_empty_target_is_enoent(place: Place) -> None:
    assert errno_of_call(os.symlink, "", place.path()) == errno.ENOENT


TARGETS = [
    b"plain",
    b"/absolute/path",
    b"../../up",
    b"with blank",
    b"new\nline",
    b"back\\slash",
    b"\xff\xfe not utf-8",
    "ümläut".encode(),
    b"./././",
    b"//two",
    b"\x01\x7f",
]


@pytest.mark.parametrize("target", TARGETS)
def test_the_target_is_kept_byte_for_byte(place: Place, target: bytes) -> None:
    path = os.fsencode(place.path())
    os.symlink(target, path)
    assert os.readlink(path) == target


@pytest.mark.parametrize("kind", NOT_SYMLINKS)
def test_readlink_of_anything_else_is_einval(place: Place, kind: str) -> None:
    assert errno_of_call(os.readlink, place.make(kind)) == errno.EINVAL


def test_readlink_needs_only_search_permission(place: Place) -> None:
    parent = place.dir(mode=0o711)
    os.symlink("to", f"{parent}/link")
    assert as_user(ALICE, os.readlink, f"{parent}/link") == "to"
    os.chmod(parent, 0o700)
    assert errno_as(ALICE, os.readlink, f"{parent}/link") == errno.EACCES


def test_following_relative_and_absolute_targets(room: str) -> None:
    make("dir", f"{room}/d")
    write_file(f"{room}/d/f", b"data")
    for number, target in enumerate(["d/f", "./d/f", "d/../d/f", f"{room}/d/f"]):
        os.symlink(target, f"{room}/{number}")
        assert read_file(f"{room}/{number}") == b"data"
        assert os.stat(f"{room}/{number}").st_ino == os.lstat(f"{room}/d/f").st_ino
    os.symlink("d", f"{room}/dir")
    assert os.listdir(f"{room}/dir") == ["f"]
    assert read_file(f"{room}/dir/f") == b"data"
    write_file(f"{room}/dir/new", b"through")
    assert read_file(f"{room}/d/new") == b"through"


@pytest.mark.parametrize("links", [1, 5, 39])
def test_a_chain_of_symlinks(room: str, links: int) -> None:
    write_file(f"{room}/0", b"end")
    for number in range(links):
        os.symlink(str(number), f"{room}/{number + 1}")
    assert read_file(f"{room}/{links}") == b"end"


def test_a_loop_is_eloop(room: str) -> None:
    os.symlink("b", f"{room}/a")
    os.symlink("a", f"{room}/b")
    os.symlink("self", f"{room}/self")
    for name in ("a", "b", "self"):
        assert errno_of_call(os.stat, f"{room}/{name}") == errno.ELOOP
        assert stat.S_ISLNK(os.lstat(f"{room}/{name}").st_mode)


def test_a_dangling_symlink(room: str) -> None:
    os.symlink("missing", f"{room}/link")
    assert errno_of_call(os.stat, f"{room}/link") == errno.ENOENT
    assert errno_of_call(os.open, f"{room}/link", os.O_RDONLY) == errno.ENOENT
    write_file(f"{room}/missing", b"now there")
    assert read_file(f"{room}/link") == b"now there"


def test_chmod_goes_through_to_the_target(room: str) -> None:
    make("file", f"{room}/f", 0o600)
    os.symlink("f", f"{room}/link")
    with stamps(f"{room}/link", kept=("ctime",)):
        os.chmod(f"{room}/link", 0o640)
    assert mode_of(f"{room}/f") == 0o640
    assert mode_of(f"{room}/link") == 0o777


def test_chown_follows_and_lchown_does_not(area: Place, room: str) -> None:
    make("file", f"{room}/f")
    os.symlink("f", f"{room}/link")
    os.chown(f"{room}/link", ALICE, ALICE)
    assert (owner_of(f"{room}/f"), owner_of(f"{room}/link")) == ((ALICE, ALICE), (0, 0))
    with stamps(f"{room}/link", *area.stamped, kept=("mtime",)), stamps(f"{room}/f", kept=("ctime",)):
        os.lchown(f"{room}/link", BOB, BOB)
    assert (owner_of(f"{room}/f"), owner_of(f"{room}/link")) == ((ALICE, ALICE), (BOB, BOB))
    assert os.readlink(f"{room}/link") == "f"


def test_a_symlink_at_the_top_can_be_given_away(place: Place) -> None:
    path = place.make("symlink")
    os.lchown(path, ALICE, ALICE)
    assert owner_of(path) == (ALICE, ALICE)
    assert os.readlink(path) == "nowhere"
    assert as_user(ALICE, os.unlink, path) is None


def test_a_symlink_cannot_be_read_or_written_or_entered(room: str) -> None:
    make("file", f"{room}/f")
    os.symlink("f", f"{room}/link")
    assert errno_of_call(os.listdir, f"{room}/link") == errno.ENOTDIR
    assert errno_of_call(os.stat, f"{room}/link/x") == errno.ENOTDIR
    assert errno_of_call(os.stat, f"{room}/link/") == errno.ENOTDIR


def test_replacing_a_symlink_changes_where_it_leads_at_once(room: str) -> None:
    for number in range(5):
        write_file(f"{room}/{number}", b"%d" % number)
        os.symlink(str(number), f"{room}/.latest.tmp")
        os.rename(f"{room}/.latest.tmp", f"{room}/latest")
        assert read_file(f"{room}/latest") == b"%d" % number
