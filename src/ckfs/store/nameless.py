"""Files that have lost their last name while somebody has them open: they take room until they are closed, and are charged until then.

Who opens a file *holds* it, by a lock of the open file description, which nobody waits for: that costs no write, and goes with the
descriptor, however its process ends. So whoever takes a file's last name away knows whether it is open, on whatever mount of this host. If
it is, one mount goes on counting it, its *keeper*, and says so in an attribute of the file, with what another one needs to take
over (:class:`Left`). All of that is asked and said under the lock of the file (:func:`alone_with`), so that in the end exactly one
tells that it is free: who finds that nobody holds it, while the attribute still names him.

On the store of a network nothing of this is done (docs/quotas.md).
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import os
import secrets
import struct
from dataclasses import dataclass

from ckfs.names import Inode, MountId, Uid
from ckfs.policy.quota import Amount
from ckfs.store import attributes
from ckfs.store.alone import alone_with

_ATTRIBUTE = b"user.ckfs.gone"
_NOBODY = b"1"
_FLOCK = struct.Struct("hhqqi0q")
"""Of fcntl(2), on machines of 64 bits."""
_FIRST, _PLACES = 1 << 62, 1 << 40
"""Of the locks, far behind everything that a file could hold."""


@dataclass(frozen=True, slots=True)
class Left:
    """A file without a name that *payer* is charged for with *amount*. The ledger notes it under a *number* of its own: that of the file may
    be another's by now, which has taken its place."""

    payer: Uid
    number: Inode
    amount: Amount


@dataclass(frozen=True, slots=True)
class Mark:
    """What the attribute says: *keeper* counts it; None: nobody does. *left*: he has it open no more, and others may take over."""

    keeper: MountId | None
    left: Left | None = None


class Standing(enum.Enum):
    """How a file stands to its keeper."""

    HELD = enum.auto()
    FREE = enum.auto()
    """Nobody has it open any more."""
    TAKEN_OVER = enum.auto()


# Who has it open


def hold(fd: int) -> None:
    """Say that the file is open as *fd*, until :func:`let_go`, or until that is closed for the last time."""
    kind, place = fcntl.F_RDLCK, _FIRST
    if (
        fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
    ):  # only a lock against others is to be had
        kind, place = fcntl.F_WRLCK, _FIRST + 1 + secrets.randbelow(_PLACES - 1)
    with contextlib.suppress(OSError):
        _lock(fd, fcntl.F_OFD_SETLK, kind, place, 1)


def let_go(fd: int) -> None:
    with contextlib.suppress(OSError):
        _lock(fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, _FIRST, _PLACES)


def is_held(fd: int) -> bool:
    """Whether the file is open otherwise than as *fd*."""
    with contextlib.suppress(OSError):
        return _lock(fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, _FIRST, _PLACES) != fcntl.F_UNLCK
    return False


def _lock(fd: int, command: int, kind: int, begin: int, length: int) -> int:
    answer = fcntl.fcntl(fd, command, _FLOCK.pack(kind, os.SEEK_SET, begin, length, 0))
    return int(_FLOCK.unpack(answer)[0])


# Who counts it


def mark_of(fd: int) -> Mark | None:
    """None if nobody has told yet that its last name has gone."""
    value = attributes.get_or_none(fd, _ATTRIBUTE)
    if value is None:
        return None
    if value == _NOBODY:
        return Mark(None)
    keeper, *rest = value.split(b" ")
    try:
        payer, number, size, files = map(int, rest)
    except ValueError:
        return Mark(MountId(keeper))
    return Mark(MountId(keeper), Left(Uid(payer), Inode(number), Amount(size, files)))


def is_marked(fd: int) -> bool:
    with contextlib.suppress(OSError):
        return attributes.get_or_none(fd, _ATTRIBUTE) is not None
    return False


def is_first_to_mark(fd: int, mark: Mark) -> bool:
    """Whether it falls to us to tell that its last name has gone."""
    try:
        attributes.create(fd, _ATTRIBUTE, _encoded(mark))
    except FileExistsError:
        return False
    except OSError:  # no room for a mark
        return True
    return True


def put_mark(fd: int, mark: Mark) -> None:
    with contextlib.suppress(OSError):  # no room: the keeper keeps it
        attributes.put(fd, _ATTRIBUTE, _encoded(mark))


def _encoded(mark: Mark) -> bytes:
    if mark.keeper is None:
        return _NOBODY
    if mark.left is None:
        return mark.keeper
    left = mark.left
    return b"%s %d %d %d %d" % (mark.keeper, left.payer, left.number, left.amount.bytes, left.amount.files)


def standing_of(fd: int, keeper: MountId) -> Standing:
    """Of the open file *fd*, through which its *keeper* does not hold it. In the lock."""
    held, mark = is_held(fd), mark_of(fd)
    if mark is not None and mark.keeper != keeper:
        return Standing.TAKEN_OVER
    return Standing.HELD if held else Standing.FREE


def look_at(fd: int, keeper: MountId, left: Left) -> Standing:
    """As :func:`standing_of`; others may take over from now on."""
    with alone_with(fd):
        standing = standing_of(fd, keeper)
        if standing is Standing.HELD and mark_of(fd) != (offer := Mark(keeper, left)):
            put_mark(fd, offer)
        if standing is Standing.FREE:
            put_mark(fd, Mark(None))
        return standing
