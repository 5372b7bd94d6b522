"""A few files that nobody needs, in ``mounts/``: where the file system has no file left to give, one gives way for the moment in
which the name of a set says two things. Else nothing could change hands in such a store. A few, since others want what one leaves, too.

Synchronous, for worker threads.
"""

from __future__ import annotations

import contextlib
import os

from ckfs.model import Owner
from ckfs.store.mountsdirectory import MountsDirectory

NAMES = (b"spare", b"spare.1", b"spare.2", b"spare.3")


class Spare:
    """Of the store whose root is *root_fd*, kept by *service*."""

    def __init__(self, root_fd: int, service: Owner) -> None:
        self._directory = MountsDirectory(root_fd, service)

    def keep(self) -> None:
        """Have them all, if that is possible."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with contextlib.suppress(OSError), self._directory.changing() as directory:
            for name in NAMES:
                os.close(os.open(name, flags, 0o600, dir_fd=directory))

    def give(self) -> bool:
        """Whether there was one, which is gone now."""
        with contextlib.suppress(OSError), self._directory.changing() as directory:
            for name in reversed(NAMES):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)
                    return True
        return False
