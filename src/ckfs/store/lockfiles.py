"""Locks of programs, kept where all mounts of the store see them: in a file of their own, ``staging/locks-<inode>``, for each file of the
store that anybody locks.

Not in that file itself: ckfs locks it for a moment too (:mod:`ckfs.store.alone`), and says by locks who has it open
(:mod:`ckfs.store.nameless`); a user's lock there would stop that. It may also be renewed, or copied to a new owner, and its number stays.

The locks belong to an open descriptor (F_OFD_SETLK), of which each mount has one for each file: the kernel of the store gives them back
when the mount's process ends, however that comes. What the owners of one mount have among themselves is not seen here. The last bytes
have a meaning of their own; locks of users that begin there are not shared.

Synchronous, for worker threads. OSError ENOLCK is all that is said of a store without room, or rights, for a lock's file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ckfs.model import Owner
from ckfs.names import Inode
from ckfs.store import syscalls
from ckfs.store.identity import acting_as

_NAME = b"locks-"
_FLOCK = struct.Struct("hhqqi0q")
"""struct flock of fcntl(2), on machines of 64 bits."""
_END = (1 << 63) - 1
_PRESENCE = _END - 1
"""Locked for reading by each mount that has the file open; for writing by who removes it."""
FLOCK_BYTE = _END - 2
"""Stands for the whole file, for flock(2): those locks and fcntl's know nothing of each other."""
LAST_SHARED = _END - 3
"""The last byte of which a lock is shared with other mounts."""

_TRIES = 50
_PAUSE_S = 0.002
_NO_LOCKS = frozenset((errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS))
_NO_FILE = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.ENFILE)
)
"""EACCES among them: callers of fcntl would take it for a lock of somebody else."""
_PROBED = Inode(0)
"""No file has that number."""

Piece = tuple[int, int, int]
"""From which byte to which, both included, and F_RDLCK, F_WRLCK or F_UNLCK."""


class LockFile:
    """One file's locks, as this mount has them, through the descriptor *fd*. One call at a time."""

    def __init__(self, files: LockFiles, name: bytes, fd: int) -> None:
        self._files = files
        self._name = name
        self._fd = fd

    @property
    def is_closed(self) -> bool:
        return self._fd < 0

    def set(self, pieces: Iterable[Piece]) -> bool:
        """Lock and unlock all of them; False if another mount has any that is to be locked."""
        with self._files.acting():
            refused = [piece for piece in pieces if not _set(self._fd, piece[2], piece[0], piece[1])]
            return not refused

    def get(self, piece: Piece) -> Piece | None:
        """The lock of another mount that keeps this one from *piece*; None if it could be had."""
        start, end, kind = piece
        with self._files.acting():
            asked = _FLOCK.pack(kind, os.SEEK_SET, start, end - start + 1, 0)
            found, _, begin, length, _ = _FLOCK.unpack(_fcntl(self._fd, fcntl.F_OFD_GETLK, asked))
        if found == fcntl.F_UNLCK:
            return None
        return begin, begin + length - 1 if length else _END, found

    def close(self) -> None:
        """Give back all locks, and remove the file unless another mount has it open. Nothing if that has been done."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._files.leave(self._name, fd)


@dataclass(frozen=True, slots=True)
class LockFiles:
    """In the directory *staging_fd*, kept by *service*."""

    staging_fd: int
    service: Owner

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """Within the block the thread acts as who keeps the files; what they do not allow is ENOLCK."""
        try:
            with acting_as(self.service):
                yield
        except OSError as error:
            if error.errno in _NO_FILE | _NO_LOCKS:
                raise OSError(errno.ENOLCK, f"{os.strerror(errno.ENOLCK)}: {error.strerror}") from error
            raise

    def are_kept(self) -> bool:
        """Whether the store keeps locks at all. A store that does not keeps the empty file with which that was found out."""
        with acting_as(self.service):
            fd = self._opened(_name_of(_PROBED))
            try:
                _set(fd, fcntl.F_RDLCK, FLOCK_BYTE, FLOCK_BYTE)
            except OSError as error:
                os.close(fd)
                if error.errno in _NO_LOCKS:
                    return False
                raise
            self.leave(_name_of(_PROBED), fd)
            return True

    def open(self, ino: Inode) -> LockFile:
        """For the locks of *ino*. BlockingIOError if another mount removes it all the time."""
        name = _name_of(ino)
        with self.acting():
            for _ in range(_TRIES):
                fd = self._opened(name)
                try:
                    # From the lock on nobody removes it; before it somebody may have.
                    if _set(fd, fcntl.F_RDLCK, _PRESENCE, _PRESENCE) and self._is_named(name, fd):
                        return LockFile(self, name, fd)
                except BaseException:
                    os.close(fd)
                    raise
                os.close(fd)
                time.sleep(_PAUSE_S)
        raise BlockingIOError(errno.EAGAIN, "another mount is removing the file of its locks")

    def _opened(self, name: bytes) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(name, flags, 0o600, dir_fd=self.staging_fd)

    def _is_named(self, name: bytes, fd: int) -> bool:
        """Whether *fd*, of which a byte is locked, is the file called *name*. The link count is what NFS asks the server for after it has
        taken a lock; the name it may still have in its cache."""
        status = os.fstat(fd)
        if not status.st_nlink:
            return False
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(status, os.stat(name, dir_fd=self.staging_fd, follow_symlinks=False))
        return False

    def leave(self, name: bytes, fd: int) -> None:
        """Close *fd*, with its locks, and remove the file if nobody else has it."""
        with acting_as(self.service):
            try:
                # By itself: a store that is FUSE hears of a descriptor's locks no more when it is closed.
                _set(fd, fcntl.F_UNLCK, 0, LAST_SHARED)
                _set(fd, fcntl.F_UNLCK, FLOCK_BYTE, FLOCK_BYTE)
                if _set(fd, fcntl.F_WRLCK, _PRESENCE, _PRESENCE) and self._is_named(name, fd):
                    os.unlink(name, dir_fd=self.staging_fd)
                _set(fd, fcntl.F_UNLCK, _PRESENCE, _PRESENCE)
            finally:
                os.close(fd)

    def clear(self) -> None:
        """Remove the files of mounts that died."""
        with acting_as(self.service):
            directory = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.staging_fd)
            try:
                names = [name for name in syscalls.names_in(directory) if name.startswith(_NAME)]
            finally:
                os.close(directory)
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            for name in names:
                with contextlib.suppress(OSError):
                    self.leave(name, os.open(name, flags, dir_fd=self.staging_fd))


def _set(fd: int, kind: int, start: int, end: int) -> bool:
    try:
        _fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, end - start + 1, 0))
    except (BlockingIOError, PermissionError):  # POSIX lets a store say either
        return False
    return True


def _fcntl(fd: int, command: int, asked: bytes) -> bytes:
    return fcntl.fcntl(fd, command, asked)


def _name_of(ino: Inode) -> bytes:
    return _NAME + b"%x" % ino
