"""Reading what a local store has in memory, without a thread: the way there and back takes longer than the copy."""

from __future__ import annotations

import mmap
import os

_LARGEST_BYTES = 1 << 20
"""The largest read that the kernel sends."""


class QuickReader:
    """Reads into one buffer again and again, which so stays in the processor's cache. For the event loop's thread alone.

    *in_memory* is for a file system that is never anywhere else (tmpfs, which does not know RWF_NOWAIT either).
    """

    def __init__(self, *, in_memory: bool) -> None:
        # Of its own pages: copies to an address that is no multiple of 32 take twice as long.
        self._buffer = memoryview(mmap.mmap(-1, _LARGEST_BYTES))
        self._flags = 0 if in_memory else os.RWF_NOWAIT

    def read(self, fd: int, offset: int, size: int) -> memoryview | None:
        """*size* bytes at *offset*, fewer at the file's end; None if the store would have to wait for them, or fails.

        The next call overwrites what this one returned.
        """
        if size > _LARGEST_BYTES:
            return None
        try:
            count = os.preadv(fd, [self._buffer[:size]], offset, self._flags)
            if count < size and offset + count < os.fstat(fd).st_size:
                return None
        except OSError:  # not in memory, or not to be read at all: the thread finds out which
            return None
        return self._buffer[:count]
