"""Bringing a set's files to its new owner.

The set's entry names the new owner first, in one step; from then on the set is his. Its files follow, and until they
have the entry says two different things: *owner*, and *stored as*. Where root may, each file is chowned in place, by
descriptor, and the place moves to the new owner's directory. Where root is squashed the files are copied, under new
names and as the new owner, while the old ones stay readable; then the entry switches to the copy and the old ones go.

Every step can be repeated: a hand-over that died in the middle is finished by doing it again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging

from ckfs.errors import Stale
from ckfs.model import Owner
from ckfs.names import Inode, SetName, shown
from ckfs.store.copying import Contents, contents, copy_tree
from ckfs.store.door import Found, Spot
from ckfs.store.identity import ROOT
from ckfs.store.layout import Store
from ckfs.store.setnames import USERS, SetEntry, place_beside

log = logging.getLogger(__name__)

_TRIES = 20


def name_owner(
    store: Store, name: SetName, ino: Inode, owner: Owner, *, unless_owned: bool = False
) -> SetEntry:
    """Make *owner* the owner of the set *name*, in one step. Returns its entry by now; its files have yet to follow.

    *unless_owned*: only if nobody owns it yet. Stale if *name* is not the set *ino* any more.
    """
    for _ in range(_TRIES):
        with contextlib.suppress(Stale):  # another mount changed it in that moment
            return _name_owner(store, name, ino, owner, unless_owned=unless_owned)
    return _name_owner(store, name, ino, owner, unless_owned=unless_owned)


def _name_owner(store: Store, name: SetName, ino: Inode, owner: Owner, *, unless_owned: bool) -> SetEntry:
    entry = said_of(store, name, ino)
    if entry.owner == owner or (unless_owned and entry.owner is not None):
        return entry
    try:
        entry = _settled(store, name, entry)
        _, found = store.names.examine(name)
    except FileNotFoundError:
        raise Stale("the set is just being moved or removed") from None
    for other in _links(store, name, ino, found):
        said = store.names.read(other)
        store.names.change(other, said, dataclasses.replace(said, owner=owner))
    named, twins = dataclasses.replace(entry, owner=owner), store.names.twins(name)
    store.names.change(name, entry, named)
    for twin in twins:  # of a rename that died: it would go on saying what was
        store.names.clear(twin, entry)
    return named


def _settled(store: Store, name: SetName, entry: SetEntry) -> SetEntry:
    """Bring an earlier hand-over to its end, as far as that needs no copy: an entry can say of one other owner only that
    files may be his, or lie with his, already."""
    stored = store.service if entry.owner is None or entry.owner.uid == ROOT.uid else entry.owner
    return (
        entry if entry.stored.uid == stored.uid else bring_files(store, name, entry, stored, may_copy=False)
    )


def said_of(store: Store, name: SetName, ino: Inode) -> SetEntry:
    """What *name* says; Stale if it is not the set *ino* any more."""
    with contextlib.suppress(FileNotFoundError):
        entry = store.names.read(name)
        if entry.ino == ino:
            return entry
    raise Stale("the set has been renamed or removed meanwhile")


def _links(store: Store, name: SetName, ino: Inode, found: Found) -> list[SetName]:
    """Other sets that are links of the same file: they change hands together."""
    if found.record.is_directory or found.stat.st_nlink == 1:
        return []
    others = []
    for other in store.names.all():
        with contextlib.suppress(FileNotFoundError):
            if other != name and store.names.read(other).ino == ino:
                others.append(other)
    return others


def _found(store: Store, entry: SetEntry) -> Found:
    try:
        return store.door.examine(entry.spot)
    except PermissionError:  # it is chowned already, by a hand-over that died then
        return store.door.examine(Spot(ROOT, entry.spot.components))


def bring_files(store: Store, name: SetName, entry: SetEntry, stored: Owner, *, may_copy: bool) -> SetEntry:
    """Let the files of the set *name* belong to *stored*. Returns the entry that says so.

    Where root may not chown, they are copied if *may_copy*; else the entry comes back as it was, to try again later.
    """
    if stored == entry.stored:
        return entry
    store.names.prepare_user(stored)
    try:
        links = _links(store, name, entry.ino, _found(store, entry))
    except (FileNotFoundError, Stale):
        return _finish_move(store, name, entry, stored)
    try:
        store.door.change_owner(Spot(ROOT, entry.spot.components), stored)
    except PermissionError:
        return _copy(store, name, entry, stored) if may_copy and not links else entry
    for other in links:
        _move_place(store, other, store.names.read(other), stored)
    return _move_place(store, name, entry, stored)


def _move_place(store: Store, name: SetName, entry: SetEntry, stored: Owner) -> SetEntry:
    moved = dataclasses.replace(entry, stored=stored)
    if entry.stored.uid != stored.uid:
        with contextlib.suppress(FileNotFoundError):
            store.door.examine(moved.spot)
            moved = dataclasses.replace(moved, place=place_beside(entry.place, entry.ino))
        # Both users' directories are their own: only root reaches into both.
        store.door.rename(Spot(ROOT, entry.spot.components), Spot(ROOT, moved.spot.components))
    return _switch(store, name, entry, moved)


def _finish_move(store: Store, name: SetName, entry: SetEntry, stored: Owner) -> SetEntry:
    """A hand-over died after it moved the place and before it said so."""
    for place in (entry.place, place_beside(entry.place, entry.ino), place_beside(name, entry.ino)):
        moved = dataclasses.replace(entry, stored=stored, place=place)
        found = store.door.examine_if_there(moved.spot)
        if found is not None and found.record.ino == entry.ino:
            return _switch(store, name, entry, moved)
    raise Stale("the set is not where its entry says")


def _copy(store: Store, name: SetName, entry: SetEntry, stored: Owner) -> SetEntry:
    # The same name each time, so that one that died is found and replaced instead of staying for ever.
    place = place_beside(name, entry.ino)
    target = Spot(stored, (USERS, b"%d" % stored.uid, place))
    before = contents(store.door, entry.spot)
    copy_tree(store.door, entry.spot, target)
    if contents(store.door, entry.spot) != before:
        raise BlockingIOError(errno.EAGAIN, "the set changed while it was copied")
    moved = _switch(store, name, entry, dataclasses.replace(entry, stored=stored, place=place))
    _remove_old(store, name, entry, before)
    return moved


def _remove_old(store: Store, name: SetName, entry: SetEntry, before: Contents) -> None:
    try:
        if contents(store.door, entry.spot) == before:
            store.door.remove_tree(entry.spot)
            return
        reason: str | None = "another mount wrote there in that moment"
    except OSError as error:
        reason = error.strerror
    place = b"/".join(entry.spot.components)
    log.warning(
        "set %s was copied to its new owner, and stays at %s too: %s", shown(name), shown(place), reason
    )


def _switch(store: Store, name: SetName, entry: SetEntry, moved: SetEntry) -> SetEntry:
    store.names.change(name, entry, moved)
    return moved
