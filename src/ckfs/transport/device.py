"""/dev/fuse: whole requests in, whole replies out, and nothing known of what they mean."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import mmap
import os
import select
import sys
from dataclasses import dataclass, field

from ckfs.transport.wire import abi, replies

Piece = bytes | memoryview

log = logging.getLogger(__name__)

_SPARE_BUFFERS = 8
_GONE = (errno.ENOENT, errno.ENODEV, errno.EPERM)
"""Nobody waits for the answer any more, or the mount is gone."""


class Ended(Exception):
    """The mount is gone."""


class Buffer:
    """Room for one request. What a large one consists of, the data to be written, begins with a page of its own: so the store copies
    it fastest. Memory is taken only for what was ever received."""

    __slots__ = ("room",)

    def __init__(self, most_bytes: int) -> None:
        before = abi.HEADER_IN.size + abi.WRITE_IN.size
        self.room = memoryview(mmap.mmap(-1, mmap.PAGESIZE - before + most_bytes))[mmap.PAGESIZE - before :]


@dataclass(slots=True)
class Device:
    """Of one mount; for the event loop's thread alone. *fd* does not block, and no request has more than *most_bytes*."""

    fd: int
    most_bytes: int
    _buffer: Buffer = field(init=False)
    _spare: list[Buffer] = field(default_factory=list)
    _poll: select.poll = field(default_factory=select.poll)

    def __post_init__(self) -> None:
        self._buffer = Buffer(self.most_bytes)
        self._poll.register(self.fd, select.POLLIN)

    def receive(self) -> memoryview | None:
        """The next request, valid until the next is received; None if there is none. Raises Ended."""
        room = self._buffer.room
        try:
            return room[: os.readv(self.fd, [room])]
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):  # its caller has gone, or nothing has happened
                return None
            raise Ended from error

    def has_one(self) -> bool:
        """Whether there is a request."""
        return bool(self._poll.poll(0))

    def lend(self) -> Buffer:
        """What was received last is valid from now on until this is given back."""
        lent = self._buffer
        self._buffer = self._spare.pop() if self._spare else Buffer(self.most_bytes)
        return lent

    def give_back(self, lent: Buffer) -> None:
        """Of something that a thread may use yet nothing is given back: it is freed when nobody does."""
        if len(self._spare) < _SPARE_BUFFERS:
            self._spare.append(lent)

    def reply(self, unique: int, body: Piece) -> bool:
        """False if nobody waits for it any more. RuntimeError if the kernel takes it for malformed: it waits for another, then."""
        size = len(body)
        try:
            os.writev(
                self.fd, (replies.header(unique, 0, size), body) if size else (replies.header(unique, 0, 0),)
            )
        except OSError as error:
            _check_gone(error, size)
            return False
        return True

    def reply_whole(self, answer: bytes) -> None:
        """As :meth:`reply`, with an *answer* that has its header."""
        try:
            os.write(self.fd, answer)
        except OSError as error:
            _check_gone(error, len(answer))

    def refuse(self, unique: int, number: int) -> None:
        """Answer with errno *number*."""
        try:
            os.write(self.fd, replies.header(unique, number, 0))
        except OSError as error:
            if error.errno not in _GONE:  # a bug, but no reason to end the mount
                log.error("the kernel takes no errno %d for an answer: %s", number, error)  # noqa: TRY400 - it says all

    def register(self, fd: int) -> int:
        """Let the kernel use the file *fd* by itself, as the calling thread may: the number of the backing. In any thread."""
        asked = bytearray(abi.BACKING_MAP.pack(fd, 0))
        number: int = fcntl.ioctl(self.fd, abi.FUSE_DEV_IOC_BACKING_OPEN, asked)
        return number

    def forget(self, number: int) -> None:
        """Who has a file open by it keeps it."""
        with contextlib.suppress(OSError):  # the mount is gone, and the backing with it
            fcntl.ioctl(self.fd, abi.FUSE_DEV_IOC_BACKING_CLOSE, number.to_bytes(4, sys.byteorder))


def _check_gone(error: OSError, size: int) -> None:
    if error.errno not in _GONE:
        raise RuntimeError(f"the kernel does not take an answer of {size} bytes") from error
