"""What writers leave behind: those that finish, those that are killed, and those whose writes fail."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from errno import EACCES, EIO, ENOSPC
from pathlib import Path

import pytest

from tests.support.agents import Agent
from tests.support.mounting import Mount, make_store, mounted
from tests.support.users import ALICE, ROOT, as_user, errno_as, raises_errno

pytestmark = pytest.mark.root

HALF = b"half of an image " * 5000
NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
TORN = r"is partial"


@pytest.fixture
def batch(mount: Mount) -> str:
    return make_set(mount)


@pytest.fixture
def torn(store: Path, workdir: Path) -> Iterator[str]:
    """A batch set on a mount that may log of partial images."""
    with mounted(store, workdir / "mount", may_log=[TORN]) as mount:
        yield make_set(mount)


def make_set(mount: Mount) -> str:
    path = f"{mount.path}/12.server.CK"
    os.mkdir(path, 0o755)
    os.chown(path, ALICE, ALICE)
    return path


def state_of(path: str) -> str:
    return os.getxattr(path, "user.ckfs.state").decode()


def save(path: str, content: bytes, flags: int = NEW) -> None:
    fd = os.open(path, flags, 0o600)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)


def read(path: str) -> bytes:
    return Path(path).read_bytes()


def run_and_kill(uid: int, begin: Callable[[str], object], path: str, number: int = signal.SIGKILL) -> None:
    """A process of *uid* that does *begin*, which leaves descriptors open, and is killed then."""
    context = multiprocessing.get_context("fork")
    begun = context.Event()

    def live() -> None:
        os.setresgid(uid, uid, uid)  # noqa: TID251 - a process of its own
        os.setresuid(uid, uid, uid)  # noqa: TID251 - a process of its own
        kept = begin(path)
        begun.set()
        signal.pause()
        del kept

    process = context.Process(target=live)
    process.start()
    assert begun.wait(20)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == -number


# Those that finish


def test_a_close_completes(batch: str) -> None:
    as_user(ALICE, save, f"{batch}/image", HALF)
    assert state_of(f"{batch}/image") == "complete"


def test_dmtcps_close_then_rename_completes(batch: str) -> None:
    as_user(ALICE, save, f"{batch}/X.dmtcp.temp", HALF)
    assert state_of(f"{batch}/X.dmtcp.temp") == "writing"
    as_user(ALICE, os.rename, f"{batch}/X.dmtcp.temp", f"{batch}/X.dmtcp")
    assert state_of(f"{batch}/X.dmtcp") == "complete"


def test_an_exit_without_close_completes(batch: str) -> None:
    def write_and_go(path: str) -> None:
        os.write(os.open(path, NEW, 0o600), HALF)

    as_user(ALICE, write_and_go, f"{batch}/image")
    assert state_of(f"{batch}/image") == "complete"


def fork_and_exit() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def fork_and_die() -> None:
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.mark.parametrize("end", [fork_and_exit, fork_and_die])
def test_the_end_of_a_child_completes_nothing(batch: str, end: Callable[[], None]) -> None:
    with Agent(ALICE) as writer:
        fd = writer.do(os.open, f"{batch}/image", NEW, 0o600)
        for _ in range(2):
            writer.do(os.write, fd, HALF)
            writer.do(end)
            assert state_of(f"{batch}/image") == "writing"
        writer.do(os.close, fd)
        assert state_of(f"{batch}/image") == "complete"


def test_closing_a_copy_of_the_descriptor_completes_nothing(batch: str) -> None:
    with Agent(ALICE) as writer:
        fd = writer.do(os.open, f"{batch}/image", NEW, 0o600)
        writer.do(os.write, fd, HALF)
        writer.do(os.close, writer.do(os.dup, fd))
        assert state_of(f"{batch}/image") == "writing"
        writer.do(os.close, fd)
        assert state_of(f"{batch}/image") == "complete"


def test_one_of_two_descriptors_of_a_process_completes_nothing(batch: str) -> None:
    with Agent(ALICE) as writer:
        first = writer.do(os.open, f"{batch}/image", NEW, 0o600)
        second = writer.do(os.open, f"{batch}/image", os.O_WRONLY)
        writer.do(os.write, first, HALF)
        writer.do(os.write, second, HALF)
        writer.do(os.close, first)
        assert state_of(f"{batch}/image") == "writing"
        writer.do(os.close, second)
        assert state_of(f"{batch}/image") == "complete"


def test_a_sync_in_the_middle_protects_and_blocks_nobody(batch: str) -> None:
    image = f"{batch}/image"
    with Agent(ALICE) as writer:
        fd = writer.do(os.open, image, NEW, 0o600)
        writer.do(os.write, fd, HALF)
        writer.do(os.fsync, fd)
        assert state_of(image) == "writing"
        for uid in (ALICE, ROOT):
            assert errno_as(uid, os.unlink, image) == EACCES
            assert errno_as(uid, save, image, b"") == EACCES
            assert errno_as(uid, os.rename, image, f"{image}.gone") == EACCES
            assert errno_as(uid, save, image, b"", os.O_WRONLY) == EACCES
        writer.do(os.write, fd, HALF)
        assert state_of(image) == "writing"
        writer.do(os.close, fd)
    assert state_of(image) == "complete"
    assert read(image) == 2 * HALF


def test_a_writer_cuts_its_own_image_after_a_sync(batch: str) -> None:
    with Agent(ALICE) as writer:
        fd = writer.do(os.open, f"{batch}/image", NEW, 0o600)
        writer.do(os.write, fd, HALF)
        writer.do(os.fsync, fd)
        writer.do(os.ftruncate, fd, 4)
        writer.do(os.close, fd)
    assert read(f"{batch}/image") == HALF[:4]
    assert state_of(f"{batch}/image") == "complete"


# Those that are killed


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("name", ["image", ".image.tmp", "X.dmtcp.temp"])
def test_one_that_is_killed_leaves_no_complete_image(torn: str, name: str, number: int) -> None:
    def begin(path: str) -> int:
        fd = os.open(path, NEW, 0o600)
        os.write(fd, HALF)
        return fd

    run_and_kill(ALICE, begin, f"{torn}/{name}", number)
    assert state_of(f"{torn}/{name}") == "partial"
    assert as_user(ALICE, os.unlink, f"{torn}/{name}") is None


def test_one_with_threads_that_is_killed_leaves_it_partial(torn: str) -> None:
    def begin(path: str) -> int:
        opened: list[int] = []

        def write() -> None:
            opened.append(os.open(path, NEW, 0o600))
            os.write(opened[0], HALF)
            written.set()
            threading.Event().wait()

        written = threading.Event()
        threading.Thread(target=write, daemon=True).start()
        written.wait()
        return opened[0]

    run_and_kill(ALICE, begin, f"{torn}/image")
    assert state_of(f"{torn}/image") == "partial"


def test_a_torn_image_stays_torn_under_its_final_name(torn: str) -> None:
    def begin(path: str) -> int:
        fd = os.open(path, NEW, 0o600)
        os.write(fd, HALF)
        return fd

    run_and_kill(ALICE, begin, f"{torn}/X.dmtcp.temp")
    as_user(ALICE, os.rename, f"{torn}/X.dmtcp.temp", f"{torn}/X.dmtcp")
    assert state_of(f"{torn}/X.dmtcp") == "partial"


def test_one_that_is_killed_between_its_rename_and_its_close_leaves_it_partial(torn: str) -> None:
    def begin(path: str) -> int:
        fd = os.open(f"{path}.tmp", NEW, 0o600)
        os.write(fd, HALF)
        os.rename(f"{path}.tmp", path)
        return fd

    run_and_kill(ALICE, begin, f"{torn}/image")
    assert state_of(f"{torn}/image") == "partial"


@pytest.mark.parametrize("more", [b"", b"more", HALF])
def test_one_that_is_killed_after_a_sync(torn: str, more: bytes) -> None:
    """A second of the same size, at once, is something else too."""

    def begin(path: str) -> int:
        fd = os.open(path, NEW, 0o600)
        os.write(fd, HALF)
        os.fsync(fd)
        if more:
            os.pwrite(fd, more, 0)
        return fd

    run_and_kill(ALICE, begin, f"{torn}/image")
    assert state_of(f"{torn}/image") == ("partial" if more else "complete")


def test_a_writer_that_is_killed_while_another_goes_on_leaves_it_partial(torn: str) -> None:
    with Agent(ALICE) as other:
        fd = other.do(os.open, f"{torn}/image", NEW, 0o600)
        other.do(os.write, fd, HALF)

        def begin(path: str) -> int:
            theirs = os.open(path, os.O_WRONLY)
            os.write(theirs, b"half")
            return theirs

        run_and_kill(ALICE, begin, f"{torn}/image")
        other.do(os.close, fd)
    assert state_of(f"{torn}/image") == "partial"


def test_a_reader_that_is_killed_harms_nothing(batch: str) -> None:
    as_user(ALICE, save, f"{batch}/image", HALF)
    run_and_kill(ALICE, lambda path: os.open(path, os.O_RDONLY), f"{batch}/image")
    assert state_of(f"{batch}/image") == "complete"


# Torn images


def tear(path: str) -> None:
    def begin(path: str) -> int:
        fd = os.open(path, NEW, 0o600)
        os.write(fd, HALF)
        return fd

    run_and_kill(ALICE, begin, path)
    assert state_of(path) == "partial"


def test_a_torn_image_is_not_read(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "mount", may_log=[TORN]) as mount:
        image = f"{make_set(mount)}/image"
        tear(image)
        before = mount.log().count("\n")
        assert errno_as(ALICE, read, image) == EIO
        lines = mount.log().splitlines()[before:]
        assert len(lines) == 1
        assert "12.server.CK/image" in lines[0]
    with mounted(store, workdir / "mount", options=["partial"]) as mount:
        assert read(f"{mount.path}/12.server.CK/image") == HALF


def test_a_rewrite_heals_and_an_append_does_not(torn: str) -> None:
    image = f"{torn}/image"
    tear(image)
    as_user(ALICE, save, image, HALF, os.O_WRONLY | os.O_APPEND)
    assert state_of(image) == "partial"
    as_user(ALICE, save, image, HALF)
    assert state_of(image) == "complete"
    assert as_user(ALICE, read, image) == HALF


def cut_and_write(path: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.ftruncate(fd, 0)
        os.write(fd, HALF)
    finally:
        os.close(fd)


def test_cutting_it_to_nothing_first_is_a_rewrite_too(torn: str) -> None:
    tear(f"{torn}/image")
    as_user(ALICE, cut_and_write, f"{torn}/image")
    assert state_of(f"{torn}/image") == "complete"


def test_a_torn_image_is_neither_kept_nor_counted(torn: str) -> None:
    for name in ("one", "two"):
        as_user(ALICE, save, f"{torn}/{name}", HALF)
    tear(f"{torn}/three")
    for name in ("one", "two"):
        assert errno_as(ALICE, os.unlink, f"{torn}/{name}") == EACCES
    as_user(ALICE, os.unlink, f"{torn}/three")


def test_a_torn_image_does_not_replace_a_complete_one(torn: str) -> None:
    as_user(ALICE, save, f"{torn}/image", HALF)
    tear(f"{torn}/.image.tmp")
    assert errno_as(ALICE, os.rename, f"{torn}/.image.tmp", f"{torn}/image") == EACCES
    assert as_user(ALICE, read, f"{torn}/image") == HALF


# Writes that fail


@pytest.fixture
def full(root_and_fuse: None, workdir: Path) -> Iterator[str]:
    """A batch set on a store with room for 4 MiB."""
    private = workdir / "private"
    private.mkdir(mode=0o700)
    disk = workdir / "disk"
    with disk.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", disk], check=True)
    done = subprocess.run(["mount", "-o", "loop", disk, private], check=False, capture_output=True)
    if done.returncode != 0:
        pytest.skip("needs loop devices")
    try:
        private.chmod(0o700)
        (private / "lost+found").rmdir()
        with mounted(make_store(private), workdir / "mount", may_log=[TORN]) as mount:
            yield make_set(mount)
    finally:
        subprocess.run(["umount", private], check=True)


def fill(fd: int) -> None:
    """Write until nothing fits any more. Raises ENOSPC."""
    while True:
        os.write(fd, b"x" * (1 << 20))


def test_after_a_failed_write_the_image_is_partial_whatever_happens(full: str) -> None:
    image = f"{full}/image"
    with Agent(ALICE) as writer:
        fd = writer.do(os.open, image, NEW, 0o600)
        with raises_errno(ENOSPC):
            writer.do(fill, fd)
        writer.do(os.ftruncate, fd, 4096)
        writer.do(os.ftruncate, fd, 0)
        writer.do(os.pwrite, fd, b"now it fits", 0)
        writer.do(os.fsync, fd)
        writer.do(os.close, fd)
    assert state_of(image) == "partial"
    with contextlib.suppress(OSError):
        as_user(ALICE, save, image, b"more", os.O_WRONLY | os.O_APPEND)
    assert state_of(image) == "partial"
    as_user(ALICE, save, image, HALF)
    assert state_of(image) == "complete"


def test_a_failed_checkpoint_costs_none_of_the_earlier_ones(full: str) -> None:
    for name in ("one", "two"):
        as_user(ALICE, save, f"{full}/{name}", HALF)
    with Agent(ALICE) as writer:
        fd = writer.do(os.open, f"{full}/.three.tmp", NEW, 0o600)
        with raises_errno(ENOSPC):
            writer.do(fill, fd)
        writer.do(os.close, fd)
        writer.do(os.rename, f"{full}/.three.tmp", f"{full}/three")
    assert state_of(f"{full}/three") == "partial"
    for name in os.listdir(full):  # as pbs_mom clears away after a checkpoint that failed
        assert errno_as(ROOT, os.unlink, f"{full}/{name}") == (0 if name == "three" else EACCES)
    assert sorted(os.listdir(full)) == ["one", "two"]
    assert read(f"{full}/one") == read(f"{full}/two") == HALF
