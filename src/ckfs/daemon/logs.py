"""Where a mount's log goes."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
import threading
import time
from collections.abc import Callable

from ckfs.errors import UsageError
from ckfs.names import shown

_LINE = "%(asctime)s %(levelname)s %(message)s"
_SYSLOG_LINE = "ckfs[%(process)d]: %(levelname)s %(message)s"

_LINES = 30
_PER_S = 60.0


class Bounded(logging.Filter):
    """Lets *lines* of each kind through in *per_s* seconds, and counts the rest: what users cause must not fill a disk.

    Lines are of one kind if the same statement logs them. A record with the attribute ``always`` passes uncounted: who a set
    was given to is for the record.
    """

    def __init__(
        self, lines: int = _LINES, per_s: float = _PER_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._lines = lines
        self._per_s = per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._since: dict[tuple[str, str], tuple[float, int]] = {}
        """When the present interval of a kind began, and how many lines came in it."""

    def filter(self, record: logging.LogRecord) -> bool:
        if getattr(record, "always", False):
            return True
        with self._lock:
            count, left_out = self._counted((record.name, str(record.msg)))
        notes = [f"{left_out} more like this were left out"] if left_out else []
        if count == self._lines:
            notes.append(f"more like this are left out for up to {self._per_s:g} s")
        if notes:
            record.msg, record.args = f"{record.getMessage()} ({'; '.join(notes)})", ()
        return count <= self._lines

    def _counted(self, kind: tuple[str, str]) -> tuple[int, int]:
        """The number of this line in its interval, and how many were left out in the one before."""
        now = self._clock()
        began, count = self._since.get(kind, (now, 0))
        left_out = 0
        if now - began >= self._per_s:
            began, count, left_out = now, 0, max(0, count - self._lines)
        self._since[kind] = (began, count + 1)
        return count + 1, left_out


def set_up(*, in_front: bool, log_file: str | None) -> None:
    """stderr in front; else the file, or syslog where there is one."""
    handler: logging.Handler
    if log_file is not None:
        try:
            handler = logging.FileHandler(log_file)
        except OSError as error:
            raise UsageError(f"mount option log={shown(log_file)}: {error.strerror}") from None
        handler.setFormatter(logging.Formatter(_LINE))
    elif in_front:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(_LINE))
    elif os.path.exists("/dev/log"):
        handler = logging.handlers.SysLogHandler("/dev/log", logging.handlers.SysLogHandler.LOG_DAEMON)
        handler.setFormatter(logging.Formatter(_SYSLOG_LINE))
    else:
        handler = logging.NullHandler()
    handler.addFilter(Bounded())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("pyfuse3").setLevel(logging.WARNING)
    # Of a connection that breaks psycopg warns by itself; ckfs meets that, and says once that the ledger is away.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
