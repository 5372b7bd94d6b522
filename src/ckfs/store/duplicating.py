"""copy_file_range(2) from one open file of the store to another: neither the bytes come here, nor, where the store can, over the network."""

from __future__ import annotations

import errno
import os

from ckfs.errors import NotDone
from ckfs.store.door import Door
from ckfs.store.spots import OpenFile

_OTHER_WAY = {
    errno.EXDEV: errno.EXDEV,
    errno.EOPNOTSUPP: errno.EOPNOTSUPP,
    errno.ENOSYS: errno.EOPNOTSUPP,
    errno.EINVAL: errno.EOPNOTSUPP,
    errno.EPERM: errno.EOPNOTSUPP,
    errno.EACCES: errno.EOPNOTSUPP,
    errno.EBADF: errno.EOPNOTSUPP,
    errno.ETXTBSY: errno.EOPNOTSUPP,
    # One of the two was removed on another host: reading and writing find what there is in its place.
    errno.ESTALE: errno.EOPNOTSUPP,
}
"""What a store says that copies nothing of these files, and what the kernel is told, so that it reads and writes instead (Linux,
fs/fuse/file.c, fuse_copy_file_range)."""


def copy_range(
    door: Door, source: OpenFile, offset_in: int, target: OpenFile, offset_out: int, count: int
) -> tuple[int, int]:
    """Copy up to *count* bytes: how many were, 0 at the end of *source*, and where they end in *target*. NotDone where the store does
    not copy."""
    with door.opened(target, os.O_WRONLY) as fd:
        try:
            copied = os.copy_file_range(source.fd, fd, count, offset_in, offset_out)
        except OSError as error:
            if error.errno not in _OTHER_WAY:
                raise
            raise NotDone(_OTHER_WAY[error.errno], f"the store: {error}") from None
    return copied, offset_out + copied
