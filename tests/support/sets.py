"""A set with one of everything that may get lost on the way to another owner, and all of it that must stay."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tests.support.users import BOB

MIB = 1 << 20


def create(path: str, content: bytes = b"", mode: int = 0o644) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, mode)
    try:
        assert os.write(fd, content) == len(content)
    finally:
        os.close(fd)


def read(path: str) -> bytes:
    return Path(path).read_bytes()


def overwrite(path: str, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        assert os.pwrite(fd, content, 0) == len(content)
    finally:
        os.close(fd)


def make_set(top: str) -> None:
    """As root: a set with one of everything that a copy might lose."""
    os.mkdir(top)
    os.chmod(top, 0o1777)
    create(f"{top}/image", b"image" * 1000, 0o400)
    os.mkdir(f"{top}/inner", 0o711)
    os.link(f"{top}/image", f"{top}/inner/link")
    os.symlink("image", f"{top}/symlink")
    os.mkfifo(f"{top}/inner/fifo", 0o640)
    with open(f"{top}/sparse", "wb") as sparse:
        sparse.write(b"begin")
        sparse.seek(8 * MIB)
        sparse.write(b"end")
    os.setxattr(f"{top}/sparse", "user.note", b"\0value")
    os.setxattr(f"{top}/inner", "user.note", b"inner")
    os.chown(f"{top}/sparse", BOB, BOB)
    for name in ("image", "sparse", "inner", "symlink", "inner/fifo"):
        os.utime(f"{top}/{name}", ns=(10**18 + 1, 10**18 + 3), follow_symlinks=False)


def looks_of(top: str) -> dict[str, object]:
    """All of a set that may not change when it changes hands."""
    return {
        os.path.relpath(path, top): (
            status.st_ino,
            status.st_mode,
            status.st_nlink,
            status.st_mtime_ns,
            None if path == top else (status.st_uid, status.st_gid),
            status.st_size if stat.S_ISREG(status.st_mode) else None,
            Path(path).read_bytes() if stat.S_ISREG(status.st_mode) else None,
            os.readlink(path) if stat.S_ISLNK(status.st_mode) else None,
            {
                name: os.getxattr(path, name)
                for name in (os.listxattr(path) if stat.S_ISREG(status.st_mode) else [])
            },
        )
        for path in all_below(top)
        for status in [os.lstat(path)]
    }


def all_below(top: str) -> Iterator[str]:
    yield top
    for directory, directories, files in os.walk(top):
        yield from (os.path.join(directory, name) for name in (*directories, *files))
