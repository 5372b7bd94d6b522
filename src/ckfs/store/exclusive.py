"""Renaming to a name that nothing has, also where the store knows no flag for that: NFS and GlusterFS."""

from __future__ import annotations

import errno

from ckfs.store.door import Door
from ckfs.store.spots import Found, Spot
from ckfs.store.syscalls import RENAME_NOREPLACE


def rename_if_free(door: Door, old: Spot, new: Spot, found: Found) -> None:
    """Rename *old*, which is *found*, to *new*. FileExistsError if something has that name; of two who want it for two files in the same
    moment one gets it."""
    try:
        door.rename(old, new, RENAME_NOREPLACE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # The store knows no such flag, but making a directory, or a link, is as exclusive.
        if found.record.is_directory:
            door.make_directory(new, lambda _: found.record)
            door.rename(old, new)
        else:
            move_by_link(door, old, new)


def move_by_link(door: Door, old: Spot, new: Spot) -> None:
    """As :func:`rename_if_free`, for files: links are as exclusive as the flag."""
    door.link(old, new)
    try:
        door.unlink(old)
    except (
        FileNotFoundError
    ):  # another has just moved it elsewhere; or a request that was repeated is answered so
        if door.status(new).st_nlink > 1:
            door.unlink(new)
            raise
