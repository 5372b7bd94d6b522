"""unlink(2) and rmdir(2), and files that live on without a name."""

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
    link_following,
    make,
    opened,
    owned,
    read_file,
    stamps,
    write_file,
)
from tests.support.users import ALICE, BOB, as_user, errno_as, errno_of_call, raises_errno

NOT_EMPTY = {errno.ENOTEMPTY, errno.EEXIST}


@pytest.mark.parametrize("where", ["top", "inside"])
@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_unlink_removes_every_type(place: Place, kind: str, where: str) -> None:
    parent = place.top if where == "top" else place.dir()
    path = place.path() if where == "top" else f"{parent}/f"
    make(kind, path)
    with stamps(parent, "mtime", "ctime"):
        os.unlink(path)
    assert not exists(path)
    assert errno_of_call(os.unlink, path) == errno.ENOENT


@pytest.mark.parametrize("full", [False, True])
def test_unlink_of_a_directory_is_eisdir(place: Place, full: bool) -> None:
    path = place.dir(mode=0o777, uid=ALICE)
    if full:
        make("file", f"{path}/f")
    assert errno_of_call(os.unlink, path) == errno.EISDIR
    assert errno_as(ALICE, os.unlink, path) == errno.EISDIR
    assert exists(path)


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_unlink_of_one_link_updates_the_other(room: str, kind: str) -> None:
    first = make(kind, f"{room}/first")
    os.link(first, f"{room}/second", follow_symlinks=False)
    with stamps(first, "ctime", kept=("mtime",)):
        os.unlink(f"{room}/second")
    assert os.lstat(first).st_nlink == 1


def test_unlink_of_a_symlink_keeps_its_target(room: str) -> None:
    target = make("file", f"{room}/target")
    os.symlink("target", f"{room}/link")
    with stamps(target, kept=("ctime",)):
        os.unlink(f"{room}/link")
    assert exists(target)


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_a_failed_unlink_changes_nothing(place: Place, kind: str) -> None:
    parent = place.dir()
    path = make(kind, f"{parent}/f", 0o666, ALICE)
    with stamps(parent, kept=("mtime", "ctime")), stamps(path, kept=("mtime", "ctime")):
        assert errno_as(ALICE, os.unlink, path) == errno.EACCES


def test_a_file_without_any_permission_can_be_removed(room: str) -> None:
    """The directory's permission counts, not the file's."""
    path = make("file", f"{room}/f", 0, BOB)
    assert errno_as(ALICE, os.unlink, path) == 0


@pytest.mark.parametrize("where", ["top", "inside"])
def test_rmdir(place: Place, where: str) -> None:
    parent = place.top if where == "top" else place.dir()
    path = place.path() if where == "top" else f"{parent}/d"
    links = os.lstat(parent).st_nlink
    make("dir", path)
    counted = not (where == "top" and place.entries_are_sets)  # docs/SEMANTICS.md: the top always says 1
    assert os.lstat(parent).st_nlink == (links + 1 if counted else 1)
    with stamps(parent, "mtime", "ctime"):
        os.rmdir(path)
    assert os.lstat(parent).st_nlink == links
    assert errno_of_call(os.rmdir, path) == errno.ENOENT


@pytest.mark.parametrize("kind", ALL_TYPES)
def test_rmdir_of_a_directory_with_anything_in_it(place: Place, kind: str) -> None:
    path = place.dir()
    make(kind, f"{path}/x")
    with stamps(path, kept=("mtime", "ctime")):
        assert errno_of_call(os.rmdir, path) in NOT_EMPTY
    assert os.listdir(path) == ["x"]


@pytest.mark.parametrize("name", [".hidden", "name\n", "x.tmp"])
def test_rmdir_counts_every_name(place: Place, name: str) -> None:
    path = place.dir()
    make("file", f"{path}/{name}")
    assert errno_of_call(os.rmdir, path) in NOT_EMPTY
    os.unlink(f"{path}/{name}")
    os.rmdir(path)


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_rmdir_of_anything_else_is_enotdir(place: Place, kind: str) -> None:
    path = place.make(kind)
    assert errno_of_call(os.rmdir, path) == errno.ENOTDIR
    assert exists(path)


def test_rmdir_of_a_symlink_to_a_directory_is_enotdir(room: str) -> None:
    make("dir", f"{room}/d")
    os.symlink("d", f"{room}/link")
    assert errno_of_call(os.rmdir, f"{room}/link") == errno.ENOTDIR


def test_rmdir_of_dot_is_einval_and_of_dotdot_enotempty(room: str) -> None:
    make("dir", f"{room}/d")
    assert errno_of_call(os.rmdir, f"{room}/d/.") == errno.EINVAL
    assert errno_of_call(os.rmdir, f"{room}/d/..") in NOT_EMPTY


def test_the_top_cannot_be_removed(place: Place) -> None:
    make("file", place.path())
    assert errno_of_call(os.rmdir, place.top) in {errno.EBUSY, *NOT_EMPTY}


def test_rmdir_needs_a_writable_parent(place: Place) -> None:
    parent = place.dir()
    path = make("dir", f"{parent}/d", 0o777, ALICE)
    with stamps(parent, kept=("mtime", "ctime")):
        assert errno_as(ALICE, os.rmdir, path) == errno.EACCES


def test_somebody_elses_empty_directory_can_be_removed(room: str) -> None:
    path = make("dir", f"{room}/d", 0, BOB)
    assert errno_as(ALICE, os.rmdir, path) == 0


def test_a_removed_working_directory_is_empty(place: Place) -> None:
    path = place.dir()

    def stay_in_it() -> tuple[int, int, int]:
        os.chdir(path)
        os.rmdir(path)
        return (
            os.stat(".").st_nlink,
            errno_of_call(os.mkdir, "new"),
            errno_of_call(os.open, "new", os.O_CREAT | os.O_WRONLY),
        )

    assert as_user(0, stay_in_it) == (0, errno.ENOENT, errno.ENOENT)


def test_a_removed_directory_is_read_as_empty(place: Place) -> None:
    path = place.dir()
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.rmdir(path)
        assert os.listdir(fd) == []


def test_a_name_can_be_used_again_at_once_for_another_type(place: Place) -> None:
    path = place.path("reused")
    for kind in (*ALL_TYPES, *ALL_TYPES):
        make(kind, path)
        assert stat.S_IFMT(os.lstat(path).st_mode) != 0
        if kind == "dir":
            os.rmdir(path)
        else:
            os.unlink(path)
        assert errno_of_call(os.lstat, path) == errno.ENOENT


def test_a_new_file_of_an_old_name_is_another_file(room: str) -> None:
    path = make("file", f"{room}/f")
    with opened(path, os.O_RDWR) as old:
        os.write(old, b"old")
        os.unlink(path)
        write_file(path, b"new")
        assert os.lstat(path).st_ino != os.fstat(old).st_ino
        assert os.pread(old, 10, 0) == b"old"
    assert read_file(path) == b"new"


@pytest.fixture(params=["top", "inside"])
def nameless(request: pytest.FixtureRequest, place: Place) -> str:
    """A file of ALICE that is about to lose its name."""
    path = place.path("f") if request.param == "top" else f"{place.dir(mode=0o777)}/f"
    make("file", path, 0o644, ALICE)
    return path


def _remove(path: str, how: str) -> None:
    if how == "unlink":
        os.unlink(path)
    else:
        write_file(f"{path}.new", b"another")
        os.rename(f"{path}.new", path)


@pytest.mark.parametrize("how", ["unlink", "rename"])
def test_an_unlinked_file_is_fully_usable(nameless: str, how: str) -> None:
    write_file(nameless, b"content")
    with opened(nameless, os.O_RDWR) as fd:
        inode = os.fstat(fd).st_ino
        _remove(nameless, how)
        status = os.fstat(fd)
        assert (status.st_nlink, status.st_size, status.st_ino) == (0, 7, inode)
        assert os.read(fd, 100) == b"content"
        assert os.pwrite(fd, b"more", 7) == 4
        assert os.pread(fd, 100, 0) == b"contentmore"
        os.ftruncate(fd, 3)
        assert os.fstat(fd).st_size == 3
        os.fsync(fd)
        assert os.pread(fd, 100, 0) == b"con"


@pytest.mark.parametrize("how", ["unlink", "rename"])
def test_mode_and_owner_of_an_unlinked_file(place: Place, nameless: str, how: str) -> None:
    with opened(nameless, os.O_RDWR) as fd:
        with stamps(fd, *place.stamped):
            _remove(nameless, how)
        with stamps(fd, *place.stamped):
            os.fchmod(fd, 0o600)
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
        os.fchown(fd, BOB, BOB)
        assert (os.fstat(fd).st_uid, os.fstat(fd).st_gid) == (BOB, BOB)


def test_times_and_attributes_of_an_unlinked_file(place: Place, nameless: str) -> None:
    with opened(nameless, os.O_RDWR) as fd:
        os.unlink(nameless)
        if not place.knows_nameless:
            with raises_errno(errno.ESTALE):
                os.utime(fd, ns=(1, 2))
            with raises_errno(errno.ESTALE):
                os.setxattr(fd, "user.x", b"value")
            return
        os.utime(fd, ns=(1, 2))
        assert (os.fstat(fd).st_atime_ns, os.fstat(fd).st_mtime_ns) == (1, 2)
        os.setxattr(fd, "user.x", b"value")
        assert os.getxattr(fd, "user.x") == b"value"


def test_the_last_of_two_descriptors_keeps_the_file(nameless: str) -> None:
    with opened(nameless, os.O_RDWR) as second:
        with opened(nameless, os.O_RDWR) as first:
            os.unlink(nameless)
            os.write(first, b"kept")
        assert os.read(second, 10) == b"kept"
        assert os.fstat(second).st_nlink == 0


def test_a_child_keeps_an_unlinked_file_by_what_it_inherited(nameless: str) -> None:
    with opened(nameless, os.O_RDWR) as fd:
        os.unlink(nameless)
        os.write(fd, b"inherited")
        assert as_user(BOB, os.pread, fd, 100, 0) == b"inherited"


def test_an_unlinked_file_stays_reachable_through_proc(place: Place, nameless: str) -> None:
    with opened(nameless, os.O_RDWR) as fd:
        os.unlink(nameless)
        os.write(fd, b"data")
        if not place.knows_nameless:
            assert errno_of_call(os.open, f"/proc/self/fd/{fd}", os.O_RDONLY) == errno.ESTALE
            return
        with opened(f"/proc/self/fd/{fd}") as again:
            assert os.read(again, 10) == b"data"
            assert os.fstat(again).st_ino == os.fstat(fd).st_ino


def test_a_nameless_file_gets_no_new_name(nameless: str) -> None:
    """A file whose last link is gone cannot be linked again (O_TMPFILE's are the exception)."""
    with opened(nameless, os.O_RDWR) as fd:
        os.unlink(nameless)
        with raises_errno(errno.ENOENT):
            link_following(f"/proc/self/fd/{fd}", f"{nameless}.again")


def test_an_open_fifo_works_without_its_name(room: str) -> None:
    path = make("fifo", f"{room}/f")
    with opened(path, os.O_RDONLY | os.O_NONBLOCK) as reader, opened(path, os.O_WRONLY) as writer:
        os.unlink(path)
        os.write(writer, b"through")
        assert os.read(reader, 100) == b"through"


def test_removing_a_large_tree(room: str) -> None:
    import shutil

    for first in range(5):
        for second in range(5):
            os.makedirs(f"{room}/tree/{first}/{second}")
            owned(write_file(f"{room}/tree/{first}/{second}/f", b"x"), 0o400, ALICE)
    shutil.rmtree(f"{room}/tree")
    assert os.listdir(room) == []
