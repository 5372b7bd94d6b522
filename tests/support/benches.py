"""``ckfs bench`` as a process that can be interrupted where something is known to have happened."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.commands import ckfs_as_root
from tests.support.mounting import Mount, command, environment

WITHIN_S = 60.0
INTERRUPTIBLE = ("env", "--default-signal=INT,HUP")
"""Before a command: whoever runs the tests in the background, or by nohup, lets these signals be ignored."""
ENDLESS = ("--size", "1M", "--rounds", "1000")


@contextlib.contextmanager
def endless(mount: Mount, *options: str | Path) -> Iterator[subprocess.Popen[str]]:
    """One of tiny steps that does not end by itself."""
    process = subprocess.Popen(
        [*INTERRUPTIBLE, *command("bench", mount.path, *ENDLESS, *options)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(done: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not done():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)


def in_store(store: Path, name: str, uid: int = 0) -> bool:
    """Whether a set of a bench has a file of that *name*, seen from below."""
    return any((store / "users" / str(uid)).glob(f"ckfs-bench-*/{name}"))


def controls(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if name.startswith(".ckfs-bench-")]


def processes(mount: Mount) -> list[int]:
    """Benches of *mount* that run, and all that they started."""
    wanted, found = os.fsencode(mount.path), []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            if b"bench" in words and wanted in words:
                found.append(int(name))
    return found


def nothing_is_left(mount: Mount, *directories: Path) -> None:
    """No set, no control directory, nothing in the trash, no process."""
    assert os.listdir(mount.path) == []
    for directory in directories or (mount.store,):
        assert controls(directory) == []
    assert ckfs_as_root("trash", "ls", "--json", "--store", mount.store).strip() == "[]"
    assert processes(mount) == []
