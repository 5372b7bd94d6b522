"""Deletion in sticky directories: only for the owner of the file, the owner of the directory, and root."""

from __future__ import annotations

import errno
import itertools
import os

import pytest

from tests.posix.places import ALL_TYPES, RENAME_EXCHANGE, Place, exists, make, owned, renameat2
from tests.support.users import ALICE, BOB, NOBODY, ROOT, errno_as

OWNERS = (ROOT, ALICE, BOB)
CALLERS = (ROOT, ALICE, NOBODY)
BOTH_OWNERS = [*itertools.product(OWNERS, OWNERS)]


def _may(caller: int, directory_owner: int, owner: int, sticky: bool = True) -> bool:
    return not sticky or caller in {ROOT, directory_owner, owner}


@pytest.mark.parametrize("kind", ALL_TYPES)
@pytest.mark.parametrize("sticky", [True, False], ids=["sticky", "plain"])
@pytest.mark.parametrize(("directory_owner", "owner"), BOTH_OWNERS)
def test_removal(place: Place, directory_owner: int, owner: int, sticky: bool, kind: str) -> None:
    directory = place.dir(mode=0o1777 if sticky else 0o777, uid=directory_owner)
    for caller in CALLERS:
        path = make(kind, f"{directory}/{caller}", 0o777, owner)
        remove = os.rmdir if kind == "dir" else os.unlink
        allowed = _may(caller, directory_owner, owner, sticky)
        assert errno_as(caller, remove, path) == (0 if allowed else errno.EPERM)
        assert exists(path) != allowed


@pytest.mark.parametrize("kind", ["file", "dir", "symlink", "fifo"])
@pytest.mark.parametrize(("directory_owner", "owner"), BOTH_OWNERS)
def test_renaming_away(place: Place, directory_owner: int, owner: int, kind: str) -> None:
    directory = place.dir(mode=0o1777, uid=directory_owner)
    for caller in CALLERS:
        path = make(kind, f"{directory}/{caller}", 0o777, owner)
        allowed = _may(caller, directory_owner, owner)
        assert errno_as(caller, os.rename, path, f"{path}.new") == (0 if allowed else errno.EPERM)
        assert exists(path) != allowed


@pytest.mark.parametrize("kind", ["file", "dir", "symlink"])
@pytest.mark.parametrize(("directory_owner", "owner"), BOTH_OWNERS)
def test_renaming_over(place: Place, directory_owner: int, owner: int, kind: str) -> None:
    directory = place.dir(mode=0o1777, uid=directory_owner)
    for caller in CALLERS:
        source = make(kind, f"{directory}/{caller}.mine", 0o777, caller)
        target = make(kind, f"{directory}/{caller}.target", 0o777, owner)
        allowed = _may(caller, directory_owner, owner)
        assert errno_as(caller, os.rename, source, target) == (0 if allowed else errno.EPERM)
        assert os.lstat(target).st_uid == (caller if allowed else owner)


@pytest.mark.parametrize(("directory_owner", "owner"), BOTH_OWNERS)
def test_moving_into_a_sticky_directory(room: str, directory_owner: int, owner: int) -> None:
    """The sticky bit guards what is replaced there."""
    directory = make("dir", f"{room}/sticky", 0o1777, directory_owner)
    for caller in CALLERS:
        source = make("file", f"{room}/{caller}", 0o666, caller)
        target = make("file", f"{directory}/{caller}", 0o666, owner)
        allowed = _may(caller, directory_owner, owner)
        assert errno_as(caller, os.rename, source, target) == (0 if allowed else errno.EPERM)


@pytest.mark.parametrize(("directory_owner", "owner"), BOTH_OWNERS)
def test_exchanging(place: Place, directory_owner: int, owner: int) -> None:
    directory = place.dir(mode=0o1777, uid=directory_owner)
    for caller in CALLERS:
        source = make("file", f"{directory}/{caller}.mine", 0o666, caller)
        target = make("file", f"{directory}/{caller}.target", 0o666, owner)
        allowed = _may(caller, directory_owner, owner)
        expected = {0 if allowed else errno.EPERM} if place.has_rename_flags else {errno.EINVAL, errno.EPERM}
        assert errno_as(caller, renameat2, source, target, RENAME_EXCHANGE) in expected


@pytest.mark.parametrize("kind", ALL_TYPES)
def test_the_top_is_sticky(place: Place, kind: str) -> None:
    """At the mount's root these are the sets of different users."""
    remove = os.rmdir if kind == "dir" else os.unlink
    path = place.make(kind, mode=0o777, uid=ALICE)
    assert errno_as(BOB, remove, path) == errno.EPERM
    assert errno_as(BOB, os.rename, path, place.path("new")) == errno.EPERM
    other = place.make(kind, mode=0o777, uid=BOB)
    assert errno_as(BOB, os.rename, other, path) == errno.EPERM
    assert errno_as(ALICE, remove, path) == 0
    assert errno_as(ROOT, remove, other) == 0


def test_without_write_permission_it_is_eacces(place: Place) -> None:
    directory = place.dir(mode=0o1755)
    path = make("file", f"{directory}/f", 0o666, ALICE)
    assert errno_as(ALICE, os.unlink, path) == errno.EACCES
    assert errno_as(ALICE, os.rename, path, f"{directory}/g") == errno.EACCES
    assert errno_as(ALICE, os.link, path, f"{directory}/g") == errno.EACCES


def test_the_bit_counts_from_when_it_is_set(room: str) -> None:
    directory = make("dir", f"{room}/d", 0o777)
    path = make("file", f"{directory}/f", 0o666, ALICE)
    owned(directory, 0o1777, ROOT)
    assert errno_as(BOB, os.unlink, path) == errno.EPERM
    owned(directory, 0o777, ROOT)
    assert errno_as(BOB, os.unlink, path) == 0
