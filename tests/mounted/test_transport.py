"""Which transport serves a mount, and what only the kernel transport has."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agents import Agent
from tests.support.mounting import END_TIMEOUT, Mount, kernel_can_pass, kernel_is, mounted, run_ckfs
from tests.support.passed import stopped
from tests.support.payers import until
from tests.support.users import ALICE, as_user, errno_of_call, raises_errno


@pytest.fixture
def kernel(store: Path, workdir: Path) -> Iterator[Mount]:
    """A mount by the kernel transport, whatever the tests' choice is."""
    with mounted(store, workdir / "mount", options=["transport=kernel"]) as mount:
        yield mount


def status(mount: Mount) -> dict[str, object]:
    said: dict[str, object] = json.loads(run_ckfs("status", "--json", mount.path).stdout)
    return said


@pytest.mark.parametrize(
    ("options", "transport", "passes"),
    [
        (["transport=auto"], "kernel", kernel_can_pass()),
        (["transport=kernel"], "kernel", kernel_can_pass()),
        (["transport=kernel", "passthrough=off"], "kernel", False),
        (["transport=pyfuse3"], "pyfuse3", False),
    ],
    ids=["auto", "kernel", "off", "pyfuse3"],
)
def test_the_log_and_the_status_say_which_one_it_is(
    store: Path, workdir: Path, options: list[str], transport: str, passes: bool
) -> None:
    with mounted(store, workdir / "mount", options=options) as mount:
        said = status(mount)
        assert (said["transport"], said["passthrough"]) == (transport, passes)
        line = next(line for line in mount.log().splitlines() if " transport " in line)
        assert f"transport {transport}: " in line
        assert ("with passthrough" in line) == passes


@pytest.mark.skipif(not kernel_is(6, 15), reason="the kernel ends mounts that do not answer since Linux 6.15")
def test_a_daemon_that_hangs_itself_loses_its_mount(store: Path, workdir: Path) -> None:
    """The kernel looks every 15 s."""
    options = ["transport=kernel", "op_timeout=5", "io_timeout=10", "request_timeout=15"]
    with mounted(store, workdir / "mount", options=options) as mount, Agent(ALICE) as caller:
        mount.ended = True
        with stopped(mount):
            caller.begin(errno_of_call, os.stat, str(mount.path))
            assert caller.is_done(60)
            assert caller.result() == errno.ECONNABORTED
        assert mount.process.wait(END_TIMEOUT) == 0


def test_mounts_are_nosuid_and_nodev(kernel: Mount) -> None:
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        line = next(line for line in lines if f" {kernel.path} " in line)
    assert {"nosuid", "nodev"} <= set(line.split()[5].split(","))


def test_the_kernel_reads_far_ahead(kernel: Mount) -> None:
    device = os.stat(kernel.path).st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    if not os.access(setting, os.W_OK):
        pytest.skip("sysfs is read-only here")
    until(lambda: int(setting.read_text()) == 4096, lambda: f"it is {setting.read_text()}")


def test_an_attribute_may_be_said_to_be_new_or_to_be_there(kernel: Mount) -> None:
    path = kernel.path / "file"
    as_user(ALICE, path.touch)
    with raises_errno(errno.ENODATA):
        os.setxattr(path, "user.a", b"1", os.XATTR_REPLACE)
    os.setxattr(path, "user.a", b"1", os.XATTR_CREATE)
    with raises_errno(errno.EEXIST):
        os.setxattr(path, "user.a", b"2", os.XATTR_CREATE)
    os.setxattr(path, "user.a", b"3", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.a") == b"3"


def test_a_lock_is_seen_on_the_other_mount(store: Path, workdir: Path) -> None:
    with (
        mounted(store, workdir / "a", node="a", options=["transport=kernel"]) as first,
        mounted(store, workdir / "b", node="b", options=["transport=kernel"]) as second,
        Agent(ALICE) as here,
        Agent(ALICE) as there,
    ):
        fd = here.do(os.open, first.path / "file", os.O_RDWR | os.O_CREAT, 0o600)
        other = there.do(os.open, second.path / "file", os.O_RDWR)
        here.do(fcntl.flock, fd, fcntl.LOCK_EX)
        with raises_errno(errno.EAGAIN):
            there.do(fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        here.do(fcntl.lockf, fd, fcntl.LOCK_EX, 10)
        with raises_errno(errno.EAGAIN, errno.EACCES):
            there.do(fcntl.lockf, other, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 5)
        there.do(fcntl.lockf, other, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 10)
        there.begin(fcntl.flock, other, fcntl.LOCK_EX)  # waits
        here.do(os.close, fd)
        there.result(10)
        there.do(fcntl.lockf, other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def wait_for_lock_until_alarm(path: Path) -> str:
    with path.open("r+b") as file:
        signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(InterruptedError))
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except InterruptedError:
            return "interrupted"
    return "had it"


def test_a_signal_ends_the_wait_for_a_lock(kernel: Mount) -> None:
    path = kernel.path / "file"
    as_user(ALICE, path.touch)
    with path.open("r+b") as file, Agent(ALICE) as waiter:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert waiter.do(wait_for_lock_until_alarm, path) == "interrupted"


def test_a_mount_ends_also_while_somebody_waits_for_a_lock(store: Path, workdir: Path) -> None:
    with (
        mounted(store, workdir / "mount", options=["transport=kernel"]) as mount,
        Agent(ALICE) as holder,
        Agent(ALICE) as waiter,
    ):
        path = mount.path / "file"
        holder.do(fcntl.flock, holder.do(os.open, path, os.O_RDWR | os.O_CREAT, 0o600), fcntl.LOCK_EX)
        waiter.begin(fcntl.flock, waiter.do(os.open, path, os.O_RDWR), fcntl.LOCK_EX)
        mount.terminate()
        with raises_errno(errno.EIO, errno.ENOTCONN, errno.ECONNABORTED):
            waiter.result(10)


def test_holes_room_and_birth_times(kernel: Mount) -> None:
    path = kernel.path / "file"
    with Agent(ALICE) as user:
        fd = user.do(os.open, path, os.O_RDWR | os.O_CREAT, 0o600)
        user.do(os.posix_fallocate, fd, 0, 1 << 20)
        assert os.stat(path).st_size == 1 << 20
        assert os.stat(path).st_blocks >= 2048
        user.do(os.ftruncate, fd, 0)
        user.do(os.pwrite, fd, b"x" * 4096, 1 << 20)
        assert user.do(os.lseek, fd, 0, os.SEEK_DATA) == 1 << 20
        assert user.do(os.lseek, fd, 1 << 20, os.SEEK_HOLE) == (1 << 20) + 4096
        copy = user.do(os.open, kernel.path / "file.copy", os.O_RDWR | os.O_CREAT, 0o600)
    assert copy >= 0


def test_many_requests_at_once_are_all_answered(kernel: Mount) -> None:
    """More tasks wait for the store than lead: each that is done may lead next."""
    with Agent(ALICE) as user:
        user.do(os.mkdir, kernel.path / "set", 0o700)
    with contextlib.ExitStack() as stack:
        users = [stack.enter_context(Agent(ALICE)) for _ in range(24)]
        for number, user in enumerate(users):
            user.begin(write_and_read, kernel.path / "set", number)
        assert [user.result(60) for user in users] == [20] * len(users)


def write_and_read(directory: Path, number: int) -> int:
    for again in range(20):
        path, content = directory / f"{number}-{again}.tmp", bytes([number]) * 100_000
        path.write_bytes(content)
        assert path.read_bytes() == content
        path.unlink()
    return 20
