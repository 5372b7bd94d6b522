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


class _Kept:
    """What was last read or written of attributes by descriptors, for those files of a GlusterFS volume that lose their last name
    while they are open: data and stat are there as before, and every call on attributes by the descriptor is ESTALE.

    By the number of the descriptor; what is opened is looked at by it before anything else, so that nothing of an earlier file is
    left. An entry is one record long.
    """

    def __init__(self) -> None:
        self._of: dict[int, dict[bytes, bytes]] = {}

    def remember(self, fd: int, name: bytes, value: bytes) -> None:
        self._of[fd] = {name: value}

    def of(self, where: Where, error: OSError) -> dict[bytes, bytes]:
        """All of them, to be read and changed. Raises *error* if it is of another kind, or the file has a name."""
        if error.errno != errno.ESTALE or not isinstance(where, int) or os.fstat(where).st_nlink:
            raise error
        return self._of.setdefault(where, {})


_kept = _Kept()
remember = _kept.remember
"""Of a new file, which was given the attribute by its name: it has the value, should it lose that."""


def _no_attribute() -> OSError:
    return OSError(errno.ENODATA, os.strerror(errno.ENODATA))


def get(where: Where, name: bytes) -> bytes:
    """The attribute's value; OSError with ENODATA if there is none."""
    try:
        return os.getxattr(where, name, follow_symlinks=isinstance(where, int))
    except OSError as error:
        kept = _kept.of(where, error)
    if name not in kept:
        raise _no_attribute()
    return kept[name]


def get_or_none(where: Where, name: bytes) -> bytes | None:
    """The attribute's value; None if there is none, or this kind of file or file system cannot hold any."""
    try:
        return get(where, name)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM):
            return None
        raise


def put(where: Where, name: bytes, value: bytes) -> None:
    try:
        os.setxattr(where, name, value, follow_symlinks=isinstance(where, int))
    except OSError as error:
        _kept.of(where, error)[name] = value


def create(where: Where, name: bytes, value: bytes) -> None:
    """Set an attribute that must not exist yet: FileExistsError tells which of two mounts was first."""
    try:
        os.setxattr(where, name, value, os.XATTR_CREATE, follow_symlinks=isinstance(where, int))
    except OSError as error:
        kept = _kept.of(where, error)
        if name in kept:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        kept[name] = value


def names(where: Where) -> list[bytes]:
    try:
        return [os.fsencode(name) for name in os.listxattr(where, follow_symlinks=isinstance(where, int))]
    except OSError as error:
        return list(_kept.of(where, error))


def remove(where: Where, name: bytes) -> None:
    try:
        os.removexattr(where, name, follow_symlinks=isinstance(where, int))
    except OSError as error:
        if _kept.of(where, error).pop(name, None) is None:
            raise _no_attribute() from None
