"""Which open files the kernel may read and write in the store by itself (FUSE passthrough), past the daemon.

What it does there nobody counts, refuses or notices, until the file is closed. So it reads only what nobody changes, and writes only
what nobody has to watch.
"""

from __future__ import annotations

import enum
import stat
from dataclasses import dataclass

from ckfs.model import Record

_SMALL_BYTES = 64 << 10
_SET_IDS = stat.S_ISUID | stat.S_ISGID


class Wish(enum.Enum):
    """AUTO is for stores on the host's own disks and in its memory: of a network's, its own mount options would bound the wait."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Opened:
    """An open file, of *size* bytes. *is_final*: its name is meant to stay. *is_new*: its opener has made or emptied it. *is_plain*: neither appends nor
    synchronous or direct writes were asked for: where an append ends is for the store to say, under a lock, and the others are not for speed."""

    reads: bool
    writes: bool
    is_plain: bool
    record: Record
    size: int
    in_batch_set: bool
    is_final: bool
    is_new: bool


def may_be_read(opened: Opened, *, is_complete: bool) -> bool:
    """In batch sets, and of owners without limits. Who opens it for both meanwhile could map it, and write unclaimed for: not in a batch set, where
    it is protected. A small one is read sooner than the kernel would be told."""
    return not opened.writes and is_complete and not opened.record.damaged and opened.size >= _SMALL_BYTES


def may_be_written(opened: Opened) -> bool:
    """By an owner without limits. What is open for reading, too, could be mapped; what has its final name in a batch set is
    protected from the moment in which it is closed; and what has content already may be worth more than what its opener does
    with it, if he does anything at all: who empties it now lets it go to the trash, and who is killed has not torn it."""
    return (
        opened.writes
        and not opened.reads
        and opened.is_plain
        and opened.is_new
        and not opened.record.mode & _SET_IDS
        and not (opened.in_batch_set and opened.is_final)
    )
