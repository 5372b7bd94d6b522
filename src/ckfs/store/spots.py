"""Where something lies in the store, and what was found there: the words of the door (:mod:`ckfs.store.door`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from ckfs.model import Owner, Record
from ckfs.names import Inode


@dataclass(frozen=True, slots=True)
class Spot:
    """A name in the store: *components* below the store's root (at least one), reached as *identity*.

    *within* is the inode that the directory holding it must be; calls through a name that leads elsewhere are Stale.
    """

    identity: Owner
    components: tuple[bytes, ...]
    within: Inode | None = None


@dataclass(frozen=True, slots=True)
class OpenFile:
    """An open descriptor of the store. Calls on it are made as whoever owns the file at that moment: a set may have
    changed hands since it was opened."""

    fd: int


Target = Spot | OpenFile
"""Something that exists, reached by its name or by an open descriptor (which also works when the name is gone)."""


Build = Callable[[Record | None], Record]
"""Makes the record of something new from that of its directory; None where that is not in a set."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file of the store as it is now: its own stat, and what ckfs keeps with it. *removed*: as it was when its last
    name went."""

    stat: os.stat_result
    record: Record
    removed: bool = False


@dataclass(frozen=True, slots=True)
class Times:
    """New times in nanoseconds since the epoch; None leaves one as it is."""

    atime_ns: int | None
    mtime_ns: int | None
