"""A lock of a file or directory (flock) that mounts of a store take for a moment, so that one changes it at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable, Iterator

_LOCK_WITHIN_S = 5.0
_LOCK_PAUSE_S = 0.001


@contextlib.contextmanager
def alone_with(fd: int, *, within_s: float = _LOCK_WITHIN_S) -> Iterator[bool]:
    """Nobody else changes the marks, size or attributes of the open file within the block: what each saw before and after tells
    what it has changed. False if the store knows no locks, or somebody keeps it: a mount that was stopped is not waited for."""
    is_locked = _lock(fd, within_s)
    try:
        yield is_locked
    finally:
        if is_locked:
            fcntl.flock(fd, fcntl.LOCK_UN)


@contextlib.contextmanager
def alone_in(directories: Iterable[int]) -> Iterator[None]:
    """Nobody else gives or takes names in the open *directories*, which may be O_PATH, within the block; as far as :func:`alone_with`."""
    with contextlib.ExitStack() as stack:
        opened: dict[tuple[int, int], int] = {}
        for directory in directories:
            with contextlib.suppress(OSError):
                fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
                stack.callback(os.close, fd)
                status = os.fstat(fd)
                opened[status.st_dev, status.st_ino] = fd
        for _, fd in sorted(opened.items()):  # in one order, so that nobody waits in a circle
            stack.enter_context(alone_with(fd))
        yield


def _lock(fd: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOCK_PAUSE_S)
        except OSError:
            return False
        else:
            return True
