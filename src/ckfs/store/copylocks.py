"""One mount at a time copies a set to its new owner: a locked file in ``staging/`` for each that is being copied."""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass

from ckfs.model import Owner
from ckfs.names import Inode, SetName
from ckfs.store import syscalls
from ckfs.store.entries import SetEntry, decode, encode
from ckfs.store.identity import acting_as

_NAME = b"copying-"
_LONGEST_NOTE = 1 << 16


@dataclass(frozen=True, slots=True)
class Noted:
    """Of the set *name*, which lay at *old*, a copy was made; at *copied*, if that may be gone on with."""

    old: SetEntry
    name: SetName
    copied: SetEntry | None


class CopyLocks:
    """In the directory *staging_fd*, kept by *service*."""

    def __init__(self, staging_fd: int, service: Owner) -> None:
        self._staging_fd = staging_fd
        self._service = service

    def lock(self, ino: Inode) -> int:
        """Lock the set *ino* against copying by others. Returns what :meth:`unlock` takes.

        BlockingIOError if another has it; OSError where the store keeps no locks. The lock ends with its process.
        """
        name = _name_of(ino)
        with acting_as(self._service):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=self._staging_fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # NFS wants it open for writing
                if not os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=self._staging_fd)):
                    raise FileNotFoundError(errno.ENOENT, "unlocked in that moment")
            except FileNotFoundError:
                os.close(fd)
                raise BlockingIOError(errno.EAGAIN, "another mount has just copied it") from None
            except BlockingIOError:
                os.close(fd)
                raise BlockingIOError(errno.EAGAIN, "another mount is copying it") from None
            except BaseException:
                os.close(fd)
                raise
            return fd

    def unlock(self, ino: Inode, lock: int, *, keep: bool = False) -> None:
        """Give the lock back; *keep* what was noted in it."""
        with acting_as(self._service):
            try:
                if not keep:
                    os.unlink(_name_of(ino), dir_fd=self._staging_fd)
            finally:
                os.close(lock)

    def note(self, lock: int, old: SetEntry, name: SetName, copied: SetEntry | None = None) -> None:
        """Say in the *lock* of the set *name* what is to be removed when the copy is the set, *old*; and where the copy lies that may be
        gone on with, if it may."""
        os.pwrite(lock, b"\0".join([encode(old), name, *([encode(copied)] if copied is not None else [])]), 0)
        os.fsync(lock)

    def noted(self, ino: Inode) -> SetEntry | None:
        """Where a set lay that is being copied, once its copy is about to be the set."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        with acting_as(self._service):
            try:
                fd = os.open(_name_of(ino), flags, dir_fd=self._staging_fd)
            except FileNotFoundError:
                return None
            try:
                said = read_note(fd)
            finally:
                os.close(fd)
        return None if said is None else said.old

    def locked(self) -> list[Inode]:
        """Sets that are being copied, or were by one that died."""
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._staging_fd)
        try:
            return [
                Inode(int(name[len(_NAME) :], 16)) for name in syscalls.names_in(fd) if name.startswith(_NAME)
            ]
        finally:
            os.close(fd)


def read_note(lock: int) -> Noted | None:
    """What :meth:`CopyLocks.note` said in the open *lock*; None if nothing. OSError (EIO) if it is damaged."""
    old, *more = os.pread(lock, _LONGEST_NOTE, 0).split(b"\0")
    if not more or not more[0]:
        return None
    return Noted(decode(old), SetName(more[0]), decode(more[1]) if len(more) > 1 else None)


def _name_of(ino: Inode) -> bytes:
    return _NAME + b"%x" % ino
