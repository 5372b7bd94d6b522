"""A lock of a file or directory (flock) that mounts of a store take for a moment, so that one changes it at a time.

A descriptor's lock is one for all threads that use it, and whoever gives it back does so for all: threads of this process
wait for each other before they ask for it. Who has it already gets it once more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

_LOCK_WITHIN_S = 5.0
_LOCK_PAUSE_S = 0.001

_File = tuple[int, int]
"""Device and inode number, of the store."""


@dataclass(slots=True)
class _Turn:
    """Of the threads that want the lock of one file. *users*: who has it or waits; *depth*: how often the one who has it took it."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    users: int = 0
    depth: int = 0
    is_locked: bool = False


_turns: dict[_File, _Turn] = {}
_turns_change = threading.Lock()


@contextlib.contextmanager
def alone_with(fd: int, *, within_s: float = _LOCK_WITHIN_S) -> Iterator[bool]:
    """Nobody else changes the record, marks, size or attributes of the open file within the block: what each saw before and after
    tells what it has changed. False if the store knows no locks, or somebody keeps it: a mount that was stopped is not waited for."""
    deadline = time.monotonic() + within_s
    with _turn_of(fd) as turn:
        if not turn.lock.acquire(timeout=within_s):
            yield False
            return
        try:
            if turn.depth == 0:
                turn.is_locked = _lock(fd, deadline)
            turn.depth += 1
            try:
                yield turn.is_locked
            finally:
                turn.depth -= 1
                if turn.depth == 0 and turn.is_locked:
                    fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            turn.lock.release()


@contextlib.contextmanager
def _turn_of(fd: int) -> Iterator[_Turn]:
    status = os.fstat(fd)
    file = status.st_dev, status.st_ino
    with _turns_change:
        turn = _turns.setdefault(file, _Turn())
        turn.users += 1
    try:
        yield turn
    finally:
        with _turns_change:
            turn.users -= 1
            if not turn.users:
                del _turns[file]


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


def _lock(fd: int, deadline: float) -> bool:
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
