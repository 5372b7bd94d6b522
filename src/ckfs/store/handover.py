"""Bringing a set's files to its new owner.

The set's entry names the new owner first, in one step; from then on the set is his. Its files follow: where root may,
each is chowned in place, by descriptor; then the place moves to the new owner's directory and the entry says so. Every
step can be repeated, so that a hand-over that died in the middle is finished by doing it again.
"""

from __future__ import annotations

import contextlib
import dataclasses

from ckfs.errors import Stale
from ckfs.model import Owner
from ckfs.names import SetName
from ckfs.store.door import Spot
from ckfs.store.identity import ROOT
from ckfs.store.layout import Store
from ckfs.store.setnames import USERS, SetEntry, unused_place


def hand_over(store: Store, name: SetName, entry: SetEntry, owner: Owner, stored: Owner) -> SetEntry:
    """Make *owner* the owner of the set *name*, whose files he has as *stored* from now on. Returns the new entry.

    Stale if the set is not what *entry* says any more; PermissionError where root may not chown in the store.
    """
    if store.names.read(name) != entry:
        raise Stale("the set has been renamed or removed meanwhile")
    named = dataclasses.replace(entry, owner=owner)
    store.names.replace(name, named)
    if stored == entry.stored:
        return named
    store.names.prepare_user(stored)
    try:
        store.door.change_owner(Spot(ROOT, entry.spot.components), stored)
    except PermissionError:
        store.names.replace(name, entry)  # nothing has changed hands: root is squashed here
        raise
    return _move_place(store, name, named, stored)


def _move_place(store: Store, name: SetName, entry: SetEntry, stored: Owner) -> SetEntry:
    moved = dataclasses.replace(entry, stored=stored)
    directory = (USERS, b"%d" % stored.uid)
    if entry.stored.uid != stored.uid:
        with contextlib.suppress(FileNotFoundError):
            store.door.examine(Spot(stored, (*directory, moved.place)))
            moved = dataclasses.replace(moved, place=unused_place(name))
        # Both users' directories are their own: only root reaches into both.
        store.door.rename(Spot(ROOT, entry.spot.components), Spot(ROOT, moved.spot.components))
    store.names.replace(name, moved)
    return moved
