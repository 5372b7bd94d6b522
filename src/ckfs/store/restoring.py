"""Putting back what lies in the trash.

Each thing comes back by one rename, so that others see all of it or nothing. If its set is gone, the set is first put
together in the trash, as an item of its own, and then comes back as a whole: one that dies in between leaves that item.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import stat
from collections.abc import Callable, Sequence

from ckfs.errors import Exists, FsError, Invalid, NotFound, OtherOwner
from ckfs.model import Owner, Record
from ckfs.names import Gid, SetName, Uid, shown
from ckfs.store.door import Door
from ckfs.store.entries import SetEntry, place_beside, place_of
from ckfs.store.exclusive import move_by_link
from ckfs.store.record import new_inode
from ckfs.store.removed import ATTRIBUTE, Item, encode
from ckfs.store.setnames import SetNames
from ckfs.store.spots import Found, Spot
from ckfs.store.syscalls import RENAME_NOREPLACE

Failure = tuple[Item, OSError | FsError]
NewSpot = Callable[[Spot], Spot]

_PRIVATE_DIRECTORY = stat.S_IFDIR | 0o700
_GONE = "it is not in the trash any more"
WAY_OUT = "restore it to another set with --to NAME"


def exists_again(name: SetName) -> Exists:
    return Exists(f"there is a set {shown(name)} again: {WAY_OUT}")


def others_by_now(name: SetName) -> OtherOwner:
    return OtherOwner(f"the set {shown(name)} belongs to somebody else by now: {WAY_OUT}")


def restore(
    door: Door, names: SetNames, items: Sequence[Item], to: SetName | None, new_spot: NewSpot
) -> list[Failure]:
    """Put *items*, of one set, back; see :meth:`ckfs.store.trash.Trash.restore`. *new_spot* is a name in the trash."""
    name = _one_set(items) if to is None else to
    # A directory comes before what was removed from it earlier, and the whole set before all.
    first, *rest = sorted(items, key=lambda item: item.note.path)
    if first.note.path:
        return _parts_back(door, names, [first, *rest], name, new_spot)
    _set_back(door, names, first, name)
    try:
        return _parts_back(door, names, rest, name, new_spot) if rest else []
    except (OSError, FsError) as error:  # the set itself is back all the same
        return [(item, error) for item in rest]


def _parts_back(
    door: Door, names: SetNames, items: Sequence[Item], name: SetName, new_spot: NewSpot
) -> list[Failure]:
    try:
        entry, found = names.examine(name)
    except FileNotFoundError:
        return _as_new_set(door, names, items, name, new_spot)
    return _each_into(door, entry, entry.spot, found, items, name)


def _one_set(items: Sequence[Item]) -> SetName:
    set_names = {item.note.set_name for item in items}
    if len(set_names) != 1:
        raise Invalid("these were in several sets: say which one they go to with --to NAME")
    return set_names.pop()


def _is_same_user(one: Owner | None, other: Owner | None) -> bool:
    return (one and one.uid) == (other and other.uid)


# A whole set


def _set_back(door: Door, names: SetNames, item: Item, name: SetName) -> None:
    _check_free(names, name)
    stored = item.spot.identity
    volume = item.spot.volume
    names.prepare_user(stored, volume)
    ino, mode = item.found.record.ino, item.found.record.mode
    entry = SetEntry(ino, item.note.owner, stored, place_of(name, ino), volume)
    entry = _to_place(door, item, entry.of_top(ino, mode))
    try:
        names.enter(name, entry)
    except BaseException as error:
        door.rename(entry.spot, item.spot)
        if isinstance(error, Exists):
            raise exists_again(name) from None
        raise
    _without_note(door, entry.spot, item.found)


def _check_free(names: SetNames, name: SetName) -> None:
    try:
        names.check_free(name)
    except Exists:
        raise exists_again(name) from None


def _to_place(door: Door, item: Item, entry: SetEntry) -> SetEntry:
    """Move the set to where its entry will say that it lies: under its name, or where that is in use beside it."""
    try:
        door.rename(item.spot, entry.spot, RENAME_NOREPLACE)
        return entry
    except FileNotFoundError:
        raise NotFound(_GONE) from None
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.EINVAL):  # NFS and GlusterFS know no such flag
            raise
    beside = dataclasses.replace(entry, place=place_beside(entry.place, entry.ino))
    try:
        door.rename(item.spot, beside.spot)  # nothing else has that name
    except FileNotFoundError:
        raise NotFound(_GONE) from None
    return beside


def _without_note(door: Door, spot: Spot, found: Found) -> None:
    """What was removed once need not say so for ever; that it does is no harm."""
    with contextlib.suppress(OSError, FsError):
        door.remove_attribute(spot, found.record.ino, ATTRIBUTE)


# Into a set that is there


def _each_into(
    door: Door, entry: SetEntry, top: Spot, found: Found, items: Sequence[Item], name: SetName
) -> list[Failure]:
    failures: list[Failure] = []
    for item in items:
        try:
            _check_fits(entry, found, item, name)
            _into(door, top, item)
        except (OSError, FsError) as error:
            failures.append((item, error))
    return failures


def _check_fits(entry: SetEntry, found: Found, item: Item, name: SetName) -> None:
    if not item.note.path:
        raise exists_again(name)
    if not _is_same_user(entry.owner, item.note.owner):
        raise others_by_now(name)
    if entry.volume != item.spot.volume:
        raise OtherOwner(f"the files of the set {shown(name)} lie in another store by now: {WAY_OUT}")
    if entry.stored.uid != item.spot.identity.uid:
        raise OtherOwner(f"the files of the set {shown(name)} are kept as another user's by now: {WAY_OUT}")
    if not found.record.is_directory:
        raise Exists(f"{shown(name)} is a file by now: {WAY_OUT}")


def _into(door: Door, top: Spot, item: Item) -> None:
    """Move *item* to its path below *top*."""
    *directories, last = item.note.path.split(b"/")
    parent = top
    for directory in directories:
        parent = parent.below(directory)
        _ensure_directory(door, parent, item)
    within = door.examine(parent).record.ino
    target = parent.below(last, within=within)
    _move_if_free(door, item, target)
    _without_note(door, target, item.found)


def _ensure_directory(door: Door, spot: Spot, item: Item) -> None:
    """Have the directory in which *item* was; nobody but the owner may enter it until he says so."""
    with contextlib.suppress(FileExistsError):
        door.make_directory(spot, lambda _: _directory_of(item))
        return
    if not door.examine(spot).record.is_directory:
        raise Exists(f"{shown(spot.components[-1])} is no directory any more: {WAY_OUT}")


def _directory_of(item: Item) -> Record:
    owner = item.note.owner or Owner(Uid(0), Gid(0))
    return Record(new_inode(), owner.uid, owner.gid, _PRIVATE_DIRECTORY)


def _move_if_free(door: Door, item: Item, target: Spot) -> None:
    try:
        try:
            door.rename(item.spot, target, RENAME_NOREPLACE)
        except OSError as error:
            if error.errno != errno.EINVAL:  # NFS and GlusterFS know no such flag
                raise
            _move_without_flag(door, item, target)
    except FileExistsError:
        raise Exists(f"there is {shown(item.note.path)} again: {WAY_OUT}") from None
    except FileNotFoundError:
        raise NotFound(_GONE) from None


def _move_without_flag(door: Door, item: Item, target: Spot) -> None:
    if not item.found.record.is_directory:
        move_by_link(door, item.spot, target)
        return
    if door.examine_if_there(target) is not None:
        raise FileExistsError(errno.EEXIST, "the name is in use")
    door.rename(item.spot, target)  # of what was made in this moment, at worst an empty directory is replaced


# Into a set that is gone


def _as_new_set(
    door: Door, names: SetNames, items: Sequence[Item], name: SetName, new_spot: NewSpot
) -> list[Failure]:
    _check_one_owner(items)
    names.check_free(name)
    stored = items[0].spot.identity
    whole = _empty_set(door, items[0], name, new_spot(items[0].spot))
    entry = SetEntry(whole.found.record.ino, whole.note.owner, stored, name, whole.spot.volume)
    failures = _each_into(door, entry, whole.spot, whole.found, items, name)
    if len(failures) == len(items):
        with contextlib.suppress(OSError):
            door.rmdir(whole.spot)
    else:
        _set_back(door, names, whole, name)
    return failures


def _check_one_owner(items: Sequence[Item]) -> None:
    first = items[0]
    for item in items:
        if not _is_same_user(item.note.owner, first.note.owner) or (
            item.spot.identity.uid != first.spot.identity.uid
        ):
            raise OtherOwner(
                "these were in sets of several owners: restore those of each owner by themselves"
            )


def _empty_set(door: Door, like: Item, name: SetName, spot: Spot) -> Item:
    """A set in the trash, into which others are put before it comes back."""
    found = door.make_directory(spot, lambda _: _directory_of(like))
    note = dataclasses.replace(like.note, set_name=name, path=b"", ino=found.record.ino)
    try:
        door.set_attribute(spot, found.record.ino, ATTRIBUTE, encode(note))
    except OSError:  # no room: better nothing in the trash than what nobody can tell
        door.rmdir(spot)
        raise
    return Item(spot, found, note)
