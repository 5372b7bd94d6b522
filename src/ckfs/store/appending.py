"""Writing to the end of a file that others may write, too: where that was is known afterwards.

Synchronous; one call at a time for each descriptor, as the kernel of a mount has it.
"""

from __future__ import annotations

import errno
import os

from ckfs.model import Data
from ckfs.names import MountId
from ckfs.store.alone import alone_with
from ckfs.store.charges import end_of
from ckfs.store.door import Door
from ckfs.store.spots import OpenFile


def append(fd: int, data: Data) -> tuple[int, int]:
    """How many bytes were written, and at which offset they end."""
    written = os.write(fd, data)
    return written, os.lseek(fd, 0, os.SEEK_CUR)


def append_at(door: Door, file: OpenFile, data: Data, offset: int, mount: MountId) -> tuple[int, int]:
    """As :func:`append`, if the file ends at *offset*, and nobody but *mount* writes it; else OSError (EDQUOT): there is room for
    nothing else."""
    with alone_with(file.fd):
        end, is_shared = end_of(door, file, mount)
        if is_shared or end != offset:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return append(file.fd, data)
