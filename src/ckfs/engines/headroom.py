"""A little room beyond a limit, for as long as ckfs itself has something to note.

At its limit btrfs refuses renames and attributes, too: who is full could not move anything to the trash, nor could ckfs say that
his image is complete. So the limit is a little higher for the moment of such a call. One process of the host does that at a
time, and what it was before is on ``users/`` meanwhile, for the next one should it die.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass

from ckfs.engines.engine import Driver, Realms
from ckfs.names import Uid

ROOM_BYTES = 1 << 20
"""btrfs wants up to eleven times 16 KiB free for one rename, and keeps that until its next commit."""
_BEFORE = "user.ckfs.limit-before."


@dataclass(frozen=True, slots=True)
class Headroom:
    driver: Driver
    realms: Realms

    @contextlib.contextmanager
    def alone(self, uid: Uid) -> Iterator[None]:
        """In the block no other process, nor thread, changes the limit of the realm *uid*; what one that died left is put right."""
        with self.realms.opened(uid) as fd:
            fcntl.flock(fd, fcntl.LOCK_EX)
            before = self._left(uid)
            if before is not None:
                self._restore(uid, before)
            yield

    @contextlib.contextmanager
    def lifted(self, uid: Uid) -> Iterator[None]:
        with self.alone(uid):
            limit = self.driver.account(uid).limits.bytes.hard
            if limit is None:
                yield
                return
            os.setxattr(self.realms.fd, self._mark(uid), b"%d" % limit)
            try:
                self.driver.set_bytes(uid, limit + ROOM_BYTES)
                yield
            finally:
                self._restore(uid, limit)

    def _restore(self, uid: Uid, limit_bytes: int) -> None:
        self.driver.set_bytes(uid, limit_bytes)
        os.removexattr(self.realms.fd, self._mark(uid))

    def _left(self, uid: Uid) -> int | None:
        try:
            return int(os.getxattr(self.realms.fd, self._mark(uid)))
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            return None

    @staticmethod
    def _mark(uid: Uid) -> str:
        return f"{_BEFORE}{uid}"
