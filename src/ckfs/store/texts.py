"""The small text files right in a store's root: read and written whole."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from ckfs.errors import CkfsError, NotPermitted, StoreUnusable
from ckfs.names import shown

_LONGEST_BYTES = 16 << 20
"""Of a file that is read at all: 100,000 users have limits of their own in less."""


def unfinished(name: bytes) -> bytes:
    """How the names begin under which *name* is written before it is there."""
    return b".%s-" % name


@dataclass(frozen=True, slots=True)
class Root:
    """The root of a store, open as *fd*, which somebody else closes. *path* is for people: what is mounted there may be another
    store by now."""

    fd: int
    path: str


def open_root(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


@contextlib.contextmanager
def root_of(where: str | Root) -> Iterator[Root]:
    """The root of the store at that path, for the time of the block; one that is open already, as it is."""
    if isinstance(where, Root):
        yield where
        return
    fd = open_root(where)
    try:
        yield Root(fd, where)
    finally:
        os.close(fd)


def read_text(root_fd: int, name: bytes, path: str) -> str:
    """What *name* says in the store at *path*. Raises FileNotFoundError; StoreUnusable if it is no text."""
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=root_fd)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise StoreUnusable(f"{shown(path)}: its {shown(name)} is not a regular file")
        return os.pread(fd, _LONGEST_BYTES, 0).decode()
    except UnicodeDecodeError:
        raise StoreUnusable(f"{shown(path)}: its {shown(name)} is not UTF-8 text") from None
    finally:
        os.close(fd)


def write_text(root_fd: int, name: bytes, text: str) -> None:
    """Write the whole file or none of it, over what is there."""
    with _written(root_fd, name, text) as temporary:
        os.rename(temporary, name, src_dir_fd=root_fd, dst_dir_fd=root_fd)


def write_new(root_fd: int, name: bytes, text: str) -> None:
    """As :func:`write_text`; FileExistsError if there is one already: of several writers one succeeds."""
    with _written(root_fd, name, text) as temporary:
        os.link(temporary, name, src_dir_fd=root_fd, dst_dir_fd=root_fd, follow_symlinks=False)


@contextlib.contextmanager
def _written(root_fd: int, name: bytes, text: str) -> Iterator[bytes]:
    """The name of a new file that says *text*; gone at the end, unless it was renamed."""
    temporary = unfinished(name) + secrets.token_hex(8).encode()
    fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o644, dir_fd=root_fd)
    try:
        try:
            os.fchmod(fd, 0o644)
            rest = memoryview(text.encode())
            while rest:  # a file system that fills up takes a part
                rest = rest[os.write(fd, rest) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=root_fd)


@contextlib.contextmanager
def unusable(where: str | Root) -> Iterator[None]:
    """What the store there answers becomes the one line that a command's user reads."""
    path = where.path if isinstance(where, Root) else where
    try:
        yield
    except CkfsError:
        raise
    except FileNotFoundError as error:
        raise StoreUnusable(f"{shown(path)}: there is no such store: {error.strerror}") from None
    except NotADirectoryError:
        raise StoreUnusable(f"{shown(path)}: not a directory: give the store's directory") from None
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise NotPermitted(
                f"{shown(path)}: {error.strerror}: run as root; where root is squashed, the store's directory needs mode 0755"
            ) from None
        raise StoreUnusable(f"{shown(path)}: the store cannot be used: {error.strerror}") from None
