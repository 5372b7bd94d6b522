"""Where a mount's log goes."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys

from ckfs.errors import UsageError
from ckfs.names import shown

_LINE = "%(asctime)s %(levelname)s %(message)s"
_SYSLOG_LINE = "ckfs[%(process)d]: %(levelname)s %(message)s"


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
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("pyfuse3").setLevel(logging.WARNING)
