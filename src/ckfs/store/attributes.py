"""Extended attributes of store files: by descriptor, or by a single name in an open directory.

A name in an open directory goes through ``/proc/self/fd/N/name`` and never follows a link at its end, since kernels
before 6.13 know no ``getxattrat``. The standard library's calls, rather than the ``xattr`` package that the commands
use: they take names that are not UTF-8, and make one system call where that makes two.
"""

from __future__ import annotations

import errno
import os

Where = int | bytes
"""An open descriptor, or what :func:`path_of` gives."""


def path_of(dir_fd: int, name: bytes) -> bytes:
    """*name*, a single component, in the open directory *dir_fd*."""
    return b"/proc/self/fd/%d/%s" % (dir_fd, name)


def get(where: Where, name: bytes) -> bytes:
    """The attribute's value; OSError with ENODATA if there is none."""
    return os.getxattr(where, name, follow_symlinks=isinstance(where, int))


def get_or_none(where: Where, name: bytes) -> bytes | None:
    """The attribute's value; None if there is none, or this kind of file or file system cannot hold any."""
    try:
        return get(where, name)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM):
            return None
        raise


def put(where: Where, name: bytes, value: bytes) -> None:
    os.setxattr(where, name, value, follow_symlinks=isinstance(where, int))


def create(where: Where, name: bytes, value: bytes) -> None:
    """Set an attribute that must not exist yet: FileExistsError tells which of two mounts was first."""
    os.setxattr(where, name, value, os.XATTR_CREATE, follow_symlinks=isinstance(where, int))


def names(where: Where) -> list[bytes]:
    return [os.fsencode(name) for name in os.listxattr(where, follow_symlinks=isinstance(where, int))]


def remove(where: Where, name: bytes) -> None:
    os.removexattr(where, name, follow_symlinks=isinstance(where, int))
