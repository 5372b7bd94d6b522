"""A lock of a file (flock) that mounts of a store take for a moment, so that one changes it at a time."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator

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
