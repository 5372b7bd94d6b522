"""One mount after the other looks what a file takes, and lets the ledger know: by a lock of the file (flock).

Otherwise what one has seen might reach the ledger after what another saw later. Synchronous; each *fd* is an open file, whose lock goes
with it. Where the store keeps no locks, and beside a mount that has been stopped with the lock, a recount finds what is wrong.
"""

from __future__ import annotations

import contextlib
import fcntl
import time

_PAUSE_S = 0.001


def take(fd: int, within_s: float = 0.0) -> bool:
    """False if another mount has the turn for as long as *within_s*."""
    deadline_s = time.monotonic() + within_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(_PAUSE_S)
        except OSError:  # the store keeps no locks
            return True
        else:
            return True


def give_back(fd: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)
