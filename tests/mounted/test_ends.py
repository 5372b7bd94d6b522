"""How a mount ends, and what does not let it come up: nothing of others is touched, and what is open is finished."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckfs.demo.nodes import Node
from tests.support.agents import Agent
from tests.support.mounting import Mount, command, daemons, environment, is_mounted, mounted, run_ckfs
from tests.support.users import ALICE, as_user

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

WITHIN = 20.0
USAGE, MOUNT_FAILED = 2, 6
"""Exit statuses of docs/commands.md."""


def until(done: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + WITHIN
    while not done():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


@pytest.fixture
def mountpoint(workdir: Path) -> Iterator[Path]:
    made = workdir / "mount"
    made.mkdir()
    yield made
    while is_mounted(made):
        subprocess.run(["umount", "-l", made], check=True)
    until(lambda: not daemons(made), "a daemon stays after umount")  # it has things in the store to do yet


# --- SIGTERM ------------------------------------------------------------------------------------------------------------

_TOLD_AT_ONCE = """
import os, signal, sys
from ckfs.cli.main import main
from ckfs.daemon import mounting

real = mounting.mount

def mount(*args, **kwargs):
    own = real(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGTERM)
    return own

mounting.mount = mount
sys.exit(main(sys.argv[1:]))
"""


def test_sigterm_right_after_mounting_leaves_no_dead_mount(store: Path, mountpoint: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _TOLD_AT_ONCE, "mount", str(store), str(mountpoint), "-f"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=WITHIN,
        check=False,
    )
    assert not is_mounted(mountpoint)
    assert done.returncode == 0, done.stderr


def test_a_demo_beside_does_not_keep_a_mount_from_ending(store: Path, workdir: Path) -> None:
    (workdir / "private").mkdir(exist_ok=True)
    node = Node("nodea", 1000, str(workdir / "private"))
    with mounted(store, workdir / "beside") as mount:
        try:
            node.start()
            mount.umount()
        finally:
            node.close()


def test_sigterm_leaves_what_others_mounted_over_it(mount: Mount) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "others", mount.path], check=True)
    try:
        mount.terminate()
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        kinds = [line.split(" - ")[1].split()[0] for line in lines if line.split()[4] == str(mount.path)]
        assert kinds == ["fuse.ckfs", "tmpfs"]
    finally:
        mount.detach()


_descriptor = -1


def open_and_write(path: str, data: bytes) -> None:
    global _descriptor
    _descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    assert os.write(_descriptor, data) == len(data)


def write_more_and_close(data: bytes) -> None:
    assert os.write(_descriptor, data) == len(data)
    os.close(_descriptor)


def test_an_image_that_is_open_at_sigterm_is_finished(store: Path, workdir: Path) -> None:
    with Agent(ALICE) as alice:
        with mounted(store, workdir / "mount") as mount:
            alice.do(os.mkdir, str(mount.path / "set"))
            alice.do(open_and_write, str(mount.path / "set" / "image"), b"first ")
            mount.process.send_signal(signal.SIGTERM)
            until(lambda: not is_mounted(mount.path), "it is still mounted")
            time.sleep(0.5)  # no request is under way for a while
            alice.do(write_more_and_close, b"second")
            mount.ended = True
            assert mount.process.wait(WITHIN) == 0
        with mounted(store, workdir / "mount") as mount:
            image = mount.path / "set" / "image"
            assert as_user(ALICE, image.read_bytes) == b"first second"
            assert as_user(ALICE, os.getxattr, image, "user.ckfs.state") == b"complete"


def test_who_only_keeps_a_file_open_is_not_waited_for(store: Path, workdir: Path) -> None:
    with Agent(ALICE) as alice, mounted(store, workdir / "mount") as mount:
        alice.do(os.mkdir, str(mount.path / "set"))
        alice.do(open_and_write, str(mount.path / "set" / "image"), b"image")
        mount.terminate()


# --- descriptors of the terminal ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "0<&- 1>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_descriptors_do_not_matter(store: Path, mountpoint: Path, closed: str) -> None:
    """The status pipe got their numbers, and the daemon's turning away from the terminal closed it."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *command("mount", store, mountpoint)],
        env=environment(),
        timeout=WITHIN,
        check=False,
    )
    assert done.returncode == 0
    assert is_mounted(mountpoint)
    with contextlib.suppress(FileExistsError):
        as_user(ALICE, os.mkdir, mountpoint / "set")
    subprocess.run(["umount", mountpoint], check=True)


# --- exit status 6 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_front", [["-f"], []], ids=["in front", "background"])
@pytest.mark.parametrize(
    ("hide", "said"),
    [
        ("mount --bind /dev/null /dev/fuse", "mount failed"),
        ("mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3", "/dev/fuse"),
    ],
    ids=["no FUSE device", "none at all"],
)
def test_a_mount_that_does_not_come_up(
    store: Path, mountpoint: Path, hide: str, said: str, in_front: list[str]
) -> None:
    done = subprocess.run(
        [
            "unshare",
            "-m",
            "sh",
            "-c",
            f'{hide}; exec "$@"',
            "sh",
            *command("mount", store, mountpoint, *in_front),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=WITHIN,
        check=False,
    )
    assert done.returncode == MOUNT_FAILED, done.stderr
    assert said in done.stderr
    assert [line for line in done.stderr.splitlines() if " INFO " not in line] == [
        done.stderr.splitlines()[-1]
    ]
    assert not is_mounted(mountpoint)


# --- ckfs give ----------------------------------------------------------------------------------------------------------


def test_only_a_ckfs_mount_is_believed_to_be_one(workdir: Path) -> None:
    """Attributes can be had by any directory, the kernel's word cannot."""
    fake = workdir / "fake"
    (fake / "set").mkdir(parents=True)
    os.setxattr(fake, "user.ckfs.version", b"0.1.0")
    done = run_ckfs("give", fake / "set", str(ALICE))
    assert done.returncode == USAGE, done.stdout
    assert "not in a set on a ckfs mount" in done.stderr
    assert (fake / "set").stat().st_uid == 0
