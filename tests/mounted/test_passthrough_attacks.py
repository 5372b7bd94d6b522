"""Ways in which something could be lost, or be kept from others, while the kernel reads and writes the store by itself."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from errno import ECONNABORTED, ENOTCONN
from pathlib import Path

import pytest

from tests.support.agents import Agent
from tests.support.commands import ckfs_as_root
from tests.support.images import content, save, state
from tests.support.loops import tmpfs
from tests.support.mounting import Mount, make_store, mounted
from tests.support.passed import NEEDED, is_written_unseen
from tests.support.users import ALICE, BOB, ROOT, as_user, errno_as, raises_errno

pytestmark = [pytest.mark.root, NEEDED]

NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
CONTENT = b"half of an image " * 5000
TORN = r"is partial"


def batch_of(mount: Mount) -> str:
    path = f"{mount.path}/12.server.CK"
    os.mkdir(path, 0o755)
    os.chown(path, ALICE, ALICE)
    return path


def own_of(mount: Mount, uid: int = ALICE) -> str:
    path = f"{mount.path}/own{uid}"
    os.mkdir(path, 0o755)
    os.chown(path, uid, uid)
    return path


@pytest.fixture
def torn_mount(store: Path, workdir: Path) -> Iterator[Mount]:
    with mounted(store, workdir / "mount", may_log=[TORN]) as mount:
        yield mount


# What programs do, and may go on to do


def test_a_file_is_cut_to_nothing_by_its_writer(mount: Mount) -> None:
    own = own_of(mount)
    with Agent(ALICE) as writer:
        fd = writer.do(os.open, f"{own}/image", NEW, 0o644)
        writer.do(os.write, fd, CONTENT)
        writer.do(os.ftruncate, fd, 0)
        writer.do(os.pwrite, fd, b"new", 0)
        writer.do(os.close, fd)
    assert content(f"{own}/image") == b"new"


def test_a_file_is_cut_to_nothing_by_name_while_it_is_written(mount: Mount) -> None:
    own = own_of(mount)
    with Agent(ALICE) as writer:
        fd = writer.do(os.open, f"{own}/image", NEW, 0o644)
        writer.do(os.write, fd, CONTENT)
        os.truncate(f"{own}/image", 0)
        writer.do(os.close, fd)
    assert content(f"{own}/image") == b""


def test_a_file_is_opened_anew_to_be_overwritten_while_it_is_written(mount: Mount) -> None:
    own = own_of(mount)
    with Agent(ALICE) as writer, Agent(ALICE) as other:
        fd = writer.do(os.open, f"{own}/image", NEW, 0o644)
        writer.do(os.write, fd, CONTENT)
        again = other.do(os.open, f"{own}/image", NEW, 0o644)
        other.do(os.write, again, b"new")
        other.do(os.close, again)
        writer.do(os.close, fd)
    assert content(f"{own}/image") == b"new"


def test_what_was_open_for_writing_but_not_written_stays_when_its_opener_is_killed(mount: Mount) -> None:
    own = own_of(mount)
    as_user(ALICE, save, f"{own}/image", CONTENT)
    with Agent(ALICE) as locker:
        locker.do(os.open, f"{own}/image", os.O_WRONLY)
        locker.kill()
    assert state(f"{own}/image") == "complete"


def test_what_is_cut_by_whoever_opened_it_to_write_goes_to_the_trash(mount: Mount) -> None:
    own = own_of(mount)
    as_user(ALICE, save, f"{own}/image", CONTENT)
    with Agent(ALICE) as writer:
        fd = writer.do(os.open, f"{own}/image", os.O_WRONLY)
        writer.do(os.ftruncate, fd, 0)
        writer.do(os.write, fd, b"new")
        writer.do(os.close, fd)
    (line,) = [
        line for line in ckfs_as_root("trash", "ls", "--store", mount.path).splitlines() if "image" in line
    ]
    assert "own" in line


# Between a writer's end and the final name


def test_who_sets_times_before_the_final_name_gets_a_complete_image(mount: Mount) -> None:
    """As rsync and tar do."""
    batch = batch_of(mount)
    as_user(ALICE, save, f"{batch}/x.tmp", CONTENT)
    as_user(ALICE, lambda: os.utime(f"{batch}/x.tmp", ns=(10**18, 10**18)))
    as_user(ALICE, os.rename, f"{batch}/x.tmp", f"{batch}/x")
    assert state(f"{batch}/x") == "complete"


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_WRONLY, os.O_WRONLY | os.O_APPEND])
def test_who_writes_a_header_before_the_final_name_gets_a_complete_image(mount: Mount, flags: int) -> None:
    def patch(path: str) -> None:
        fd = os.open(path, flags)
        os.write(fd, b"header")
        os.close(fd)

    batch = batch_of(mount)
    as_user(ALICE, save, f"{batch}/x.tmp", CONTENT)
    as_user(ALICE, patch, f"{batch}/x.tmp")
    as_user(ALICE, os.rename, f"{batch}/x.tmp", f"{batch}/x")
    assert state(f"{batch}/x") == "complete"


def test_who_cuts_it_by_name_before_the_final_name_gets_a_complete_image(mount: Mount) -> None:
    batch = batch_of(mount)
    as_user(ALICE, save, f"{batch}/x.tmp", CONTENT)
    as_user(ALICE, os.truncate, f"{batch}/x.tmp", 1000)
    as_user(ALICE, os.rename, f"{batch}/x.tmp", f"{batch}/x")
    assert state(f"{batch}/x") == "complete"


# The daemon's end


def test_the_daemons_end_waits_for_whoever_writes_unseen(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "mount") as mount:
        own = own_of(mount)
        with Agent(ALICE) as writer:
            fd = writer.do(os.open, f"{own}/image", NEW, 0o644)
            writer.do(os.write, fd, CONTENT)
            mount.process.send_signal(signal.SIGTERM)
            for _ in range(12):
                time.sleep(0.5)
                writer.do(os.write, fd, CONTENT)
            writer.do(os.close, fd)
        mount.ended = True
        assert mount.process.wait(30) == 0
    with mounted(store, workdir / "mount") as mount:
        assert state(f"{mount.path}/own{ALICE}/image") == "complete"


def test_the_daemon_ends_though_somebody_waited_for_a_lock_when_its_mount_was_cut_off(
    store: Path, workdir: Path
) -> None:
    with (
        mounted(store, workdir / "mount") as mount,
        Agent(ALICE) as holder,
        Agent(ALICE) as waiter,
    ):
        own = own_of(mount)
        fd = holder.do(os.open, f"{own}/lock", NEW, 0o644)
        holder.do(fcntl.flock, fd, fcntl.LOCK_EX)
        other = waiter.do(os.open, f"{own}/lock", os.O_WRONLY)
        waiter.begin(fcntl.flock, other, fcntl.LOCK_EX)
        assert not waiter.is_done(0.3)
        subprocess.run(["umount", "-f", str(mount.path)], check=False, capture_output=True)
        with raises_errno(ECONNABORTED, ENOTCONN):
            waiter.result(10)
        mount.ended = True
        assert mount.process.wait(20) == 0


def test_what_is_closed_after_a_lazy_umount_is_complete(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "mount") as mount:
        own = own_of(mount)
        with Agent(ALICE) as writer:
            fd = writer.do(os.open, f"{own}/image", NEW, 0o644)
            mount.detach()
            writer.do(os.write, fd, CONTENT)
            writer.do(os.close, fd)
        mount.ended = True
        assert mount.process.wait(30) == 0
    with mounted(store, workdir / "mount") as mount:
        assert state(f"{mount.path}/own{ALICE}/image") == "complete"


def test_what_somebody_goes_on_to_write_after_the_mount_was_cut_off_is_partial(
    store: Path, workdir: Path
) -> None:
    with Agent(ALICE) as writer:
        with mounted(store, workdir / "mount") as mount:
            own = own_of(mount)
            fd = writer.do(os.open, f"{own}/image", NEW, 0o644)
            writer.do(os.write, fd, CONTENT)
            subprocess.run(["umount", "-f", "-l", str(mount.path)], check=False, capture_output=True)
            mount.ended = True
            assert mount.process.wait(30) == 0
        writer.do(os.write, fd, CONTENT)
        with mounted(store, workdir / "mount", may_log=[TORN]) as mount:
            assert state(f"{mount.path}/own{ALICE}/image") == "partial"
            as_user(ALICE, save, f"{mount.path}/own{ALICE}/image", b"new")
            writer.do(os.write, fd, CONTENT)
            assert content(f"{mount.path}/own{ALICE}/image") == b"new"
            with raises_errno(ENOTCONN):
                writer.do(os.close, fd)


# What users may try


def open_and_die(path: str) -> None:
    fd = os.open(path, NEW, 0o600)
    os.write(fd, CONTENT)
    os.close(fd)


def test_who_is_killed_at_any_moment_of_opening_leaves_nothing_open(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "mount", may_log=[TORN, "not opened"]) as mount:
        own = own_of(mount)
        for number in range(150):
            child = os.fork()
            if child == 0:
                try:
                    while True:
                        open_and_die(f"{own}/{number % 7}")
                finally:
                    os._exit(0)
            time.sleep(0.002 + number % 13 / 2000)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        for number in range(7):
            as_user(ROOT, save, f"{own}/{number}", b"new")
            assert content(f"{own}/{number}") == b"new"


def wait_for_lock(path: str) -> int:
    """Returns the errno with which a wait that an alarm ends is over."""
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError()))
    fd = os.open(path, os.O_WRONLY)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX)
    except TimeoutError:
        return 0
    return -1


def test_a_wait_for_a_lock_that_a_signal_ends_takes_no_lock(mount: Mount) -> None:
    own = own_of(mount)
    with Agent(ALICE) as holder, Agent(ALICE) as other:
        fd = holder.do(os.open, f"{own}/lock", NEW, 0o600)
        for _ in range(20):
            holder.do(fcntl.lockf, fd, fcntl.LOCK_EX)
            assert as_user(ALICE, wait_for_lock, f"{own}/lock") == 0
            holder.do(fcntl.lockf, fd, fcntl.LOCK_UN)
            again = other.do(os.open, f"{own}/lock", os.O_WRONLY)
            other.do(fcntl.lockf, again, fcntl.LOCK_EX | fcntl.LOCK_NB)
            other.do(os.close, again)


def test_a_store_on_a_stacked_file_system_is_used_without(root_and_fuse: None, workdir: Path) -> None:
    with tmpfs(workdir, 2 << 30, 4000) as top:
        for name in ("lower", "upper", "work", "merged"):
            (top / name).mkdir()
        layers = f"lowerdir={top}/lower,upperdir={top}/upper,workdir={top}/work,userxattr"
        subprocess.run(["mount", "-t", "overlay", "o", "-o", layers, str(top / "merged")], check=True)
        try:
            store = make_store(top / "merged")
            refused = "nothing is passed through from now on"
            options, may_log = ["passthrough=on"], [refused, "reach the store"]
            with mounted(store, workdir / "mount", options=options, may_log=may_log) as mount:
                own = own_of(mount)
                with Agent(ALICE) as writer:
                    fd = writer.do(os.open, f"{own}/image", NEW, 0o600)
                    assert not is_written_unseen(mount, writer, fd)
                    writer.do(os.close, fd)
                assert state(f"{own}/image") == "complete"
                assert refused in mount.log()
        finally:
            subprocess.run(["umount", str(top / "merged")], check=True)


def test_whoever_has_just_closed_it_opens_it_in_any_way(mount: Mount) -> None:
    own = own_of(mount)

    def often() -> None:
        for number in range(200):
            save(f"{own}/image", CONTENT)
            os.close(os.open(f"{own}/image", (os.O_RDWR, os.O_RDWR | os.O_TRUNC, os.O_WRONLY)[number % 3]))

    as_user(ALICE, often)


def test_what_was_just_closed_goes_to_the_trash_when_it_is_cut_by_name(mount: Mount) -> None:
    own = own_of(mount)

    def often() -> None:
        for number in range(50):
            save(f"{own}/{number}", CONTENT)
            os.truncate(f"{own}/{number}", 0)

    as_user(ALICE, often)
    assert ckfs_as_root("trash", "ls", "--store", mount.path).count(" own2101/") == 50


# What a reader can keep its owner from: the kernel has one file of the store for an inode, for as long as anybody has that open by it


def test_who_reads_while_it_is_written_keeps_nobody_from_overwriting_it_afterwards(mount: Mount) -> None:
    """tail -f of one run's log, and the next run."""
    own = own_of(mount)
    with Agent(ALICE) as writer, Agent(BOB) as reader:
        fd = writer.do(os.open, f"{own}/log", NEW, 0o644)
        writer.do(os.write, fd, CONTENT)
        reader.do(os.open, f"{own}/log", os.O_RDONLY)
        writer.do(os.close, fd)
        as_user(ALICE, save, f"{own}/log", b"new")
        assert as_user(ALICE, content, f"{own}/log") == b"new"


def test_who_reads_while_it_is_written_keeps_nobody_from_changing_it_afterwards(mount: Mount) -> None:
    own = own_of(mount)
    with Agent(ALICE) as writer, Agent(BOB) as reader:
        fd = writer.do(os.open, f"{own}/log", NEW, 0o644)
        writer.do(os.write, fd, CONTENT)
        reader.do(os.open, f"{own}/log", os.O_RDONLY)
        writer.do(os.close, fd)
        assert errno_as(ALICE, os.open, f"{own}/log", os.O_RDWR) == 0


def test_who_reads_a_superseded_image_keeps_nobody_from_overwriting_it(mount: Mount) -> None:
    batch = batch_of(mount)
    for name in "abc":
        as_user(ALICE, save, f"{batch}/{name}", CONTENT)
    os.chmod(f"{batch}/a", 0o644)
    with Agent(BOB) as reader:
        reader.do(os.open, f"{batch}/a", os.O_RDONLY)
        as_user(ALICE, save, f"{batch}/a", b"new")
    assert content(f"{batch}/a") == b"new"
