"""Single steps that set a file right. Each is made on the file itself, which is held open, and can be repeated."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from ckfs.errors import Stale
from ckfs.model import Owner, Record
from ckfs.store import attributes, record
from ckfs.store.alone import alone_with
from ckfs.store.checking.walking import Seen, modes_needed, owner_of, reach


def give(seen: Seen, owner: Owner) -> None:
    """chown, which only root may."""
    with _held(seen) as (path, _):
        os.chown(path, owner.uid, owner.gid)


def open_up(seen: Seen) -> None:
    with _held(seen) as (path, status):
        set_mode(path, status, stat.S_IMODE(status.st_mode) | modes_needed(status))


def set_mode(path: bytes, status: os.stat_result, mode: int) -> None:
    reach(owner_of(status), lambda: os.chmod(path, mode))


def change_mode(seen: Seen, mode: int) -> None:
    with _held(seen) as (path, status):
        set_mode(path, status, mode)


def put_record(seen: Seen, new: Record) -> Record:
    """Let *new* be the record instead of what was *seen*. Returns what it is then. Stale if another has put one there."""
    with _held(seen) as (path, status):
        fd = reach(owner_of(status), lambda: os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        try:
            return reach(owner_of(status), lambda: _put_record(fd, seen.raw, new))
        finally:
            os.close(fd)


def _put_record(fd: int, before: bytes | None, new: Record) -> Record:
    if before is None:
        try:
            attributes.create(fd, record.ATTRIBUTE, record.encode(new))
        except FileExistsError:
            raise Stale("it has a record by now") from None
        return new
    with alone_with(fd):
        if attributes.get_or_none(fd, record.ATTRIBUTE) != before:
            raise Stale("it has another record by now")
        attributes.put(fd, record.ATTRIBUTE, record.encode(new))
    return new


@contextmanager
def _held(seen: Seen) -> Iterator[tuple[bytes, os.stat_result]]:
    """A path that leads to the very file that was *seen*, and its stat now."""
    directory, flags = seen.directory, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = reach(directory.owner, lambda: os.open(seen.name, flags, dir_fd=directory.fd))
    try:
        status = os.fstat(fd)
        if not os.path.samestat(status, seen.status):
            raise Stale("the name leads to another file by now")
        yield b"/proc/self/fd/%d" % fd, status
    finally:
        os.close(fd)
