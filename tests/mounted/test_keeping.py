"""What owners remove, replace or overwrite goes to the trash first, and comes back from there byte for byte."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.agents import Agent
from tests.support.mounting import Mount, make_store, mounted, run_ckfs
from tests.support.users import ALICE, as_user

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

OLD, NEW = b"the first content", b"the second, which is longer"
MIB = 1 << 20


@pytest.fixture
def work(mount: Mount) -> Path:
    """A set of Alice's with one complete image."""
    path = mount.path / "work"

    def make() -> None:
        path.mkdir(0o700)
        write(path / "image", OLD)

    as_user(ALICE, make)
    return path


def write(path: Path, content: bytes) -> None:
    """As cp and CRIU do: O_WRONLY, O_CREAT and O_TRUNC."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(fd, content)
    os.close(fd)


def listed(mount: Mount) -> list[dict[str, object]]:
    done = run_ckfs("trash", "ls", "--json", "--store", mount.path)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, object]] = json.loads(done.stdout)
    return rows


def restore(mount: Mount, *arguments: str) -> None:
    done = run_ckfs("trash", "restore", *arguments, "--store", mount.path)
    assert done.returncode == 0, done.stderr


def replaced_by_rename(image: Path) -> None:
    write(image.with_name("other"), NEW)
    os.rename(image.with_name("other"), image)


def emptied_by_handle(image: Path) -> None:
    fd = os.open(image, os.O_RDWR)
    os.ftruncate(fd, 0)
    os.write(fd, NEW)
    os.close(fd)


WAYS: dict[str, Callable[[Path], object]] = {
    "unlink": os.unlink,
    "rename over": replaced_by_rename,
    "O_TRUNC": lambda image: write(image, NEW),
    "truncate": lambda image: os.truncate(image, 0),
    "ftruncate": emptied_by_handle,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_complete_image_goes_to_the_trash_first(mount: Mount, work: Path, way: str) -> None:
    as_user(ALICE, WAYS[way], work / "image")
    (row,) = listed(mount)
    assert (row["set"], row["path"], row["removed_by_uid"], row["owner"]) == (
        "work",
        "image",
        ALICE,
        str(ALICE),
    )
    assert (row["state"], row["size_bytes"], row["damaged"]) == ("complete", len(OLD), None)
    restore(mount, str(row["item"]), "--to", "back")
    assert as_user(ALICE, (mount.path / "back" / "image").read_bytes) == OLD
    assert os.getxattr(mount.path / "back" / "image", "user.ckfs.state") == b"complete"


@pytest.mark.parametrize("way", ["O_TRUNC", "truncate", "ftruncate"])
def test_an_image_that_is_overwritten_stays_the_same_file(mount: Mount, work: Path, way: str) -> None:
    image = work / "image"

    def prepare() -> None:
        os.chmod(image, 0o640)
        os.setxattr(image, "user.note", b"mine")

    as_user(ALICE, prepare)
    before = os.stat(image)
    as_user(ALICE, WAYS[way], image)
    after = os.stat(image)
    assert (after.st_ino, after.st_mode, after.st_uid, after.st_nlink) == (
        before.st_ino,
        before.st_mode,
        ALICE,
        1,
    )
    assert os.getxattr(image, "user.note") == b"mine"
    restore(mount, str(listed(mount)[0]["item"]), "--to", "back")
    assert os.stat(mount.path / "back" / "image").st_ino != after.st_ino


def test_who_has_it_open_sees_the_file_emptied_and_written_anew(mount: Mount, work: Path) -> None:
    with Agent(ALICE) as reader:
        fd = reader.do(os.open, work / "image", os.O_RDONLY)
        assert reader.do(os.pread, fd, 100, 0) == OLD
        as_user(ALICE, write, work / "image", NEW)
        assert reader.do(os.pread, fd, 100, 0) == NEW
        reader.do(os.close, fd)


def test_what_is_open_and_removed_has_no_name_for_its_holder(mount: Mount, work: Path) -> None:
    with Agent(ALICE) as holder:
        fd = holder.do(os.open, work / "image", os.O_RDONLY)
        as_user(ALICE, os.unlink, work / "image")
        assert holder.do(os.fstat, fd).st_nlink == 0
        assert holder.do(os.pread, fd, 100, 0) == OLD
        holder.do(os.close, fd)


def test_a_dump_into_the_same_directory_leaves_the_first_one_to_be_restored_as_a_whole(
    mount: Mount, work: Path
) -> None:
    names = [f"core-{number}.img" for number in range(12)]

    def dump(content: bytes) -> None:
        for name in names:
            write(work / "dump" / name, content + name.encode())

    as_user(ALICE, os.mkdir, work / "dump")
    as_user(ALICE, dump, OLD)
    as_user(ALICE, dump, NEW)
    restore(mount, "--set", "work", "--to", "first")
    for name in names:
        assert as_user(ALICE, (work / "dump" / name).read_bytes) == NEW + name.encode()
        assert as_user(ALICE, (mount.path / "first" / "dump" / name).read_bytes) == OLD + name.encode()


def test_what_is_no_complete_image_is_removed_at_once(mount: Mount, work: Path) -> None:
    def remove() -> None:
        write(work / "unfinished.tmp", OLD)
        write(work / "empty", b"")
        write(work / "one", OLD)
        os.link(work / "one", work / "two")
        os.symlink("one", work / "link")
        for name in ("unfinished.tmp", "empty", "two", "link"):
            os.unlink(work / name)

    as_user(ALICE, remove)
    assert listed(mount) == []
    assert as_user(ALICE, (work / "one").read_bytes) == OLD


def test_a_rename_that_fails_leaves_nothing_in_the_trash(mount: Mount, work: Path) -> None:
    def fail() -> None:
        (work / "directory").mkdir()
        with contextlib.suppress(IsADirectoryError, NotADirectoryError):
            os.rename(work / "directory", work / "image")

    as_user(ALICE, fail)
    assert listed(mount) == []
    assert as_user(ALICE, (work / "image").read_bytes) == OLD


def test_a_set_that_is_a_file_comes_back_under_its_name(mount: Mount) -> None:
    image = mount.path / "single"
    as_user(ALICE, write, image, OLD)
    as_user(ALICE, os.unlink, image)
    (row,) = listed(mount)
    restore(mount, str(row["item"]))
    assert as_user(ALICE, image.read_bytes) == OLD
    assert os.stat(image).st_uid == ALICE


@contextlib.contextmanager
def on_tmpfs(workdir: Path, limit: str) -> Iterator[Path]:
    """A store on a file system of its own."""
    private = workdir / "small"
    private.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"{limit},mode=0700", "ckfs-test", private], check=True)
    try:
        yield make_store(private)
    finally:
        subprocess.run(["umount", private], check=True)


@pytest.fixture
def small(workdir: Path) -> Iterator[Path]:
    """A store on a file system of 8 MiB."""
    with on_tmpfs(workdir, "size=8m") as store:
        yield store


@pytest.fixture
def few_files(workdir: Path) -> Iterator[Path]:
    """A store on a file system that takes 48 files and directories."""
    with on_tmpfs(workdir, "nr_inodes=48") as store:
        yield store


def test_the_trash_gives_way_to_a_writer_who_needs_room(small: Path, workdir: Path) -> None:
    with mounted(small, workdir / "mount", node="a") as mount:
        work = mount.path / "work"
        as_user(ALICE, os.mkdir, work)
        as_user(ALICE, write, work / "old", bytes(5 * MIB))
        as_user(ALICE, os.unlink, work / "old")
        assert len(listed(mount)) == 1
        as_user(ALICE, write, work / "new", b"x" * (5 * MIB))
        assert as_user(ALICE, os.path.getsize, work / "new") == 5 * MIB
        assert listed(mount) == []


def test_the_trash_gives_way_to_one_who_makes_a_file_where_no_more_fit(
    few_files: Path, workdir: Path
) -> None:
    with mounted(few_files, workdir / "mount", node="a") as mount:
        work = mount.path / "work"
        as_user(ALICE, os.mkdir, work)
        for number in range(200):
            as_user(ALICE, write, work / f"image.{number}", OLD)
            as_user(ALICE, os.unlink, work / f"image.{number}")
        as_user(ALICE, write, mount.path / "set", OLD)
        assert as_user(ALICE, (mount.path / "set").read_bytes) == OLD


def test_without_a_retention_time_nothing_is_kept(workdir: Path) -> None:
    private = workdir / "private"
    private.mkdir(mode=0o700)
    store = make_store(private)
    policy = store / "policy.toml"
    policy.write_text(policy.read_text().replace("retention_days = 7.0", "retention_days = 0"))
    with mounted(store, workdir / "mount", node="a") as mount:
        as_user(ALICE, write, mount.path / "single", OLD)
        as_user(ALICE, os.unlink, mount.path / "single")
        assert listed(mount) == []
