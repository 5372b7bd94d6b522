"""Renames: over what is there and in use, and with the flags that not every file system knows."""

from __future__ import annotations

import errno
import os

from ckfs.selftest.identities import create
from ckfs.selftest.outcome import Check, Outcome, fail, ok, warn
from ckfs.selftest.place import Place
from ckfs.store import syscalls
from ckfs.store.identity import acting_as

_AT_FDCWD = -100
"""Of linux/fcntl.h: relative paths begin at the working directory."""
_UNKNOWN = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_NOTHING_TO_DO = "nothing has to be done"


def _file(room: str, name: str, content: bytes) -> str:
    path = os.path.join(room, name)
    fd = create(path)
    os.write(fd, content)
    os.close(fd)
    return path


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _rename(old: str, new: str, flags: int) -> None:
    syscalls.rename(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags)


def _over(place: Place) -> list[Outcome]:
    check = "rename.over"
    with acting_as(place.keeper):
        room = place.new_room()
        old, new = _file(room, "old", b"new"), _file(room, "new", b"before")
        with open(new, "rb", buffering=0) as reader:
            os.rename(old, new)
            if os.path.lexists(old) or _content(new) != b"new":
                return [fail(check, "a file that was renamed over another is not in its place")]
            try:
                before = reader.read()
            except OSError as error:
                says = f"who has a file open that another is renamed over gets {error.strerror}"
                return [warn(check, says, "readers must open the image anew")]
            if before != b"before":
                return [fail(check, "who has a file open that another is renamed over reads the other one")]
        os.mkdir(os.path.join(room, "directory"))
        os.mkdir(os.path.join(room, "empty"))
        _file(room, "directory/inside", b"inside")
        os.rename(os.path.join(room, "directory"), os.path.join(room, "empty"))
        if _content(os.path.join(room, "empty/inside")) != b"inside":
            return [fail(check, "a directory that was renamed over an empty one is not in its place")]
    return [ok(check, "over a file, over one that is open, and of a directory over an empty one")]


def _unlinked(place: Place) -> list[Outcome]:
    check = "rename.unlinked"
    with acting_as(place.keeper):
        path = _file(place.new_room(), "file", b"before")
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            os.unlink(path)
            os.pwrite(fd, b"after!", 0)
            os.fsync(fd)
            kept = os.pread(fd, 6, 0)
        except OSError as error:
            return [
                warn(
                    check,
                    f"an open file that is removed gets {error.strerror}",
                    "writers must end before it is removed",
                )
            ]
        finally:
            os.close(fd)
        if kept != b"after!":
            return [fail(check, "an open file that is removed loses what is written")]
    return [ok(check, "an open file that is removed stays usable")]


def _no_replace(place: Place) -> list[Outcome]:
    check = "rename.noreplace"
    with acting_as(place.keeper):
        room = place.new_room()
        old, taken = _file(room, "old", b"old"), _file(room, "taken", b"taken")
        free = os.path.join(room, "free")
        try:
            _rename(old, free, syscalls.RENAME_NOREPLACE)
        except OSError as error:
            if error.errno not in _UNKNOWN:
                raise
            return [
                warn(
                    check,
                    "not known here: for names of sets ckfs makes a link of the new name instead, which is as exclusive;"
                    " programs that ask for it inside of a set get EINVAL",
                    _NOTHING_TO_DO,
                )
            ]
        try:
            _rename(free, taken, syscalls.RENAME_NOREPLACE)
        except FileExistsError:
            pass
        else:
            return [fail(check, "renames over a file although it was told not to")]
        if os.path.lexists(old) or _content(taken) != b"taken" or _content(free) != b"old":
            return [fail(check, "has not renamed what it said it had")]
    return [ok(check, "RENAME_NOREPLACE refuses a name that is taken")]


def _exchange(place: Place) -> list[Outcome]:
    check = "rename.exchange"
    with acting_as(place.keeper):
        room = place.new_room()
        one, other = _file(room, "one", b"one"), _file(room, "other", b"other")
        try:
            _rename(one, other, syscalls.RENAME_EXCHANGE)
        except OSError as error:
            if error.errno not in _UNKNOWN:
                raise
            return [
                warn(
                    check,
                    "not known here: where a set changes hands ckfs looks first and then renames over the old entry;"
                    " programs that ask for it get EINVAL",
                    _NOTHING_TO_DO,
                )
            ]
        if (_content(one), _content(other)) != (b"other", b"one"):
            return [fail(check, "has not exchanged what it said it had")]
    return [ok(check, "RENAME_EXCHANGE exchanges two names")]


CHECKS = (
    Check(("rename.over",), _over),
    Check(("rename.unlinked",), _unlinked),
    Check(("rename.noreplace",), _no_replace),
    Check(("rename.exchange",), _exchange),
)
