"""What a new file of any type is: its mode under a umask, its owner, its group, its times; what the parent becomes."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

import pytest

from tests.posix.places import (
    ALL_TYPES,
    CHAR,
    NULL_DEVICE,
    TYPE_BITS,
    Place,
    bind_socket,
    exists,
    make,
    mode_of,
    open_close,
    opened,
    owned,
    owner_of,
    stamps,
    times_of,
    type_of,
)
from tests.support.users import ALICE, BOB, ROOT, as_user, errno_as, errno_of_call, raises_errno

GROUP = 3001

CREATE: dict[str, Callable[[str, int], object]] = {
    "open": lambda path, mode: open_close(path, os.O_CREAT | os.O_WRONLY, mode),
    "open-excl": lambda path, mode: open_close(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode),
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "mknod-file": lambda path, mode: os.mknod(path, stat.S_IFREG | mode),
    "mknod-fifo": lambda path, mode: os.mknod(path, stat.S_IFIFO | mode),
    "mknod-socket": lambda path, mode: os.mknod(path, stat.S_IFSOCK | mode),
    "mknod-char": lambda path, mode: os.mknod(path, stat.S_IFCHR | mode, NULL_DEVICE),
    "mknod-block": lambda path, mode: os.mknod(path, stat.S_IFBLK | mode, NULL_DEVICE),
}
OTHERS: dict[str, Callable[[str, int], object]] = {
    "symlink": lambda path, _: os.symlink("to", path),
    "bind": lambda path, _: bind_socket(path),
}
RESULT = {
    "open": stat.S_IFREG,
    "open-excl": stat.S_IFREG,
    "mkdir": stat.S_IFDIR,
    "mkfifo": stat.S_IFIFO,
    "mknod-file": stat.S_IFREG,
    "mknod-fifo": stat.S_IFIFO,
    "mknod-socket": stat.S_IFSOCK,
    "mknod-char": stat.S_IFCHR,
    "mknod-block": stat.S_IFBLK,
    "symlink": stat.S_IFLNK,
    "bind": stat.S_IFSOCK,
}
FOR_ROOT_ONLY = {"mknod-char", "mknod-block"}
EVERY_WAY = {**CREATE, **OTHERS}
MODES = (0o777, 0o666, 0o640, 0o400, 0o000, 0o111, 0o1755, 0o4755, 0o2755, 0o7777)
UMASKS = (0, 0o022, 0o027, 0o077, 0o777)


@pytest.mark.parametrize("umask", UMASKS)
@pytest.mark.parametrize("way", CREATE)
def test_the_mode_is_what_the_umask_leaves(place: Place, way: str, umask: int) -> None:
    uid = ROOT if way in FOR_ROOT_ONLY else ALICE
    paths = {mode: place.path(f"m{mode:o}") for mode in MODES}

    def create_all() -> None:
        for mode, path in paths.items():
            CREATE[way](path, mode)

    as_user(uid, create_all, umask=umask)
    # mkdir takes the sticky bit, but leaves set-id bits to the file system (on Linux none sets them).
    takes = 0o1777 if way == "mkdir" else 0o7777
    assert {mode: mode_of(path) for mode, path in paths.items()} == {
        mode: mode & takes & ~umask for mode in MODES
    }
    assert {type_of(path) for path in paths.values()} == {RESULT[way]}


@pytest.mark.parametrize("umask", [0, 0o077])
def test_a_symlink_is_0777_whatever_the_umask(place: Place, umask: int) -> None:
    path = place.path()
    as_user(ALICE, os.symlink, "to", path, umask=umask)
    assert mode_of(path) == 0o777


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_a_bound_socket_is_0777_under_the_umask(place: Place, umask: int) -> None:
    path = place.path()
    as_user(ALICE, bind_socket, path, umask=umask)
    assert mode_of(path) == 0o777 & ~umask


@pytest.mark.parametrize("where", ["top", "inside"])
@pytest.mark.parametrize("way", EVERY_WAY)
def test_the_creator_owns_it(place: Place, way: str, where: str) -> None:
    uid = ROOT if way in FOR_ROOT_ONLY else ALICE
    path = place.path() if where == "top" else f"{place.dir(mode=0o777)}/new"
    as_user(uid, EVERY_WAY[way], path, 0o644, gid=GROUP)
    assert owner_of(path) == (uid, GROUP)
    status = os.lstat(path)
    assert stat.S_IFMT(status.st_mode) == RESULT[way]
    assert status.st_nlink == (2 if way == "mkdir" else 1)
    if way in {"open", "open-excl", "mknod-file"}:
        assert status.st_size == 0


@pytest.mark.parametrize("member", [True, False], ids=["member", "stranger"])
@pytest.mark.parametrize("way", EVERY_WAY)
def test_a_setgid_directory_hands_down_its_group(place: Place, way: str, member: bool) -> None:
    uid = ROOT if way in FOR_ROOT_ONLY else ALICE
    parent = place.dir(mode=0o2777, gid=GROUP)
    path = f"{parent}/new"
    as_user(uid, EVERY_WAY[way], path, 0o755, groups=(GROUP,) if member else ())
    assert owner_of(path) == (uid, GROUP)
    assert bool(mode_of(path) & stat.S_ISGID) == (way == "mkdir")


def test_setgid_goes_down_a_tree_of_directories(place: Place) -> None:
    path = place.dir(mode=0o2777, gid=GROUP)
    for _ in range(3):
        path += "/d"
        as_user(ALICE, os.mkdir, path, 0o777, umask=0)
        assert owner_of(path) == (ALICE, GROUP)
        assert mode_of(path) == 0o2777


@pytest.mark.parametrize(
    ("member", "mode", "expected"),
    [(True, 0o2775, 0o2775), (False, 0o2775, 0o775), (False, 0o2755, 0o755), (True, 0o4711, 0o4711)],
)
def test_setgid_on_a_new_file_of_a_foreign_group_is_dropped(
    place: Place, member: bool, mode: int, expected: int
) -> None:
    """Otherwise a setgid directory would give away its group's rights."""
    path = f"{place.dir(mode=0o2777, gid=GROUP)}/new"
    as_user(
        ALICE, open_close, path, os.O_CREAT | os.O_WRONLY, mode, groups=(GROUP,) if member else (), umask=0
    )
    assert owner_of(path) == (ALICE, GROUP)
    assert mode_of(path) == expected


@pytest.mark.parametrize("way", EVERY_WAY)
def test_creating_stamps_the_parent_and_the_new_file(place: Place, way: str) -> None:
    parent = place.dir()
    path = f"{parent}/new"
    with stamps(parent, "mtime", "ctime"):
        EVERY_WAY[way](path, 0o644)
    # The same clock stamps all, at about the same moment.
    times = [*times_of(path).values(), times_of(parent)["mtime"]]
    assert max(times) - min(times) < 1_000_000_000


@pytest.mark.parametrize("way", EVERY_WAY)
def test_creating_at_the_top_stamps_the_top(place: Place, way: str) -> None:
    with stamps(place.top, "mtime", "ctime"):
        EVERY_WAY[way](place.path(), 0o644)


@pytest.mark.parametrize("kind", ALL_TYPES)
@pytest.mark.parametrize("way", [way for way in EVERY_WAY if way != "open"])
def test_an_existing_name_is_eexist(place: Place, way: str, kind: str) -> None:
    path = place.make(kind, uid=ALICE)
    before = os.lstat(path)
    uid = ROOT if way in FOR_ROOT_ONLY else ALICE
    expected = errno.EADDRINUSE if way == "bind" else errno.EEXIST
    assert errno_as(uid, EVERY_WAY[way], path, 0o644) == expected
    after = os.lstat(path)
    assert (after.st_ino, after.st_mode, after.st_ctime_ns) == (
        before.st_ino,
        before.st_mode,
        before.st_ctime_ns,
    )


@pytest.mark.parametrize("way", EVERY_WAY)
def test_a_failed_creation_leaves_the_parent_alone(place: Place, way: str) -> None:
    parent = place.dir(mode=0o755)
    with stamps(parent, kept=("mtime", "ctime")):
        assert errno_as(ALICE, EVERY_WAY[way], f"{parent}/new", 0o644) in {errno.EACCES, errno.EPERM}
    assert os.listdir(parent) == []


@pytest.mark.parametrize("way", ["mknod-char", "mknod-block"])
def test_only_root_makes_devices(place: Place, way: str) -> None:
    path = place.path()
    assert errno_as(ALICE, CREATE[way], path, 0o644) == errno.EPERM
    assert not exists(path)


@pytest.mark.parametrize("device", [(1, 3), (0, 0), (7, 255), (255, 1), (300, 70000)])
@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK], ids=["char", "block"])
def test_device_numbers_are_kept(place: Place, kind: int, device: tuple[int, int]) -> None:
    path = place.path()
    os.mknod(path, kind | 0o600, os.makedev(*device))
    status = os.lstat(path)
    assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == device
    assert stat.S_IFMT(status.st_mode) == kind
    assert status.st_size == 0


@pytest.mark.parametrize("kind", ["file", "dir", "fifo", "socket", "symlink"])
def test_other_types_have_no_device_number(place: Place, kind: str) -> None:
    assert os.lstat(place.make(kind)).st_rdev == 0


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_a_device_works_only_where_devices_may(place: Place, flags: int) -> None:
    path = place.make(CHAR, mode=0o666)
    if place.nodev:
        assert errno_of_call(os.open, path, flags) == errno.EACCES
    else:
        with opened(path, flags) as fd:
            assert os.fstat(fd).st_rdev == NULL_DEVICE
    assert place.nodev or not place.on_mount


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(stat.S_IFDIR, errno.EPERM), (stat.S_IFLNK, errno.EINVAL), (0o070000, errno.EINVAL)],
    ids=["dir", "symlink", "unknown"],
)
def test_mknod_makes_no_directories_nor_symlinks(place: Place, mode: int, expected: int) -> None:
    path = place.path()
    with raises_errno(expected):
        os.mknod(path, mode | 0o644)
    assert not exists(path)


def test_mknod_without_a_type_makes_a_regular_file(place: Place) -> None:
    path = place.path()
    os.mknod(path, 0o600)
    assert type_of(path) == stat.S_IFREG


def test_type_and_inode_are_the_same_for_every_user(place: Place) -> None:
    paths = [place.make(kind, uid=ALICE) for kind in ALL_TYPES]
    mine = [(os.lstat(path).st_ino, type_of(path)) for path in paths]
    assert as_user(BOB, lambda: [(os.lstat(path).st_ino, type_of(path)) for path in paths]) == mine
    assert [kind for _, kind in mine] == [TYPE_BITS[kind] for kind in ALL_TYPES]
    assert len({inode for inode, _ in mine}) == len(ALL_TYPES)


@pytest.mark.parametrize("mode", [0o444, 0o400, 0o000, 0o200])
def test_the_creating_descriptor_may_write_whatever_the_mode(place: Place, mode: int) -> None:
    """TORQUE's checkpoint scripts create their image 0400 and then write it."""
    path = place.path()

    def create_and_use() -> bytes:
        with opened(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode) as fd:
            os.write(fd, b"image")
            return os.pread(fd, 100, 0)

    assert as_user(ALICE, create_and_use) == b"image"
    assert mode_of(path) == mode
    assert errno_as(ALICE, open_close, path, os.O_RDWR) == errno.EACCES


def test_a_setuid_program_changes_nobody_on_a_nosuid_mount(place: Place) -> None:
    import shutil

    program = shutil.which("id")
    assert program is not None
    path = place.path()
    shutil.copy(program, path)
    owned(path, 0o4755, BOB)

    def effective_uid() -> int:
        reading, writing = os.pipe()
        child = os.posix_spawn(path, [path, "-u"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, writing, 1)])
        os.close(writing)
        output = os.read(reading, 100)
        os.waitpid(child, 0)
        return int(output)

    assert as_user(ALICE, effective_uid) == (ALICE if place.nosuid else BOB)
    assert place.nosuid or not place.on_mount


def test_a_new_file_in_a_removed_directory_is_enoent(area: Place, room: str) -> None:
    gone = (errno.ENOENT, errno.ESTALE) if area.kind == "gluster" else (errno.ENOENT,)
    path = make("dir", f"{room}/d")
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.rmdir(path)
        with raises_errno(*gone):
            os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
        with raises_errno(*gone):
            os.mkdir("new", dir_fd=fd)
        if area.kind != "gluster":
            assert os.fstat(fd).st_nlink == 0
            assert os.listdir(fd) == []
