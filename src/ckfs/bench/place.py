"""Where a bench works: a directory of its own, made under a name that says what it is, and removed with all in it.

On a mount that is a set. What becomes complete in it would go to the trash when it is removed, and would cost its owner room for
days; so each file is written to once more, by a byte, and loses its name while it is open: what is being written is not kept.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from ckfs.errors import FsError
from ckfs.model import Owner
from ckfs.names import Gid, Uid, shown
from ckfs.selftest.scratch import Worker
from ckfs.store.identity import ROOT, acting_as

SET_PREFIX, CONTROL_PREFIX = "ckfs-bench-", ".ckfs-bench-"
_NAME = re.compile(r"\.?ckfs-bench-[0-9a-f]{16}")
_WHO = "who.tmp"
_WHO_BYTES = 1024
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_EMPTIES_WITHIN_S = 5.0
"""NFS keeps what was removed while it was open, under a name of its own, until the close has come through."""
_PASSED_THROUGH, _OPEN_TO_ALL = 0o711, 0o1777


@dataclass(frozen=True, slots=True)
class Place:
    """*name* is what a table calls it. *top* is a directory of somebody else's, *below* a path from there to the one of *user*'s, who is
    None for whoever runs this. *device* is what *top* must be on, if that matters."""

    name: str
    top: str
    below: str
    user: Owner | None
    device: int | None = None

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """For the process of one step: its working directory, and as whom it works."""
        with opened(self.top, device=self.device) as top_fd, as_owner(self.user):
            with opened(self.below, dir_fd=top_fd) as fd:
                os.fchdir(fd)
            yield


def new_token() -> str:
    return secrets.token_hex(8)


def as_owner(owner: Owner | None) -> AbstractContextManager[None]:
    """Only root acts as somebody else."""
    return contextlib.nullcontext() if owner is None or os.geteuid() != ROOT.uid else acting_as(owner)


@contextlib.contextmanager
def opened(path: str | bytes, *, dir_fd: int | None = None, device: int | None = None) -> Iterator[int]:
    """A directory. Of a path that an admin gave, without *dir_fd*, links are followed."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if dir_fd is None else os.O_NOFOLLOW)
    fd = os.open(path, flags, dir_fd=dir_fd)
    try:
        if device is not None and os.fstat(fd).st_dev != device:
            raise OSError(errno.ENOTCONN, "another file system is there by now")
        yield fd
    finally:
        os.close(fd)


def make(top_fd: int, name: str, owner: Owner | None, worker: Worker) -> None:
    """A directory of *owner*'s, which says whose process works in it."""
    with as_owner(owner):
        os.mkdir(name, 0o700, dir_fd=top_fd)
        with opened(name, dir_fd=top_fd) as fd:
            who = os.open(_WHO, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=fd)
            try:
                os.write(who, worker.encode())
            finally:
                os.close(who)


def make_room(top_fd: int, name: str, keeper: Owner, user: Owner) -> str:
    """A directory of *user*'s in *name*, which is *keeper*'s: its path from the same *top_fd*. Nobody else can name it."""
    room, own = secrets.token_hex(8), secrets.token_hex(8)
    with as_owner(keeper), opened(name, dir_fd=top_fd) as fd:
        os.fchmod(fd, _PASSED_THROUGH)
        os.mkdir(room, 0o700, dir_fd=fd)
        os.chmod(room, _OPEN_TO_ALL, dir_fd=fd)
        with as_owner(user), opened(room, dir_fd=fd) as room_fd:
            os.mkdir(own, 0o700, dir_fd=room_fd)
    return f"{name}/{room}/{own}"


# Removing


def remove(top_fd: int, name: str) -> bool:
    """The directory *name*, with all in it, each as its owner. False if something of it may have gone to a trash."""
    status = _status(top_fd, name)
    if status is None:
        return True
    own = _owner_of(status)
    with as_owner(own), opened(name, dir_fd=top_fd) as fd:  # root may be nobody there
        is_clean = _empty(fd, own)
    _remove_directory(top_fd, name, own, own)
    return is_clean


def empty(place: Place) -> bool:
    """Remove what is in *place*. False as for :func:`remove`."""
    with place.entered(), opened(".") as fd:
        return _empty(fd, place.user, but=_WHO)


def _empty(fd: int, owner: Owner | None, but: str | None = None) -> bool:
    """What says whose it is goes last: removing may be interrupted, too."""
    is_clean = True
    with as_owner(owner):
        names = sorted(os.listdir(fd), key=lambda name: name == _WHO)
    for name in names:
        if name != but:
            is_clean = _remove(fd, name, owner) and is_clean
    return is_clean


def _remove(dir_fd: int, name: str, parent: Owner | None) -> bool:
    with as_owner(parent):
        status = _status(dir_fd, name)
        if status is None:
            return True
        if stat.S_ISREG(status.st_mode) and status.st_size:
            return _remove_image(dir_fd, name)
        if not stat.S_ISDIR(status.st_mode):
            _unlink(dir_fd, name)
            return True
    own = _owner_of(status)
    with as_owner(own), opened(name, dir_fd=dir_fd) as fd:
        is_clean = _empty(fd, own)
    _remove_directory(dir_fd, name, parent, own)
    return is_clean


def _remove_image(dir_fd: int, name: str) -> bool:
    """As something that is being written: whatever it was, it is not kept. False if there was no room to write it, and it may be."""
    fd = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    is_clean = True
    try:
        try:
            os.pwrite(fd, b"\0", 0)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            is_clean = False
        _unlink(dir_fd, name)
    finally:
        os.close(fd)
    return is_clean


def _unlink(dir_fd: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=dir_fd)


def _remove_directory(dir_fd: int, name: str, parent: Owner | None, own: Owner) -> None:
    """*name*, which is *own*'s, in the directory of *parent*'s."""
    deadline = time.monotonic() + _EMPTIES_WITHIN_S
    while True:
        try:
            with as_owner(parent):
                os.rmdir(name, dir_fd=dir_fd)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or time.monotonic() > deadline:
                raise
        else:
            return
        time.sleep(0.02)
        with contextlib.suppress(OSError), as_owner(own), opened(name, dir_fd=dir_fd) as fd:
            _empty(fd, own)


def _status(dir_fd: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _owner_of(status: os.stat_result) -> Owner:
    return Owner(Uid(status.st_uid), Gid(status.st_gid))


# What others left


def left_overs(top_fd: int, own: str, path: str, uids: frozenset[int]) -> Iterator[str]:
    """What benches that were killed left in *top_fd*, which is at *path*, a line each: removed if it is one of *uids*' and they
    certainly are not at it any more. Of others' root is told."""
    for name in sorted(os.listdir(top_fd)):
        if not _NAME.fullmatch(name) or name == own:
            continue
        with contextlib.suppress(OSError, FsError):
            status = _status(top_fd, name)
            if status is None or not stat.S_ISDIR(status.st_mode):
                continue
            is_his = status.st_uid in uids
            if not is_his and os.geteuid() != ROOT.uid:
                continue
            where, worker = shown(os.path.join(path, name)), _worker_of(top_fd, name, _owner_of(status))
            if not is_his:
                if worker is None or not worker.may_be_at_it:
                    yield f"{where} was left by a bench of uid {status.st_uid}: 'ckfs bench --as {status.st_uid}' removes it"
            elif worker is None:
                yield f"{where} was left by a bench, or is just begun by one: remove it if none runs"
            elif not worker.may_be_at_it:
                remove(top_fd, name)
                yield f"{where}, left by process {worker.pid} of this host, was removed"
            elif not worker.is_of_this_kernel:
                yield f"{where} is of process {worker.pid} on {shown(worker.node)}: remove it if no bench runs there"


def _worker_of(top_fd: int, name: str, owner: Owner) -> Worker | None:
    with contextlib.suppress(OSError), as_owner(owner), opened(name, dir_fd=top_fd) as fd:
        who = os.open(_WHO, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
        try:
            return Worker.decode(os.pread(who, _WHO_BYTES, 0))
        finally:
            os.close(who)
    return None
