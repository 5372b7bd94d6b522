"""rename(2) and renameat2(2): every type over every type, parents, links, times, and the flags."""

from __future__ import annotations

import errno
import os

import pytest

from tests.posix.places import (
    ALL_TYPES,
    DIRECTORY,
    NOT_DIRECTORIES,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    TYPE_BITS,
    Place,
    exists,
    make,
    opened,
    owned,
    read_file,
    renameat2,
    stamps,
    times_of,
    type_of,
    write_file,
)
from tests.support.users import ALICE, BOB, ROOT, errno_as, errno_of_call, raises_errno

FULL = "full-dir"
"""A directory with an entry."""
TARGETS = (*ALL_TYPES, FULL)
NOT_EMPTY = {errno.ENOTEMPTY, errno.EEXIST}


def _make(kind: str, path: str, uid: int = ROOT) -> str:
    make(DIRECTORY if kind == FULL else kind, path, 0o755, uid)
    if kind == FULL:
        make("file", f"{path}/inside", 0o644, uid)
    return path


def _over(source: str, target: str) -> set[int]:
    """What rename of one type over another answers; 0 is success."""
    source_is_directory = source in {DIRECTORY, FULL}
    if target == FULL:
        return NOT_EMPTY if source_is_directory else {errno.EISDIR}
    if source_is_directory:
        return {0} if target == DIRECTORY else {errno.ENOTDIR}
    return {errno.EISDIR} if target == DIRECTORY else {0}


@pytest.fixture(params=["top", "one-parent", "two-parents"])
def pair(request: pytest.FixtureRequest, place: Place) -> tuple[str, str]:
    """Two names: side by side at the top (two sets of one owner at the mount's root), or inside."""
    if request.param == "top":
        return place.path("source"), place.path("target")
    first = place.dir("a", 0o777)
    second = first if request.param == "one-parent" else place.dir("b", 0o777)
    return f"{first}/source", f"{second}/target"


@pytest.mark.parametrize("kind", [*ALL_TYPES, FULL])
def test_rename_to_a_free_name(pair: tuple[str, str], kind: str) -> None:
    source, target = pair
    before = os.lstat(_make(kind, source))
    os.rename(source, target)
    after = os.lstat(target)
    assert not exists(source)
    assert (after.st_ino, after.st_mode, after.st_nlink) == (before.st_ino, before.st_mode, before.st_nlink)
    assert (after.st_rdev, after.st_size, after.st_mtime_ns) == (
        before.st_rdev,
        before.st_size,
        before.st_mtime_ns,
    )
    if kind == FULL:
        assert os.listdir(target) == ["inside"]


@pytest.mark.parametrize("target_kind", TARGETS)
@pytest.mark.parametrize("kind", TARGETS)
def test_rename_over(pair: tuple[str, str], kind: str, target_kind: str) -> None:
    source, target = pair
    before = os.lstat(_make(kind, source))
    old = os.lstat(_make(target_kind, target))
    expected = _over(kind, target_kind)
    assert errno_of_call(os.rename, source, target) in expected
    if 0 in expected:
        assert not exists(source)
        assert os.lstat(target).st_ino == before.st_ino
    else:
        assert os.lstat(source).st_ino == before.st_ino
        assert os.lstat(target).st_ino == old.st_ino


@pytest.mark.parametrize("kind", [*ALL_TYPES, FULL])
def test_rename_to_itself_does_nothing(place: Place, kind: str) -> None:
    path = _make(kind, place.path())
    with stamps(place.top, kept=("mtime",)), stamps(path, kept=("mtime", "ctime")):
        os.rename(path, path)
    assert exists(path)


def test_rename_of_one_link_over_another_keeps_both(room: str) -> None:
    """POSIX: if both names are links to one file, nothing happens at all."""
    first = make("file", f"{room}/first")
    os.link(first, f"{room}/second")
    os.rename(first, f"{room}/second")
    assert sorted(os.listdir(room)) == ["first", "second"]
    assert os.lstat(first).st_nlink == 2


@pytest.mark.parametrize("kind", [*ALL_TYPES, FULL])
def test_rename_stamps_both_parents(place: Place, kind: str) -> None:
    first, second = place.dir(), place.dir()
    path = _make(kind, f"{first}/source")
    mtime = times_of(path)["mtime"]
    with stamps(first, "mtime", "ctime"), stamps(second, "mtime", "ctime"):
        os.rename(path, f"{second}/target")
    assert times_of(f"{second}/target")["mtime"] == mtime


@pytest.mark.parametrize("kind", [*ALL_TYPES, FULL])
def test_rename_updates_the_ctime_of_the_object(pair: tuple[str, str], kind: str) -> None:
    source, target = pair
    _make(kind, source)
    with opened(source, os.O_PATH | os.O_NOFOLLOW) as fd, stamps(fd, "ctime", kept=("mtime",)):
        os.rename(source, target)


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_rename_over_the_last_link_leaves_the_old_file_to_its_holders(
    pair: tuple[str, str], kind: str
) -> None:
    source, target = pair
    _make("file", source)
    make(kind, target)
    with opened(target, os.O_PATH | os.O_NOFOLLOW) as fd:
        os.rename(source, target)
        assert os.fstat(fd).st_nlink == 0


def test_rename_over_one_of_two_links_updates_the_other(area: Place, room: str) -> None:
    """But for the time: GlusterFS leaves it (docs/glusterfs.md)."""
    kept = make("file", f"{room}/kept")
    os.link(kept, f"{room}/replaced")
    make("file", f"{room}/source")
    with stamps(kept, *([] if area.kind == "gluster" else ["ctime"])):
        os.rename(f"{room}/source", f"{room}/replaced")
    assert os.lstat(kept).st_nlink == 1


def test_a_failed_rename_stamps_nothing(place: Place) -> None:
    first, second = place.dir(), place.dir()
    path = make("file", f"{first}/source")
    _make(FULL, f"{second}/target")
    with (
        stamps(first, kept=("mtime", "ctime")),
        stamps(second, kept=("mtime", "ctime")),
        stamps(path, kept=("mtime", "ctime")),
    ):
        assert errno_of_call(os.rename, path, f"{second}/target") == errno.EISDIR


def test_a_missing_source_is_enoent(pair: tuple[str, str]) -> None:
    source, target = pair
    assert errno_of_call(os.rename, source, target) == errno.ENOENT
    make("file", target)
    assert errno_of_call(os.rename, source, target) == errno.ENOENT
    assert exists(target)


@pytest.mark.parametrize("below", ["x", "sub/x", "sub/deep/x"])
def test_a_directory_cannot_move_into_itself(place: Place, below: str) -> None:
    path = place.dir("d")
    os.makedirs(f"{path}/sub/deep")
    assert errno_of_call(os.rename, path, f"{path}/{below}") == errno.EINVAL
    assert sorted(os.listdir(path)) == ["sub"]


@pytest.mark.parametrize("depth", [1, 2])
def test_an_ancestor_cannot_be_replaced_by_what_is_in_it(room: str, depth: int) -> None:
    os.makedirs(f"{room}/a/b/c")
    source = f"{room}/a/b" if depth == 1 else f"{room}/a/b/c"
    assert errno_of_call(os.rename, source, f"{room}/a") in NOT_EMPTY


@pytest.mark.parametrize("name", [".", ".."])
def test_dot_and_dotdot_cannot_be_renamed(room: str, name: str) -> None:
    make("dir", f"{room}/d")
    assert errno_of_call(os.rename, f"{room}/d/{name}", f"{room}/x") in {errno.EINVAL, errno.EBUSY}
    assert errno_of_call(os.rename, f"{room}/d", f"{room}/{name}") in {
        errno.EINVAL,
        errno.EBUSY,
        errno.EEXIST,
    }


def test_a_moved_directory_takes_its_link_from_one_parent_to_the_other(place: Place) -> None:
    first, second = place.dir(), place.dir()
    make("dir", f"{first}/d")
    assert (os.lstat(first).st_nlink, os.lstat(second).st_nlink) == (3, 2)
    os.rename(f"{first}/d", f"{second}/d")
    assert (os.lstat(first).st_nlink, os.lstat(second).st_nlink) == (2, 3)
    assert os.lstat(f"{second}/d/..").st_ino == os.lstat(second).st_ino
    make("dir", f"{first}/e")
    os.rename(f"{second}/d", f"{first}/e")
    assert (os.lstat(first).st_nlink, os.lstat(second).st_nlink) == (3, 2)


def test_a_directory_renamed_at_the_top_keeps_the_tops_links(place: Place) -> None:
    path = place.dir("d")
    links = os.lstat(place.top).st_nlink
    os.rename(path, place.path("e"))
    assert os.lstat(place.top).st_nlink == links
    inner = place.dir("f")
    counted = not place.entries_are_sets  # docs/SEMANTICS.md: the top always says 1
    assert os.lstat(place.top).st_nlink == (links + 1 if counted else 1)
    os.rename(place.path("e"), f"{inner}/e")
    assert os.lstat(place.top).st_nlink == links
    assert os.lstat(inner).st_nlink == 3


def test_dotdot_follows_a_moved_directory(place: Place) -> None:
    first, second = place.dir(), place.dir()
    os.makedirs(f"{first}/d/e")
    with opened(f"{first}/d/e", os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.rename(f"{first}/d", f"{second}/d")
        assert os.stat("../..", dir_fd=fd).st_ino == os.lstat(second).st_ino


def test_a_tree_moves_with_all_that_is_in_it(place: Place) -> None:
    source = place.dir("tree")
    os.makedirs(f"{source}/x/y/z")
    write_file(f"{source}/x/y/z/f", b"deep")
    inode = os.lstat(f"{source}/x/y/z/f").st_ino
    os.rename(source, place.path("moved"))
    path = f"{place.path('moved')}/x/y/z/f"
    assert read_file(path) == b"deep"
    assert os.lstat(path).st_ino == inode


def test_a_file_stays_open_across_renames(pair: tuple[str, str]) -> None:
    source, target = pair
    with opened(source, os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"one")
        os.rename(source, target)
        os.write(fd, b"two")
        os.fsync(fd)
        assert read_file(target) == b"onetwo"
        os.rename(target, source)
        os.write(fd, b"three")
    assert read_file(source) == b"onetwothree"


def test_a_temporary_file_replaces_the_old_one_for_everybody(room: str) -> None:
    """How every careful program writes: readers see the old file or the new one, never none."""
    path = make("file", f"{room}/final")
    write_file(path, b"old")
    with opened(path) as reader:
        for number in range(10):
            write_file(f"{room}/.final.tmp", b"new%d" % number)
            os.rename(f"{room}/.final.tmp", path)
            assert read_file(path) == b"new%d" % number
        assert os.read(reader, 10) == b"old"
    assert os.listdir(room) == ["final"]


@pytest.mark.parametrize("closed", ["source", "target"])
def test_both_parents_must_be_writable(place: Place, closed: str) -> None:
    first = place.dir(mode=0o777 if closed == "target" else 0o755)
    second = place.dir(mode=0o777 if closed == "source" else 0o755)
    make("file", f"{first}/f", 0o666, ALICE)
    assert errno_as(ALICE, os.rename, f"{first}/f", f"{second}/f") == errno.EACCES
    assert errno_as(ALICE, os.rename, f"{first}/f", f"{second}/missing/f") == errno.ENOENT


@pytest.mark.parametrize(("mode", "expected"), [(0o755, errno.EACCES), (0o777, 0)])
def test_moving_a_directory_writes_it_too(room: str, mode: int, expected: int) -> None:
    """Its ``..`` changes, so that somebody else's directory needs to be writable; not when only its name changes."""
    make("dir", f"{room}/there", 0o777)
    make("dir", f"{room}/d", mode, BOB)
    assert errno_as(ALICE, os.rename, f"{room}/d", f"{room}/e") == 0
    assert errno_as(ALICE, os.rename, f"{room}/e", f"{room}/there/d") == expected


def test_a_user_renames_his_own_set(place: Place) -> None:
    source = place.file("a", b"data", uid=ALICE)
    assert errno_as(ALICE, os.rename, source, place.path("b")) == 0
    assert read_file(place.path("b")) == b"data"
    assert errno_as(BOB, os.rename, place.path("b"), place.path("c")) == errno.EPERM


@pytest.mark.parametrize("kind", ["file", "dir"])
def test_a_users_file_moves_between_directories_of_other_owners(place: Place, kind: str) -> None:
    """Between sets of different owners the mount answers EXDEV, and mv copies instead."""
    alices, roots = place.dir(mode=0o777, uid=ALICE), place.dir(mode=0o777)
    make(kind, f"{alices}/f", 0o755, ALICE)
    expected = errno.EXDEV if place.entries_are_sets else 0
    assert errno_as(ALICE, os.rename, f"{alices}/f", f"{roots}/f") == expected
    assert exists(f"{alices if expected else roots}/f")
    if expected:
        assert errno_of_call(os.rename, f"{alices}/f", f"{roots}/f") == expected


@pytest.fixture
def has_flags(area: Place) -> bool:
    return area.has_rename_flags


def refused(source: str, target: str, flags: int) -> None:
    """With EINVAL, and nothing has moved."""
    before = [os.lstat(path).st_ino if exists(path) else None for path in (source, target)]
    assert errno_of_call(renameat2, source, target, flags) == errno.EINVAL
    assert [os.lstat(path).st_ino if exists(path) else None for path in (source, target)] == before


def test_noreplace_to_a_free_name(pair: tuple[str, str], *, has_flags: bool) -> None:
    source, target = pair
    inode = os.lstat(make("file", source)).st_ino
    if not has_flags:
        refused(source, target, RENAME_NOREPLACE)
        return
    renameat2(source, target, RENAME_NOREPLACE)
    assert not exists(source)
    assert os.lstat(target).st_ino == inode


@pytest.mark.parametrize("target_kind", TARGETS)
@pytest.mark.parametrize("kind", ["file", "dir", "symlink"])
def test_noreplace_never_replaces(pair: tuple[str, str], kind: str, target_kind: str) -> None:
    source, target = pair
    inodes = os.lstat(_make(kind, source)).st_ino, os.lstat(_make(target_kind, target)).st_ino
    assert errno_of_call(renameat2, source, target, RENAME_NOREPLACE) == errno.EEXIST
    assert (os.lstat(source).st_ino, os.lstat(target).st_ino) == inodes


@pytest.mark.parametrize("target_kind", ["file", "dir", "symlink", "fifo", FULL])
@pytest.mark.parametrize("kind", ["file", "dir", "symlink", FULL])
def test_exchange(pair: tuple[str, str], kind: str, target_kind: str, *, has_flags: bool) -> None:
    """ckfs refuses it with EINVAL where the store's file system does (NFS, GlusterFS); never half of it."""
    source, target = pair
    first, second = os.lstat(_make(kind, source)).st_ino, os.lstat(_make(target_kind, target)).st_ino
    if not has_flags:
        refused(source, target, RENAME_EXCHANGE)
        return
    renameat2(source, target, RENAME_EXCHANGE)
    assert (os.lstat(source).st_ino, os.lstat(target).st_ino) == (second, first)
    assert type_of(target) == TYPE_BITS[DIRECTORY if kind == FULL else kind]


def test_exchange_needs_both_names(pair: tuple[str, str]) -> None:
    source, target = pair
    make("file", source)
    assert errno_of_call(renameat2, source, target, RENAME_EXCHANGE) == errno.ENOENT
    assert errno_of_call(renameat2, target, source, RENAME_EXCHANGE) == errno.ENOENT
    assert exists(source)


def test_exchange_of_a_directory_with_one_inside_it_is_einval(room: str) -> None:
    os.makedirs(f"{room}/a/b")
    for pair in ((f"{room}/a", f"{room}/a/b"), (f"{room}/a/b", f"{room}/a")):
        assert errno_of_call(renameat2, *pair, RENAME_EXCHANGE) == errno.EINVAL


def test_exchange_moves_the_links_of_directories(place: Place, *, has_flags: bool) -> None:
    first, second = place.dir(), place.dir()
    make("dir", f"{first}/x")
    make("file", f"{second}/y")
    if not has_flags:
        refused(f"{first}/x", f"{second}/y", RENAME_EXCHANGE)
        return
    renameat2(f"{first}/x", f"{second}/y", RENAME_EXCHANGE)
    assert (os.lstat(first).st_nlink, os.lstat(second).st_nlink) == (2, 3)


@pytest.mark.parametrize("flags", [RENAME_NOREPLACE | RENAME_EXCHANGE, 1 << 20])
def test_unknown_flags_are_einval(pair: tuple[str, str], flags: int) -> None:
    source, target = pair
    make("file", source)
    make("file", target)
    assert errno_of_call(renameat2, source, target, flags) == errno.EINVAL


def test_the_top_cannot_be_renamed_onto_its_entries(place: Place) -> None:
    path = place.dir()
    with raises_errno(errno.EINVAL, errno.EBUSY, errno.EXDEV):
        os.rename(place.top, f"{path}/top")


@pytest.mark.parametrize("source_owner", [ALICE, BOB, ROOT])
@pytest.mark.parametrize("target_owner", [ALICE, BOB, ROOT])
def test_the_owner_of_neither_file_matters_in_a_directory_that_is_not_sticky(
    room: str, source_owner: int, target_owner: int
) -> None:
    owned(make("file", f"{room}/source"), 0, source_owner)
    owned(make("file", f"{room}/target"), 0, target_owner)
    assert errno_as(ALICE, os.rename, f"{room}/source", f"{room}/target") == 0
    assert os.lstat(f"{room}/target").st_uid == source_owner
