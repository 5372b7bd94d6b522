"""What a store does wrong, as far as it concerns everybody: for who asks how the mount is."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass, field

_EVERYBODY_S = frozenset(
    {
        errno.EIO,
        errno.EROFS,
        errno.ENOSPC,
        errno.ESTALE,
        errno.EUCLEAN,
        errno.EBADMSG,
        errno.EREMOTEIO,
        errno.ENXIO,
        errno.ENODEV,
        errno.ENOTCONN,
        errno.ESHUTDOWN,
        errno.ETIMEDOUT,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
    }
)
"""What a call was refused with for no reason of its own: a name that is taken, or a quota, is one user's affair."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """*what* is one line in which nothing is named that belongs to anybody. *when_ns* since the epoch."""

    what: str
    when_ns: int = field(default_factory=time.time_ns)


def trouble_of(error: BaseException) -> Trouble | None:
    """None for what is no fault of the store's. ckfs's own errors have words of their own; the system's have its."""
    if not isinstance(error, OSError) or error.errno not in _EVERYBODY_S:
        return None
    if error.strerror != os.strerror(error.errno):
        return None
    return Trouble(f"the store answered: {error.strerror} ({errno.errorcode[error.errno]})")
