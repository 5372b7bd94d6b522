"""Real file systems that are soon full."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_END_TIMEOUT = 30.0


@contextlib.contextmanager
def ext4(directory: Path, size_bytes: int, inodes: int) -> Iterator[Path]:
    """A new ext4 with so many *inodes* and blocks of 4 KiB, mounted on ``directory/ext4``, which is root's alone. Nothing of it is
    kept for root."""
    disk, top = directory / "ext4.disk", directory / "ext4"
    with disk.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run(
        ["mkfs.ext4", "-q", "-b", "4096", "-m", "0", "-N", str(inodes), disk], check=True, capture_output=True
    )
    with _mounted(top, ["-o", "loop", str(disk)]):
        yield top
    disk.unlink()


@contextlib.contextmanager
def tmpfs(directory: Path, size_bytes: int, inodes: int) -> Iterator[Path]:
    """A new tmpfs with so many *inodes*, mounted on ``directory/tmpfs``, which is root's alone."""
    top = directory / "tmpfs"
    with _mounted(top, ["-t", "tmpfs", "-o", f"size={size_bytes},nr_inodes={inodes}", "tmpfs"]):
        yield top


@contextlib.contextmanager
def _mounted(top: Path, what: list[str]) -> Iterator[None]:
    """Skips where it cannot be mounted."""
    top.mkdir(mode=0o700)
    done = subprocess.run(["mount", *what, top], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount {top.name}: {done.stderr.strip()}")
    try:
        top.chmod(0o700)
        yield
    finally:
        _unmount(top)


def _unmount(top: Path) -> None:
    """Again while somebody still has a descriptor there."""
    deadline = time.monotonic() + _END_TIMEOUT
    while True:
        done = subprocess.run(["umount", top], check=False, capture_output=True, text=True)
        if done.returncode == 0:
            return
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.05)
