"""A store that becomes read-only under a mount, as file systems do that found an error, and as servers do: what writes is EROFS, all
else goes on, and so does everything once it can be written again."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.agents import Agent
from tests.support.faultfs import fault_store
from tests.support.loops import tmpfs
from tests.support.mounting import Mount, make_store, mounted, run_ckfs
from tests.support.users import ALICE, as_user, errno_as, errno_of_call

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

PATIENCE_S = 60.0
SET = "7.server.CK"


def remount(top: Path, how: str) -> None:
    """Again while somebody writes there: for a moment, a mount's beat."""
    eventually(
        lambda: (
            subprocess.run(
                ["mount", "-o", f"remount,{how}", top], check=False, capture_output=True
            ).returncode
            == 0
        )
    )


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.05)


def status(mount: Mount) -> dict[str, object]:
    done = run_ckfs("status", mount.path, "--json")
    assert done.returncode == 0
    said: dict[str, object] = json.loads(done.stdout)
    return said


@contextmanager
def kept_images(mount: Mount) -> Iterator[Path]:
    """A protected image, and one of a user's own."""
    (mount.path / SET).mkdir()
    os.chown(mount.path / SET, ALICE, ALICE)
    as_user(ALICE, (mount.path / SET / "image").write_bytes, b"protected")
    as_user(ALICE, (mount.path / "own").write_bytes, b"own")
    yield mount.path


def test_reads_go_on_and_changes_are_refused_until_it_can_be_written_again(workdir: Path) -> None:
    with (
        tmpfs(workdir, 64 << 20, 4000) as top,
        mounted(make_store(top), workdir / "mount", role="node") as mount,
        kept_images(mount) as path,
    ):
        remount(top, "ro")
        changes: list[tuple[Callable[..., object], tuple[object, ...]]] = [
            (os.mkdir, (path / "new",)),
            (os.rename, (path / "own", path / "renamed")),
            (os.unlink, (path / "own",)),
            ((path / "own").write_bytes, (b"changed",)),
            ((path / "other").write_bytes, (b"new",)),
            (os.chmod, (path / "own", 0o600)),
            (os.truncate, (path / "own", 1)),
            (os.setxattr, (path / "own", "user.mine", b"value")),
        ]
        for call, arguments in changes:
            assert errno_as(ALICE, call, *arguments) == errno.EROFS, call
        assert errno_of_call(os.unlink, path / SET / "image") in {errno.EACCES, errno.EROFS}
        assert sorted(os.listdir(path)) == [SET, "own"]
        assert as_user(ALICE, (path / "own").read_bytes) == b"own"
        assert as_user(ALICE, (path / SET / "image").read_bytes) == b"protected"
        said = status(mount)
        assert (said["store_up"], said["last_error"]) == (
            True,
            "the store answered: Read-only file system (EROFS)",
        )

        remount(top, "rw")
        as_user(ALICE, (path / "own").write_bytes, b"changed")
        as_user(ALICE, os.mkdir, path / "new")
        assert as_user(ALICE, (path / "own").read_bytes) == b"changed"
        assert errno_of_call(os.unlink, path / SET / "image") == errno.EACCES


WRITES = (
    "write",
    "create",
    "mkdir",
    "mknod",
    "symlink",
    "link",
    "unlink",
    "rmdir",
    "rename",
    "setattr",
    "setxattr",
)


def open_written(path: str) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, b"begun")
    return fd


def test_a_writer_is_told_and_what_it_had_synced_is_there(workdir: Path) -> None:
    """The mount says that the image is torn as soon as it can; then its owner may begin anew."""
    with (
        fault_store(workdir) as faulty,
        mounted(
            make_store(faulty.path), workdir / "mount", may_log=[r"around ckfs|is partial|EROFS|[Rr]ead-only"]
        ) as mount,
        kept_images(mount) as path,
        Agent(ALICE) as alice,
    ):
        fd = alice.do(open_written, f"{path}/{SET}/next")
        alice.do(os.fsync, fd)
        for op in WRITES:
            faulty.fail(op, errno.EROFS)
        assert alice.do(errno_of_call, os.write, fd, b" and lost") == errno.EROFS
        alice.do(errno_of_call, os.close, fd)
        assert alice.do(content, f"{path}/own") == b"own"
        assert errno_of_call(os.unlink, path / SET / "image") in {errno.EACCES, errno.EROFS}

        faulty.clear()
        assert alice.do(content, f"{path}/{SET}/image") == b"protected"
        place = faulty.backing / "store/users" / str(ALICE) / SET / "next"
        assert place.read_bytes() == b"begun"
        eventually(lambda: os.getxattr(f"{path}/{SET}/next", "user.ckfs.state") == b"partial")
        alice.do(begin_anew, f"{path}/{SET}/next")
        assert alice.do(content, f"{path}/{SET}/next") == b"whole"


def content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def begin_anew(path: str) -> None:
    with open(path, "wb") as file:
        file.write(b"whole")
