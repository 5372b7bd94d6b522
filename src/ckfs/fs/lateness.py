"""Stores that take what is written, and say only when they are asked that there was no room for it: NFS, and most that lie behind a network.

An error that comes with close() comes when the program that was dumped is gone. So such a store is asked (fdatasync) as writing goes on:
after the first MiB, after as much again, and so on, and then at each 64 MiB. What was lost by then has been taken for written; only the
program can write it again, so the write that learns of it fails, and nothing that could give way is of any help to it. For a
while after that each write of the same owner is asked about: then there is nothing else that could be lost, and room can be made.

All of it belongs to the event loop's thread, but for :func:`ask`.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field

import trio

from ckfs.errors import Unkept
from ckfs.model import Owner

FIRST_BYTES = 1 << 20
MOST_BYTES = 64 << 20
"""How much a store may have taken of a file without being asked."""
CAREFUL_S = 60.0
_MOST_OWNERS = 1024
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_CANNOT_BE_ASKED = (errno.EINVAL, errno.EOPNOTSUPP)


@dataclass(slots=True)
class Taken:
    """What the store has taken of one file since it was asked last."""

    bytes: int = 0
    under_way: int = 0
    """Writes that have not come back."""
    until_asked: int = FIRST_BYTES

    @property
    def is_any(self) -> bool:
        return self.bytes > 0 or self.under_way > 0

    def kept(self, count: int) -> None:
        """The store was asked, and keeps *count* bytes that it had taken before it was."""
        self.bytes = max(0, self.bytes - count)
        self.until_asked = min(2 * self.until_asked, MOST_BYTES)


@dataclass(slots=True)
class Lateness:
    """Of one mount. *is_late*: its store is one of these."""

    is_late: bool
    _careful_until: dict[Owner | None, float] = field(default_factory=dict)

    def asks(self, taken: Taken, count: int, owner: Owner | None) -> bool:
        """Whether the store is to be asked along with a write of *count* bytes of *owner*."""
        if not self.is_late:
            return False
        is_careful = trio.current_time() < self._careful_until.get(owner, 0.0)
        return is_careful or taken.bytes + count >= taken.until_asked

    def refused(self, error: OSError, owner: Owner | None, *, earlier: bool) -> OSError | Unkept:
        """What *error*, of a write or of asking, means: Unkept if what was taken *earlier* may be lost."""
        if not self.is_late or error.errno not in NO_ROOM:
            return error
        if len(self._careful_until) > _MOST_OWNERS:
            self._careful_until.clear()
        self._careful_until[owner] = trio.current_time() + CAREFUL_S
        return Unkept(error.errno) if earlier else error


def ask(fd: int) -> None:
    """Let the store say what it has against the data of the open file *fd*. Blocking."""
    try:
        os.fdatasync(fd)
    except OSError as error:
        if error.errno not in _CANNOT_BE_ASKED:
            raise
