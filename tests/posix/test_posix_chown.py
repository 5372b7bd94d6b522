"""chown(2): who may give what to whom, and what happens to set-id bits and times."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from tests.posix.places import (
    ALL_TYPES,
    NOT_SYMLINKS,
    Place,
    make,
    mode_of,
    opened,
    owner_of,
    read_file,
    stamps,
    times_of,
)
from tests.support.users import ALICE, BOB, NOBODY, ROOT, as_user, errno_as

GROUP, SECOND = 3001, 3002
SAME = -1


@pytest.fixture(params=["top", "inside"])
def spot(request: pytest.FixtureRequest, place: Place) -> str:
    """A free name at the top (a set at the mount's root) or in a directory."""
    return place.path() if request.param == "top" else f"{place.dir(mode=0o777)}/f"


@pytest.mark.parametrize("kind", ALL_TYPES)
def test_root_gives_anything_to_anybody(spot: str, kind: str) -> None:
    make(kind, spot)
    for uid, gid in [(ALICE, GROUP), (BOB, SAME), (SAME, SECOND), (NOBODY, NOBODY), (SAME, SAME), (0, 0)]:
        before = owner_of(spot)
        os.lchown(spot, uid, gid)
        assert owner_of(spot) == (before[0] if uid == SAME else uid, before[1] if gid == SAME else gid)


@pytest.mark.parametrize("kind", ALL_TYPES)
def test_it_stamps_ctime_only(place: Place, spot: str, kind: str) -> None:
    """mtime must stay: TORQUE takes an image's for the job's walltime."""
    make(kind, spot)
    parent = os.path.dirname(spot)
    gives_a_set = place.entries_are_sets and parent == place.top  # docs/SEMANTICS.md: that changes the top
    with (
        stamps(spot, *place.stamped, kept=("mtime", "atime")),
        stamps(parent, kept=() if gives_a_set else ("mtime", "ctime")),
    ):
        os.lchown(spot, ALICE, GROUP)
    with stamps(spot, *place.stamped, kept=("mtime", "atime")):
        os.lchown(spot, ALICE, GROUP)
    with stamps(spot, *place.stamped, kept=("mtime", "atime")):
        as_user(ALICE, os.lchown, spot, SAME, SECOND, groups=(SECOND,))


@pytest.mark.parametrize("kind", ALL_TYPES)
def test_a_user_may_change_only_the_group_of_his_own_and_only_to_his_groups(spot: str, kind: str) -> None:
    make(kind, spot, uid=ALICE, gid=GROUP)
    allowed = [(SAME, GROUP), (ALICE, GROUP), (SAME, SECOND), (ALICE, SECOND), (ALICE, SAME), (SAME, SAME)]
    for uid, gid in allowed:
        assert errno_as(ALICE, os.lchown, spot, uid, gid, gid=GROUP, groups=(SECOND,)) == 0
    assert owner_of(spot) == (ALICE, SECOND)
    refused = [(BOB, SAME), (BOB, GROUP), (ROOT, SAME), (SAME, BOB), (ALICE, BOB), (SAME, ROOT)]
    with stamps(spot, kept=("ctime",)):
        for uid, gid in refused:
            assert errno_as(ALICE, os.lchown, spot, uid, gid, gid=GROUP, groups=(SECOND,)) == errno.EPERM
    assert owner_of(spot) == (ALICE, SECOND)


@pytest.mark.parametrize("kind", ALL_TYPES)
def test_a_stranger_changes_nothing(spot: str, kind: str) -> None:
    make(kind, spot, 0o666, ALICE, GROUP)
    with stamps(spot, kept=("ctime",)):
        for uid, gid in [(BOB, SAME), (SAME, GROUP), (SAME, BOB), (ALICE, GROUP), (BOB, BOB)]:
            assert errno_as(BOB, os.lchown, spot, uid, gid, groups=(GROUP,)) == errno.EPERM
    assert owner_of(spot) == (ALICE, GROUP)


@pytest.mark.parametrize("kind", [kind for kind in NOT_SYMLINKS if kind != "dir"])
def test_set_id_bits_are_cleared_for_a_user(spot: str, kind: str) -> None:
    make(kind, spot, 0o6755, ALICE, GROUP)
    as_user(ALICE, os.chown, spot, SAME, SECOND, groups=(GROUP, SECOND))
    assert mode_of(spot) == 0o755


@pytest.mark.parametrize("kind", [kind for kind in NOT_SYMLINKS if kind != "dir"])
def test_set_id_bits_are_cleared_for_root(spot: str, kind: str) -> None:
    make(kind, spot, 0o6755, ALICE, GROUP)
    os.chown(spot, BOB, SECOND)
    assert mode_of(spot) == 0o755
    assert owner_of(spot) == (BOB, SECOND)


def test_set_id_bits_of_a_directory_stay(spot: str) -> None:
    make("dir", spot, 0o7755, ALICE, GROUP)
    os.chown(spot, BOB, SECOND)
    assert mode_of(spot) == 0o7755


@pytest.mark.parametrize("mode", [0o000, 0o400, 0o777, 0o1777])
@pytest.mark.parametrize("kind", NOT_SYMLINKS)
def test_other_bits_stay(spot: str, kind: str, mode: int) -> None:
    make(kind, spot, mode)
    os.chown(spot, ALICE, GROUP)
    assert mode_of(spot) == mode
    assert owner_of(spot) == (ALICE, GROUP)


@pytest.mark.parametrize("way", ["path", "descriptor", "empty-path"])
def test_every_way_to_the_file(spot: str, way: str) -> None:
    make("file", spot)
    if way == "path":
        os.chown(spot, ALICE, GROUP)
    elif way == "descriptor":
        with opened(spot) as fd:
            os.fchown(fd, ALICE, GROUP)
    else:
        with opened(spot, os.O_PATH) as fd:
            os.chown(f"/proc/self/fd/{fd}", ALICE, GROUP)
    assert owner_of(spot) == (ALICE, GROUP)


def test_data_links_and_times_stay(spot: str) -> None:
    make("file", spot)
    with open(spot, "wb") as stream:
        stream.write(b"x" * 100_000)
    os.utime(spot, ns=(10**18 + 1, 10**18 + 2))
    before = os.lstat(spot)
    os.chown(spot, ALICE, GROUP)
    after = os.lstat(spot)
    assert (after.st_ino, after.st_nlink, after.st_size) == (before.st_ino, before.st_nlink, before.st_size)
    assert (after.st_atime_ns, after.st_mtime_ns) == (10**18 + 1, 10**18 + 2)
    assert read_file(spot) == b"x" * 100_000


def test_the_new_owner_has_the_owners_rights_at_once(spot: str) -> None:
    make("file", spot, 0o600, ALICE)
    os.chown(spot, BOB, BOB)
    assert errno_as(ALICE, os.open, spot, os.O_RDONLY) == errno.EACCES
    assert errno_as(BOB, os.chmod, spot, 0o640) == 0


def test_a_set_given_away_while_it_is_written(spot: str) -> None:
    """The mom makes the directory, then gives it to the user; some write before and after."""
    make("dir", spot, 0o755)
    with opened(f"{spot}/f", os.O_CREAT | os.O_RDWR, 0o600) as fd:
        os.write(fd, b"before ")
        os.chown(spot, ALICE, ALICE)
        os.chown(f"{spot}/f", ALICE, ALICE)
        os.write(fd, b"after")
        os.fsync(fd)
    assert as_user(ALICE, read_file, f"{spot}/f") == b"before after"
    assert owner_of(spot) == (ALICE, ALICE)


def test_a_tree_given_away_keeps_the_owners_of_what_is_in_it(spot: str) -> None:
    make("dir", spot, 0o777)
    make("file", f"{spot}/root", 0o600)
    make("file", f"{spot}/bob", 0o600, BOB, SECOND)
    make("dir", f"{spot}/d", 0o700, BOB)
    os.chown(spot, ALICE, GROUP)
    assert owner_of(spot) == (ALICE, GROUP)
    assert owner_of(f"{spot}/root") == (0, 0)
    assert owner_of(f"{spot}/bob") == (BOB, SECOND)
    assert owner_of(f"{spot}/d") == (BOB, BOB)
    assert errno_as(ALICE, os.listdir, f"{spot}/d") == errno.EACCES


def test_minus_one_twice_by_a_stranger_changes_nothing(spot: str) -> None:
    make("file", spot, 0o644, ALICE, GROUP)
    assert errno_as(BOB, os.chown, spot, SAME, SAME) in {0, errno.EPERM}
    assert owner_of(spot) == (ALICE, GROUP)
    assert mode_of(spot) == 0o644


@pytest.mark.parametrize("uid", [1, 65533, 65534, 2**31, 2**32 - 2])
def test_large_ids_are_kept(place: Place, uid: int) -> None:
    path = f"{place.dir()}/f"
    make("file", path)
    os.chown(path, uid, uid)
    assert owner_of(path) == (uid, uid)


def test_the_time_of_a_creation_is_not_the_time_of_a_chown(place: Place) -> None:
    path = place.file()
    before = times_of(path)
    os.chown(path, ALICE, ALICE)
    assert times_of(path)["mtime"] == before["mtime"]
    assert stat.S_ISREG(os.lstat(path).st_mode)
