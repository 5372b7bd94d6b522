"""lseek(2) to where a file of the store has data, or a hole."""

from __future__ import annotations

import errno
import os

from ckfs.store.door import Door
from ckfs.store.spots import OpenFile

_TELLS_NOTHING = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


def seek(door: Door, file: OpenFile, offset: int, whence: int, *, anew: bool) -> int:
    """Where the next data (SEEK_DATA) or hole (SEEK_HOLE) of the open *file* begins. OSError (ENXIO) if *offset* is behind its end, or there is
    no data any more. By a descriptor of its own if *anew*: of one that appends, where it stands is looked at by others."""
    if offset < 0:  # of which not every file system says so
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
    if not anew:
        with door.opened(file, os.O_RDONLY) as fd:
            return _seek(fd, offset, whence)
    own = door.open_again(file, os.O_RDONLY, holding=False)
    try:
        with door.opened(own, os.O_RDONLY) as fd:
            return _seek(fd, offset, whence)
    finally:
        os.close(own.fd)


def _seek(fd: int, offset: int, whence: int) -> int:
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        if error.errno not in _TELLS_NOTHING:
            raise
    size = os.fstat(fd).st_size  # a store that tells of no holes: all is data, and the end is a hole
    if offset >= size:
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
    return offset if whence == os.SEEK_DATA else size
