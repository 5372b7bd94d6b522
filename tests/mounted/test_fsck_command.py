"""``ckfs fsck`` as an admin runs it: its statuses, its output, and that it mends nothing under a mount that lives."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ckfs.fs.liveness import registration_here
from ckfs.names import MountId
from ckfs.store.checking.findings import Kind
from ckfs.store.mounts import encode
from tests.support.faultfs import fault_store
from tests.support.mounting import Mount, command, environment, make_store, mounted, run_ckfs
from tests.support.users import ALICE, as_user

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

LEASE_S = 0.4
OTHER = MountId(b"0123456789abcdef")


@pytest.fixture
def damaged(store: Path, workdir: Path) -> Path:
    """A store that nobody has mounted, with a set that has lost its name."""
    with mounted(store, workdir / "first") as mount:
        (mount.path / "set").mkdir()
        (mount.path / "set/image").write_bytes(b"image")
    policy = store / "policy.toml"
    policy.write_text(policy.read_text().replace("lease = 60.0", f"lease = {LEASE_S}"))
    (store / "names/set").unlink()
    return store


def fsck(store: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run_ckfs("fsck", store, *options)


def write_beat(store: Path, beat: int) -> None:
    """What a mount on another host writes: all at once, over what it wrote before."""
    other = replace(registration_here(b"far"), id=OTHER, boot=b"another", beat=beat)
    fd = os.open(store / "mounts" / os.fsdecode(OTHER), os.O_WRONLY | os.O_CREAT, 0o600)
    os.pwrite(fd, encode(other), 0)
    os.close(fd)


@contextlib.contextmanager
def beating(store: Path) -> Iterator[None]:
    """A mount on another host, which lives."""
    ended = threading.Event()

    def beat() -> None:
        number = 0
        while not ended.wait(LEASE_S / 8):
            number += 1
            write_beat(store, number)

    write_beat(store, 0)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_what_is_wrong_is_told_and_mended_if_asked(damaged: Path, workdir: Path) -> None:
    found = fsck(damaged)
    assert (found.returncode, found.stderr) == (1, "")
    assert found.stdout.splitlines() == [
        "error: users/0/set: no name leads to it [place-orphan]",
        "mended: 0; left: 1; notes: 0",
    ]
    mended = fsck(damaged, "--repair")
    assert (mended.returncode, mended.stderr) == (0, "")
    assert "mended: named set, of uid 0" in mended.stdout
    assert fsck(damaged).stdout == "mended: 0; left: 0; notes: 0\n"
    with mounted(damaged, workdir / "again") as mount:
        assert (mount.path / "set/image").read_bytes() == b"image"


def test_json(damaged: Path) -> None:
    found = fsck(damaged, "--json")
    assert found.returncode == 1
    assert json.loads(found.stdout) == [
        {
            "code": "place-orphan",
            "severity": "error",
            "path": "users/0/set",
            "finding": "no name leads to it",
            "detail": "",
            "mended": False,
            "done": "",
            "failure": "",
        }
    ]
    assert json.loads(fsck(damaged, "--json", "--repair").stdout)[0]["mended"] is True
    assert json.loads(fsck(damaged, "--json").stdout) == []


def test_nothing_is_mended_while_this_host_has_it_mounted(damaged: Path, workdir: Path) -> None:
    with mounted(damaged, workdir / "mount") as mount:
        refused = fsck(damaged, "--repair")
        assert (refused.returncode, refused.stdout) == (4, "")
        assert str(mount.path) in refused.stderr
        assert "--even-if-mounted" in refused.stderr
        assert fsck(damaged).returncode == 1, "looking is allowed"
        assert not os.path.lexists(damaged / "names/set")
        assert fsck(damaged, "--repair", "--even-if-mounted").returncode == 0
        assert (mount.path / "set/image").read_bytes() == b"image"


def test_nothing_is_mended_while_a_mount_runs_that_does_not_show_here(damaged: Path, workdir: Path) -> None:
    """In another mount namespace, as in a container: only its registration says so."""
    with mounted(damaged, workdir / "mount", node="here") as mount:
        script = 'umount -l "$0" && exec "$@"'
        refused = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, mount.path, *command("fsck", damaged, "--repair")],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    assert (refused.returncode, refused.stdout) == (4, "")
    assert re.search(r"mount [0-9a-f]{16} of node here is alive", refused.stderr)


def test_nothing_is_mended_while_a_mount_on_another_host_lives(damaged: Path) -> None:
    with beating(damaged):
        refused = fsck(damaged, "--repair")
        assert (refused.returncode, refused.stdout) == (4, "")
        assert (
            f"mount {OTHER.decode()} of node far is alive: umount it on all hosts, or give --even-if-mounted"
            in (refused.stderr)
        )
        assert not os.path.lexists(damaged / "names/set")
        assert fsck(damaged, "--repair", "--even-if-mounted").returncode == 0


def test_a_mount_that_is_silent_for_a_lease_is_taken_for_gone(damaged: Path) -> None:
    write_beat(damaged, 7)
    mended = fsck(damaged, "--repair")
    assert mended.returncode == 0
    assert f"mount {OTHER.decode()} of node far was silent for {LEASE_S:g} s" in mended.stderr
    assert (damaged / "mounts" / os.fsdecode(OTHER)).exists(), "it may come back: mounts end it, after a day"


def test_a_registration_of_a_mount_that_was_killed_here_keeps_nobody_waiting(
    damaged: Path, workdir: Path
) -> None:
    with mounted(damaged, workdir / "mount") as mount:
        mount.kill()
        subprocess.run(["umount", "--lazy", mount.path], check=True)
        mended = fsck(damaged, "--repair")
    assert (mended.returncode, mended.stderr) == (0, "")
    assert Kind.MOUNT_DEAD.code in mended.stdout


@pytest.mark.parametrize("what", ["missing", "empty", "file"])
def test_what_is_no_store_is_refused(what: str, workdir: Path) -> None:
    path = workdir / what
    if what == "empty":
        path.mkdir()
    elif what == "file":
        path.write_bytes(b"")
    refused = fsck(path, "--repair")
    assert (refused.returncode, refused.stdout) == (3, "")
    assert refused.stderr.count("\n") == 1


def test_a_mount_is_no_store(mount: Mount) -> None:
    refused = fsck(mount.path)
    assert refused.returncode == 2
    assert "name the store" in refused.stderr


def test_only_root_checks_a_store(store: Path) -> None:
    assert as_user(ALICE, lambda: fsck(store).returncode) == 5


def test_a_store_without_names_is_mended(damaged: Path) -> None:
    """As from a backup that has left it out: it cannot even be opened."""
    (damaged / "names").rmdir()
    assert fsck(damaged).returncode == 1
    assert fsck(damaged, "--repair").returncode == 0
    assert os.path.lexists(damaged / "names/set")


def test_what_the_store_does_not_let_it_read_is_named_and_the_rest_is_checked(workdir: Path) -> None:
    with fault_store(workdir) as faulty:
        store = make_store(faulty.path)
        with mounted(store, workdir / "mount", may_log=[r"users can reach the store"]) as mount:
            for name in ("one", "two"):
                (mount.path / name).mkdir()
                (mount.path / name / "image").write_bytes(b"image")
        os.removexattr(store / "users/0/two/image", "user.ckfs")
        faulty.fail("getxattr", errno.EIO, path="users/0/one/image")
        found = fsck(store, "--repair", "--even-if-mounted")
        faulty.clear()
        assert found.returncode == 1
        assert (
            "error: users/0/one/image: cannot be looked at (Input/output error) [unreadable]" in found.stdout
        )
        assert "users/0/two/image: nothing says whose it is, nor its mode and state: mended" in found.stdout
        assert (store / "users/0/one/image").read_bytes() == b"image"
        assert fsck(store).returncode == 0
