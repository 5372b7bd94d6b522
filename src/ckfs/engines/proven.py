"""That a driver has met its real engine: what ``ckfs selftest`` writes on ``users/`` when a limit of it held.

Kept in the store, since it is about the file system under it, and counts on all hosts.
"""

from __future__ import annotations

import errno
import os

from ckfs import __version__
from ckfs.errors import EngineFailed

ATTRIBUTE = "user.ckfs.driver-tried"


def record(users_fd: int, driver: str) -> None:
    """By root, and by the version of ckfs that did it, for whoever reads the attribute."""
    try:
        os.setxattr(users_fd, ATTRIBUTE, f"{driver} {__version__}".encode())
    except OSError as error:
        raise EngineFailed(f"the attribute {ATTRIBUTE} cannot be set: {error.strerror}") from None


def has_passed(users_fd: int, driver: str) -> bool:
    try:
        said = os.getxattr(users_fd, ATTRIBUTE)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise EngineFailed(f"the attribute {ATTRIBUTE} cannot be read: {error.strerror}") from None
    return said.split(b" ")[0] == driver.encode()
