"""``ckfs prepare``: the directory under the mount changes its owner, whatever is mounted over it and in whatever state."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckfs.cli.prepare import BEFORE, NOBODY, prepare
from ckfs.errors import MountRefused, NotPermitted
from tests.support.mounting import Mount

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]
DETACH = 2  # MNT_DETACH of umount2(2)


def mount_over(directory: Path, kind: str, options: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"test", os.fsencode(directory), kind.encode(), 0, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), f"mount {directory}")


def umount(directory: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    while libc.umount2(os.fsencode(directory), DETACH) == 0:
        pass


@contextlib.contextmanager
def silent_mount(directory: Path) -> Iterator[int]:
    """A FUSE mount whose daemon never answers: calls on it hang. Closing the descriptor makes it a dead one."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    mount_over(directory, "fuse.ckfs", f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other")
    try:
        yield device
    finally:
        with contextlib.suppress(OSError):
            os.close(device)
        umount(directory)


@pytest.fixture
def directory(workdir: Path) -> Path:
    made = workdir / "check point"
    made.mkdir(mode=0o750)
    os.chown(made, 3, 4)
    return made


def owner_of(directory: Path) -> tuple[int, int, int]:
    found = directory.stat()
    return found.st_uid, found.st_gid, found.st_mode & 0o7777


def test_the_directory_changes_its_owner_and_nothing_else(directory: Path) -> None:
    prepare(str(directory), undo=False)
    assert owner_of(directory) == (NOBODY, 4, 0o750)


def test_undo_gives_it_back(directory: Path) -> None:
    prepare(str(directory), undo=False)
    prepare(str(directory), undo=True)
    assert owner_of(directory) == (3, 4, 0o750)
    assert BEFORE not in os.listxattr(directory)


def test_a_second_time_keeps_the_first_owner_in_mind(directory: Path) -> None:
    prepare(str(directory), undo=False)
    assert "already" in prepare(str(directory), undo=False)
    prepare(str(directory), undo=True)
    assert owner_of(directory) == (3, 4, 0o750)


def test_undo_without_prepare_changes_nothing(directory: Path) -> None:
    assert "nothing to undo" in prepare(str(directory), undo=True)
    assert owner_of(directory) == (3, 4, 0o750)


def test_undo_of_an_unknown_owner_is_root(directory: Path) -> None:
    os.chown(directory, NOBODY, 4)
    prepare(str(directory), undo=True)
    assert owner_of(directory) == (0, 0, 0o750)


def test_a_path_may_be_relative_or_end_in_slashes(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory.parent)
    prepare(directory.name, undo=False)
    assert owner_of(directory)[0] == NOBODY
    prepare(f"{directory}//", undo=True)
    assert owner_of(directory)[0] == 3


def test_what_is_mounted_over_it_stays_untouched(directory: Path) -> None:
    mount_over(directory, "tmpfs", "uid=7,gid=8,mode=0700")
    mount_over(directory, "tmpfs", "uid=9,gid=10,mode=0711")
    try:
        (directory / "file").touch()
        assert "under the mounted tmpfs, tmpfs" in prepare(str(directory), undo=False)
        assert owner_of(directory) == (9, 10, 0o711)
        assert (directory / "file").exists()
    finally:
        umount(directory)
    assert owner_of(directory) == (NOBODY, 4, 0o750)


def test_undo_works_under_a_mount(directory: Path) -> None:
    prepare(str(directory), undo=False)
    mount_over(directory, "tmpfs", "")
    try:
        prepare(str(directory), undo=True)
    finally:
        umount(directory)
    assert owner_of(directory) == (3, 4, 0o750)


def test_it_works_under_ckfs(mount: Mount) -> None:
    before = owner_of(mount.path)
    assert "ckfs" in prepare(str(mount.path), undo=False)
    assert owner_of(mount.path) == before
    mount.umount()
    assert owner_of(mount.path)[0] == NOBODY


def test_a_hanging_mount_is_not_asked(directory: Path) -> None:
    with silent_mount(directory):
        assert "fuse.ckfs" in prepare(str(directory), undo=False)
    assert owner_of(directory)[0] == NOBODY


def test_a_dead_mount_is_not_asked(directory: Path) -> None:
    with silent_mount(directory) as device:
        os.close(device)
        with pytest.raises(OSError, match="Transport endpoint"):
            directory.stat()
        prepare(str(directory), undo=False)
    assert owner_of(directory)[0] == NOBODY


def test_entries_on_the_local_disk_are_counted_and_nothing_changes(directory: Path) -> None:
    for name in ("a", "b", ".c"):
        (directory / name).touch()
    mount_over(directory, "tmpfs", "")
    try:
        with pytest.raises(MountRefused, match=r"entries: 3, .*mount --bind"):
            prepare(str(directory), undo=False)
    finally:
        umount(directory)
    assert owner_of(directory) == (3, 4, 0o750)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("link", "symbolic link"),
        ("file", "not a directory"),
        ("missing", "No such file"),
        ("missing/below", "No such file"),
        (".", "by its own name"),
        ("..", "by its own name"),
    ],
)
def test_what_is_no_directory_is_refused(directory: Path, name: str, reason: str) -> None:
    (directory.parent / "link").symlink_to(directory)
    (directory.parent / "file").touch()
    with pytest.raises(MountRefused, match=reason):
        prepare(f"{directory.parent}/{name}", undo=False)
    assert owner_of(directory) == (3, 4, 0o750)


def test_the_root_directory_is_refused() -> None:
    with pytest.raises(MountRefused, match="by its own name"):
        prepare("/", undo=False)


def test_a_read_only_file_system_is_named(directory: Path) -> None:
    subprocess.run(["mount", "--bind", directory.parent, directory.parent], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", directory.parent], check=True)
        with pytest.raises(NotPermitted, match="Read-only file system"):
            prepare(str(directory), undo=False)
    finally:
        subprocess.run(["umount", directory.parent], check=True)


def test_users_are_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NotPermitted, match="only root"):
        prepare(str(directory), undo=False)
    assert owner_of(directory) == (3, 4, 0o750)
