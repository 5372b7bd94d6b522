"""Real file systems in files, mounted by loop devices."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_END_TIMEOUT = 30.0


@contextlib.contextmanager
def btrfs(directory: Path, size_bytes: int = 512 << 20) -> Iterator[Path]:
    """A new btrfs, mounted on ``directory/btrfs``, which is root's alone; skips where there can be none."""
    if os.geteuid() != 0 or shutil.which("mkfs.btrfs") is None:
        pytest.skip("needs root, and mkfs.btrfs")
    disk, top = directory / "btrfs.disk", directory / "btrfs"
    with disk.open("wb") as file:
        file.truncate(size_bytes)
    _make_btrfs(disk)
    top.mkdir(mode=0o700)
    done = subprocess.run(["mount", "-o", "loop", disk, top], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount btrfs from a file: {done.stderr.strip()}")
    try:
        top.chmod(0o700)
        yield top
    finally:
        _unmount(top)
        disk.unlink()


def _make_btrfs(disk: Path) -> None:
    """mkfs.btrfs asks every mount of the host whether it has the disk: again while one of another test is a dead one."""
    deadline = time.monotonic() + _END_TIMEOUT
    while True:
        done = subprocess.run(["mkfs.btrfs", "-q", disk], check=False, capture_output=True, text=True)
        if done.returncode == 0:
            return
        assert "cannot check mount status" in done.stderr, done.stderr
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.2)


def _unmount(top: Path) -> None:
    """Again while somebody still has a descriptor there."""
    deadline = time.monotonic() + _END_TIMEOUT
    while True:
        done = subprocess.run(["umount", top], check=False, capture_output=True, text=True)
        if done.returncode == 0:
            return
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.05)


@contextlib.contextmanager
def ext4(directory: Path, size_bytes: int, inodes: int, *, for_root: int = 0) -> Iterator[Path]:
    """A new ext4 with so many *inodes*, mounted on ``directory/ext4``, which is root's alone. *for_root* percent of it are kept for root."""
    disk, top = directory / "ext4.disk", directory / "ext4"
    with disk.open("wb") as file:
        file.truncate(size_bytes)
    numbers = ["-b", "4096", "-m", str(for_root), "-N", str(inodes)]
    subprocess.run(["mkfs.ext4", "-q", *numbers, disk], check=True, capture_output=True)
    with _small(top, ["-o", "loop", str(disk)]):
        yield top
    disk.unlink()


@contextlib.contextmanager
def tmpfs(directory: Path, size_bytes: int, inodes: int) -> Iterator[Path]:
    """A new tmpfs with so many *inodes*, mounted on ``directory/tmpfs``, which is root's alone."""
    top = directory / "tmpfs"
    with _small(top, ["-t", "tmpfs", "-o", f"size={size_bytes},nr_inodes={inodes}", "tmpfs"]):
        yield top


@contextlib.contextmanager
def _small(top: Path, what: list[str]) -> Iterator[None]:
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
