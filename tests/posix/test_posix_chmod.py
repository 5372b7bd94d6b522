"""chmod(2): who may, which bits stay, and what is stamped."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from tests.posix.places import NOT_SYMLINKS, Place, mode_of, opened, read_file, stamps
from tests.support.users import ALICE, BOB, ROOT, as_user, errno_as, errno_of_call

GROUP = 3001
MODES = [
    0o0000, 0o0111, 0o0222, 0o0400, 0o0444, 0o0600, 0o0644, 0o0700, 0o0751, 0o0777,
    0o1000, 0o1777, 0o2000, 0o2755, 0o4000, 0o4755, 0o6711, 0o7777,
]  # fmt: skip


@pytest.mark.parametrize("uid", [ROOT, ALICE])
@pytest.mark.parametrize("kind", NOT_SYMLINKS)
def test_every_mode_on_every_type(place: Place, kind: str, uid: int) -> None:
    path = place.make(kind, uid=uid)

    def set_all() -> list[int]:
        got = []
        for mode in MODES:
            os.chmod(path, mode)
            got.append(mode_of(path))
        return got

    assert as_user(uid, set_all) == MODES
    assert mode_of(path) == MODES[-1]


@pytest.mark.parametrize("way", ["path", "descriptor", "o_path"])
def test_every_way_to_the_file(place: Place, way: str) -> None:
    path = place.file()
    if way == "path":
        os.chmod(path, 0o751)
    elif way == "descriptor":
        with opened(path) as fd:
            os.fchmod(fd, 0o751)
    else:
        with opened(path, os.O_PATH) as fd:
            os.chmod(f"/proc/self/fd/{fd}", 0o751)
    assert mode_of(path) == 0o751


@pytest.mark.parametrize("kind", NOT_SYMLINKS)
def test_it_stamps_ctime_only(place: Place, kind: str) -> None:
    parent = place.dir()
    path = f"{parent}/x"
    place.make(kind, f"{os.path.basename(parent).removeprefix(place.prefix)}/x")
    with stamps(path, *place.stamped, kept=("mtime", "atime")), stamps(parent, kept=("mtime", "ctime")):
        os.chmod(path, 0o755)
    with stamps(path, *place.stamped, kept=("mtime", "atime")):
        os.chmod(path, 0o755)


@pytest.mark.parametrize("kind", NOT_SYMLINKS)
def test_only_the_owner_and_root(place: Place, kind: str) -> None:
    path = place.make(kind, mode=0o666, uid=ALICE, gid=GROUP)
    with stamps(path, kept=("ctime",)):
        assert errno_as(BOB, os.chmod, path, 0o777) == errno.EPERM
        assert errno_as(BOB, os.chmod, path, 0o777, gid=GROUP) == errno.EPERM
        assert errno_as(BOB, os.chmod, path, 0o666, groups=(GROUP,)) == errno.EPERM
    assert mode_of(path) == 0o666
    assert errno_as(ALICE, os.chmod, path, 0o600, gid=GROUP) == 0
    assert errno_as(ROOT, os.chmod, path, 0o640) == 0
    assert mode_of(path) == 0o640


@pytest.mark.parametrize("way", ["primary", "supplementary", "stranger", "root"])
@pytest.mark.parametrize("kind", NOT_SYMLINKS)
def test_setgid_is_only_for_members_of_the_group(place: Place, kind: str, way: str) -> None:
    path = place.make(kind, mode=0o755, uid=ALICE, gid=GROUP)
    gid = GROUP if way == "primary" else ALICE
    groups = (GROUP,) if way == "supplementary" else ()
    assert errno_as(ROOT if way == "root" else ALICE, os.chmod, path, 0o2755, gid=gid, groups=groups) == 0
    assert mode_of(path) == (0o755 if way == "stranger" else 0o2755)


@pytest.mark.parametrize("kind", NOT_SYMLINKS)
def test_setuid_and_sticky_are_for_every_owner(place: Place, kind: str) -> None:
    path = place.make(kind, uid=ALICE)
    for mode in (0o4755, 0o1755, 0o5755):
        assert errno_as(ALICE, os.chmod, path, mode) == 0
        assert mode_of(path) == mode


@pytest.mark.parametrize("bits", [0o4000, 0o2000, 0o6000])
@pytest.mark.parametrize("execute", [0o111, 0o010, 0o100, 0])
def test_a_write_by_a_user_clears_set_id_bits(place: Place, bits: int, execute: int) -> None:
    """Setgid without group execute stays: it never made anybody a member of the group."""
    path = place.file(mode=bits | 0o666 | execute, uid=ALICE)

    def write() -> None:
        with opened(path, os.O_WRONLY) as fd:
            os.write(fd, b"x")

    as_user(BOB, write)
    kept = 0o2000 if bits & 0o2000 and not execute & 0o010 and _keeps_setgid_of_non_executables() else 0
    assert mode_of(path) == 0o666 | execute | kept
    assert read_file(path) == b"x"


def _keeps_setgid_of_non_executables() -> bool:
    """Since Linux 6.2 a writer who is not in the group loses that bit too."""
    return tuple(int(part) for part in os.uname().release.split(".")[:2]) < (6, 2)


def test_a_write_by_the_owner_clears_set_id_bits_too(place: Place) -> None:
    path = place.file(mode=0o6755, uid=ALICE)

    def write() -> None:
        with opened(path, os.O_WRONLY) as fd:
            os.pwrite(fd, b"x", 10)

    as_user(ALICE, write)
    assert mode_of(path) == 0o755


def test_a_write_of_nothing_and_a_read_keep_the_mode(place: Place) -> None:
    path = place.file(data=b"data", mode=0o6777, uid=ALICE)

    def read() -> bytes:
        with opened(path) as fd:
            return os.read(fd, 10)

    assert as_user(BOB, read) == b"data"
    assert mode_of(path) == 0o6777


@pytest.mark.parametrize("kind", ["file", "dir"])
def test_the_mode_survives_a_rename_and_a_new_owner_of_the_parent(place: Place, kind: str) -> None:
    parent = place.dir("old", 0o777)
    path = f"{parent}/x"
    (os.mkdir if kind == "dir" else os.mknod)(path, 0o600)
    os.chmod(path, 0o1751)
    os.rename(parent, place.path("new"))
    os.chown(place.path("new"), ALICE, ALICE)
    assert mode_of(f"{place.path('new')}/x") == 0o1751


def test_the_top_accepts_chmod(place: Place) -> None:
    """pbs_mom sets 01777 on its checkpoint directory when a bit is missing."""
    try:
        with stamps(place.top, *place.stamped, kept=("mtime",)):
            os.chmod(place.top, 0o1755)
        assert mode_of(place.top) == 0o1755
        assert errno_as(ALICE, os.mkdir, place.path("refused")) == errno.EACCES
    finally:
        os.chmod(place.top, 0o1777)
    assert mode_of(place.top) == 0o1777
    assert errno_as(ALICE, os.chmod, place.top, 0o777) == errno.EPERM


def test_a_symlink_has_no_mode_of_its_own(place: Place) -> None:
    path = place.make("symlink")
    assert errno_of_call(lambda: os.chmod(path, 0o600)) == errno.ENOENT
    assert stat.S_IMODE(os.lstat(path).st_mode) == 0o777


@pytest.mark.parametrize("mode", [0o000, 0o111, 0o333])
def test_a_file_and_a_directory_without_rights_still_work_for_root(place: Place, mode: int) -> None:
    """In the store they keep u+rw(x), whatever is shown here."""
    path = place.file(data=b"data", mode=mode, uid=ALICE)
    assert read_file(path) == b"data"
    directory = place.dir(mode=mode, uid=ALICE)
    os.mknod(f"{directory}/f", 0o600)
    assert os.listdir(directory) == ["f"]
    assert (mode_of(path), mode_of(directory)) == (mode, mode)
