"""The places that are compared: a plain directory, bindfs over one, and ckfs over a store, all on one file system."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.agents import Agent
from tests.support.mounting import is_mounted, make_store, mounted
from tests.support.users import ALICE

USER = ALICE
"""Who works in the places; not root, so that ckfs has to switch identities."""
SET = "bench"

_READY_S = 10.0
DROP_CACHES = "/proc/sys/vm/drop_caches"
_LONGEST_CALL_S = 1800.0


@dataclass(frozen=True, slots=True)
class Place:
    """*directory* is where the user works; *below* is where its files really lie on the backing file system."""

    name: str
    directory: str
    below: str


@contextmanager
def places(scratch: Path) -> Iterator[dict[str, Place]]:
    """All places, new and empty; bindfs only where it is installed. Nothing is left afterwards."""
    with contextlib.ExitStack() as stack:
        found = {"plain": _plain(scratch)}
        if shutil.which("bindfs"):
            found["bindfs"] = stack.enter_context(_bindfs(scratch))
        found["ckfs"] = stack.enter_context(_ckfs(scratch))
        yield found


@contextmanager
def scratch_in(directory: str) -> Iterator[Path]:
    """A new directory below *directory* that users may pass through."""
    scratch = Path(tempfile.mkdtemp(prefix="ckfs-bench-", dir=directory))
    scratch.chmod(0o711)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch)


def _users_directory(path: Path) -> str:
    path.mkdir()
    os.chown(path, USER, USER)
    return str(path)


def _plain(scratch: Path) -> Place:
    directory = _users_directory(scratch / "plain")
    return Place("plain", directory, directory)


@contextmanager
def _bindfs(scratch: Path) -> Iterator[Place]:
    """bindfs with its defaults; as root that includes allow_other."""
    below, mountpoint = _users_directory(scratch / "below-bindfs"), scratch / "bindfs"
    mountpoint.mkdir()
    process = subprocess.Popen(["bindfs", "-f", below, str(mountpoint)])
    try:
        deadline = time.monotonic() + _READY_S
        while not is_mounted(mountpoint):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("bindfs did not come up")
            time.sleep(0.01)
        yield Place("bindfs", str(mountpoint), below)
    finally:
        subprocess.run(["umount", str(mountpoint)], check=False)
        process.terminate()
        process.wait()


@contextmanager
def _ckfs(scratch: Path) -> Iterator[Place]:
    private = scratch / "private"
    private.mkdir(mode=0o700)
    with mounted(make_store(private), scratch / "ckfs", node="bench") as mount:
        directory = str(mount.path / SET)
        as_user(os.mkdir, directory, 0o700)
        yield Place("ckfs", directory, str(mount.store / "users" / str(USER) / SET))


def as_user(call: Callable[..., object], *args: object) -> float:
    """``call(*args)`` in a new process of the user's; gives what the call gave, as a number."""
    with Agent(USER) as agent:
        agent.begin(call, *args)
        answer = agent.result(_LONGEST_CALL_S)
    return float(answer) if answer is not None else 0.0


def forget_pages(directory: str) -> None:
    """Write the files in *directory* out and drop them from the page cache; on tmpfs that drops nothing."""
    for entry in os.scandir(directory):
        if entry.is_file(follow_symlinks=False):
            fd = os.open(entry.path, os.O_RDONLY)
            try:
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def forget_names() -> bool:
    """Drop the kernel's cached names and inodes, where that is allowed (it concerns the whole machine)."""
    try:
        with open(DROP_CACHES, "w") as request:
            request.write("2")
    except OSError:
        return False
    return True
