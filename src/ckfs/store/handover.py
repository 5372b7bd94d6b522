"""Bringing a set's files to its new owner.

The set's entry names the new owner first, in one step; from then on the set is his. Its files follow, and until they
have the entry says two different things: *owner*, and *stored as*. Where root may, each file is chowned in place, by
descriptor, and the place moves to the new owner's directory. Where root is squashed, or nothing can be renamed from one user's
directory to another's (realms), the files are copied, under new
names and as the new owner, while the old ones stay readable; then the entry switches to the copy and the old ones go.

Every step can be repeated: a hand-over that died in the middle is finished by doing it again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import secrets
import threading
from collections.abc import Generator

from ckfs.errors import Stale
from ckfs.model import Owner
from ckfs.names import Inode, SetName
from ckfs.store import remains
from ckfs.store.charges import charges_of_set
from ckfs.store.copying import Attributes, Contents, attributes_in, contents, copy_tree, writers
from ckfs.store.entries import SetEntry, place_beside, place_of_copy
from ckfs.store.identity import ROOT
from ckfs.store.layout import Store
from ckfs.store.realms import Arrangement
from ckfs.store.relocating import compare_trees, copy_on
from ckfs.store.remains import Left
from ckfs.store.spots import Found, VolumeId

_TRIES = 20


def name_owner(
    store: Store, name: SetName, ino: Inode, owner: Owner, *, unless_owned: bool = False
) -> tuple[SetEntry, bool]:
    """Make *owner* the owner of the set *name*, in one step. Returns its entry by now, whose files have yet to follow, and
    whether this call has changed it.

    *unless_owned*: only if nobody owns it yet. Stale if *name* is not the set *ino* any more.
    """
    for _ in range(_TRIES):
        with contextlib.suppress(Stale):  # another mount changed it in that moment
            return _name_owner(store, name, ino, owner, unless_owned=unless_owned)
    return _name_owner(store, name, ino, owner, unless_owned=unless_owned)


def _name_owner(
    store: Store, name: SetName, ino: Inode, owner: Owner, *, unless_owned: bool
) -> tuple[SetEntry, bool]:
    entry = said_of(store, name, ino)
    if entry.owner == owner or (unless_owned and entry.owner is not None):
        return entry, False
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
    return named, True


def _settled(store: Store, name: SetName, entry: SetEntry) -> SetEntry:
    """Bring an earlier hand-over to its end, as far as that needs no copy: an entry can say of one other owner only that
    files may be his, or lie with his, already."""
    stored = store.service if entry.owner is None or entry.owner.uid == ROOT.uid else entry.owner
    if entry.stored.uid == stored.uid:
        return entry
    try:
        return bring_files(store, name, entry, stored) or entry
    except OSError as error:
        if error.errno != errno.EMLINK:
            raise
        return entry


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
        return store.door.examine(entry.spot.by(ROOT))


def bring_files(store: Store, name: SetName, entry: SetEntry, stored: Owner) -> SetEntry | None:
    """Let the files of the set *name* belong to *stored*. Returns the entry that says so.

    None where root may not chown, or the place cannot move: then they have to be copied.
    """
    if stored == entry.stored:
        return entry
    store.names.prepare_user(stored, entry.volume)
    try:
        links = _links(store, name, entry.ino, _found(store, entry))
    except (FileNotFoundError, Stale):
        return _finish_move(store, name, entry, stored)
    crosses = store.arrangement.of(entry.volume) is Arrangement.REALMS and entry.stored.uid != stored.uid
    try:
        if not crosses:
            store.door.change_owner(entry.spot.by(ROOT), stored)
    except PermissionError:
        crosses = True
    if crosses:
        if links:
            raise OSError(errno.EMLINK, "it has links that are other sets, and has to be copied")
        return None
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
        store.door.unmetered.rename(entry.spot.by(ROOT), moved.spot.by(ROOT))
    return _switch(store, name, entry, moved)


def _finish_move(store: Store, name: SetName, entry: SetEntry, stored: Owner) -> SetEntry:
    """A hand-over died after it moved the place and before it said so."""
    for place in (entry.place, place_beside(entry.place, entry.ino), place_beside(name, entry.ino)):
        moved = dataclasses.replace(entry, stored=stored, place=place)
        found = store.door.examine_if_there(moved.spot)
        if found is not None and found.record.ino == entry.ino:
            return _switch(store, name, entry, moved)
    raise Stale("the set is not where its entry says")


class Copying:
    """One attempt to copy a set to its new owner, or for the same owner to another *volume*. Synchronous; each method may be called by
    another thread.

    A lock in the store, which ends with its process, keeps other mounts from copying the same set. A copy that was begun by one that
    died is found under the same name: for a new owner it is replaced; one that was to go to another volume is gone on with, and what is
    there is compared with what it is of before it becomes the set. Whatever happens, :meth:`close` is called last.
    """

    def __init__(
        self, store: Store, name: SetName, entry: SetEntry, stored: Owner, volume: VolumeId | None = None
    ) -> None:
        self._store = store
        self._door = store.door.unmetered  # who is given a set pays for it at once, and once
        self._name = name
        self._entry = entry
        self._moves = volume is not None and volume != entry.volume
        self._copied = dataclasses.replace(
            entry,
            stored=stored,
            place=place_of_copy(name, entry.ino),
            volume=entry.volume if volume is None else volume,
        )
        self._grown_bytes = 0
        self.bytes_done = 0
        """Of what was copied, and compared; about."""
        self.bytes_in_all = 0
        self._old = entry.spot
        self._before: Contents = {}
        self._attributes: Attributes = {}
        self._lock: int | None = None
        self._unfinished = False
        self._left = False
        self._steps = self._copy()
        # A call that hangs holds up close(), so that no other mount begins before it is over.
        self._busy = threading.Lock()

    def begin(self) -> Contents:
        """Lock the set, and look at what is to be copied. BlockingIOError if another mount copies it."""
        with self._busy:
            self._take_lock()
            if self._store.names.read(self._name) != self._entry:
                raise Stale("the set has changed meanwhile")
            self._before = contents(self._door, self._entry.spot)
            self._attributes = attributes_in(self._door, self._entry.spot)
            self.bytes_in_all = 2 * sum(size for _, size, _, _ in self._before.values())
            top = self._door.examine(self._entry.spot, self._entry.ino)
            self._copied = self._copied.of_top(self._entry.ino, top.record.mode)
            if self._moves:
                if not top.record.is_directory and top.stat.st_nlink > 1:
                    raise OSError(errno.EMLINK, "it has links that are other sets")
                self._note()
            return self._before

    def _take_lock(self) -> None:
        try:
            self._lock = self._store.names.copy_locks.lock(self._entry.ino)
            left = remains.clear(self._store, self._lock, goes_on=self._copied if self._moves else None)
            self._left = left is Left.IN_USE
            if self._left:
                raise BlockingIOError(
                    errno.EAGAIN, "files that it had before are still in use, or out of reach"
                )
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            # A store without locks (Lustre without -o flock): of several copies that come to their end one is the set.
            place = b"%s~%s" % (self._copied.place, secrets.token_hex(8).encode())
            self._copied = dataclasses.replace(self._copied, place=place)

    def writers(self) -> dict[bytes, set[bytes]]:
        """The images that are being written as their records say, by node."""
        with self._busy:
            return writers(self._door, self._entry.spot)

    def step(self) -> bool:
        """Copy a piece; False when all is copied."""
        with self._busy:
            return next(self._steps, self) is not self

    def _copy(self) -> Generator[None, None, None]:
        self._unfinished = True
        source, target = self._entry.spot, self._copied.spot
        if not self._moves:
            with contextlib.suppress(FileNotFoundError):
                self._door.remove_tree(target)
            yield
            yield from copy_tree(self._door, source, target)
            return
        self._store.names.prepare_user(self._copied.stored, self._copied.volume)
        yield
        for done in (copy_on(self._door, source, target), compare_trees(self._door, source, target)):
            for count in done:
                self.bytes_done += count
                yield

    def finish(self) -> SetEntry:
        """Let the copy be the set, in one step. OSError (EAGAIN) if the set changed since :meth:`begin`."""
        with self._busy:
            if contents(self._door, self._entry.spot) != self._before:
                raise BlockingIOError(errno.EAGAIN, "the set changed while it was copied")
            self._grown_bytes = self._growth()
            if not self._moves:
                self._note()
            moved = _switch(self._store, self._name, self._entry, self._copied)
            self._unfinished = False
            if self._grown_bytes:
                self._store.door.reports.differs(self._entry.payer, self._entry.ino, self._grown_bytes)
            return moved

    def _growth(self) -> int:
        """By how many bytes the copy is charged with more than the set: where that has zeros, the copy has holes."""
        if self._door is self._store.door:  # nobody counts
            return 0
        return self._charge(self._copied) - self._charge(self._entry)

    def _charge(self, entry: SetEntry) -> int:
        return charges_of_set(self._door, entry.spot, ()).total.bytes

    def _note(self) -> None:
        """Say in the lock what is to be removed, for :func:`remains.remove_left` should this process die before it has done it."""
        if self._lock is not None:
            copied = self._copied if self._moves else None
            self._store.names.copy_locks.note(self._lock, self._entry, self._name, copied)

    def put_old_aside(self) -> None:
        """After :meth:`finish`: take the old files away in one step, so that nobody finds a part of them.

        Their owner may have no room even for that (btrfs, at its limit): then they go from where they are.
        """
        with self._busy:
            aside = remains.aside(self._name, self._entry)
            with contextlib.suppress(FileNotFoundError):
                self._door.remove_tree(aside)
            try:
                self._door.rename(self._entry.spot, aside)
                self._old = aside
            except OSError as error:
                if error.errno not in (errno.EDQUOT, errno.ENOSPC):
                    raise

    def remove_old(self) -> bool:
        """After :meth:`put_old_aside`. False if somebody on this host has some of it open, which NFS keeps for as long, under names of its own:
        :func:`remains.remove_left` removes it, some time later."""
        with self._busy:
            try:
                remains.remove_old(self._store, self._name, self._old, self._before, self._attributes)
            except OSError as error:
                if error.errno not in remains.IN_USE:
                    raise
                self._left = True
            return not self._left

    def close(self) -> None:
        """Take back a copy that did not come to its end, and let others try."""
        with self._busy:
            self._steps.close()
            try:
                if self._unfinished and not self._is_the_set():
                    self._door.remove_tree(self._copied.spot)
            except FileNotFoundError:
                pass
            finally:
                if self._lock is not None:
                    self._store.names.copy_locks.unlock(self._entry.ino, self._lock, keep=self._left)

    def _is_the_set(self) -> bool:
        """A store may say that it could not switch, and have done it."""
        with contextlib.suppress(FileNotFoundError):
            return self._store.names.read(self._name).spot == self._copied.spot
        return False


def _switch(store: Store, name: SetName, entry: SetEntry, moved: SetEntry) -> SetEntry:
    store.names.change(name, entry, moved)
    return moved
