"""What the door told a mount (:class:`ckfs.store.metering.Meter`), until it is taken up."""

from __future__ import annotations

from dataclasses import dataclass

from ckfs.names import Inode, Uid
from ckfs.policy.quota import Amount
from ckfs.store.metering import Ended
from ckfs.store.nameless import Left


@dataclass(frozen=True, slots=True)
class Event:
    """What the door told. *ino* is that of what has gone, or of a file that is being written."""

    payer: Uid
    ino: Inode | None
    change: Amount
    is_gone: bool = False
    """It has no name any more."""


@dataclass(frozen=True, slots=True)
class LeftOpen:
    """The door took the last name of a file that is open somewhere. *fd* is to be closed."""

    left: Left
    fd: int


Told = Event | Ended | LeftOpen


def is_urgent(event: Told) -> bool:
    """Whether others may have what it frees; or a recount must know of it."""
    if isinstance(event, LeftOpen):
        return True
    change = event.final - event.counted if isinstance(event, Ended) else event.change
    return change.bytes < 0 or change.files < 0
