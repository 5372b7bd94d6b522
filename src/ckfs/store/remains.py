"""What a copy of a set leaves behind when it has become the set, or when whoever made it has died: the old files, or a part of a copy.

The set's lock says what (:mod:`ckfs.store.copylocks`). Synchronous, for worker threads; OSError as the store raises it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import errno
import logging
import os
import time

from ckfs.errors import FsError, Stale, StoreDown, Unreached
from ckfs.names import SetName, shown
from ckfs.store.copying import Attributes, Contents, attributes_in, contents, everything
from ckfs.store.copylocks import read_note
from ckfs.store.entries import SetEntry, place_beside
from ckfs.store.layout import Store
from ckfs.store.spots import Spot

log = logging.getLogger(__name__)

IN_USE = (errno.EBUSY, errno.ENOTEMPTY)
"""So NFS answers who removes a file that has lost its name while it was open, or a directory with one in it."""
_KEPT_NS = 86_400 * 10**9
"""For so long a part of a copy waits for whoever goes on with it."""


class Left(enum.Enum):
    """What is still there of what a lock says."""

    NOTHING = enum.auto()
    BEGUN = enum.auto()
    """A part of a copy, to be gone on with."""
    IN_USE = enum.auto()
    """Files that somebody on this host has open, or that this host does not reach."""


def remove_left(store: Store) -> bool:
    """Remove the old files of sets that were copied by one that died after the copy had become the set. Whether some are open on this host, and stay."""
    stays = False
    for ino in store.names.copy_locks.locked():
        try:
            lock = store.names.copy_locks.lock(ino)
        except OSError:  # being copied
            continue
        left = Left.NOTHING
        try:
            left = clear(store, lock, keeps_begun=True)
        except (OSError, FsError) as error:
            log.warning("a copied set's old files cannot be removed: %s", error)
        finally:
            store.names.copy_locks.unlock(ino, lock, keep=left is not Left.NOTHING)
        stays = stays or left is Left.IN_USE
    return stays


def clear(store: Store, lock: int, *, keeps_begun: bool = False, goes_on: SetEntry | None = None) -> Left:
    """Remove what the open *lock* says was left, but for the part of a copy with which the caller *goes_on*; *keeps_begun*: that of others
    stays for a while, too."""
    noted = read_note(lock)
    since_ns = os.fstat(lock).st_mtime_ns
    try:
        if noted is not None:
            if noted.copied is not None and not _is_used(store, noted.copied):
                if goes_on is not None and goes_on.spot == noted.copied.spot:
                    return Left.BEGUN
                is_late = time.time_ns() - since_ns > _KEPT_NS
                # Only while a name says that the set lies where it lay: a look at all names may miss one that is just being renamed, and
                # the copy may be the set.
                if not _is_used(store, noted.old) or (keeps_begun and not is_late):
                    return Left.BEGUN
                with contextlib.suppress(FileNotFoundError, Stale):
                    store.door.unmetered.remove_tree(noted.copied.spot)
            _remove_left(store, noted.name, noted.old, since_ns)
    except (Unreached, StoreDown):
        return Left.IN_USE  # a host that reaches the store where they lie does it
    except OSError as error:
        if error.errno not in IN_USE:
            raise
        return Left.IN_USE
    os.ftruncate(lock, 0)
    return Left.NOTHING


def _remove_left(store: Store, name: SetName, old: SetEntry, copied_ns: int) -> None:
    if _is_used(store, old):
        return
    for spot in (old.spot, aside(name, old)):
        found = store.door.examine_if_there(spot)
        if found is not None and found.record.ino == old.ino:
            _remove_unless_changed(store, name, spot, copied_ns)


def _remove_unless_changed(store: Store, name: SetName, spot: Spot, since_ns: int) -> None:
    place = shown(b"/".join(spot.components))
    if any(
        file.record.is_regular and file.stat.st_mtime_ns >= since_ns
        for _, file in everything(store.door, spot)
    ):
        log.warning("set %s was copied, and %s has changed since", shown(name), place)
        return
    store.door.unmetered.remove_tree(spot)
    log.info("removed %s, of which there is a copy that is the set now", place)


def _is_used(store: Store, old: SetEntry) -> bool:
    """Whether any set lies there: it may have been renamed since."""
    for name in store.names.all():
        with contextlib.suppress(FileNotFoundError):
            if store.names.read(name).spot == old.spot:
                return True
    return False


def aside(name: SetName, old: SetEntry) -> Spot:
    return dataclasses.replace(old, place=place_beside(name, old.ino) + b"~old").spot


def remove_old(store: Store, name: SetName, aside: Spot, before: Contents, attributes: Attributes) -> None:
    """Remove what is *aside*, unless it has changed since it looked as *before* and had the users' *attributes*."""
    try:
        if _is_same(store, aside, before, attributes):
            store.door.unmetered.remove_tree(aside)
            return
        reason: str | None = "another mount wrote there in that moment"
    except OSError as error:
        if error.errno in IN_USE:
            raise
        reason = error.strerror
    place = b"/".join(aside.components)
    log.warning("set %s was copied, and stays at %s too: %s", shown(name), shown(place), reason)


def _is_same(store: Store, aside: Spot, before: Contents, attributes: Attributes) -> bool:
    now = contents(store.door, aside)
    if _without_ctime_of_top(now) == _without_ctime_of_top(before):  # which moving it has changed
        return True
    # A digest that another mount has made of an image changes its ctime, and nothing that anybody would miss.
    return _without_ctimes(now) == _without_ctimes(before) and attributes_in(store.door, aside) == attributes


def _without_ctime_of_top(found: Contents) -> Contents:
    return found | _without_ctimes({b"": found[b""]})


def _without_ctimes(found: Contents) -> Contents:
    return {path: (*look[:3], 0) for path, look in found.items()}
