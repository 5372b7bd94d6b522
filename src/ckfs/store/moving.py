"""Moving and linking whole sets: what rename(2) and link(2) at the top of a mount do to names and places.

Each step leaves a state that every mount understands, so that one that dies between two of them loses nothing: at worst
a place that no name refers to, a name whose place is gone (the next taker clears it), or a readable name under
``users/`` that is still the old one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
from collections.abc import Callable
from typing import TypeVar

from ckfs.errors import Exists, OtherOwner, Stale
from ckfs.model import Owner
from ckfs.names import Inode, SetName, shown
from ckfs.store.door import Door
from ckfs.store.entries import SetEntry, place_beside, place_of
from ckfs.store.exclusive import rename_if_free
from ckfs.store.setnames import SetNames
from ckfs.store.spots import Found, Spot, VolumeId
from ckfs.store.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE

log = logging.getLogger(__name__)

T = TypeVar("T")

Check = Callable[[SetName, Found], None]
"""Raises unless the caller may take away, or move, what is at a name now (the kernel checked what was there a moment ago)."""

Discard = Callable[[SetName, SetEntry, Found], None]
"""Takes a file away whose name has just been taken by another."""

_TRIES = 20


def rename_set(
    names: SetNames, door: Door, old: SetName, new: SetName, flags: int, check: Check, discard: Discard
) -> tuple[SetEntry, Found | None]:
    """Rename the set *old* to *new*, over an existing one unless *flags* say otherwise.

    Returns what *new* says now, and the top of the set that it replaced.
    """
    return looking_again(flags, lambda: _rename_set(names, door, old, new, flags, check, discard))


def looking_again(flags: int, move: Callable[[], T]) -> T:
    """Look again when another mount changed the target's name in between: a rename that may replace never meets EEXIST."""
    for _ in range(_TRIES if not flags else 0):
        with contextlib.suppress(Exists, Stale):
            return move()
    return move()


def _rename_set(
    names: SetNames, door: Door, old: SetName, new: SetName, flags: int, check: Check, discard: Discard
) -> tuple[SetEntry, Found | None]:
    entry, found = names.examine(old)
    check(old, found)
    if flags & RENAME_EXCHANGE:
        check(new, names.examine(new)[1])
        names.exchange(old, new)
        return entry, None
    if flags & RENAME_NOREPLACE:
        names.check_free(new)
        names.move_if_free(old, new)
        return _readable_place(names, door, new, entry, found), None
    replaced = _replaceable(names, door, new, found, check)
    if replaced is not None and replaced[0].ino == entry.ino:
        if not names.finish_rename(old, new):
            return entry, None  # two names of one file: POSIX says to do nothing
        return _readable_place(names, door, new, entry, found), None
    if replaced is None or found.record.is_directory:
        _only_if_free(names, new, replaced)
        names.move_if_free(old, new)
    else:
        names.move_over(old, new, replaced[0])
        discard(new, *replaced)
    return _readable_place(names, door, new, entry, found), None if replaced is None else replaced[1]


def set_into_directory(
    names: SetNames, door: Door, old: SetName, target: Spot, flags: int, check: Check
) -> Found:
    """Move the set *old* to *target*, a name inside another set of the same owner."""
    entry, found = names.examine(old)
    check(old, found)
    check_single(found)
    door.rename(entry.spot, target, flags)
    names.clear(old, entry)
    return found


def file_to_set(
    names: SetNames,
    door: Door,
    source: Spot,
    new: SetName,
    like: SetEntry,
    flags: int,
    check: Check,
    discard: Discard,
) -> tuple[SetEntry, Found]:
    """Move *source*, from inside the set whose entry is *like*, to the top as *new*."""
    return looking_again(flags, lambda: _file_to_set(names, door, source, new, like, flags, check, discard))


def _file_to_set(
    names: SetNames,
    door: Door,
    source: Spot,
    new: SetName,
    like: SetEntry,
    flags: int,
    check: Check,
    discard: Discard,
) -> tuple[SetEntry, Found]:
    found = door.examine(source)
    check_single(found)
    entry = _entry_like(door, like, new, found)
    if flags & RENAME_NOREPLACE:
        names.check_free(new)
        replaced = None
    else:
        replaced = _replaceable(names, door, new, found, check)
        if replaced is not None and replaced[0].ino == entry.ino:
            return replaced
    # A file is at both places for a moment, a directory at its new one an instant after its name: never at none.
    if not found.record.is_directory:
        door.link(source, entry.spot)
    try:
        if replaced is None or found.record.is_directory:
            _only_if_free(names, new, replaced)
            names.enter(new, entry)
        else:
            names.replace_if(new, replaced[0], entry)
    except BaseException:
        if not found.record.is_directory:
            door.unlink(entry.spot)
        raise
    if found.record.is_directory:
        door.rename(source, entry.spot)
    else:
        door.unlink(source)
        if replaced is not None:
            discard(new, *replaced)
    return entry, door.examine(entry.spot)


def link_set(
    names: SetNames, door: Door, source: Spot, new: SetName, like: SetEntry
) -> tuple[SetEntry, Found]:
    """Give the file *source* another name, at the top. Exists if that is taken."""
    names.check_free(new)
    found = door.examine(source)
    entry = _entry_like(door, like, new, found)
    door.link(source, entry.spot)
    try:
        names.enter(new, entry)
    except BaseException:
        door.unlink(entry.spot)
        raise
    return entry, door.examine(entry.spot)


def _only_if_free(names: SetNames, new: SetName, replaced: tuple[SetEntry, Found] | None) -> None:
    """An empty directory that is replaced gives up its name first; whoever takes that in between keeps it (Exists)."""
    if replaced is not None:
        names.clear(new, replaced[0])


def check_single(found: Found) -> None:
    """A file has all its links in one set, so that each set can change hands."""
    if not found.record.is_directory and found.stat.st_nlink > 1:
        raise OtherOwner("other links of the file would stay behind")


def _replaceable(
    names: SetNames, door: Door, new: SetName, moved: Found, check: Check
) -> tuple[SetEntry, Found] | None:
    """The set *new*, if it exists and *moved* may take its place. An empty directory is gone afterwards."""
    try:
        seen = names.read(new)
    except FileNotFoundError:
        return None
    try:
        entry, found = names.examine(new)
    except FileNotFoundError:
        names.clear(new, seen)  # what a dead remover left; never what somebody has made since
        return None
    if entry.ino == moved.record.ino:
        return entry, found
    check(new, found)
    if moved.record.is_directory and not found.record.is_directory:
        raise NotADirectoryError(errno.ENOTDIR, "a directory cannot take a file's place")
    if found.record.is_directory and not moved.record.is_directory:
        raise IsADirectoryError(errno.EISDIR, "a file cannot take a directory's place")
    if found.record.is_directory:
        door.rmdir(entry.spot)
    return entry, found


def _readable_place(names: SetNames, door: Door, name: SetName, entry: SetEntry, found: Found) -> SetEntry:
    """Let the set's files lie under its new name too; if that is not possible, the old one stays."""
    moved = dataclasses.replace(entry, place=_free_place(door, entry, name, entry.ino))
    try:
        rename_if_free(door, entry.spot, moved.spot, found)
        try:
            return _said_to_lie(names, name, entry, moved)
        except Stale:
            _move_back(door, moved, entry)
            raise
    except (OSError, Stale) as error:
        log.info("the files of set %s stay at %s: %s", shown(name), shown(entry.place), error)
        with contextlib.suppress(OSError, Stale):
            return names.examine(name)[0]
        return entry


def _move_back(door: Door, moved: SetEntry, entry: SetEntry) -> None:
    """The set has a third name by now, by which nobody would look for its files at their new place."""
    found = door.examine_if_there(moved.spot)
    if (
        found is not None and found.record.ino == entry.ino
    ):  # else it was replaced, and another has that place
        rename_if_free(door, moved.spot, entry.spot, found)


def _said_to_lie(names: SetNames, name: SetName, entry: SetEntry, moved: SetEntry) -> SetEntry:
    """Say where the set's files lie now; whoever gives it away on another mount meanwhile changes only whose it is."""
    for _ in range(_TRIES):
        said = names.read(name)
        if (said.ino, *_where(said)) != (entry.ino, *_where(entry)):
            break
        now = dataclasses.replace(said, place=moved.place)
        with contextlib.suppress(Stale):
            names.change(name, said, now)
            return now
    raise Stale("the set changes hands, or is renamed again")


def _entry_like(door: Door, like: SetEntry, new: SetName, found: Found) -> SetEntry:
    """Of the set *new*, which *found* becomes, out of the set whose entry is *like*."""
    place = _free_place(door, like, new, found.record.ino)
    return dataclasses.replace(like, place=place).of_top(found.record.ino, found.record.mode)


def _where(entry: SetEntry) -> tuple[VolumeId, Owner, bytes]:
    return entry.volume, entry.stored, entry.place


def _free_place(door: Door, like: SetEntry, name: SetName, ino: Inode) -> bytes:
    place = place_of(name, ino)
    try:
        door.examine(dataclasses.replace(like, place=place).spot)
    except FileNotFoundError:
        return place
    return place_beside(name, ino)
