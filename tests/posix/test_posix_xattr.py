"""Extended attributes: user.* as on a local file system; nothing stored that would not be enforced."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from tests.posix.places import Place, make, opened, owned, stamps
from tests.support.users import ALICE, BOB, as_user, errno_as, errno_of_call

VALUES = {
    "empty": b"",
    "text": b"text",
    "nul": b"\0",
    "binary": bytes(range(256)),
    "kilobyte": b"v" * 1024,
    "large": b"L" * 3000,
}


@pytest.fixture(params=["file", "dir", "file-inside", "dir-inside"])
def spot(request: pytest.FixtureRequest, place: Place) -> str:
    kind, _, inside = str(request.param).partition("-")
    path = f"{place.dir(mode=0o777)}/x" if inside else place.path()
    return make(kind, path, 0o755)


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_set_get_list_remove(place: Place, spot: str, value: bytes) -> None:
    with stamps(spot, *place.stamped, kept=("mtime",)):
        os.setxattr(spot, "user.name", value)
    assert os.getxattr(spot, "user.name") == value
    assert os.listxattr(spot) == ["user.name"]
    with stamps(spot, *place.stamped, kept=("mtime",)):
        os.removexattr(spot, "user.name")
    assert os.listxattr(spot) == []
    assert errno_of_call(os.getxattr, spot, "user.name") == errno.ENODATA


def test_a_new_file_has_no_attributes(spot: str) -> None:
    """Whatever ckfs keeps with a file is its own business."""
    os.chmod(spot, 0o400)
    os.chown(spot, ALICE, BOB)
    assert os.listxattr(spot) == []


def test_through_a_descriptor(spot: str) -> None:
    with opened(spot) as fd:
        os.setxattr(fd, "user.name", b"value")
        assert os.getxattr(fd, "user.name") == b"value"
        assert os.listxattr(fd) == ["user.name"]
        os.removexattr(fd, "user.name")
        assert os.listxattr(fd) == []


def test_create_and_replace(spot: str) -> None:
    assert errno_of_call(os.setxattr, spot, "user.a", b"1", os.XATTR_REPLACE) == errno.ENODATA
    os.setxattr(spot, "user.a", b"1", os.XATTR_CREATE)
    assert errno_of_call(os.setxattr, spot, "user.a", b"2", os.XATTR_CREATE) == errno.EEXIST
    assert os.getxattr(spot, "user.a") == b"1"
    os.setxattr(spot, "user.a", b"3", os.XATTR_REPLACE)
    os.setxattr(spot, "user.a", b"longer than before")
    assert os.getxattr(spot, "user.a") == b"longer than before"


def test_missing_ones_are_enodata(spot: str) -> None:
    assert errno_of_call(os.getxattr, spot, "user.missing") == errno.ENODATA
    assert errno_of_call(os.removexattr, spot, "user.missing") == errno.ENODATA


def test_many(spot: str) -> None:
    names = [f"user.n{number}" for number in range(20)]
    for name in names:
        os.setxattr(spot, name, name.encode())
    assert sorted(os.listxattr(spot)) == sorted(names)
    for name in names[::2]:
        os.removexattr(spot, name)
    assert sorted(os.listxattr(spot)) == sorted(names[1::2])
    assert [os.getxattr(spot, name) for name in names[1::2]] == [name.encode() for name in names[1::2]]


@pytest.mark.parametrize(
    "name", [b"user.with blank", b"user.\xff\xfe", b"user.new\nline", b"user.a.b.c", b"user.UPPER"]
)
def test_names_of_any_bytes(spot: str, name: bytes) -> None:
    os.setxattr(os.fsencode(spot), name, b"value")
    assert os.getxattr(os.fsencode(spot), name) == b"value"
    assert os.fsencode(os.listxattr(spot)[0]) == name


def test_a_name_of_255_bytes_and_not_more(spot: str) -> None:
    name = "user." + "n" * 250
    os.setxattr(spot, name, b"value")
    assert os.getxattr(spot, name) == b"value"
    assert errno_of_call(os.setxattr, spot, name + "n", b"value") == errno.ERANGE


@pytest.mark.parametrize("name", ["user.", "nonsense", "nonsense.name"])
def test_names_without_a_known_prefix_are_refused(spot: str, name: str) -> None:
    assert errno_of_call(os.setxattr, spot, name, b"value") in {errno.EOPNOTSUPP, errno.EINVAL}
    assert os.listxattr(spot) == []


def test_a_value_beyond_64_kib_is_e2big(spot: str) -> None:
    assert errno_of_call(os.setxattr, spot, "user.big", b"x" * 65_537) == errno.E2BIG


def test_a_value_too_large_for_the_store_leaves_the_old_one(spot: str) -> None:
    os.setxattr(spot, "user.big", b"old")
    number = errno_of_call(os.setxattr, spot, "user.big", b"x" * 65_536)
    assert number in {0, errno.ENOSPC, errno.E2BIG}
    assert os.getxattr(spot, "user.big") == (b"old" if number else b"x" * 65_536)


def test_a_buffer_too_small_is_erange(spot: str) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    os.setxattr(spot, "user.name", b"0123456789")
    buffer = ctypes.create_string_buffer(5)
    path = os.fsencode(spot)
    assert libc.getxattr(path, b"user.name", buffer, 5) == -1
    assert ctypes.get_errno() == errno.ERANGE
    assert libc.listxattr(path, buffer, 5) == -1
    assert ctypes.get_errno() == errno.ERANGE
    assert libc.getxattr(path, b"user.name", None, 0) == 10
    assert libc.listxattr(path, None, 0) == len(b"user.name\0")


@pytest.mark.parametrize(
    ("uid", "mode", "reading", "writing"),
    [
        (ALICE, 0o600, 0, 0),
        (ALICE, 0o400, 0, errno.EACCES),
        (ALICE, 0o200, errno.EACCES, 0),
        (BOB, 0o666, 0, 0),
        (BOB, 0o644, 0, errno.EACCES),
        (BOB, 0o622, errno.EACCES, 0),
        (BOB, 0o600, errno.EACCES, errno.EACCES),
        (0, 0o000, 0, 0),
    ],
)
def test_reading_takes_read_permission_and_setting_write(
    spot: str, uid: int, mode: int, reading: int, writing: int
) -> None:
    os.setxattr(spot, "user.name", b"value")
    owned(spot, mode, ALICE)
    assert errno_as(uid, os.getxattr, spot, "user.name") == reading
    assert errno_as(uid, os.setxattr, spot, "user.name", b"new") == writing
    assert errno_as(uid, os.removexattr, spot, "user.name") == writing


@pytest.mark.parametrize("mode", [0o400, 0o000])
def test_root_sets_attributes_whatever_the_mode(spot: str, mode: int) -> None:
    os.chmod(spot, mode)
    os.setxattr(spot, "user.name", b"value")
    assert os.getxattr(spot, "user.name") == b"value"
    os.removexattr(spot, "user.name")
    assert os.lstat(spot).st_mode & 0o7777 == mode


def test_in_a_sticky_directory_only_its_owner_sets_its_attributes(place: Place) -> None:
    path = place.dir(mode=0o1777, uid=ALICE)
    assert errno_as(ALICE, os.setxattr, path, "user.name", b"value") == 0
    assert errno_as(BOB, os.setxattr, path, "user.name", b"value") == errno.EPERM


@pytest.mark.parametrize("kind", ["symlink", "fifo", "socket", "char", "block"])
def test_other_types_take_no_user_attributes(place: Place, kind: str) -> None:
    path = place.make(kind)

    def set_it() -> None:
        os.setxattr(path, "user.name", b"value", follow_symlinks=False)

    assert errno_of_call(set_it) == errno.EPERM
    assert os.listxattr(path, follow_symlinks=False) == []
    got = errno_of_call(lambda: os.getxattr(path, "user.name", follow_symlinks=False))
    assert got == errno.ENODATA
    assert errno_of_call(lambda: os.removexattr(path, "user.name", follow_symlinks=False)) == errno.EPERM


def test_attributes_survive_rename_link_truncate_and_chmod(room: str) -> None:
    path = make("file", f"{room}/f")
    os.setxattr(path, "user.name", b"value")
    os.link(path, f"{room}/g")
    os.rename(path, f"{room}/h")
    os.truncate(f"{room}/h", 0)
    with open(f"{room}/h", "wb") as stream:
        stream.write(b"new content")
    os.chmod(f"{room}/h", 0o400)
    os.chown(f"{room}/h", ALICE, ALICE)
    for name in "gh":
        assert os.listxattr(f"{room}/{name}") == ["user.name"]
        assert os.getxattr(f"{room}/{name}", "user.name") == b"value"


def test_a_replaced_file_has_not_the_old_ones_attributes(room: str) -> None:
    path = make("file", f"{room}/f")
    os.setxattr(path, "user.name", b"value")
    make("file", f"{room}/new")
    os.rename(f"{room}/new", path)
    assert os.listxattr(path) == []


def test_the_tops_own_attributes(place: Place) -> None:
    assert errno_of_call(os.getxattr, place.top, "user.missing") == errno.ENODATA
    assert os.listxattr(place.top) == []


def _acl(*entries: tuple[int, int, int]) -> bytes:
    """A POSIX ACL as the kernel takes it: version 2, then tag, permissions, id."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


UNDEFINED = 0xFFFFFFFF
ACL = _acl(
    (0x01, 7, UNDEFINED), (0x02, 7, BOB), (0x04, 0, UNDEFINED), (0x10, 7, UNDEFINED), (0x20, 0, UNDEFINED)
)


def test_posix_acls_are_refused_on_a_mount(place: Place) -> None:
    """ckfs does not store what it would not enforce; cp -p and tar take EOPNOTSUPP for an answer."""
    path = place.file(mode=0o700, uid=ALICE)
    number = errno_of_call(os.setxattr, path, "system.posix_acl_access", ACL)
    if place.on_mount:
        assert number == errno.EOPNOTSUPP
        assert errno_of_call(os.getxattr, path, "system.posix_acl_access") in {
            errno.EOPNOTSUPP,
            errno.ENODATA,
        }
    else:
        assert number in {0, errno.EOPNOTSUPP}
    assert errno_as(BOB, os.open, path, os.O_RDONLY) == (0 if number == 0 else errno.EACCES)
    directory = place.dir()
    if place.on_mount:
        assert errno_of_call(os.setxattr, directory, "system.posix_acl_default", ACL) == errno.EOPNOTSUPP


@pytest.mark.parametrize("name", ["security.test", "security.selinux", "security.capability"])
def test_security_attributes_are_refused_on_a_mount(place: Place, name: str) -> None:
    path = place.file()
    # VFS_CAP_REVISION_2 with no capability at all: a valid value, so that only the file system can refuse it.
    value = struct.pack("<IIIII", 0x02000000, 0, 0, 0, 0) if name.endswith("capability") else b"value"
    number = errno_of_call(os.setxattr, path, name, value)
    if place.on_mount:
        assert number == errno.EOPNOTSUPP
        assert os.listxattr(path) == []
    else:
        assert number in {0, errno.EOPNOTSUPP}


@pytest.mark.parametrize("uid", [0, ALICE])
@pytest.mark.parametrize("name", ["user.ckfs", "user.ckfs.inode", "user.ckfs.presented"])
def test_the_names_of_ckfs_are_reserved_on_a_mount(place: Place, uid: int, name: str) -> None:
    path = place.file(uid=ALICE)
    number = errno_as(uid, os.setxattr, path, name, b"forged")
    if not place.on_mount:
        assert number == 0
    elif name.startswith("user.ckfs."):
        assert number in {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP}
        assert errno_as(uid, os.removexattr, path, name) != 0
        assert as_user(uid, os.listxattr, path) == []
