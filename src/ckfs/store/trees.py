"""Whole trees of the store, by open directory and name, as whoever the thread acts as: chown, removal. Synchronous."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager

from ckfs.model import Owner
from ckfs.store import syscalls

Losing = Callable[[int, bytes, os.stat_result], AbstractContextManager[None]]


def change_owner(dir_fd: int, name: bytes, owner: Owner) -> None:
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            _change_owner_below(fd, owner)
        os.chown(b"/proc/self/fd/%d" % fd, owner.uid, owner.gid)
    finally:
        os.close(fd)


def _change_owner_below(fd: int, owner: Owner) -> None:
    # A chown leaves the atime alone; root may ask for that.
    listing = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME | os.O_CLOEXEC, dir_fd=fd)
    try:
        for name in syscalls.names_in(listing):
            with contextlib.suppress(FileNotFoundError):  # its owner removed it meanwhile
                change_owner(fd, name, owner)
    finally:
        os.close(listing)


def remove(dir_fd: int, name: bytes, losing: Losing) -> None:
    """Remove *name* and all below it. *losing* is the context in which each goes."""
    status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode):
        with losing(dir_fd, name, status):
            os.unlink(name, dir_fd=dir_fd)
        return
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        for inner in list(syscalls.names_in(fd)):
            remove(fd, inner, losing)
    finally:
        os.close(fd)
    with losing(dir_fd, name, status):
        os.rmdir(name, dir_fd=dir_fd)
