"""``ckfs verify`` and ``ckfs scrub``: a byte that flips in the store is found, named and marked; nothing else is."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import xxhash

from ckfs.cli import verify as _imported_before_another_user_needs_it  # noqa: F401 - its name says why
from tests.support.faultfs import FaultStore, fault_store
from tests.support.mounting import Mount, command, environment, make_store, mounted, run_ckfs
from tests.support.users import ALICE, BOB, as_user, errno_as

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

WITHIN_S = 30.0
DAMAGED, USAGE, STORE, RIGHTS = 1, 2, 3, 5
"""Exit statuses of docs/commands.md."""
SET = "12.server.CK"
IMAGE = f"{SET}/ckpt.12.server.1700000000"
CONTENT = b"image" * 300_000
NOT_OPENED = [r"is damaged: not opened"]


def attribute(path: Path, name: str) -> str | None:
    """What the mount says of it; None for ENODATA."""
    try:
        return os.getxattr(path, f"user.ckfs.{name}").decode()
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return None


def digest(path: Path) -> str:
    """Once it is there."""
    deadline = time.monotonic() + WITHIN_S
    while (value := attribute(path, "digest")) is None:
        assert time.monotonic() < deadline, f"{path} gets no digest"
        time.sleep(0.02)
    return value


def of(content: bytes) -> str:
    return f"xxh3-128:{xxhash.xxh3_128_hexdigest(content)}"


def flip(store: Path, path: str, at: int = 1_000_000) -> None:
    """A byte of the store's file, as a bad disk does it: nobody is told, and the times are what they were."""
    file = store / "users" / str(ALICE) / path
    before = file.stat()
    with file.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte[0] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def forget(file: Path) -> None:
    """What this host's memory has of it, so that the store is asked."""
    fd = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


@pytest.fixture
def mount(store: Path, workdir: Path) -> Iterator[Mount]:
    """A node with a batch set of Alice's that has one complete image."""
    with mounted(store, workdir / "mount", node="tqn1", may_log=NOT_OPENED) as running:
        make_image(running)
        yield running


def in_order(path: Path) -> None:
    path.write_bytes(CONTENT)


def back_to_front(path: Path) -> None:
    half = len(CONTENT) // 2
    with path.open("wb") as image:
        for at in (half, 0):
            image.seek(at)
            image.write(CONTENT[at : at + half])


def make_image(mount: Mount, write: Callable[[Path], None] = in_order) -> None:
    top = mount.path / SET
    top.mkdir()
    os.chown(top, ALICE, ALICE)
    as_user(ALICE, write, mount.path / IMAGE)


def run(*arguments: str | Path, status: int = 0) -> str:
    done = run_ckfs(*arguments)
    assert (done.returncode, done.stderr) == (status, ""), done.stdout + done.stderr
    return done.stdout


def last_line(text: str) -> str:
    return text.splitlines()[-1]


# Made behind the writer


@contextlib.contextmanager
def nobody_may_read(workdir: Path) -> Iterator[tuple[Mount, FaultStore]]:
    """A mount whose store lets nobody read a file."""
    private = workdir / "private"
    private.mkdir(mode=0o700)
    with fault_store(private) as faults:
        store = make_store(faults.path)
        with mounted(store, workdir / "mount") as mount:
            faults.hang("read", path="users/")
            yield mount, faults


def test_close_does_not_wait_for_the_digest(root_and_fuse: None, workdir: Path) -> None:
    """The image is closed and complete; it has its digest once it can be read."""
    with nobody_may_read(workdir) as (mount, faults):
        make_image(mount, back_to_front)
        assert attribute(mount.path / IMAGE, "state") == "complete"
        faults.hanging("read", within=WITHIN_S)
        assert attribute(mount.path / IMAGE, "digest") is None
        assert attribute(mount.path / IMAGE, "state") == "complete"
        faults.release()
        assert digest(mount.path / IMAGE) == of(CONTENT)


def test_what_is_written_in_order_is_not_read_for_its_digest(root_and_fuse: None, workdir: Path) -> None:
    with nobody_may_read(workdir) as (mount, faults):
        make_image(mount)
        assert digest(mount.path / IMAGE) == of(CONTENT)
        faults.release()


def test_the_attribute_is_read_and_neither_set_nor_listed(mount: Mount) -> None:
    path = mount.path / IMAGE
    assert digest(path) == of(CONTENT)
    for uid in (0, ALICE):
        assert errno_as(uid, os.setxattr, path, "user.ckfs.digest", b"1") == errno.EPERM
        assert errno_as(uid, os.removexattr, path, "user.ckfs.digest") == errno.EPERM
    assert os.listxattr(path) == []
    raw = os.getxattr(mount.store / "users" / str(ALICE) / IMAGE, "user.ckfs.digest")
    assert raw.startswith(b"1;a=xxh3-128;h=")
    assert attribute(mount.path / SET, "digest") is None


def test_a_mount_that_is_killed_leaves_the_rest_to_a_scrub(store: Path, workdir: Path) -> None:
    with mounted(store, workdir / "mount") as mount:
        make_image(mount)
        mount.kill()
    counts = json.loads(run("scrub", store, "--json"))
    assert counts["digest_made"] + counts["verified"] == 1  # should it have been made in that moment
    assert last_line(run("scrub", store)) == "1 verified, 0 damaged, 0 without digest, 0 unreadable"
    with mounted(store, workdir / "mount") as mount:
        assert attribute(mount.path / IMAGE, "digest") == of(CONTENT)


# Damage


def names_all(line: str) -> None:
    """One line with all that an admin needs."""
    for said in ("damaged: ", IMAGE, f"of {ALICE}", "written by tqn1", "completed 20"):
        assert said in line, line


def test_a_user_finds_damage_and_marks_nothing(mount: Mount) -> None:
    digest(mount.path / IMAGE)
    assert as_user(ALICE, lambda: last_line(run("verify", mount.path))).startswith("1 verified, 0 damaged")
    flip(mount.store, IMAGE)
    line, counts = as_user(ALICE, lambda: run("verify", mount.path, status=DAMAGED)).splitlines()
    names_all(line)
    assert "not marked" in line
    assert counts == "0 verified, 1 damaged, 0 without digest, 0 unreadable"
    assert attribute(mount.path / IMAGE, "state") == "complete"
    assert as_user(BOB, lambda: last_line(run("verify", mount.path))).startswith("0 verified, 0 damaged")


@pytest.mark.parametrize("by", ["verify", "scrub"])
def test_root_marks_what_is_damaged_until_it_is_written_anew(mount: Mount, by: str) -> None:
    path = mount.path / IMAGE
    digest(path)
    flip(mount.store, IMAGE)
    where = path if by == "verify" else mount.store
    line, counts = run(by, where, status=DAMAGED).splitlines()
    names_all(line)
    assert counts == "0 verified, 1 damaged, 0 without digest, 0 unreadable"
    assert attribute(path, "state") == "partial"
    assert (attribute(path, "damaged") or "").startswith("20")
    assert errno_as(ALICE, path.read_bytes) == errno.EIO
    assert as_user(ALICE, lambda: run("verify", path, status=DAMAGED)).count("damaged: ") == 1  # still
    as_user(ALICE, lambda: path.write_bytes(CONTENT[::-1]))
    assert attribute(path, "state") == "complete"
    assert attribute(path, "damaged") is None
    assert as_user(ALICE, path.read_bytes) == CONTENT[::-1]
    assert digest(path) == of(CONTENT[::-1])
    if by == "scrub":  # what it was before is in the trash, for a while
        assert "in the trash)" in run("scrub", where, status=DAMAGED).splitlines()[0]
        run("trash", "purge", "--all", "--store", where)
    assert last_line(run(by, where)).startswith("1 verified, 0 damaged")


def test_a_scrub_looks_into_the_trash_too(mount: Mount) -> None:
    path = mount.path / "mine"
    as_user(ALICE, lambda: path.write_bytes(CONTENT))
    digest(path)
    digest(mount.path / IMAGE)
    as_user(ALICE, path.unlink)
    [token] = os.listdir(mount.store / "trash" / str(ALICE))
    flip(mount.store, f"../../trash/{ALICE}/{token}")
    line, counts = run("scrub", mount.store, status=DAMAGED).splitlines()
    assert f"damaged: mine (item {token} in the trash), of {ALICE}, written by tqn1" in line
    assert counts == "1 verified, 1 damaged, 0 without digest, 0 unreadable"


def test_what_the_store_cannot_read_is_unreadable_and_not_marked(root_and_fuse: None, workdir: Path) -> None:
    private = workdir / "private"
    private.mkdir(mode=0o700)
    with fault_store(private) as faults:
        store = make_store(faults.path)
        with mounted(store, workdir / "mount", node="tqn1") as mount:
            make_image(mount)
            digest(mount.path / IMAGE)
            faults.fail("read", errno.EIO, path="users/")
            for word, where in (("verify", mount.path), ("scrub", store)):
                forget(store / "users" / str(ALICE) / IMAGE)
                line, counts = run(word, where, status=DAMAGED).splitlines()
                assert line.startswith(f"unreadable: {IMAGE}, of {ALICE}, ")
                assert counts == "0 verified, 0 damaged, 0 without digest, 1 unreadable"
            faults.clear()
            assert attribute(mount.path / IMAGE, "state") == "complete"
            assert last_line(run("verify", mount.path / SET)).startswith("1 verified, 0 damaged")


def test_json_says_the_same(mount: Mount) -> None:
    digest(mount.path / IMAGE)
    flip(mount.store, IMAGE)
    said = json.loads(run("verify", mount.path, "--json", status=DAMAGED))
    [image] = said.pop("images")
    assert said["damaged"] == 1
    assert image["result"] == "damaged"
    assert f"{image['set']}/{image['image']}" == IMAGE
    assert (image["uid"], image["written_by"]) == (ALICE, "tqn1")


# States


def test_what_nobody_knows_is_accepted_by_root_and_older_than_the_rest(mount: Mount) -> None:
    as_user(ALICE, lambda: (mount.path / SET / "second").write_bytes(b"second"))
    for number, name in enumerate(["later", "earlier"]):
        file = mount.store / "users" / str(ALICE) / SET / name
        file.write_bytes(name.encode())
        os.chown(file, ALICE, ALICE)
        os.utime(file, (1000 - number, 1000 - number))
    later = mount.path / SET / "later"
    assert attribute(later, "state") == "unknown"
    assert "2 of unknown state" in last_line(run("verify", mount.path))
    assert as_user(ALICE, lambda: run_ckfs("verify", "--accept", later).returncode) == RIGHTS
    assert run_ckfs("verify", "--accept").returncode == USAGE
    lines = run("verify", "--accept", mount.path / SET).splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"accepted: {SET}/earlier",
        f"accepted: {SET}/later",
        "2 accepted",
    ]
    assert attribute(later, "state") == "complete"
    assert attribute(later, "digest") == of(b"later")
    as_user(ALICE, lambda: (mount.path / SET / "third").write_bytes(b"third"))
    states = {name: attribute(mount.path / SET / name, "state") for name in os.listdir(mount.path / SET)}
    assert states == {
        "earlier": "superseded",
        "later": "superseded",
        IMAGE.rpartition("/")[2]: "superseded",
        "second": "complete",
        "third": "complete",
    }


def test_only_the_file_that_is_named_is_accepted(mount: Mount) -> None:
    for name in ("one", "one.more"):
        file = mount.store / "users" / str(ALICE) / SET / name
        file.write_bytes(b"content")
        os.chown(file, ALICE, ALICE)
    assert last_line(run("verify", "--accept", mount.path / SET / "one")) == "1 accepted"
    assert attribute(mount.path / SET / "one.more", "state") == "unknown"


# Commands


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["verify", "/"], USAGE),
        (["verify", "/nonexistent"], USAGE),
        (["verify", "--accept", "/"], USAGE),
        (["scrub"], USAGE),
        (["scrub", "/nonexistent"], STORE),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], status: int) -> None:
    done = run_ckfs(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (status, "", 1)
    assert done.stderr.startswith("ckfs: ")


def test_a_user_scrubs_no_store(store: Path) -> None:
    assert as_user(ALICE, lambda: run_ckfs("scrub", store).returncode) == RIGHTS


def test_progress_is_for_a_terminal(mount: Mount) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        done = subprocess.run(
            command("scrub", mount.store),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=theirs,
            check=True,
        )
        os.close(theirs)
        shown = terminal.read(4096)
    assert b"images, " in shown
    assert IMAGE.encode() in shown
    assert done.stdout.count(b"\n") == 1
