"""Names and paths: any bytes, any length, and every way in which a path can be wrong, for every call."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from tests.posix.places import Place, exists, make, open_close, read_file, write_file
from tests.support.users import ALICE, errno_as, errno_of_call

NAMES = [
    b"plain",
    b"with blank",
    b" leading",
    b"trailing ",
    b"new\nline",
    b"tab\t",
    b"\x01\x02\x1b[31m",
    b"back\\slash",
    b"\\x41",
    b"quote'\"`$(x)",
    b"*?[]{}",
    b"-rf",
    b"...",
    b"..x",
    b".hidden",
    b"x.tmp",
    b"\xff\xfe\x80",
    b"\xed\xa0\x80",
    "ü".encode(),
    "u\u0308".encode(),
    "日本語".encode(),
    b"\x7f",
    b"%2F%00",
    b"a:b",
    b"NUL",
    b"x" * 200,
]


@pytest.fixture(params=["top", "inside"])
def spot(request: pytest.FixtureRequest, place: Place) -> bytes:
    """Where a name is added: the top of the mount has its own table of names."""
    return os.fsencode(place.path("-") if request.param == "top" else f"{place.dir()}/")


@pytest.mark.parametrize("kind", ["file", "dir"])
@pytest.mark.parametrize("name", NAMES, ids=[repr(name)[2:-1][:20] for name in NAMES])
def test_any_bytes(spot: bytes, name: bytes, kind: str) -> None:
    path = spot + name
    parent, last = os.path.split(path)
    make(kind, os.fsdecode(path))
    assert last in os.listdir(parent)
    inode = os.lstat(path).st_ino
    if kind == "file":
        write_file(os.fsdecode(path), name)
        assert read_file(os.fsdecode(path)) == name
    os.rename(path, path + b"2")
    assert os.lstat(path + b"2").st_ino == inode
    assert not os.path.lexists(path)
    os.rename(path + b"2", path)
    (os.rmdir if kind == "dir" else os.unlink)(path)
    assert last not in os.listdir(parent)


def test_names_that_look_alike_are_different(spot: bytes) -> None:
    names = [b"a", b"A", b"a ", "ü".encode(), "u\u0308".encode(), b"\xfc", b"\\xfc", b"a\n"]
    for number, name in enumerate(names):
        write_file(os.fsdecode(spot + name), b"%d" % number)
    assert [read_file(os.fsdecode(spot + name)) for name in names] == [b"%d" % n for n in range(len(names))]


CREATING: dict[str, Callable[[str], object]] = {
    "open": lambda path: open_close(path, os.O_CREAT | os.O_WRONLY),
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "symlink": lambda path: os.symlink("to", path),
}
LOOKING: dict[str, Callable[[str], object]] = {
    "open": lambda path: open_close(path, os.O_RDONLY),
    "stat": os.stat,
    "lstat": os.lstat,
    "access": lambda path: _access(path),
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "readlink": os.readlink,
    "truncate": lambda path: os.truncate(path, 0),
    "chmod": lambda path: os.chmod(path, 0o600),
    "chown": lambda path: os.chown(path, 0, 0),
    "lchown": lambda path: os.lchown(path, 0, 0),
    "utime": os.utime,
    "chdir": os.chdir,
    "listdir": os.listdir,
    "statvfs": os.statvfs,
    "getxattr": lambda path: os.getxattr(path, "user.x"),
    "setxattr": lambda path: os.setxattr(path, "user.x", b""),
    "listxattr": os.listxattr,
    "removexattr": lambda path: os.removexattr(path, "user.x"),
    "rename": lambda path: os.rename(path, f"{os.path.dirname(path)}/other"),
    "link": lambda path: os.link(path, f"{os.path.dirname(path)}/other"),
}
EVERY_CALL = {f"new-{name}": call for name, call in CREATING.items()} | LOOKING


def _access(path: str) -> None:
    """access(2) by its errno, which os.access hides."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.access(os.fsencode(path), os.F_OK) != 0:
        raise OSError(ctypes.get_errno(), "access", path)


@pytest.mark.parametrize("way", CREATING)
def test_names_of_255_bytes_and_not_more(place: Place, way: str) -> None:
    longest = place.named(255)
    CREATING[way](longest)
    assert len(os.path.basename(longest)) == 255
    assert os.path.basename(longest) in os.listdir(place.top)
    assert errno_of_call(CREATING[way], place.named(256)) == errno.ENAMETOOLONG
    inside = f"{place.dir()}/" + "y" * 255
    CREATING[way](inside)
    assert exists(inside)
    assert errno_of_call(CREATING[way], inside + "y") == errno.ENAMETOOLONG


@pytest.mark.parametrize("call", EVERY_CALL)
def test_a_name_of_256_bytes_is_enametoolong(place: Place, call: str) -> None:
    assert errno_of_call(EVERY_CALL[call], place.named(256)) == errno.ENAMETOOLONG
    assert errno_of_call(EVERY_CALL[call], f"{place.named(256)}/x") == errno.ENAMETOOLONG


@pytest.mark.parametrize("call", EVERY_CALL)
def test_a_path_beyond_path_max_is_enametoolong(room: str, call: str) -> None:
    path = room + "/" + "./" * 2050 + "x"
    assert errno_of_call(EVERY_CALL[call], path) == errno.ENAMETOOLONG


def test_a_path_of_just_path_max_works(room: str) -> None:
    slack = 4095 - len(os.fsencode(room)) - 2
    path = room + "/" + "./" * (slack // 2) + "x" * (1 + slack % 2)
    assert len(os.fsencode(path)) == 4095
    write_file(path, b"deep")
    assert read_file(path) == b"deep"


@pytest.mark.parametrize("call", LOOKING)
def test_a_missing_name_is_enoent(place: Place, call: str) -> None:
    assert errno_of_call(LOOKING[call], place.path("missing")) == errno.ENOENT
    assert errno_of_call(LOOKING[call], f"{place.dir()}/missing") == errno.ENOENT


@pytest.mark.parametrize("call", EVERY_CALL)
def test_a_missing_parent_is_enoent(place: Place, call: str) -> None:
    assert errno_of_call(EVERY_CALL[call], f"{place.path('missing')}/x") == errno.ENOENT
    assert errno_of_call(EVERY_CALL[call], f"{place.dir()}/missing/x") == errno.ENOENT


@pytest.mark.parametrize("kind", ["file", "fifo", "socket", "char"])
@pytest.mark.parametrize("call", EVERY_CALL)
def test_a_parent_that_is_no_directory_is_enotdir(place: Place, call: str, kind: str) -> None:
    assert errno_of_call(EVERY_CALL[call], f"{place.make(kind)}/x") == errno.ENOTDIR


@pytest.mark.parametrize("call", EVERY_CALL)
def test_a_loop_of_symlinks_is_eloop(place: Place, call: str) -> None:
    path = place.path("loop")
    os.symlink(os.path.basename(path), path)
    assert errno_of_call(EVERY_CALL[call], f"{path}/x") == errno.ELOOP


@pytest.mark.parametrize("call", EVERY_CALL)
def test_a_parent_that_may_not_be_searched_is_eacces(place: Place, call: str) -> None:
    parent = place.dir(mode=0o666)
    make("file", f"{parent}/x", 0o666, ALICE)
    assert errno_as(ALICE, EVERY_CALL[call], f"{parent}/x") == errno.EACCES
    assert errno_as(ALICE, EVERY_CALL[call], f"{parent}/missing") == errno.EACCES


@pytest.mark.parametrize("call", ["new-open", "open", "stat", "unlink", "chmod", "truncate"])
def test_a_trailing_slash_wants_a_directory(room: str, call: str) -> None:
    path = make("file", f"{room}/f")
    expected = {errno.EISDIR} if call == "new-open" else {errno.ENOTDIR}
    assert errno_of_call(EVERY_CALL[call], f"{path}/") in expected
    assert exists(path)


def test_a_trailing_slash_on_directories(room: str) -> None:
    os.mkdir(f"{room}/d/")
    os.rename(f"{room}/d/", f"{room}/e/")
    assert os.listdir(f"{room}/e/") == []
    os.rmdir(f"{room}/e/")
    assert os.listdir(room) == []


def test_dots_on_the_way(room: str) -> None:
    os.makedirs(f"{room}/a/b")
    write_file(f"{room}/a/../a/./b/.././f", b"data")
    assert os.listdir(f"{room}/a") in (["b", "f"], ["f", "b"])
    assert os.lstat(f"{room}/a/b/..").st_ino == os.lstat(f"{room}/a").st_ino
    assert os.lstat(f"{room}/.").st_ino == os.lstat(room).st_ino


@pytest.mark.parametrize("name", [".", ".."])
def test_dot_and_dotdot_exist_already(room: str, name: str) -> None:
    assert errno_of_call(os.mkdir, f"{room}/{name}") == errno.EEXIST
    assert errno_of_call(os.symlink, "to", f"{room}/{name}") == errno.EEXIST


DEPTH = {"gluster": 15}
"""How many levels are deep, by kind of place. The kernel looks up every one for each call, and on a cluster a look at the
last takes as long as it is deep."""


def test_deep_trees(place: Place) -> None:
    path = place.dir()
    for level in range(DEPTH.get(place.kind, 60)):
        path += f"/{level}"
        os.mkdir(path)
    write_file(f"{path}/f", b"deep")
    assert read_file(f"{path}/f") == b"deep"
