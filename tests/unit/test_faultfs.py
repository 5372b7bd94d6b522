"""The fault store itself: a test that trusts it must know that it passes through, hangs, fails, squashes and dies."""

from __future__ import annotations

import errno
import os
import signal
import stat
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.faultfs import NOBODY, FaultStore, fault_store
from tests.support.users import ALICE, BOB, as_user, errno_as, errno_of_call

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

EVER = 10.0
"""Seconds within which whatever does not hang has long happened."""


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for calls that hang; requested before the fault store, so that it outlives that."""
    with ThreadPoolExecutor(8) as threads:
        yield threads


@pytest.fixture
def faulty(pool: ThreadPoolExecutor, workdir: Path) -> Iterator[FaultStore]:
    with fault_store(workdir) as running:
        running.backing.chmod(0o1777)
        yield running


# It passes through


def test_files_directories_and_links_pass_through(faulty: FaultStore) -> None:
    os.mkdir(faulty.path / "d", 0o750)
    (faulty.path / "d/file").write_bytes(b"x" * 300_000)
    os.link(faulty.path / "d/file", faulty.path / "d/hard")
    os.symlink("file", faulty.path / "d/soft")
    os.rename(faulty.path / "d/file", faulty.path / "d/renamed")

    assert sorted(os.listdir(faulty.backing / "d")) == ["hard", "renamed", "soft"]
    assert sorted(os.listdir(faulty.path / "d")) == ["hard", "renamed", "soft"]
    assert (faulty.path / "d/hard").read_bytes() == (faulty.backing / "d/hard").read_bytes() == b"x" * 300_000
    assert os.readlink(faulty.path / "d/soft") == "file"
    assert stat.S_IMODE(os.stat(faulty.backing / "d").st_mode) == 0o750
    assert os.stat(faulty.path / "d/hard").st_nlink == 2
    assert os.stat(faulty.path / "d/hard").st_ino == os.stat(faulty.backing / "d/hard").st_ino


def test_a_file_is_appended_truncated_and_synced(faulty: FaultStore) -> None:
    path = faulty.path / "f"
    path.write_bytes(b"one")
    with path.open("ab") as file:
        file.write(b"two")
        file.flush()
        os.fsync(file.fileno())
    assert (faulty.backing / "f").read_bytes() == b"onetwo"
    os.truncate(path, 2)
    assert (faulty.backing / "f").read_bytes() == b"on"
    path.write_bytes(b"new")
    assert (faulty.backing / "f").read_bytes() == b"new"


def test_mode_owner_times_and_attributes_pass_through(faulty: FaultStore) -> None:
    path = faulty.path / "f"
    path.touch()
    os.chmod(path, 0o640)
    os.chown(path, ALICE, BOB)
    os.utime(path, ns=(1_000_000_001, 2_000_000_002))
    os.setxattr(path, "user.a", b"value")
    os.setxattr(path, "user.gone", b"value")
    os.removexattr(path, "user.gone")

    real = os.stat(faulty.backing / "f")
    assert (stat.S_IMODE(real.st_mode), real.st_uid, real.st_gid) == (0o640, ALICE, BOB)
    assert (real.st_atime_ns, real.st_mtime_ns) == (1_000_000_001, 2_000_000_002)
    assert os.listxattr(path) == ["user.a"]
    assert os.getxattr(faulty.backing / "f", "user.a") == b"value"
    assert errno_of_call(os.getxattr, path, "user.gone") == errno.ENODATA


def test_an_unlinked_open_file_stays_usable(faulty: FaultStore) -> None:
    with (faulty.path / "f").open("w+b") as file:
        os.unlink(faulty.path / "f")
        file.write(b"still here")
        file.seek(0)
        assert file.read() == b"still here"
        assert os.fstat(file.fileno()).st_nlink == 0


def test_a_large_directory_is_listed_once_while_it_is_emptied(faulty: FaultStore) -> None:
    names = {f"{n:04d}-with-a-name-that-fills-the-reply" for n in range(2000)}
    for name in names:
        (faulty.backing / name).touch()
    seen = []
    with os.scandir(faulty.path) as entries:
        for entry in entries:
            seen.append(entry.name)
            os.unlink(entry.path)
    assert len(seen) == len(names)
    assert set(seen) == names
    assert os.listdir(faulty.backing) == []


def test_statfs_is_that_of_the_backing(faulty: FaultStore) -> None:
    assert os.statvfs(faulty.path).f_blocks == os.statvfs(faulty.backing).f_blocks


def test_rename_has_no_flags_and_only_user_attributes_exist(faulty: FaultStore) -> None:
    (faulty.path / "f").touch()
    assert errno_of_call(os.setxattr, faulty.path / "f", "trusted.a", b"") == errno.EOPNOTSUPP
    assert errno_of_call(os.setxattr, faulty.path / "f", "security.capability", b"x") != 0


# Callers are who they are


def test_users_own_what_they_make_and_are_kept_out_of_the_rest(faulty: FaultStore) -> None:
    as_user(ALICE, os.mkdir, faulty.path / "hers", 0o700)
    as_user(ALICE, (faulty.path / "hers/f").touch)
    assert os.stat(faulty.backing / "hers/f").st_uid == ALICE
    assert os.stat(faulty.backing / "hers/f").st_gid == ALICE
    assert errno_as(BOB, os.listdir, faulty.path / "hers") == errno.EACCES
    assert errno_as(BOB, os.stat, faulty.path / "hers/f") == errno.EACCES
    assert errno_as(BOB, os.rmdir, faulty.path / "hers") in {errno.EPERM, errno.EACCES}
    assert os.stat(faulty.path / "hers/f").st_uid == ALICE  # root may


def test_a_read_only_file_stays_writable_for_who_made_it(faulty: FaultStore) -> None:
    def make() -> None:
        fd = os.open(faulty.path / "f", os.O_WRONLY | os.O_CREAT, 0o400)
        os.write(fd, b"image")
        os.fsync(fd)
        os.close(fd)

    as_user(ALICE, make)
    assert (faulty.backing / "f").read_bytes() == b"image"
    assert errno_as(ALICE, os.open, faulty.path / "f", os.O_WRONLY) == errno.EACCES


def test_squashed_root_is_nobody(faulty: FaultStore) -> None:
    as_user(ALICE, os.mkdir, faulty.path / "hers", 0o700)
    faulty.squash()
    (faulty.path / "roots").touch()

    assert os.stat(faulty.backing / "roots").st_uid == NOBODY
    assert errno_of_call(os.chown, faulty.path / "roots", ALICE, ALICE) == errno.EPERM
    assert errno_of_call(os.listdir, faulty.path / "hers") == errno.EACCES
    assert errno_of_call(os.mkdir, faulty.path / "hers/d") == errno.EACCES
    assert errno_as(ALICE, os.mkdir, faulty.path / "hers/d") == 0
    assert os.stat(faulty.backing / "hers/d").st_uid == ALICE


# It fails


@pytest.mark.parametrize(
    ("op", "number"),
    [
        ("mkdir", errno.EIO),
        ("write", errno.ENOSPC),
        ("write", errno.EDQUOT),
        ("fsync", errno.EIO),
        ("mkdir", errno.ENOSYS),
        ("lookup", errno.ESTALE),
        ("setxattr", errno.EROFS),
        ("readdir", errno.ENOTCONN),
    ],
)
def test_an_injected_errno_reaches_the_caller(faulty: FaultStore, op: str, number: int) -> None:
    def call() -> None:
        if op == "mkdir":
            os.mkdir(faulty.path / "d")
        elif op == "lookup":
            os.stat(faulty.path / "f")
        elif op == "setxattr":
            os.setxattr(faulty.path, "user.a", b"")
        elif op == "readdir":
            os.listdir(faulty.path)
        else:
            fd = os.open(faulty.path / "f", os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.write(fd, b"x")
                os.fsync(fd)
            finally:
                os.close(fd)

    (faulty.path / "f").touch()
    faulty.fail(op, number)
    assert errno_of_call(call) == number
    faulty.clear()
    call()


def test_a_failure_is_counted_and_bound_to_a_path(faulty: FaultStore) -> None:
    faulty.fail("mkdir", errno.EIO, 2, "^x")
    assert errno_of_call(os.mkdir, faulty.path / "y") == 0
    assert [errno_of_call(os.mkdir, faulty.path / "x") for _ in range(3)] == [errno.EIO, errno.EIO, 0]
    assert faulty.stats()["calls"]["mkdir"] == 4


def test_an_errno_that_fuse_cannot_carry_is_refused(faulty: FaultStore) -> None:
    with pytest.raises(ValueError, match="cannot be injected"):
        faulty.fail("mkdir", 524)
    with pytest.raises(ValueError, match="no such operation"):
        faulty.fail("forget", errno.EIO)


def test_slow_operations_take_longer(faulty: FaultStore) -> None:
    faulty.slow("mkdir", 0.3)
    began = time.monotonic()
    os.mkdir(faulty.path / "d")
    assert time.monotonic() - began >= 0.3


# It hangs


def test_what_hangs_happens_at_release_and_holds_nothing_else_up(
    faulty: FaultStore, pool: ThreadPoolExecutor
) -> None:
    os.mkdir(faulty.path / "elsewhere")
    faulty.hang("mkdir", path="^held")
    waiting = pool.submit(os.mkdir, faulty.path / "held")
    faulty.hanging("mkdir")

    assert not (faulty.backing / "held").exists()
    (faulty.path / "elsewhere/f").write_bytes(b"meanwhile")
    os.mkdir(faulty.path / "elsewhere/d")
    assert not waiting.done()

    faulty.release()
    waiting.result(EVER)
    assert (faulty.backing / "held").is_dir()
    os.mkdir(faulty.path / "held-no-more")


def test_what_hangs_is_let_go_to_hang_again_later(faulty: FaultStore, pool: ThreadPoolExecutor) -> None:
    """A test holds whoever begins, says where he is to stop, and lets him run there: no moment is missed."""

    os.mkdir(faulty.path / "elsewhere")  # the kernel lets nobody make anything beside a rename that hangs

    def work() -> None:
        os.mkdir(faulty.path / "d")
        os.rename(faulty.path / "d", faulty.path / "e")

    faulty.hang("mkdir")
    waiting = pool.submit(work)
    faulty.hanging("mkdir")
    faulty.hang("rename")
    faulty.release("mkdir")
    faulty.hanging("rename")
    assert (faulty.backing / "d").is_dir()
    os.mkdir(faulty.path / "elsewhere/d")
    faulty.release()
    waiting.result(EVER)
    assert (faulty.backing / "e").is_dir()


def test_a_hundred_hanging_calls_leave_room_for_others(faulty: FaultStore) -> None:
    for n in range(150):
        os.mkdir(faulty.backing / f"d{n}")
    faulty.hang("mkdir")
    with ThreadPoolExecutor(150) as many:
        calls: list[Future[None]] = [many.submit(os.mkdir, faulty.path / f"d{n}/x") for n in range(150)]
        try:
            faulty.hanging("mkdir", 150)
            (faulty.path / "f").write_bytes(b"still served")
        finally:
            faulty.release()
        for call in calls:
            call.result(EVER)


@pytest.mark.parametrize("op", ["mkdir", "fsync"])
def test_a_killed_caller_comes_free_as_on_nfs(faulty: FaultStore, op: str) -> None:
    faulty.hang(op)
    child = _forked(faulty.path / "f", op)
    faulty.hanging(op)
    os.kill(child, signal.SIGKILL)
    _reaped(child)
    assert faulty.stats()["hanging"] == []


def test_a_hard_hang_holds_even_a_killed_caller(faulty: FaultStore) -> None:
    os.mkdir(faulty.path / "elsewhere")  # the kernel lets nobody look anything up beside a mkdir that hangs
    faulty.hang("mkdir", killable=False)
    child = _forked(faulty.path / "f", "mkdir")
    faulty.hanging("mkdir")
    os.kill(child, signal.SIGKILL)
    # Two of the store's own looks at who was killed have passed, by its own clock: a call in between that it slows.
    faulty.slow("lookup", 0.2, "probe$")
    assert errno_of_call(os.stat, faulty.path / "elsewhere/probe") == errno.ENOENT
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    faulty.release()
    _reaped(child)


def test_a_dead_store_answers_enotconn_and_is_cleaned_up(pool: ThreadPoolExecutor, workdir: Path) -> None:
    with fault_store(workdir) as store:
        store.hang("mkdir")
        waiting = pool.submit(errno_of_call, os.mkdir, store.path / "d")
        store.hanging("mkdir")
        store.die()
        assert waiting.result(EVER) in {errno.ENOTCONN, errno.ECONNABORTED}
        assert errno_of_call(os.listdir, store.path) == errno.ENOTCONN
    assert not os.path.ismount(workdir / "faulty")
    assert os.listdir(workdir / "faulty") == []


def test_whatever_hangs_at_the_end_is_let_go(pool: ThreadPoolExecutor, workdir: Path) -> None:
    with fault_store(workdir) as store:
        store.hang("mkdir", killable=False)
        waiting = pool.submit(errno_of_call, os.mkdir, store.path / "d")
        store.hanging("mkdir")
    assert waiting.result(EVER) != 0
    assert store.process.returncode is not None


def _forked(path: Path, op: str) -> int:
    """A process that makes a directory, or a file and syncs it."""
    child = os.fork()
    if child == 0:
        try:
            if op == "mkdir":
                os.mkdir(path)
            else:
                os.fsync(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        finally:
            os._exit(1)
    return child


def _reaped(child: int) -> None:
    deadline = time.monotonic() + EVER
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        assert time.monotonic() < deadline, "the killed process is still there"
        time.sleep(0.01)
