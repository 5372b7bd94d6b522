"""Every image of a store, one after the other: those of the sets and those in the trash.

Of a set only the directories on the way to an image are held, by name, so that a store of any size can be walked while its
mounts go on. What is gone when its turn comes is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ckfs.errors import FsError, Stale
from ckfs.model import Owner
from ckfs.names import SetName
from ckfs.store.layout import Store
from ckfs.store.removed import Item
from ckfs.store.spots import Found, Spot

_GONE = (FileNotFoundError, Stale)
Unreadable = Callable[["Where", OSError | FsError], None]
"""What is told of something that cannot be looked at."""


@dataclass(frozen=True, slots=True)
class Where:
    """An image of the set *set_name* of *owner* (None: unclaimed), *path* in it (empty: the set itself). *item* is the token
    under which it, or what it is in, lies in the trash; empty if it does not."""

    set_name: SetName
    path: bytes
    owner: Owner | None
    spot: Spot
    item: str = ""

    def inside(self, name: bytes) -> Where:
        path = b"/".join(filter(None, (self.path, name)))
        spot = self.spot.below(name)
        return Where(self.set_name, path, self.owner, spot, self.item)


def images(store: Store, unreadable: Unreadable) -> Iterator[Where]:
    """Regular files, of whatever state."""
    for name in store.names.all():
        yield from images_of_set(store, name, unreadable)
    for item in store.trash.items():
        if isinstance(item, Item):
            note = item.note
            where = Where(note.set_name, note.path, note.owner, item.spot, item.token)
            yield from _below(store, where, item.found, unreadable)


def images_of_set(store: Store, name: SetName, unreadable: Unreadable) -> Iterator[Where]:
    try:
        entry, found = store.names.examine(name)
    except _GONE:
        return
    except (OSError, FsError) as error:
        unreadable(Where(name, b"", None, store.names.top), error)
        return
    yield from _below(store, Where(name, b"", entry.owner, entry.spot), found, unreadable)


def _below(store: Store, top: Where, found: Found, unreadable: Unreadable) -> Iterator[Where]:
    if found.record.is_regular:
        yield top
    if not found.record.is_directory:
        return
    levels = [(top, _names(store, top, unreadable))]
    while levels:
        directory, names = levels[-1]
        name = next(names, None)
        if name is None:
            levels.pop()
            continue
        where = directory.inside(name)
        inner = _examined(store, where, unreadable)
        if inner is None:
            continue
        if inner.record.is_regular:
            yield where
        elif inner.record.is_directory:
            levels.append((where, _names(store, where, unreadable)))


def _names(store: Store, where: Where, unreadable: Unreadable) -> Iterator[bytes]:
    try:
        return iter(store.door.names_at(where.spot))
    except _GONE:
        pass
    except (OSError, FsError) as error:
        unreadable(where, error)
    return iter(())


def _examined(store: Store, where: Where, unreadable: Unreadable) -> Found | None:
    try:
        return store.door.examine(where.spot)
    except _GONE:
        return None
    except (OSError, FsError) as error:
        unreadable(where, error)
        return None
