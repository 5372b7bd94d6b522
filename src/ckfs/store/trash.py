"""The trash: what was removed lies in ``trash/<stored uid>/<token>`` (in a store with realms:
``users/<stored uid>/.ckfs-trash/<token>``), the file or directory itself, until its time is over.

Putting something there is a rename, so that it costs nothing and needs no room; what is known of the removal is on it
before (:mod:`ckfs.store.removed`). One that dies in between leaves a note on a file that is where it was, which nobody
reads there. Record and state are as they were, so that what comes back is what was removed.

All calls are synchronous, for worker threads; they raise as the door does.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence

from ckfs.errors import FsError, Stale, Unreached
from ckfs.model import Owner
from ckfs.names import Gid, Inode, SetName, Uid, shown
from ckfs.policy.quota import NOTHING, Amount
from ckfs.store import restoring, walks
from ckfs.store.charges import charge_of
from ckfs.store.door import Door
from ckfs.store.entries import SetEntry
from ckfs.store.exclusive import rename_if_free
from ckfs.store.realms import Arrangement
from ckfs.store.removed import ATTRIBUTE, Damaged, Item, Note, decode, encode, fitted
from ckfs.store.restoring import Failure
from ckfs.store.setnames import SetNames
from ckfs.store.spots import HOME, Found, Spot, VolumeId

log = logging.getLogger(__name__)

_PURGED = b".purged"
"""Follows the token of a directory that is being removed for good: it is not whole any more."""
_GONE = (FileNotFoundError, Stale, Unreached)
_NOTE_BYTES = 1 << 20
"""Room that is made where not even a note fits; more than one, for those that come next."""


class Trash:
    """*service* is the account that keeps ``trash/`` itself; what is in it belongs to whose set it was in."""

    def __init__(
        self, door: Door, names: SetNames, service: Owner, arrangement: Arrangement = Arrangement.SHARED
    ) -> None:
        self._arrangement = arrangement
        self._door = door
        self._names = names
        self._service = service

    # Putting in

    def put(self, spot: Spot, note: Note) -> Item:
        """Move the file or directory *spot* into the trash. Stale if it is not the inode of *note*."""
        return self._with_room(spot, lambda: self._there(spot, lambda: self._put(spot, fitted(note))))

    def put_as_able(self, spot: Spot, note: Note) -> Item:
        """As :meth:`put`, for what leaves the trash again at once: nothing else gives way to its note, which may be missing."""
        try:
            return self._there(spot, lambda: self._put(spot, fitted(note)))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
        return self._there(spot, lambda: self._put(spot, fitted(note), noted=False))

    def put_set(self, name: SetName, ino: Inode, note: Callable[[SetEntry, Found], Note]) -> Item:
        """Move the whole set *name* into the trash, and take its name away. Stale if it is not the one whose top is *ino*."""
        items: list[Item] = []

        def check(found: Found) -> None:
            if found.record.ino != ino or self._names.twins(name):
                raise Stale("another set has the name by now, or the set is just being renamed")

        def put(entry: SetEntry, found: Found) -> None:
            items.append(self.put(entry.spot, note(entry, found)))

        self._names.remove(name, put, check)
        return items[0]

    def _put(self, spot: Spot, note: Note, *, noted: bool = True) -> Item:
        target = self._name_for(spot)
        value = encode(note) if noted else None
        item = Item(target, self._door.rename_noted(spot, target, note.ino, ATTRIBUTE, value), note)
        if (
            item.found.record.ino != note.ino
        ):  # another mount has given the name to another file in that moment
            rename_if_free(self._door, target, spot, item.found)
            raise Stale("the name leads to another file by now")
        if item.has_other_name:
            self._drop_others(item)
            item = Item(target, self._door.examine(target), note)
        return item

    def link(self, spot: Spot, note: Note) -> Item:
        """Have a hard link of the file *spot* in the trash, before a rename takes its name. Stale as in :meth:`put`."""
        return self._with_room(spot, lambda: self._there(spot, lambda: self._link(spot, fitted(note))))

    def _link(self, spot: Spot, note: Note) -> Item:
        target = self._name_for(spot)
        self._door.set_attribute(spot, note.ino, ATTRIBUTE, encode(note))
        self._door.link(spot, target, note.ino)
        item = Item(target, self._door.examine(target), note)
        if item.found.stat.st_nlink > 2:
            self._drop_others(item)
        return item

    def drop(self, item: Item) -> None:
        """Take back what :meth:`link` made, since the rename failed; unless the file has no other name by now."""
        with contextlib.suppress(FileNotFoundError, Stale):
            if self._door.status(item.spot).st_nlink > 1:
                self._door.unlink(item.spot)

    def has_link_of(self, spot: Spot, found: Found) -> bool:
        """Whether a link that :meth:`link` made of the file *found* at *spot* is still there. Only what has a note is looked for."""
        if ATTRIBUTE not in self._door.list_attributes(spot, found.record.ino):
            return False
        return any(
            isinstance(entry, Item) and os.path.samestat(entry.found.stat, found.stat)
            for entry in self._entries(spot.identity.uid, spot.volume)
        )

    def _drop_others(self, item: Item) -> None:
        """Unlink what a rename that died left of the same file: a file is in the trash once."""
        for other in self._entries(item.spot.identity.uid, item.spot.volume):
            if isinstance(other, Damaged) or other.token == item.token:
                continue
            if other.found.record.ino == item.found.record.ino:
                self.drop(other)

    def _there(self, spot: Spot, work: Callable[[], Item]) -> Item:
        """*work*, which puts *spot* into the trash of the same user and volume; that is made first if it is not there."""
        try:
            return work()
        except (
            Stale,
            PermissionError,
        ):  # or what goes there has just moved; or who made trash/ died before all could enter
            self._ensure(spot)
            return work()

    def _ensure(self, spot: Spot) -> None:
        arrangement, stored = self._arrangement.of(spot.volume), spot.identity
        if arrangement is Arrangement.REALMS:
            self._names.prepare_user(stored)
        else:
            self._door.ensure_shared_directory(spot.at(*arrangement.of_trash(), identity=self._service))
        self._door.ensure_directory(spot.at(*arrangement.trash(stored.uid)))

    def _new_spot(self, spot: Spot) -> Spot:
        """A name of its own in the trash of the same user and volume as *spot*, which is there afterwards."""
        self._ensure(spot)
        return self._name_for(spot)

    def _name_for(self, spot: Spot) -> Spot:
        trash = self._arrangement.of(spot.volume).trash(spot.identity.uid)
        return spot.at(*trash, secrets.token_hex(8).encode())

    def _with_room(self, spot: Spot, work: Callable[[], Item]) -> Item:
        """Where a note does not fit any more, what is in the trash already gives way to it."""
        try:
            return work()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            freed = self.make_room(spot.identity, _NOTE_BYTES, spot.volume)
            if not freed and error.errno == errno.ENOSPC:
                freed = self.make_room(None, _NOTE_BYTES, spot.volume)
            if not freed:
                raise
        return work()

    # Looking

    def items(self, uid: Uid | None = None) -> Iterator[Item | Damaged]:
        """What is in the trash of the sets that are stored as *uid*, or of all; no file that has another name too."""
        for entry in self._entries(uid):
            if isinstance(entry, Damaged) or not entry.has_other_name:
                yield entry

    def _entries(self, uid: Uid | None, volume: VolumeId | None = None) -> Iterator[Item | Damaged]:
        """Of *volume* alone, or of all that this host reaches."""
        for directory in self._directories(uid, volume):
            for token in sorted(self._names_at(directory)):
                entry = self._entry(directory.below(token))
                if entry is not None:
                    yield entry

    def _directories(self, uid: Uid | None, volume: VolumeId | None) -> Iterator[Spot]:
        for one in self._door.volumes.ids() if volume is None else (volume,):
            yield from self._directories_in(one, uid)

    def _directories_in(self, volume: VolumeId, uid: Uid | None) -> Iterator[Spot]:
        arrangement = self._arrangement.of(volume)
        top = Spot(self._service, arrangement.of_trash(), volume=volume)
        for user in self._names_at(top) if uid is None else [b"%d" % uid]:
            try:
                status = self._door.status(top.below(user))
            except _GONE:
                continue
            if b"%d" % status.st_uid == user and stat.S_ISDIR(status.st_mode):
                owner = Owner(Uid(status.st_uid), Gid(status.st_gid))
                yield top.at(*arrangement.trash(owner.uid), identity=owner)
            else:
                path = b"/".join((*top.components, user))
                log.warning("passed over %s: nothing that ckfs made", shown(path))

    def _names_at(self, spot: Spot) -> list[bytes]:
        try:
            return self._door.names_at(spot)
        except _GONE:
            return []
        except (OSError, FsError) as error:
            if spot.volume == HOME:
                raise
            log.info("the trash of a further store is passed over: %s", error)
            return []

    def _entry(self, spot: Spot) -> Item | Damaged | None:
        """What *spot* is; None if it has just gone."""
        try:
            status = self._door.status(spot)
        except _GONE:
            return None
        if status.st_uid != spot.identity.uid:
            return Damaged(spot, status.st_ctime_ns, f"belongs to uid {status.st_uid}")
        spot = spot.at(*spot.components, identity=Owner(Uid(status.st_uid), Gid(status.st_gid)))
        if spot.components[-1].endswith(_PURGED):
            return Damaged(spot, 0, "was being removed for good")
        try:
            return self._noted(spot) or Damaged(spot, status.st_ctime_ns, "nothing says what it was")
        except (FileNotFoundError, Stale):
            return None
        except OSError as error:
            return Damaged(spot, status.st_ctime_ns, error.strerror or str(error))

    def _noted(self, spot: Spot) -> Item | None:
        found = self._door.examine(spot)
        try:
            note = decode(self._door.get_attribute(spot, found.record.ino, ATTRIBUTE))
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            return None
        return Item(spot, found, note) if note is not None else None

    def bytes_of(self, entry: Item | Damaged) -> int:
        """How much room *entry* takes in the store."""
        return self.bytes_at(entry.spot)

    def bytes_at(self, spot: Spot) -> int:
        status = self._door.status(spot)
        if not stat.S_ISDIR(status.st_mode):
            return status.st_blocks * 512 if status.st_nlink == 1 else 0
        below = (found.stat for _, found in walks.files(self._door, spot))
        return 512 * sum({inner.st_ino: inner.st_blocks for inner in below}.values())

    def charge_at(self, spot: Spot) -> Amount:
        """What the file or directory *spot* is charged with, and all below it. A file counts nothing as long as it has a name
        elsewhere."""
        status = self._door.status(spot)
        if not stat.S_ISDIR(status.st_mode):
            return charge_of(self._door, spot) if status.st_nlink == 1 else NOTHING
        below = {found.stat.st_ino: path for path, found in walks.everything(self._door, spot)}
        inner = (spot.at(*spot.components, *path.split(b"/")) for path in below.values())
        return sum((charge_of(self._door, one) for one in inner), charge_of(self._door, spot))

    # Taking out

    def restore(self, item: Item, to: SetName | None = None) -> SetName:
        """Put *item* back where it was, or to the set *to*; returns the set that it is (in) now.

        Exists if something is there, OtherOwner if the set is somebody else's by now, each with the way out.
        """
        for _, error in self.restore_together([item], to):
            raise error
        return item.note.set_name if to is None else to

    def restore_together(self, items: Sequence[Item], to: SetName | None = None) -> list[Failure]:
        """Put *items*, of one set, back into it, or into the set *to*; if that is not there, it appears with all of them
        at once. Returns those that could not be put back, and why."""
        return restoring.restore(self._door, self._names, items, to, self._new_spot)

    def purge(self, entry: Item | Damaged) -> int:
        """Remove *entry* for good. Returns how many bytes that freed."""
        freed = 0
        with contextlib.suppress(OSError, Stale, RecursionError):
            freed = self.bytes_of(entry)
        self._door.remove_tree(self._begun(entry))
        log.info("trash: removed for good, %d bytes: %s", freed, described(entry), extra={"always": True})
        return freed

    def _begun(self, entry: Item | Damaged) -> Spot:
        """Where *entry* lies while it is removed: half a directory must not come back as a whole one."""
        spot = entry.spot
        is_directory = stat.S_ISDIR(self._door.status(spot).st_mode)
        if not is_directory or spot.components[-1].endswith(_PURGED):
            return spot
        begun = spot.at(*spot.components[:-1], spot.components[-1] + _PURGED)
        self._door.rename(spot, begun)
        return begun

    def older(self, before_ns: int) -> list[Item | Damaged]:
        """What was removed before *before_ns* (since the epoch), the oldest first."""
        return [entry for entry in self.oldest_first() if entry.when_ns < before_ns]

    def oldest_first(self) -> list[Item | Damaged]:
        return sorted(self._entries(None), key=lambda entry: entry.when_ns)

    def make_room(self, stored: Owner | None, wanted_bytes: int, volume: VolumeId | None = None) -> int:
        """Remove for good, the oldest first, from the trash of *stored* or of all, in *volume* or in all, until *wanted_bytes* are freed.

        Returns how many were; fewer if there is nothing left.
        """
        uid = None if stored is None else stored.uid
        freed = 0
        for entry in sorted(self._entries(uid, volume), key=lambda entry: entry.when_ns):
            if freed >= wanted_bytes:
                break
            freed += self.purge_if_able(entry)
        return freed

    def purge_if_able(self, entry: Item | Damaged) -> int:
        """As :meth:`purge`; what cannot be removed stays, with a line in the log."""
        try:
            return self.purge(entry)
        except (FileNotFoundError, Stale):  # another mount was first, or it has been restored
            return 0
        except (OSError, FsError, RecursionError) as error:
            log.warning("trash: cannot remove %s: %s", described(entry), error)
            return 0


def described(entry: Item | Damaged) -> str:
    """*entry* in a line of a log."""
    if isinstance(entry, Damaged):
        return f"{shown(b'/'.join(entry.spot.components))} ({entry.reason})"
    note = entry.note
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(note.when_ns // 1_000_000_000))
    name = note.set_name + b"/" + note.path if note.path else note.set_name
    return f"{shown(name)} (item {shown(entry.token)}, removed {when} by uid {note.uid})"
