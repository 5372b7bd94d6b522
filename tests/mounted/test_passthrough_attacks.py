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
from tests.support.mounting import Mount, mounted
from tests.support.users import ALICE, as_user, raises_errno

pytestmark = pytest.mark.root

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
        mounted(store, workdir / "mount", may_log=["somebody writes it yet"]) as mount,
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
        with mounted(store, workdir / "mount", may_log=["somebody writes it yet"]) as mount:
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
