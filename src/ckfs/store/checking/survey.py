"""``names/`` and the users' directories against each other: which name leads to which place, and which to none.

Only what is right in these directories is looked at. Nothing is changed, nor judged: see :mod:`ckfs.store.checking.naming`.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from ckfs.model import Owner, Record
from ckfs.names import Gid, Inode, SetName, Uid
from ckfs.store import removed
from ckfs.store.checking import records
from ckfs.store.checking.areas import Area, areas
from ckfs.store.checking.records import Trouble
from ckfs.store.checking.walking import Directory, Seen, look, number_there, reach
from ckfs.store.entries import USERS, SetEntry, decode, name_beside
from ckfs.store.layout import Store
from ckfs.store.namelinks import NAMES
from ckfs.store.realms import STAGING, Components
from ckfs.store.removed import Note
from ckfs.store.spots import HOME, VolumeId

Key = tuple[VolumeId, int, bytes]
"""A place: the store that it is in, uid of the directory below ``users/``, and the name in that."""

Roots = dict[VolumeId, Directory]
"""Of the store and its further ones, open."""

_BESIDE = re.compile(
    rb"(?P<name>.+)~(?P<ino>[0-9a-f]{1,16})(?P<copy>~copy(?:~[0-9a-f]{16})?|~old)?", re.DOTALL
)
_SURELY_A_NUMBER = 12
"""Digits after the ``~``: so many are no part of what somebody called his set."""


@dataclass(frozen=True, slots=True)
class Named:
    """A name and what it says. *link* is the store's inode number of the link, *links* how many names that has."""

    name: SetName
    entry: SetEntry
    link: int
    links: int

    @property
    def key(self) -> Key:
        return key_of(self.entry)


@dataclass(frozen=True, slots=True)
class Orphan:
    """A place that no name leads to. *record* None: it has none that can be read."""

    area: Area
    uid: Uid
    place: bytes
    status: os.stat_result
    record: Record | None
    trouble: Trouble | None
    note: Note | None
    stored: Owner
    """Whose its files are: the directory that it lies in says so, and the file itself of which group."""

    @property
    def key(self) -> Key:
        return self.area.volume, self.uid, self.place

    @property
    def path(self) -> bytes:
        return self.area.path(*_components(self.key))

    @property
    def mode(self) -> int:
        return self.status.st_mode if self.record is None else self.record.mode

    @property
    def is_special(self) -> bool:
        return not (stat.S_ISREG(self.status.st_mode) or stat.S_ISDIR(self.status.st_mode))

    @property
    def beside(self) -> tuple[bytes, Inode, bytes] | None:
        """Name, number and kind that the place is made of, if it was made beside the set's own name."""
        match = _BESIDE.fullmatch(self.place)
        if match is None:
            return None
        ino = Inode(int(match["ino"], 16))
        is_its = self.record.ino == ino if self.record else len(match["ino"]) >= _SURELY_A_NUMBER
        return (name_beside(match["name"]), ino, match["copy"] or b"") if is_its else None


@dataclass(slots=True)
class Survey:
    """*held*: the places that are right, each with the name that leads to it."""

    areas: dict[VolumeId, Area]
    held: dict[Key, SetName] = field(default_factory=dict)
    twins: dict[Key, list[Named]] = field(default_factory=dict)
    """Places that several names lead to."""
    loose: list[tuple[Named, Record | None]] = field(default_factory=list)
    """Names whose place is not there, or is another set by its number (then with its record)."""
    following: list[tuple[Named, bool]] = field(default_factory=list)
    """Sets whose files have yet to follow to their new owner, and whether their tops have records."""
    orphans: list[Orphan] = field(default_factory=list)
    numbers: set[Inode] = field(default_factory=set)
    """Of all that have a name."""
    strangers: list[bytes] = field(default_factory=list)
    damaged: list[tuple[SetName, bytes]] = field(default_factory=list)
    newer: list[SetName] = field(default_factory=list)
    unreached: list[tuple[SetName, VolumeId]] = field(default_factory=list)
    unread: list[tuple[bytes, OSError]] = field(default_factory=list)
    users: list[tuple[Area, bytes, Seen | None]] = field(default_factory=list)
    """What is in ``users/`` and no user's directory (None), or one whose owner or mode is wrong."""
    left: dict[Inode, SetEntry] = field(default_factory=dict)
    """Entries that somebody who died left in ``staging/``, by their sets' numbers."""
    links: dict[int, Owner] = field(default_factory=dict)
    """As whose they are stored: sets that are files with several links, by the store's inode numbers."""
    locks: set[Inode] = field(default_factory=set)
    """Sets that are being copied to their new owner, or to another store, or were."""

    def path_of(self, key: Key) -> bytes:
        return self.areas[key[0]].path(*_components(key))


def survey(store: Store) -> Survey:
    found = Survey({area.volume: area for area in areas(store)})
    with contextlib.ExitStack() as opened:
        roots = {volume: opened.enter_context(area.root()) for volume, area in found.areas.items()}
        _leave_out_empty(roots, found)
        _read_names(roots, found)
        for volume, area in found.areas.items():
            _read_places(area, roots[volume], found)
        _read_staging(roots[HOME], found)
    return found


def _leave_out_empty(roots: Roots, found: Survey) -> None:
    """A further store without ``users/``, as nobody leaves it, says nothing of the names that lead there: these would all be lost."""
    for area in list(found.areas.values()):
        try:
            roots[area.volume].inside(USERS).close()
        except OSError as error:
            if area.volume == HOME:
                raise
            found.unread.append((area.path(USERS), error))
            del found.areas[area.volume]


def key_of(entry: SetEntry) -> Key:
    return entry.volume, entry.stored.uid, entry.place


def _components(key: Key) -> Components:
    _, uid, place = key
    return USERS, b"%d" % uid, place


# Names


def _read_names(roots: Roots, found: Survey) -> None:
    with roots[HOME].inside(NAMES) as names:
        for name in map(SetName, names.names()):
            try:
                _read_name(roots, names, name, found)
            except FileNotFoundError:
                continue
            except OSError as error:
                found.unread.append((NAMES + b"/" + name, error))


def _read_name(roots: Roots, names: Directory, name: SetName, found: Survey) -> None:
    status = names.status_of(name)
    if not stat.S_ISLNK(status.st_mode):
        found.strangers.append(name)
        return
    target = reach(names.owner, lambda: os.readlink(name, dir_fd=names.fd))
    try:
        entry = decode(target)
    except OSError:
        if records.is_later_version(target):
            found.newer.append(name)
        else:
            found.damaged.append((name, target))
        return
    found.numbers.add(entry.ino)
    if entry.volume not in found.areas:
        found.unreached.append((name, entry.volume))
        return
    _place(roots[entry.volume], Named(name, entry, status.st_ino, status.st_nlink), found)


def _place(root: Directory, named: Named, found: Survey) -> None:
    top = _top(root, named.key)
    if top is None:
        found.loose.append((named, None))
        return
    known = records.reading(top.raw, top.status)
    if isinstance(known, Record) and known.ino != named.entry.ino:
        found.loose.append((named, known))
        return
    if named.key in found.held:
        found.twins.setdefault(named.key, []).append(named)
        return
    found.held[named.key] = named.name
    if top.is_regular and top.status.st_nlink > 1:
        found.links[top.number] = named.entry.stored
    if named.entry.is_followed:
        found.following.append((named, isinstance(known, Record)))


def _top(root: Directory, key: Key) -> Seen | None:
    """What lies at a place; None if nothing does."""
    *above, place = _components(key)
    try:
        with root.inside(*above) as directory:
            return look(directory, place, [])
    except (FileNotFoundError, NotADirectoryError):
        return None


# Places


def _read_places(area: Area, root: Directory, found: Survey) -> None:
    with root.inside(USERS) as users:
        for user in users.names():
            try:
                _read_user(area, users, user, found)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                found.unread.append((area.path(USERS, user), error))


def is_users_name(name: bytes) -> bool:
    """Whether *name* is one that ckfs gives to a user's directory."""
    return name.isdigit() and name == b"%d" % int(name) and int(name) < 1 << 32


def _read_user(area: Area, users: Directory, user: bytes, found: Survey) -> None:
    seen = look(users, user, [USERS])
    if not seen.is_directory or not is_users_name(user):
        found.users.append((area, user, None))
        return
    if seen.status.st_uid != int(user) or stat.S_IMODE(seen.status.st_mode) & 0o777 != 0o700:
        found.users.append((area, user, seen))
    with users.inside(user) as directory:
        for place in directory.names():
            key = (area.volume, int(user), place)
            if area.arrangement.is_place(place) and key not in found.held:
                _read_orphan(directory, seen.status, key, found)


def _read_orphan(directory: Directory, user: os.stat_result, key: Key, found: Survey) -> None:
    volume, uid, place = key
    try:
        seen = look(directory, place, [])
        if seen.refused is not None:
            raise seen.refused
        known = records.reading(seen.raw, seen.status)
        note = directory.attribute_of(place, seen.status, removed.ATTRIBUTE)
    except FileNotFoundError:
        return
    except OSError as error:
        found.unread.append((found.path_of(key), error))
        return
    record, trouble = (known, None) if isinstance(known, Record) else (None, known)
    said = removed.decode(note) if note is not None else None
    stored = _stored_as(Uid(uid), seen.status, user, found)
    found.orphans.append(
        Orphan(found.areas[volume], Uid(uid), place, seen.status, record, trouble, said, stored)
    )


# What is left in staging


def _read_staging(root: Directory, found: Survey) -> None:
    with root.inside(STAGING) as staging:
        for name in staging.names():
            kind, _, number = name.partition(b"-")
            if kind == b"copying":
                found.locks |= _number(number)
            elif kind in (b"cleared", b"staging"):
                for entry in _entries(staging, name):
                    found.left[entry.ino] = entry


def _number(text: bytes) -> set[Inode]:
    try:
        return {Inode(int(text, 16))}
    except ValueError:
        return set()


def _entries(staging: Directory, name: bytes) -> Iterator[SetEntry]:
    try:
        yield decode(reach(staging.owner, lambda: os.readlink(name, dir_fd=staging.fd)))
    except OSError:
        return


def _stored_as(uid: Uid, status: os.stat_result, user: os.stat_result, found: Survey) -> Owner:
    """Whose the files of a place in the directory *user* are. The group is only believed of a file that is the user's own:
    a backup that was restored as root is root's."""
    known = found.links.get(number_there(status)) if status.st_nlink > 1 else None
    if known is not None and known.uid == uid:
        return known
    says = status if status.st_uid == uid or user.st_uid != uid else user
    return Owner(uid, Gid(says.st_gid))
