"""The directory ``mounts/`` of a store, for what mounts say of themselves and to each other: opened anew for each call, since another
mount may make it, or a repair take it away.

Synchronous, for worker threads; OSError as the store raises it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ckfs.errors import ReadOnly
from ckfs.model import Owner
from ckfs.store.identity import acting_as

MOUNTS = b"mounts"
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class MountsDirectory:
    """Of the store whose root is *root_fd*, kept by *service*; made when something is first to be changed in it."""

    root_fd: int
    service: Owner
    read_only: bool = False

    @contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor of it. FileNotFoundError if nobody has made it yet."""
        with _closing(self._open()) as directory:
            yield directory

    @contextmanager
    def changing(self) -> Iterator[int]:
        """The same, as the account that may change it. ReadOnly where the mount is."""
        if self.read_only:
            raise ReadOnly("the store is open for reading only")
        with acting_as(self.service), _closing(self._made()) as directory:
            yield directory

    def _open(self) -> int:
        return os.open(MOUNTS, _FLAGS, dir_fd=self.root_fd)

    def _made(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return self._open()
        with contextlib.suppress(FileExistsError):  # another mount was faster
            os.mkdir(MOUNTS, 0o755, dir_fd=self.root_fd)
        return self._open()


@contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
