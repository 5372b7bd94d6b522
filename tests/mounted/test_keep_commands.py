"""``ckfs release``, ``protect`` and ``pin``."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from errno import EACCES, EINVAL, EPERM
from pathlib import Path

import pytest

from tests.support.mounting import Mount, make_store, mounted, run_ckfs
from tests.support.users import ALICE, BOB, ROOT, as_user, errno_as

pytestmark = pytest.mark.root

CONTENT = b"an image"
_numbers = itertools.count(100)


@pytest.fixture(scope="module")
def shared(root_and_fuse: None, module_workdir: Path) -> Iterator[Mount]:
    private = module_workdir / "private"
    private.mkdir(mode=0o700)
    with mounted(make_store(private), module_workdir / "mount") as mount:
        yield mount


@pytest.fixture
def batch(shared: Mount) -> str:
    """A batch set of this test with three checkpoints: an image, a directory, an image."""
    path = f"{shared.path}/{next(_numbers)}.server.CK"
    os.mkdir(path, 0o755)
    os.chown(path, ALICE, ALICE)
    as_user(ALICE, save, f"{path}/one")
    as_user(ALICE, os.mkdir, f"{path}/two")
    as_user(ALICE, save, f"{path}/two/core.img")
    as_user(ALICE, save, f"{path}/three")
    return path


def save(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o400)
    try:
        os.write(fd, CONTENT)
    finally:
        os.close(fd)


def run_as(uid: int, *arguments: str) -> tuple[int, str, str]:
    """A command as *uid*, who cannot read root's Python: ckfs is called within a child of this process."""

    def call() -> tuple[int, str, str]:
        import contextlib
        import io

        from ckfs.cli.main import main

        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(list(arguments))
        return status, out.getvalue(), err.getvalue()

    return as_user(uid, call)


def protected(path: str) -> bytes:
    return os.getxattr(path, "user.ckfs.protected")


def test_root_releases_an_image(batch: str) -> None:
    assert errno_as(ALICE, os.unlink, f"{batch}/three") == EACCES
    done = run_ckfs("release", f"{batch}/three")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{batch}/three: released: its owner, and root on any node, may remove it now\n"
    assert errno_as(ALICE, os.unlink, f"{batch}/two/core.img") == EACCES
    as_user(ALICE, os.unlink, f"{batch}/three")


def test_root_releases_a_set(batch: str) -> None:
    assert run_ckfs("release", batch).returncode == 0
    assert protected(batch) == b"no"
    as_user(ALICE, lambda: subprocess.run(["rm", "-r", batch], check=False))
    assert not os.path.exists(batch)


def test_a_file_inside_stands_for_its_checkpoint(batch: str) -> None:
    assert run_ckfs("release", f"{batch}/two/core.img").returncode == 0
    as_user(ALICE, os.unlink, f"{batch}/two/core.img")
    as_user(ALICE, os.rmdir, f"{batch}/two")


def test_a_release_is_ended(batch: str) -> None:
    assert run_ckfs("release", f"{batch}/three").returncode == 0
    done = run_ckfs("protect", f"{batch}/three")
    assert done.stdout == f"{batch}/three: protected: one of the 2 newest complete checkpoints\n"
    assert errno_as(ALICE, os.unlink, f"{batch}/three") == EACCES


def test_what_the_rule_does_not_protect_is_said(batch: str) -> None:
    done = run_ckfs("protect", f"{batch}/one")
    assert done.returncode == 0
    assert "not protected by the rule" in done.stdout


def test_an_image_of_a_released_set_is_not_protected_alone(batch: str) -> None:
    assert run_ckfs("release", batch).returncode == 0
    done = run_ckfs("protect", f"{batch}/three")
    assert done.returncode == 1
    assert "its set is released" in done.stderr
    assert run_ckfs("protect", batch).returncode == 0
    assert errno_as(ALICE, os.unlink, f"{batch}/three") == EACCES


def test_an_owner_pins_and_ends_it(batch: str) -> None:
    status, out, err = run_as(ALICE, "pin", f"{batch}/one")
    assert (status, err) == (0, "")
    assert "pinned" in out
    for uid in (ALICE, ROOT):
        assert errno_as(uid, os.unlink, f"{batch}/one") == EACCES
    assert protected(f"{batch}/one") == b"pinned"
    status, out, err = run_as(ALICE, "pin", "--undo", f"{batch}/one")
    assert (status, err) == (0, "")
    as_user(ALICE, os.unlink, f"{batch}/one")


def test_a_pinned_set_keeps_all_in_it(batch: str) -> None:
    assert run_as(ALICE, "pin", batch)[0] == 0
    assert errno_as(ALICE, os.unlink, f"{batch}/one") == EACCES
    status, _, err = run_as(ALICE, "pin", "--undo", f"{batch}/one")
    assert status == 2
    assert "undo that of the set" in err
    assert run_as(ALICE, "pin", "--undo", batch)[0] == 0
    as_user(ALICE, os.unlink, f"{batch}/one")


def test_what_is_not_pinned_is_not_unpinned(batch: str) -> None:
    assert run_as(ALICE, "pin", "--undo", f"{batch}/one")[0] == 2


def test_several_are_done_although_one_fails(batch: str) -> None:
    done = run_ckfs("release", f"{batch}/one", f"{batch}/none", f"{batch}/three")
    assert done.returncode == 2
    assert done.stderr == f"ckfs: {batch}/none: there is no such set or image\n"
    assert len(done.stdout.splitlines()) == 2
    as_user(ALICE, os.unlink, f"{batch}/three")


@pytest.mark.parametrize("command", ["release", "protect"])
def test_users_neither_release_nor_protect(batch: str, command: str) -> None:
    status, out, err = run_as(ALICE, command, f"{batch}/three")
    assert (status, out) == (5, "")
    assert "only root" in err
    assert errno_as(ALICE, os.setxattr, batch, "user.ckfs.keep", b"released/three") == EPERM
    assert errno_as(ALICE, os.unlink, f"{batch}/three") == EACCES


@pytest.mark.parametrize("undo", [(), ("--undo",)])
def test_others_pin_nothing(batch: str, undo: tuple[str, ...]) -> None:
    run_ckfs("pin", f"{batch}/three")
    status, out, err = run_as(BOB, "pin", *undo, f"{batch}/three")
    assert (status, out) == (5, "")
    assert len(err.splitlines()) == 1
    assert protected(f"{batch}/three") == b"pinned"


def test_only_batch_sets_have_what_is_kept(shared: Mount) -> None:
    path = f"{shared.path}/own"
    as_user(ALICE, os.mkdir, path)
    for command in ("release", "protect", "pin"):
        done = run_ckfs(command, path)
        assert done.returncode == 2
        assert "not in a batch set" in done.stderr


@pytest.mark.parametrize("path", ["/tmp", "/nowhere/at/all", "/"])
def test_only_mounts_have_sets(path: str) -> None:
    for command in ("release", "protect", "pin"):
        done = run_ckfs(command, path)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1


def test_the_mount_itself_is_no_set(shared: Mount) -> None:
    assert run_ckfs("pin", shared.path).returncode == 2


@pytest.mark.parametrize("name", ["../x", "two/core.img", ".", "..", "\udcff/../.."])
def test_no_way_leads_out_of_the_set(batch: str, name: str) -> None:
    for uid in (ALICE, ROOT):
        assert errno_as(uid, os.setxattr, batch, "user.ckfs.keep", b"pinned/" + os.fsencode(name)) == EINVAL


@pytest.mark.parametrize("value", [b"kept", b"PINNED", b"pinned ", b"\xff"])
def test_other_words_are_refused(batch: str, value: bytes) -> None:
    assert errno_as(ALICE, os.setxattr, batch, "user.ckfs.keep", value) == EINVAL


def test_a_link_to_a_checkpoint_leads_nowhere(batch: str, workdir: Path) -> None:
    """But one to its set's directory does."""
    (workdir / "link").symlink_to(f"{batch}/three")
    (workdir / "sets").symlink_to(batch)
    assert run_ckfs("release", workdir / "link").returncode == 2
    assert run_ckfs("release", workdir / "sets" / "three").returncode == 0
    as_user(ALICE, os.unlink, f"{batch}/three")


def test_what_was_said_survives_a_remount(store: Path, workdir: Path) -> None:
    for turn in range(2):
        with mounted(store, workdir / "mount") as mount:
            path = f"{mount.path}/1.CK"
            if not turn:
                os.mkdir(path)
                os.chown(path, ALICE, ALICE)
                for name in ("one", "two", "three"):
                    as_user(ALICE, save, f"{path}/{name}")
                assert run_ckfs("pin", f"{path}/one").returncode == 0
            else:
                assert errno_as(ALICE, os.unlink, f"{path}/one") == EACCES


def test_pinning_says_so_where_the_owner_is_at_a_limit(shared: Mount, batch: str) -> None:
    used = int(as_user(ALICE, os.getxattr, batch, "user.ckfs.quota.used"))
    limit = used - used % 4096
    assert run_ckfs("quota", "set", str(ALICE), "--soft", str(limit), "--store", shared.store).returncode == 0
    try:
        status, out, err = run_as(ALICE, "pin", f"{batch}/three")
    finally:
        assert run_ckfs("quota", "set", str(ALICE), "--soft", "none", "--store", shared.store).returncode == 0
    assert (status, err) == (0, "")
    assert "his soft limit of" in out
    assert "does not give way, so he has to remove something" in out
    assert "limit" not in run_as(ALICE, "pin", f"{batch}/two")[1]
