"""Extended attributes of store files: by descriptor, or by a single name in an open directory.

A name in an open directory goes through ``/proc/self/fd/N/name`` and never follows a link at its end, since kernels
before 6.13 know no ``getxattrat``. The standard library's calls, rather than the ``xattr`` package that the commands
use: they take names that are not UTF-8, and make one system call where that makes two.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field

Where = int | bytes
"""An open descriptor, or what :func:`path_of` gives."""


def path_of(dir_fd: int, name: bytes) -> bytes:
    """*name*, a single component, in the open directory *dir_fd*."""
    return b"/proc/self/fd/%d/%s" % (dir_fd, name)


_OWN = b"user.ckfs"


@dataclass(slots=True)
class _Known:
    """What is known of one file by a descriptor of it."""

    file: object
    values: dict[bytes, bytes] = field(default_factory=dict)


class _Kept:
    """What was last read or written of ckfs's own attributes by descriptors, for those files of a GlusterFS volume that lose their last
    name while they are open: data and stat are there as before, and every call on attributes by the descriptor is ESTALE.

    By the number of the descriptor; what is opened is looked at by it before anything else, so that nothing of an earlier file is
    left. An entry is one record long, and the marks of who writes.
    """

    def __init__(self) -> None:
        self._of: dict[int, _Known] = {}

    def remember(self, fd: int, file: object, name: bytes, value: bytes) -> None:
        """*file* is equal for descriptors of the same file only."""
        known = self._of.get(fd)
        if known is None or known.file != file:
            known = self._of[fd] = _Known(file)
        known.values[name] = value

    def heard(self, where: Where, name: bytes, value: bytes) -> None:
        """The file has the attribute."""
        if isinstance(where, int) and name.startswith(_OWN) and (known := self._of.get(where)) is not None:
            known.values[name] = value

    def heard_gone(self, where: Where, name: bytes) -> None:
        """The file has it no more."""
        if isinstance(where, int) and (known := self._of.get(where)) is not None:
            known.values.pop(name, None)

    def heard_names(self, where: Where, names: list[bytes]) -> None:
        """The file has these alone."""
        if isinstance(where, int) and (known := self._of.get(where)) is not None:
            known.values = {name: value for name, value in known.values.items() if name in names}

    def of(self, where: Where, error: OSError, name: bytes = _OWN) -> dict[bytes, bytes]:
        """All of them, to be read and changed. Raises *error* if it is of another kind, or the file has a name, or the attribute is a user's:
        he could fill this process's memory."""
        is_stale = error.errno == errno.ESTALE and name.startswith(_OWN)
        if not is_stale or not isinstance(where, int) or os.fstat(where).st_nlink:
            raise error
        return self._of.setdefault(where, _Known(None)).values


_kept = _Kept()
remember = _kept.remember
"""Of a file that was just opened: it has the value, should it lose its name."""


def _no_attribute() -> OSError:
    return OSError(errno.ENODATA, os.strerror(errno.ENODATA))


def get(where: Where, name: bytes) -> bytes:
    """The attribute's value; OSError with ENODATA if there is none."""
    try:
        value = os.getxattr(where, name, follow_symlinks=isinstance(where, int))
    except OSError as error:
        kept = _kept.of(where, error, name)
    else:
        _kept.heard(where, name, value)
        return value
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
        _kept.of(where, error, name)[name] = value
    else:
        _kept.heard(where, name, value)


def create(where: Where, name: bytes, value: bytes) -> None:
    """Set an attribute that must not exist yet: FileExistsError tells which of two mounts was first."""
    try:
        os.setxattr(where, name, value, os.XATTR_CREATE, follow_symlinks=isinstance(where, int))
    except OSError as error:
        kept = _kept.of(where, error, name)
        if name in kept:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        kept[name] = value
    else:
        _kept.heard(where, name, value)


def names(where: Where) -> list[bytes]:
    try:
        found = [os.fsencode(name) for name in os.listxattr(where, follow_symlinks=isinstance(where, int))]
    except OSError as error:
        return list(_kept.of(where, error))
    _kept.heard_names(where, found)
    return found


def remove(where: Where, name: bytes) -> None:
    try:
        os.removexattr(where, name, follow_symlinks=isinstance(where, int))
    except OSError as error:
        if _kept.of(where, error, name).pop(name, None) is None:
            raise _no_attribute() from None
    else:
        _kept.heard_gone(where, name)
