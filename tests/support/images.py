"""What users do with images, as functions to be called as one of them (:func:`tests.support.users.as_user`)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def opened(path: str, flags: int) -> Iterator[int]:
    fd = os.open(path, flags, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """As every program that is worth it: what was not written is written again."""
    while data:
        data = data[os.write(fd, data) :]


def save(path: str, data: bytes) -> None:
    """A new image, or a new content of one."""
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
        write_all(fd, data)


def append(path: str, data: bytes) -> None:
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as fd:
        write_all(fd, data)


def write_at(path: str, offset: int, data: bytes, flags: int = os.O_WRONLY) -> int:
    """One pwrite(2), of an image that is there or is made."""
    with opened(path, flags | os.O_CREAT) as fd:
        return os.pwrite(fd, data, offset)


def write_once(path: str, data: bytes = b"image", flags: int = os.O_CREAT) -> None:
    """One write(2), of an image that is opened with *flags*."""
    with opened(path, os.O_WRONLY | flags) as fd:
        os.write(fd, data)


def read_once(path: str) -> bytes:
    """One read(2)."""
    with opened(path, os.O_RDONLY) as fd:
        return os.read(fd, 1 << 16)


def resize(path: str, size: int) -> None:
    """Of an image that is there or is made."""
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.ftruncate(fd, size)


def content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def state(path: str) -> str:
    return os.getxattr(path, "user.ckfs.state").decode()
