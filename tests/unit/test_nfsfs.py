"""The NFS-like store itself: a test that trusts it must know that it squashes, buffers, remembers and puts aside as NFS does."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.posix.places import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2
from tests.support.faultfs import acting_as
from tests.support.nfs import NfsStore, nfs_store
from tests.support.users import ALICE, BOB, NOBODY, as_user, errno_as, errno_of_call

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

FOR_EVER = 3600.0
"""Seconds that no test takes."""
MIB = 1 << 20


@pytest.fixture
def nfs(workdir: Path) -> Iterator[NfsStore]:
    """One client that remembers nothing."""
    with nfs_store(workdir) as running:
        running.backing.chmod(0o1777)
        yield running


@pytest.fixture
def forgetful(workdir: Path) -> Iterator[NfsStore]:
    """Two clients that remember nothing."""
    with nfs_store(workdir, clients=2) as running:
        running.backing.chmod(0o1777)
        yield running


@pytest.fixture
def stale(workdir: Path) -> Iterator[NfsStore]:
    """Two clients, to whom what they have seen stays so until they are told that time has passed."""
    with nfs_store(workdir, clients=2, attributes_s=FOR_EVER) as running:
        running.backing.chmod(0o1777)
        yield running


def write_and(path: Path, data: bytes, then: Callable[[int], object], flags: int = 0) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o600)
    try:
        assert os.write(fd, data) == len(data)
        then(fd)
    finally:
        os.close(fd)


def nothing(_: int) -> None:
    """Only close."""


# Who somebody is


def test_root_and_its_group_are_nobody(nfs: NfsStore) -> None:
    top = nfs.clients[0].path
    (top / "roots").touch()
    made = os.stat(nfs.backing / "roots")
    assert (made.st_uid, made.st_gid) == (NOBODY, NOBODY)
    as_user(ALICE, os.mkdir, top / "hers", 0o700)
    assert os.stat(nfs.backing / "hers").st_uid == ALICE
    assert errno_of_call(os.listdir, top / "hers") == errno.EACCES
    assert errno_of_call(os.mkdir, top / "hers/inner") == errno.EACCES


@pytest.mark.parametrize("who", [0, ALICE])
def test_nobody_gives_files_away(nfs: NfsStore, who: int) -> None:
    file = nfs.clients[0].path / "file"
    as_user(who, file.touch)
    assert errno_as(who, os.chown, file, BOB, BOB) == errno.EPERM


def test_who_has_a_file_open_reads_and_writes_it_as_whoever_he_is(nfs: NfsStore) -> None:
    file = nfs.clients[0].path / "file"
    as_user(ALICE, file.write_bytes, b"image")
    os.chmod(nfs.backing / "file", 0o600)
    fd = as_open(ALICE, file)
    try:
        assert os.pread(fd, 9, 0) == b"image"
        assert os.pwrite(fd, b"IMAGE", 0) == 5
        os.fsync(fd)
        for call in (
            lambda: os.fchmod(fd, 0o644),
            lambda: os.utime(fd, ns=(1, 1)),
            lambda: os.setxattr(fd, "user.note", b"value"),
            lambda: os.getxattr(fd, "user.note"),
        ):
            assert errno_of_call(call) in (errno.EACCES, errno.EPERM)
    finally:
        os.close(fd)
    assert (nfs.backing / "file").read_bytes() == b"IMAGE"


def as_open(uid: int, path: Path) -> int:
    """A descriptor that *uid* opened, in root's hands."""
    with acting_as(uid, uid):
        return os.open(path, os.O_RDWR)


# What is written is sent later


@pytest.mark.parametrize("then", [nothing, os.fsync], ids=["close", "fsync"])
def test_a_full_quota_is_said_by_close_or_fsync_and_not_by_write(
    nfs: NfsStore, then: Callable[[int], object]
) -> None:
    file = nfs.clients[0].path / "file"
    nfs.limit(ALICE, MIB)
    assert errno_as(ALICE, write_and, file, b"x" * 2 * MIB, then) == errno.EDQUOT
    assert os.stat(nfs.backing / "file").st_blocks * 512 <= MIB
    nfs.limit(ALICE, None)
    as_user(ALICE, write_and, nfs.clients[0].path / "other", b"x" * 2 * MIB, then)
    assert os.stat(nfs.backing / "other").st_size == 2 * MIB


def test_a_refusal_is_said_once_to_each_who_has_the_file_open(nfs: NfsStore) -> None:
    file = nfs.clients[0].path / "file"
    file.touch()
    nfs.clients[0].fail("write", errno.ENOSPC, path="file")
    first, second = (os.open(file, os.O_WRONLY) for _ in range(2))
    os.write(first, b"lost")
    assert [errno_of_call(os.fsync, fd) for fd in (first, first, second, second)] == [
        errno.ENOSPC,
        0,
        errno.ENOSPC,
        0,
    ]
    assert [errno_of_call(os.close, fd) for fd in (first, second)] == [0, 0]


def test_its_writer_sees_what_the_server_has_not_yet(forgetful: NfsStore) -> None:
    here, there = (client.path / "file" for client in forgetful.clients)
    here.write_bytes(b"image")
    fd = os.open(here, os.O_RDWR)
    try:
        os.pwrite(fd, b"IMA", 0)
        os.pwrite(fd, b"more", 7)
        assert os.pread(fd, 20, 0) == b"IMAge\0\0more"
        assert there.read_bytes() == b"image"
        os.fsync(fd)
        assert there.read_bytes() == b"IMAge\0\0more"
    finally:
        os.close(fd)


def test_what_was_written_is_sent_before_the_size_is_asked_or_changed(nfs: NfsStore) -> None:
    file = nfs.clients[0].path / "file"
    fd = os.open(file, os.O_RDWR | os.O_CREAT)
    try:
        os.write(fd, b"image")
        assert os.fstat(fd).st_size == os.stat(nfs.backing / "file").st_size == 5
        os.write(fd, b"more")
        os.ftruncate(fd, 7)
        assert (nfs.backing / "file").read_bytes() == b"imagemo"
    finally:
        os.close(fd)


def test_a_client_that_has_much_to_send_says_what_it_hears_in_a_write(workdir: Path) -> None:
    with nfs_store(workdir, unsent_bytes=MIB) as nfs:
        nfs.backing.chmod(0o1777)
        nfs.limit(NOBODY, MIB)
        fd = os.open(nfs.clients[0].path / "file", os.O_WRONLY | os.O_CREAT)
        said = [errno_of_call(os.write, fd, b"x" * (MIB // 2)) for _ in range(4)]
        assert errno_of_call(os.close, fd) in (0, errno.EDQUOT)
        assert errno.EDQUOT in said[2:]
        assert said[:2] == [0, 0]


# What another client does is seen later


def test_two_clients_that_remember_nothing_see_each_other(forgetful: NfsStore) -> None:
    here, there = (client.path for client in forgetful.clients)
    assert errno_of_call(os.stat, there / "file") == errno.ENOENT
    (here / "file").write_bytes(b"one")
    assert (there / "file").read_bytes() == b"one"
    os.setxattr(here / "file", "user.note", b"one")
    assert os.getxattr(there / "file", "user.note") == b"one"
    os.rename(here / "file", here / "renamed")
    assert os.listdir(there) == ["renamed"]
    assert errno_of_call(os.stat, there / "file") == errno.ENOENT


def test_names_and_attributes_are_stale_until_they_expire(stale: NfsStore) -> None:
    (here, there), other = (client.path for client in stale.clients), stale.clients[1]
    (here / "file").write_bytes(b"one")
    other.expire()
    size = os.stat(there / "file").st_size
    assert errno_of_call(os.stat, there / "new") == errno.ENOENT
    with (here / "file").open("ab") as file:
        file.write(b"two")
    (here / "new").touch()
    assert os.stat(there / "file").st_size == size == 3
    assert errno_of_call(os.stat, there / "new") == errno.ENOENT
    other.expire()
    assert os.stat(there / "file").st_size == 6
    assert errno_of_call(os.stat, there / "new") == 0


def test_names_that_there_were_none_of_are_not_remembered_without_negative_entries(workdir: Path) -> None:
    with nfs_store(workdir, clients=2, attributes_s=FOR_EVER, negative=False) as nfs:
        nfs.backing.chmod(0o1777)
        here, there = (client.path for client in nfs.clients)
        assert errno_of_call(os.stat, there / "new") == errno.ENOENT
        (here / "new").touch()
        assert errno_of_call(os.stat, there / "new") == 0


def test_who_opens_a_file_sees_what_was_closed_before(stale: NfsStore) -> None:
    here, there = (client.path / "file" for client in stale.clients)
    here.write_bytes(b"one")
    stale.clients[1].expire()
    assert os.stat(there).st_size == 3
    here.write_bytes(b"three")
    with there.open("rb") as file:
        assert os.fstat(file.fileno()).st_size == 5


def test_a_new_name_is_taken_once_whatever_is_remembered(stale: NfsStore) -> None:
    here, there = (client.path / "name" for client in stale.clients)
    assert errno_of_call(os.stat, there) == errno.ENOENT
    os.mkdir(here)
    assert errno_of_call(os.mkdir, there) == errno.EEXIST
    assert errno_of_call(os.symlink, "x", there) == errno.EEXIST


def test_a_file_that_another_client_removed_is_stale(forgetful: NfsStore) -> None:
    here, there = (client.path / "file" for client in forgetful.clients)
    here.write_bytes(b"image")
    fd = os.open(there, os.O_RDONLY)
    try:
        os.unlink(here)
        assert errno_of_call(os.pread, fd, 5, 0) == errno.ESTALE
    finally:
        os.close(fd)


# What is removed while it is open here


def test_a_file_that_is_removed_while_it_is_open_here_gets_another_name(nfs: NfsStore) -> None:
    top = nfs.clients[0].path
    os.mkdir(top / "d")
    fd = os.open(top / "d/file", os.O_RDWR | os.O_CREAT)
    os.unlink(top / "d/file")
    (aside,) = os.listdir(nfs.backing / "d")
    assert aside.startswith(".nfs")
    os.write(fd, b"still here")
    assert os.pread(fd, 20, 0) == b"still here"
    assert os.fstat(fd).st_nlink == 1
    assert errno_of_call(os.unlink, top / "d" / aside) == errno.EBUSY
    assert errno_of_call(os.rmdir, top / "d") == errno.ENOTEMPTY
    os.close(fd)
    eventually(lambda: os.listdir(nfs.backing / "d"), [])
    os.rmdir(top / "d")


def test_so_does_one_that_is_renamed_over(nfs: NfsStore) -> None:
    top = nfs.clients[0].path
    for name in ("old", "new"):
        (top / name).write_bytes(name.encode())
    with (top / "old").open("rb") as file:
        os.rename(top / "new", top / "old")
        assert file.read() == b"old"
        assert len(os.listdir(nfs.backing)) == 2
    eventually(lambda: os.listdir(nfs.backing), ["old"])
    assert (top / "old").read_bytes() == b"new"


def test_one_that_is_closed_is_removed_at_once(nfs: NfsStore) -> None:
    file = nfs.clients[0].path / "file"
    for _ in range(100):
        file.write_bytes(b"image")
        os.unlink(file)
        assert os.listdir(nfs.backing) == []


# What NFS lacks


@pytest.mark.parametrize("flag", [RENAME_NOREPLACE, RENAME_EXCHANGE])
def test_renames_have_no_flags(nfs: NfsStore, flag: int) -> None:
    top = nfs.clients[0].path
    (top / "old").touch()
    if flag == RENAME_EXCHANGE:
        (top / "new").touch()
    assert errno_of_call(renameat2, str(top / "old"), str(top / "new"), flag) == errno.EINVAL


def test_there_are_no_nameless_files(nfs: NfsStore) -> None:
    number = errno_of_call(os.open, nfs.clients[0].path, os.O_TMPFILE | os.O_RDWR)
    assert number in (errno.EOPNOTSUPP, errno.EISDIR)


def test_before_nfs_4_2_files_have_no_attributes_of_users(workdir: Path) -> None:
    with nfs_store(workdir, attributes=False) as nfs:
        nfs.backing.chmod(0o1777)
        file = nfs.clients[0].path / "file"
        file.touch()
        for call in (os.getxattr, os.removexattr):
            assert errno_of_call(call, file, "user.note") == errno.EOPNOTSUPP
        assert errno_of_call(os.setxattr, file, "user.note", b"") == errno.EOPNOTSUPP


def eventually(look: Callable[[], object], expected: object) -> None:
    """The kernel tells of the last close a little later."""
    deadline = time.monotonic() + 10
    while (seen := look()) != expected:
        assert time.monotonic() < deadline, f"{seen!r} instead of {expected!r}"
        time.sleep(0.01)
