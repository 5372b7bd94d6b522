"""What callers see of what was found in the store, whichever way it travels."""

from __future__ import annotations

from ckfs.names import ROOT_INODE
from ckfs.store.spots import Found


def links_of(found: Found) -> int:
    """How many sets are directories only a look at each would tell: of the root it is 1, "not counted", as on btrfs."""
    if found.removed:
        return 0
    return 1 if found.record.ino == ROOT_INODE else found.stat.st_nlink
