"""fallocate(2) on a file of the store, with what has to be noted for it (:mod:`ckfs.store.allocated`).

Synchronous; one call at a time for each inode of a mount, since a lock of the file is one for all threads that use the descriptor.
"""

from __future__ import annotations

import errno
import os

from ckfs.errors import NotDone
from ckfs.store import allocated, syscalls
from ckfs.store.alone import alone_with
from ckfs.store.door import Door
from ckfs.store.metering import rounded
from ckfs.store.spots import OpenFile
from ckfs.store.syscalls import FALLOC_PUNCH_HOLE

_NOT_DONE = frozenset(
    (
        errno.EOPNOTSUPP,
        errno.ENOSYS,
        errno.ENODEV,
        errno.EINVAL,
        errno.EFBIG,
        errno.EPERM,
        errno.EACCES,
        errno.EBADF,
        errno.ETXTBSY,
    )
)
"""What a store says that has not begun to do it."""


def allocate(door: Door, file: OpenFile, mode: int, offset: int, length: int) -> tuple[int, int]:
    """Allocate, zero or free *length* bytes of the open *file*, as *mode* says. No content was written: returns 0, and where that ends.
    NotDone where the store does not do it, or EOPNOTSUPP where more parts would have to be noted of the file than can be."""
    with door.opened(file, os.O_RDWR) as fd, alone_with(fd):
        try:
            if mode & FALLOC_PUNCH_HOLE:
                _punch(fd, mode, offset, offset + length, door.unit)
            else:
                _allocate(fd, mode, offset, length, door.unit)
        except OSError as error:
            if error.errno not in _NOT_DONE:
                raise
            number = errno.EOPNOTSUPP if error.errno in (errno.ENOSYS, errno.ENODEV) else error.errno
            raise NotDone(number, f"the store: {error}") from None
    return 0, offset


def _allocate(fd: int, mode: int, offset: int, length: int, unit: int) -> None:
    before = allocated.of(fd)
    after = allocated.having(before, offset // unit * unit, rounded(offset + length, unit))
    if len(after) > allocated.MOST:
        raise OSError(errno.EOPNOTSUPP, "too many parts of the file were allocated")
    if after != before:
        allocated.note(fd, after)
    had_blocks = os.fstat(fd).st_blocks  # with what the note takes
    try:
        syscalls.fallocate(fd, mode, offset, length)
    except OSError:
        if after != before and os.fstat(fd).st_blocks <= had_blocks:  # else a part of it may be there
            allocated.note(fd, before)
        raise


def _punch(fd: int, mode: int, begin: int, end: int, unit: int) -> None:
    """ext4 frees nothing behind the end of a file, and says that it did."""
    noted = allocated.of(fd)
    file_end = rounded(os.fstat(fd).st_size, unit)
    inside = min(max(begin, file_end), end)
    freed = inside
    if begin < inside:
        syscalls.fallocate(fd, mode, begin, inside - begin)
    if inside < end:
        before = os.fstat(fd).st_blocks
        syscalls.fallocate(fd, mode, inside, end - inside)
        if os.fstat(fd).st_blocks < before:
            freed = end
    _note_freed(fd, noted, rounded(begin, unit), freed // unit * unit)


def _note_freed(fd: int, noted: allocated.Parts, begin: int, end: int) -> None:
    """What would have to be noted in too many parts is charged on."""
    after = allocated.without(noted, begin, end) if begin < end else noted
    if after == noted or len(after) > allocated.MOST:
        return
    try:
        allocated.note(fd, after)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
