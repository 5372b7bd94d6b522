"""How a set looks from a host that does not reach the further store in which it lies: what its name says of it, and nothing more."""

from __future__ import annotations

import os
import stat

from ckfs.model import Record
from ckfs.store.entries import SetEntry
from ckfs.store.identity import ROOT

_UNKNOWN_MODE = stat.S_IFDIR | 0o700


def record_of(entry: SetEntry) -> Record:
    owner = ROOT if entry.owner is None else entry.owner
    return Record(entry.ino, owner.uid, owner.gid, entry.mode or _UNKNOWN_MODE)


def status_of(entry: SetEntry, link: os.stat_result) -> os.stat_result:
    """Empty, and of the times of its name, whose status is *link*."""
    mode = entry.mode or _UNKNOWN_MODE
    seen = (
        mode,
        link.st_ino,
        link.st_dev,
        2 if stat.S_ISDIR(mode) else 1,
        entry.stored.uid,
        entry.stored.gid,
        0,
        int(link.st_atime),
        int(link.st_mtime),
        int(link.st_ctime),
    )
    more = {
        name: getattr(link, name)
        for name in ("st_atime", "st_mtime", "st_ctime", "st_atime_ns", "st_mtime_ns", "st_ctime_ns")
    }
    return os.stat_result(seen, {**more, "st_blksize": link.st_blksize, "st_blocks": 0, "st_rdev": 0})
