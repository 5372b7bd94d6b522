"""Whether anybody on this host has a file open for writing: the kernel grants nobody a lease to read it, then."""

from __future__ import annotations

import fcntl
import os

from ckfs.store.door import Door
from ckfs.store.spots import OpenFile


def read_only(door: Door, file: OpenFile) -> None:
    """Let the descriptor *file* be open for reading alone from now on."""
    opened = door.open_again(file, os.O_RDONLY)
    try:
        os.dup2(opened.fd, file.fd, inheritable=False)
    finally:
        os.close(opened.fd)


def is_being_written(file: OpenFile) -> bool:
    """Whether others have *file*, which is open for reading alone, open for writing. True if that cannot be told. As its owner."""
    try:
        fcntl.fcntl(file.fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return True
    fcntl.fcntl(file.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
