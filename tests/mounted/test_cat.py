"""``ckfs cat``: images to standard output, and torn ones only for who asks for them, and may read them."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckfs.control.client import ask
from tests.mounted.test_control import device_of
from tests.support.agents import Agent, Hangs
from tests.support.commands import ckfs_as
from tests.support.mounting import Mount, command, environment, mounted
from tests.support.users import ALICE, BOB, ROOT, as_user, errno_as

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

FAILED, USAGE, RIGHTS = 1, 2, 5
TORN = b"half an image"


@pytest.fixture
def mount(store: Path, workdir: Path) -> Iterator[Mount]:
    with mounted(store, workdir / "mount", may_log=["is partial"]) as running:
        yield running


def write_and_die(path: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(descriptor, TORN)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def torn(mount: Mount) -> Path:
    """An image of Alice's whose writer was killed."""
    path = mount.path / "image"
    with Agent(ALICE) as writer, contextlib.suppress(Hangs):
        writer.do(write_and_die, str(path))
    assert as_user(ALICE, lambda: os.getxattr(path, "user.ckfs.state")) == b"partial"
    return path


def read_through(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 100)
    finally:
        os.close(descriptor)


def test_a_whole_image_is_written_out(mount: Mount) -> None:
    content = os.urandom(3_000_000)
    path = mount.path / "image"
    as_user(ALICE, lambda: path.write_bytes(content))
    for more in ([], ["--partial"]):
        ran = ckfs_as(ALICE, "cat", *more, path)
        assert (ran.status, ran.errors, ran.output == content) == (0, "", True)


def test_a_torn_one_only_for_who_asks_for_it(mount: Mount, torn: Path) -> None:
    ran = ckfs_as(ALICE, "cat", torn)
    assert (ran.status, ran.output) == (FAILED, b"")
    assert ran.errors == (
        f"ckfs: {torn}: a partial image: its writer was killed or met an error, or it was found damaged; ckfs cat --partial reads it\n"
    )
    ran = ckfs_as(ALICE, "cat", "--partial", torn)
    assert (ran.status, ran.output, ran.errors) == (0, TORN, "")
    assert errno_as(ALICE, read_through, str(torn)) == errno.EIO


def test_who_may_not_read_it_does_not(mount: Mount, torn: Path) -> None:
    for more in ([], ["--partial"]):
        ran = ckfs_as(BOB, "cat", *more, torn)
        assert (ran.status, ran.output) == (RIGHTS, b"")
        assert ran.errors == f"ckfs: {torn}: closed to you by its mode\n"


def test_who_may_not_even_reach_it_does_not(mount: Mount, torn: Path) -> None:
    as_user(ALICE, lambda: (mount.path / "closed").mkdir(0o700))
    ran = ckfs_as(BOB, "cat", "--partial", mount.path / "closed/image")
    assert (ran.status, ran.output) == (RIGHTS, b"")


def test_a_permit_is_for_one_process_and_one_open_of_one_file(mount: Mount, torn: Path) -> None:
    device, ino = device_of(mount), torn.lstat().st_ino
    with Agent(ALICE) as allowed, Agent(ALICE) as other:
        allowed.do(ask_to_read, device, ino)
        assert errno_of(other, torn) == errno.EIO
        assert allowed.do(read_through, str(torn)) == TORN
        assert errno_of(allowed, torn) == errno.EIO  # once
        allowed.do(ask_to_read, device, ino + 1)
        assert errno_of(allowed, torn) == errno.EIO  # that file alone
        allowed.do(ask_to_read, device, ino)
        assert allowed.do(in_a_thread, str(torn)) == TORN  # whichever of its threads


def ask_to_read(device: str, ino: int) -> None:
    assert list(ask(device, "read-partial", {"ino": ino})) == []


def errno_of(agent: Agent, path: Path) -> int:
    try:
        agent.do(read_through, str(path))
    except OSError as error:
        return error.errno or 0
    return 0


def in_a_thread(path: str) -> bytes:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(read_through, path).result()


def test_a_permit_of_users_is_no_way_around_modes(mount: Mount, torn: Path) -> None:
    """The daemon permits anybody anything here: the kernel is who decides."""
    with Agent(BOB) as bob:
        bob.do(ask_to_read, device_of(mount), torn.lstat().st_ino)
        assert errno_of(bob, torn) == errno.EACCES


def test_in_another_pid_namespace_below_it_works(mount: Mount, torn: Path) -> None:
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", *command("cat", "--partial", torn)],
        env=environment(),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, TORN, b"")


def test_a_mount_that_reads_partial_images_needs_no_permit(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "mount", options=["partial"], may_log=["is partial"]) as mount:
        path = mount.path / "image"
        with Agent(ROOT) as writer, contextlib.suppress(Hangs):
            writer.do(write_and_die, str(path))
        assert ckfs_as(0, "cat", path).output == TORN


def test_what_is_no_image_is_said_in_one_line(mount: Mount, workdir: Path) -> None:
    os.mkfifo(mount.path / "fifo")
    (workdir / "plain").write_bytes(b"elsewhere")
    for path, reason in (
        (mount.path, "not an image"),
        (mount.path / "fifo", "not an image"),
        (mount.path / "nothing", "No such file"),
        (workdir / "plain", "not on a ckfs mount"),
    ):
        ran = ckfs_as(ALICE, "cat", "--partial", path)
        assert (ran.status, ran.output, ran.errors.count("\n")) == (USAGE, b"", 1)
        assert reason in ran.errors


def test_a_reader_who_has_enough_is_no_failure(mount: Mount) -> None:
    (mount.path / "image").write_bytes(b"line\n" * 1_000_000)
    words = command("cat", mount.path / "image")
    with subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as cat:
        assert cat.stdout is not None
        assert cat.stderr is not None
        assert cat.stdout.readline() == b"line\n"
        cat.stdout.close()
        assert (cat.stderr.read(), cat.wait(30)) == (b"", 0)
