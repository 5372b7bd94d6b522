"""What is wrong between names and places, and how each comes to its right.

A place never loses its files here, and never comes to another user: at most a name is made, changed, or taken away. Of a
number that names one set and a place one, the place that has the number is the set's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from ckfs.errors import Exists, Stale, Unsupported
from ckfs.model import Owner, Record
from ckfs.names import NAME_MAX, ROOT_UID, Inode, SetName, Uid, shown
from ckfs.policy.settings import Policy
from ckfs.store.checking import mending, records
from ckfs.store.checking.areas import Area
from ckfs.store.checking.findings import Finding, Kind, Suspect
from ckfs.store.checking.records import Trouble
from ckfs.store.checking.survey import Key, Named, Orphan, Survey, key_of
from ckfs.store.checking.walking import Directory, look, owner_of
from ckfs.store.entries import USERS, SetEntry, place_beside
from ckfs.store.handover import bring_files
from ckfs.store.identity import ROOT, acting_as
from ckfs.store.layout import Store
from ckfs.store.namelinks import NAMES
from ckfs.store.realms import STAGING, Components


@dataclass(frozen=True, slots=True)
class Naming:
    """One survey, judged."""

    store: Store
    policy: Policy
    found: Survey
    by_number: dict[Inode, list[Orphan]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for orphan in self.found.orphans:
            if orphan.record is not None:
                self.by_number.setdefault(orphan.record.ino, []).append(orphan)

    def suspects(self) -> Iterator[Suspect]:
        """In the order in which they are to be mended: a name that is taken away makes room for another."""
        for path, error in self.found.unread:
            yield Suspect(Finding(Kind.UNREADABLE, path, error.strerror or str(error)))
        for name in self.found.strangers:
            yield Suspect(Finding(Kind.NAME_STRANGER, _path(name)))
        for name, volume in self.found.unreached:
            where = self.store.door.volumes.name_of(volume)
            yield Suspect(Finding(Kind.NAME_UNREACHED, _path(name), where))
        for name in self.found.newer:
            yield Suspect(Finding(Kind.NAME_NEWER, _path(name)))
        for name, target in self.found.damaged:
            finding = Finding(Kind.NAME_DAMAGED, _path(name), f"it says {shown(target[:100])}")
            yield Suspect(finding, partial(self._move_aside, name, target))
        yield from self._users()
        for key, others in self.found.twins.items():
            yield from self._twins(key, others)
        settled = set[Key]()
        for named, record in self.found.loose:
            yield self._loose(named, record, settled)
        yield from self._following()
        for orphan in self.found.orphans:
            if orphan.key not in settled:
                yield self._orphan(orphan)

    # Users' directories

    def _users(self) -> Iterator[Suspect]:
        for area, user, seen in self.found.users:
            path = area.path(USERS, user)
            if seen is None:
                yield Suspect(Finding(Kind.USERS_STRANGER, path))
                continue
            if seen.status.st_uid != int(user):
                finding = Finding(Kind.USER_OWNER, path, f"but to uid {seen.status.st_uid}")
                yield Suspect(finding, partial(give_user_directory, area, (USERS, user)))
            if seen.status.st_mode & 0o777 != 0o700:
                finding = Finding(Kind.USER_MODE, path, f"{seen.status.st_mode & 0o7777:04o}")
                yield Suspect(finding, partial(close_user_directory, area, (USERS, user)))

    # Names

    def _move_aside(self, name: SetName, target: bytes) -> str:
        """Nothing of it is lost: an admin may still read in it what ckfs cannot."""
        token = b"damaged-%s" % os.urandom(8).hex().encode()
        with (
            Directory.at(self.store.path) as root,
            root.inside(NAMES) as names,
            root.inside(STAGING) as staging,
            acting_as(self.store.service),
        ):
            if os.readlink(name, dir_fd=names.fd) != target:
                raise Stale("it says something else by now")
            os.rename(name, token, src_dir_fd=names.fd, dst_dir_fd=staging.fd)
        return f"moved to staging/{token.decode()}"

    def _twins(self, key: Key, others: list[Named]) -> Iterator[Suspect]:
        """A rename that died left its new name beside the old one, which is mostly that of the place."""
        names = self.store.names
        kept = self.found.held[key]
        for named in others:
            gone = named
            if kept == key[2] and named.name != key[2]:
                with contextlib.suppress(OSError):
                    gone = dataclasses.replace(named, name=kept, entry=names.read(kept))
                    kept = self.found.held[key] = named.name
            finding = Finding(
                Kind.NAME_TWIN,
                _path(gone.name),
                f"which is {shown(self.found.path_of(key))}, as {shown(kept)} says",
            )
            yield Suspect(finding, partial(self._clear, gone))

    def _clear(self, named: Named) -> str:
        self.store.names.clear(named.name, named.entry)
        return "taken away"

    def _loose(self, named: Named, at_its_place: Record | None, settled: set[Key]) -> Suspect:
        entry, path = named.entry, _path(named.name)
        lies = self._orphan_of(entry.ino, settled)
        if lies is not None:
            settled.add(lies.key)
            stored = entry.stored if lies.uid == entry.stored.uid else lies.stored
            mode = 0 if lies.record is None else lies.record.mode
            says = dataclasses.replace(entry, stored=stored, place=lies.place, volume=lies.area.volume)
            says = says.of_top(entry.ino, mode)
            finding = Finding(Kind.NAME_MISPLACED, path, f"at {shown(lies.path)}")
            return Suspect(finding, partial(self._change, named, says, Kind.NAME_MISPLACED.mending))
        if at_its_place is not None and named.key not in self.found.held and named.key not in settled:
            settled.add(named.key)
            says = dataclasses.replace(entry, ino=at_its_place.ino)
            finding = Finding(Kind.NAME_NUMBER, path, f"{entry.ino:x}, not {at_its_place.ino:x}")
            return Suspect(finding, partial(self._change, named, says, Kind.NAME_NUMBER.mending))
        if at_its_place is not None:
            holder = self.found.held.get(named.key, named.name)
            return Suspect(Finding(Kind.NAME_TWIN, path, f"{shown(holder)}"), partial(self._clear, named))
        for part in self.by_number.get(entry.ino, ()):  # a copy, of which nobody knows whether it is all
            return Suspect(Finding(Kind.NAME_LOST, path, f"but there is {shown(part.path)}"))
        return Suspect(
            Finding(Kind.NAME_LOST, path, shown(self.found.path_of(named.key))), partial(self._clear, named)
        )

    def _orphan_of(self, ino: Inode, settled: set[Key]) -> Orphan | None:
        fitting = (orphan for orphan in self.by_number.get(ino, ()) if orphan.key not in settled)
        return next((o for o in fitting if not self.is_of_handover(o)), None)

    def _change(self, named: Named, says: SetEntry, done: str) -> str:
        self.store.names.change(named.name, named.entry, says)
        return done

    # Sets that change hands

    def _following(self) -> Iterator[Suspect]:
        for named, has_record in self.found.following:
            owner = named.entry.owner
            assert owner is not None
            finding = Finding(Kind.NAME_FOLLOWS, _path(named.name), f"to uid {owner.uid}")
            # Bringing them gives a number to a top that has none, and it must be the one that its name says.
            yield Suspect(finding, partial(self._bring, named, owner) if has_record else None)

    def _bring(self, named: Named, owner: Owner) -> str:
        if bring_files(self.store, named.name, self.store.names.read(named.name), owner) is None:
            raise Unsupported("root may not chown there, and a mount copies them")
        return f"brought to uid {owner.uid}"

    # Places without a name

    def is_of_handover(self, orphan: Orphan) -> bool:
        """A part of a copy, or the old files of a set that was copied: while there is the set, or who copies it."""
        beside = orphan.beside
        if beside is None or not beside[2]:
            return False
        return beside[1] in self.found.numbers or beside[1] in self.found.locks

    def _orphan(self, orphan: Orphan) -> Suspect:
        if orphan.is_special:
            return Suspect(Finding(Kind.SPECIAL, orphan.path))
        if self.is_of_handover(orphan):
            lock = orphan.beside is not None and orphan.beside[1] in self.found.locks
            detail = "the next mount that starts removes it" if lock else "nobody clears it"
            return Suspect(Finding(Kind.PLACE_HANDOVER, orphan.path, detail))
        if orphan.trouble is Trouble.NEWER:
            return Suspect(Finding(Kind.PLACE_ORPHAN, orphan.path, "its record is of a later version"))
        if self.found.newer:
            detail = "one of a later version may"
            return Suspect(Finding(Kind.PLACE_ORPHAN, orphan.path, detail))
        return Suspect(Finding(Kind.PLACE_ORPHAN, orphan.path), partial(self._name, orphan))

    def _name(self, orphan: Orphan) -> str:
        left = self._left_entry(orphan)
        stored = orphan.stored
        ino = self._number(orphan, stored, left)
        entry = SetEntry(ino, self._owner(orphan, stored, left), stored, orphan.place, orphan.area.volume)
        entry = entry.of_top(ino, orphan.mode)
        wanted = _name_of(orphan)
        for name in (wanted, SetName(place_beside(wanted, ino))):
            with contextlib.suppress(Exists):
                self.store.names.enter(name, entry)
                whose = "nobody" if entry.owner is None else f"uid {entry.owner.uid}"
                return f"named {shown(name)}, of {whose}"
        raise Exists(f"the names {shown(wanted)} and {shown(place_beside(wanted, ino))} are taken")

    def _left_entry(self, orphan: Orphan) -> SetEntry | None:
        """What somebody who died between two steps left of the set's name."""
        if orphan.record is not None:
            return self.found.left.get(orphan.record.ino)
        fitting = (e for e in self.found.left.values() if key_of(e) == orphan.key)
        return next(fitting, None)

    def _number(self, orphan: Orphan, stored: Owner, left: SetEntry | None) -> Inode:
        """The set's inode number, which its top has afterwards."""
        if orphan.record is not None:
            return orphan.record.ino
        known = left.ino if left is not None else orphan.beside[1] if orphan.beside is not None else None
        with orphan.area.root() as root, root.inside(USERS, b"%d" % orphan.uid) as directory:
            seen = look(directory, orphan.place, [])
            before = records.reading(seen.raw, seen.status)
            if isinstance(before, Record):
                return before.ino
            if known in self.found.numbers:
                known = None
            return mending.put_record(seen, records.made_up(seen.status, stored, known)).ino

    def _owner(self, orphan: Orphan, stored: Owner, left: SetEntry | None) -> Owner | None:
        if left is not None:
            return left.owner
        note = orphan.note
        if note is not None and not note.path and orphan.record is not None and note.ino == orphan.record.ino:
            his = self.store.service if note.owner is None or note.owner.uid == ROOT_UID else note.owner
            if his.uid == orphan.uid:
                return note.owner
        if orphan.uid != self.store.service.uid:
            return stored
        # The account that keeps the store keeps what is root's, and what nobody owns yet.
        return None if self.policy.is_batch(_name_of(orphan)) else ROOT


def _path(name: bytes) -> bytes:
    return NAMES + b"/" + name


def _name_of(orphan: Orphan) -> SetName:
    """The name that the place says."""
    name = orphan.place if orphan.beside is None else orphan.beside[0]
    return SetName(name if len(name) <= NAME_MAX else orphan.place)


def give_user_directory(area: Area, where: Components) -> str:
    """*where* is a user's directory, or his part of the trash."""
    *above, name = where
    uid = Uid(int(next(part for part in reversed(where) if part.isdigit())))
    with area.root() as root, root.inside(*above) as directory:
        seen = look(directory, name, [])
        mending.give(seen, dataclasses.replace(owner_of(seen.status), uid=uid))
    return f"given to uid {uid}"


def close_user_directory(area: Area, where: Components) -> str:
    *above, name = where
    with area.root() as root, root.inside(*above) as directory:
        mending.change_mode(look(directory, name, []), 0o700)
    return Kind.USER_MODE.mending
