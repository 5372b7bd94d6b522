"""The NFS-like store itself: a test that trusts it must know that it squashes, buffers, remembers and puts aside as NFS does."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.setfsuid(uid)
    try:
        return os.open(path, os.O_RDWR)
    finally:
        libc.setfsuid(0)
