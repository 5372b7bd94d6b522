"""A store is made, a mount comes up and goes down: exit statuses, one line for what is wrong, and nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import select
import signal
import socket
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckfs.cli import main as command_line
from ckfs.daemon import serve as _imported_before_another_user_needs_it  # noqa: F401 - its name says why
from tests.support.agents import Agent
from tests.support.faultfs import fault_store
from tests.support.mounting import (
    UMASK,
    Mount,
    command,
    daemons,
    environment,
    is_mounted,
    make_store,
    mounted,
    run_ckfs,
)
from tests.support.users import ALICE, BOB, as_user, errno_as, errno_of_call

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

WITHIN = 20.0
"""Seconds for whatever is waited for."""
USAGE, STORE, MOUNT_POINT, RIGHTS = 2, 3, 4, 5
"""Exit statuses of docs/commands.md."""


def until(done: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + WITHIN
    while not done():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def one_line(done: subprocess.CompletedProcess[str], status: int) -> str:
    """The one line of a command that failed with this *status*."""
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert done.stderr.startswith("ckfs: ")
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("\n")
    return done.stderr


def listing(directory: Path) -> dict[str, tuple[object, ...]]:
    """All below and with *directory*, and whatever of it a change would change."""
    return {
        str(path.relative_to(directory)): (
            status.st_ino,
            status.st_mode,
            status.st_uid,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )
        for path in (directory, *directory.rglob("*"))
        if (status := path.lstat())
    }


def write_policy(store: Path, text: str) -> None:
    """Replace it as a whole, as an editor does."""
    new = store / "policy.toml.new"
    new.write_text(text)
    new.rename(store / "policy.toml")


def times_mounted(mountpoint: Path) -> int:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return sum(line.split(" ")[4] == str(mountpoint) for line in lines)


def umount(mountpoint: Path) -> None:
    until(
        lambda: subprocess.run(["umount", mountpoint], capture_output=True, check=False).returncode == 0,
        "umount fails",
    )


@pytest.fixture
def mountpoint(workdir: Path) -> Iterator[Path]:
    """A directory on which at the end nothing is mounted, and which no daemon serves."""
    made = workdir / "mount"
    made.mkdir()
    try:
        yield made
    finally:
        for pid in daemons(made):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while is_mounted(made):
            subprocess.run(["umount", "-l", made], check=True)


# --- ckfs init ----------------------------------------------------------------------------------------------------------


def test_init_makes_the_layout_and_a_commented_policy(store: Path) -> None:
    assert {path.name: path.stat().st_mode & 0o7777 for path in store.iterdir()} == {
        "ckfs.toml": 0o644,
        "policy.toml": 0o644,
        "names": 0o755,
        "mounts": 0o755,
        "users": 0o1777,
        "staging": 0o1777,
        "trash": 0o1777,
    }
    assert tomllib.loads((store / "ckfs.toml").read_text())["format"] == 1
    policy = (store / "policy.toml").read_text()
    assert set(tomllib.loads(policy)) == {
        "sets",
        "images",
        "protection",
        "trash",
        "gc",
        "quota",
        "liveness",
        "resolvers",
    }
    lines = policy.splitlines()
    for before, line in itertools.pairwise(lines):
        if " = " in line and not line.startswith("#"):
            assert before.startswith("#"), f"no comment above {line}"


def test_init_of_a_store_changes_nothing(store: Path) -> None:
    (store / "policy.toml").write_text("# mine\n")
    before = listing(store)
    done = run_ckfs("init", store)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing changed" in done.stdout
    assert listing(store) == before


def test_init_refuses_a_directory_of_others(workdir: Path) -> None:
    (workdir / "thesis").mkdir()
    (workdir / "thesis" / "chapter").write_text("one")
    before = listing(workdir)
    assert "chapter" in one_line(run_ckfs("init", workdir / "thesis"), STORE)
    assert listing(workdir) == before


def test_init_refuses_a_newer_format(store: Path) -> None:
    make_newer(store)
    before = listing(store)
    assert "format 2" in one_line(run_ckfs("init", store), STORE)
    assert listing(store) == before


def make_newer(store: Path) -> None:
    text = (store / "ckfs.toml").read_text()
    assert "format = 1" in text
    (store / "ckfs.toml").write_text(text.replace("format = 1", "format = 2"))


def test_init_refuses_a_file_system_without_user_attributes(workdir: Path) -> None:
    place = workdir / "ramfs"
    place.mkdir()
    if subprocess.run(["mount", "-t", "ramfs", "none", place], capture_output=True, check=False).returncode:
        pytest.skip("ramfs cannot be mounted here")
    try:
        with contextlib.suppress(OSError):
            os.setxattr(place, "user.test", b"")
            pytest.skip("ramfs keeps user extended attributes here")
        line = one_line(run_ckfs("init", place / "store"), STORE)
        assert "extended attributes" in line
        assert not (place / "store" / "ckfs.toml").exists()
    finally:
        subprocess.run(["umount", place], check=True)


def test_init_refuses_an_unknown_service_user(workdir: Path) -> None:
    done = run_ckfs("init", workdir / "store", "--service-user", "nobody-of-this-name")
    assert "nobody-of-this-name" in one_line(done, USAGE)
    assert not (workdir / "store").exists()


# --- mounts that come up ------------------------------------------------------------------------------------------------


def test_mount_ends_when_the_mount_answers(store: Path, mountpoint: Path) -> None:
    log = store.parent / "log"
    done = run_ckfs("mount", store, mountpoint, "-o", f"log={log}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert errno_as(ALICE, os.mkdir, mountpoint / "set") == 0
    assert is_mounted(mountpoint)
    assert len(daemons(mountpoint)) == 1

    umount(mountpoint)
    until(lambda: not daemons(mountpoint), "the daemon stays after umount")
    assert not is_mounted(mountpoint)
    assert list(mountpoint.iterdir()) == []
    assert "ended" in log.read_text().splitlines()[-1]


@pytest.mark.parametrize("how", ["umount", "SIGTERM"])
def test_the_service_manager_is_told(store: Path, mountpoint: Path, workdir: Path, how: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        manager.bind(str(workdir / "notify"))
        manager.settimeout(WITHIN)
        daemon = subprocess.Popen(
            command("mount", store, mountpoint, "-f"),
            env=environment(NOTIFY_SOCKET=str(workdir / "notify")),
            stderr=subprocess.PIPE,
            umask=UMASK,
        )
        with daemon:
            assert manager.recv(4096) == b"READY=1"
            assert is_mounted(mountpoint)
            assert errno_as(ALICE, os.listdir, mountpoint) == 0
            manager.setblocking(False)
            with pytest.raises(BlockingIOError):
                manager.recv(4096)
            manager.settimeout(WITHIN)
            if how == "SIGTERM":
                daemon.send_signal(signal.SIGTERM)
            else:
                umount(mountpoint)
            assert manager.recv(4096) == b"STOPPING=1"
            assert daemon.wait(WITHIN) == 0
        assert not is_mounted(mountpoint)


def test_sigterm_waits_for_a_write(workdir: Path) -> None:
    with fault_store(workdir) as faulty, Agent(ALICE) as alice:
        store = make_store(faulty.path)
        # The fault store is open to users, of which the daemon warns.
        with mounted(store, workdir / "mount", may_log=[r"around ckfs"]) as mount:
            alice.do(os.mkdir, str(mount.path / "set"))
            faulty.hang("write", path="image")
            try:
                alice.begin(write_and_keep_open, str(mount.path / "set" / "image"))
                faulty.hanging("write")
                mount.process.send_signal(signal.SIGTERM)
                until(lambda: not is_mounted(mount.path), "it is still mounted")
                assert mount.process.poll() is None
            finally:
                faulty.release()
            assert alice.result(WITHIN) == 5
            assert mount.process.wait(WITHIN) == 0
            mount.ended = True
        # Its writer had not closed it when the mount ended: as far as anyone knows it is half of an image.
        with mounted(store, workdir / "mount", options=["partial"], may_log=[r"around ckfs"]) as mount:
            assert as_user(ALICE, (mount.path / "set" / "image").read_bytes) == b"image"


def write_and_keep_open(path: str) -> int:
    return os.write(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), b"image")


def write_file(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        assert os.write(fd, b"image") == 5
    finally:
        os.close(fd)


# --- mounts that do not -------------------------------------------------------------------------------------------------


def no_such_store(store: Path, mountpoint: Path) -> None:
    store.rename(store.parent / "elsewhere")


def empty_store(store: Path, mountpoint: Path) -> None:
    (store / "ckfs.toml").unlink()


def newer_store(store: Path, mountpoint: Path) -> None:
    make_newer(store)


def file_for_store(store: Path, mountpoint: Path) -> None:
    no_such_store(store, mountpoint)
    store.touch()


def unknown_policy_key(store: Path, mountpoint: Path) -> None:
    write_policy(store, '[sets]\nbatch = ["*.CK"]\nfrobnicate = 1\n')


def no_policy(store: Path, mountpoint: Path) -> None:
    (store / "policy.toml").unlink()


def no_mount_point(store: Path, mountpoint: Path) -> None:
    mountpoint.rmdir()


def file_for_mount_point(store: Path, mountpoint: Path) -> None:
    mountpoint.rmdir()
    mountpoint.touch()


def nothing_wrong(store: Path, mountpoint: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("break_it", "options", "status", "named"),
    [
        (no_such_store, "", STORE, "no such store"),
        (empty_store, "", STORE, "not a ckfs store"),
        (newer_store, "", STORE, "format 2"),
        (file_for_store, "", STORE, "not a directory"),
        (unknown_policy_key, "", STORE, "sets.frobnicate"),
        (no_policy, "", STORE, "policy.toml"),
        (no_mount_point, "", MOUNT_POINT, "/mount: cannot mount here: No such file"),
        (file_for_mount_point, "", MOUNT_POINT, "/mount: cannot mount here: not a directory"),
        (nothing_wrong, "role=node,frobnicate=1", USAGE, "frobnicate"),
        (nothing_wrong, "role=king", USAGE, "role=king"),
    ],
)
def test_what_keeps_a_mount_from_coming_up_is_named(
    store: Path,
    mountpoint: Path,
    break_it: Callable[[Path, Path], None],
    options: str,
    status: int,
    named: str,
) -> None:
    break_it(store, mountpoint)
    done = run_ckfs("mount", store, mountpoint, "-o", options)
    assert named in one_line(done, status)
    assert not is_mounted(mountpoint)
    assert daemons(mountpoint) == []


@pytest.mark.parametrize(("break_it", "status"), [(unknown_policy_key, STORE), (no_mount_point, MOUNT_POINT)])
def test_in_front_the_same_is_said(
    store: Path, mountpoint: Path, break_it: Callable[[Path, Path], None], status: int
) -> None:
    break_it(store, mountpoint)
    one_line(run_ckfs("mount", store, mountpoint, "-f"), status)
    assert not is_mounted(mountpoint)


def test_users_do_not_mount(store: Path, mountpoint: Path) -> None:
    done = as_user(ALICE, run_here, "mount", str(store), str(mountpoint))
    assert "root" in one_line(done, RIGHTS)
    assert not is_mounted(mountpoint)


def run_here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """As ``run_ckfs``, by a user who may have no way to the interpreter and the source."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = command_line.main(list(arguments))
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def test_a_live_mount_is_not_covered(mount: Mount) -> None:
    done = run_ckfs("mount", mount.store, mount.path)
    assert str(mount.path) in one_line(done, MOUNT_POINT)
    assert times_mounted(mount.path) == 1
    assert errno_as(ALICE, os.mkdir, mount.path / "set") == 0


def test_a_dead_mount_is_covered_and_goes_with_the_new_one(store: Path, mountpoint: Path) -> None:
    assert run_ckfs("mount", store, mountpoint).returncode == 0
    assert errno_as(ALICE, os.mkdir, mountpoint / "set") == 0
    (daemon,) = daemons(mountpoint)
    handle = os.pidfd_open(daemon)
    try:
        os.kill(daemon, signal.SIGKILL)
        assert select.select([handle], [], [], WITHIN)[0], "the daemon outlives SIGKILL"
    finally:
        os.close(handle)
    assert errno_as(ALICE, os.listdir, mountpoint) == errno.ENOTCONN
    assert times_mounted(mountpoint) == 1

    assert run_ckfs("mount", store, mountpoint).returncode == 0
    assert as_user(ALICE, os.listdir, mountpoint) == ["set"]
    assert times_mounted(mountpoint) == 2

    umount(mountpoint)
    until(lambda: not daemons(mountpoint), "the daemon stays after umount")
    assert times_mounted(mountpoint) == 0


# --- while it is mounted ------------------------------------------------------------------------------------------------


def test_a_read_only_mount_changes_nothing(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "mount") as mount:
        as_user(ALICE, os.mkdir, mount.path / "set")
        as_user(ALICE, write_file, str(mount.path / "set" / "image"))
    before = listing(store)
    with mounted(store, workdir / "mount", options=["ro"]) as mount:
        image = mount.path / "set" / "image"
        assert as_user(ALICE, image.read_bytes) == b"image"
        for call in (
            lambda: os.mkdir(mount.path / "other"),
            lambda: os.mkdir(mount.path / "set" / "directory"),
            lambda: os.open(image, os.O_WRONLY),
            lambda: os.open(mount.path / "set" / "new", os.O_WRONLY | os.O_CREAT),
            lambda: os.truncate(image, 0),
            lambda: os.chmod(image, 0o640),
            lambda: os.utime(image),
            lambda: os.setxattr(image, "user.mine", b"value"),
            lambda: os.rename(image, mount.path / "set" / "renamed"),
            lambda: os.rename(mount.path / "set", mount.path / "renamed"),
            lambda: os.unlink(image),
        ):
            assert errno_as(ALICE, call) == errno.EROFS
    assert listing(store) == before


@pytest.mark.parametrize("remounted", [False, True])
def test_a_read_only_mount_changes_no_set_for_root_either(
    store: Path, workdir: Path, *, remounted: bool
) -> None:
    """Remounted read-write, the kernel lets the calls through, and ckfs refuses them."""
    with mounted(store, workdir / "mount") as mount:
        for name in ("set", "followed", "empty"):
            as_user(ALICE, os.mkdir, mount.path / name)
        as_user(ALICE, write_file, str(mount.path / "file"))
    link = store / "names" / "followed"  # given to Bob by a mount that died before the files followed
    target = os.readlink(link).replace(f"{ALICE}.{ALICE}", f"{BOB}.{BOB}", 1)
    link.unlink()
    link.symlink_to(target)
    before = listing(store)
    with mounted(store, workdir / "mount", options=["ro"]) as mount:
        top = mount.path
        if remounted:
            subprocess.run(["mount", "-i", "-o", "remount,rw", str(top)], check=True)
        for call in (
            lambda: os.chown(top / "set", BOB, BOB),
            lambda: os.chown(top / "followed", ALICE, ALICE),
            lambda: os.chown(top / "file", BOB, BOB),
            lambda: os.rename(top / "set", top / "renamed"),
            lambda: os.rename(top / "followed", top / "renamed"),
            lambda: os.rename(top / "set", top / "empty"),
            lambda: os.link(top / "file", top / "other"),
            lambda: os.mkdir(top / "new"),
            lambda: os.unlink(top / "file"),
            lambda: os.rmdir(top / "empty"),
        ):
            assert errno_of_call(call) == errno.EROFS
        assert (top / "file").read_bytes() == b"image"
        assert os.listdir(top / "followed") == []
    assert listing(store) == before


def test_a_policy_is_taken_up_live_and_a_broken_one_is_refused(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "mount", may_log=[r"policy refused"]) as mount:
        assert errno_as(ALICE, os.mkdir, mount.path / "1.CK") != 0
        write_policy(store, '[sets]\nbatch = ["*.BATCH"]\n')
        until(lambda: errno_as(ALICE, os.mkdir, mount.path / "1.CK") == 0, "the new policy is not in force")
        assert errno_as(ALICE, os.mkdir, mount.path / "1.BATCH") != 0

        write_policy(store, "[sets]\nbatch = []\nfrobnicate = 1\n")
        until(lambda: "policy refused" in mount.log(), "a broken policy is not logged")
        refused = [line for line in mount.log().splitlines() if "policy refused" in line]
        assert len(refused) == 1
        assert "sets.frobnicate" in refused[0]
        assert errno_as(ALICE, os.mkdir, mount.path / "2.BATCH") != 0
        assert errno_as(ALICE, os.mkdir, mount.path / "2.CK") == 0
