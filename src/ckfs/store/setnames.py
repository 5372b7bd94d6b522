"""Names of sets: each exists once in the cluster, whoever owns it.

A set has a link in ``names/`` (:mod:`ckfs.store.namelinks`), and its files in a place under ``users/``. They exist completely before its name does,
so a taker that dies leaves no name behind, at worst a place that nothing refers to. On removal the place goes first: a name without a
place is what a remover left that died, and the next taker clears it away (:meth:`NameLinks.clear`).
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from dataclasses import replace

from ckfs.errors import Exists, Stale, Unsupported
from ckfs.model import Owner
from ckfs.names import Gid, Inode, SetName, Uid
from ckfs.store import out_of_reach
from ckfs.store.copylocks import CopyLocks
from ckfs.store.door import Door
from ckfs.store.entries import USERS, SetEntry, on_the_way, place_beside, place_of
from ckfs.store.identity import ROOT
from ckfs.store.lockfiles import LockFiles
from ckfs.store.namelinks import NAMES, NameLinks, unused_name
from ckfs.store.realms import Arrangement
from ckfs.store.spots import HOME, Found, Spot, VolumeId

MakeRealm = Callable[[Uid, Gid], None]
"""Have the directory of a user's sets, as the engine under the store wants it. Blocking; quick if it is there."""


class SetNames(NameLinks):
    """The ``names/`` directory, and the places under ``users/``. *service* is the account that keeps the former."""

    def __init__(
        self,
        door: Door,
        root_fd: int,
        service: Owner,
        arrangement: Arrangement = Arrangement.SHARED,
        *,
        read_only: bool = False,
    ) -> None:
        super().__init__(root_fd, service, read_only=read_only)
        self._door = door
        self._arrangement = arrangement
        self._make_realm: MakeRealm | None = None
        self.copy_locks = CopyLocks(self._staging_fd, service)
        self.lock_files = LockFiles(self._staging_fd, service)

    def make_realms_by(self, make_realm: MakeRealm) -> None:
        """Before the first call: whatever users' directories need so that the engine under the store enforces their quotas."""
        self._make_realm = make_realm

    @property
    def top(self) -> Spot:
        """Where the mount's root lies: its times and mode are those of ``names/``."""
        return Spot(self._service, (NAMES,))

    # Looking

    def look_up_nothing_of(self, stored: Owner) -> None:
        """As :meth:`look_up_nothing`, for the directory that holds the sets of *stored*."""
        self._door.examine_if_there(Spot(stored, (USERS, b"%d" % stored.uid, unused_name(b"nothing"))))

    def look(self, name: SetName) -> tuple[SetEntry, Found]:
        """As :meth:`examine`; of a set in a further store that this host does not reach, what its name says."""
        entry = self.read(name)
        if self._door.volumes.is_usable(entry.volume):
            return self._examine(name, entry)
        return entry, Found(out_of_reach.status_of(entry, self._status(name)), out_of_reach.record_of(entry))

    def examine(self, name: SetName) -> tuple[SetEntry, Found]:
        """The set's entry and its top; FileNotFoundError if there is none, or it is just being removed. Unreached if it lies in a further
        store that this host does not reach."""
        return self._examine(name, self.read(name))

    def _examine(self, name: SetName, entry: SetEntry) -> tuple[SetEntry, Found]:
        self._door.volumes.check(entry.volume)  # whoever looks at all sets would fill the log
        try:
            found = self._door.examine_if_there(entry.spot)
        except PermissionError:
            if not entry.is_followed:
                raise
            # Its top belongs to the new owner already, in a directory of the old one's: root reaches both.
            found = self._door.examine_if_there(entry.spot.by(ROOT))
        return (entry, found) if found is not None else self._renamed_meanwhile(name, entry)

    def _renamed_meanwhile(self, name: SetName, seen: SetEntry) -> tuple[SetEntry, Found]:
        entry = self.read(name)
        if entry != seen and (found := self._door.examine_if_there(entry.spot)) is not None:
            return entry, found
        # Whoever moves a place says so afterwards, and may not have come to that: it is where it was going to.
        for moved in on_the_way(name, entry):
            found = self._door.examine_if_there(moved.spot)
            if found is not None and found.record.ino == entry.ino:
                return moved, found
        if entry.is_followed or entry != seen:
            raise Stale("the set is just changing hands, or being renamed")
        raise FileNotFoundError(errno.ENOENT, "the set is just being removed")

    # Taking

    def take(
        self,
        name: SetName,
        owner: Owner | None,
        stored: Owner,
        ino: Inode,
        make: Callable[[Spot], Found],
        volume: VolumeId = HOME,
    ) -> tuple[SetEntry, Found]:
        """Make a set in *volume*: its top by *make*, then its name. Exists if somebody else has the name."""
        self.check_free(name)
        self.prepare_user(stored, volume)
        place = SetEntry(ino, owner, stored, place_of(name, ino), volume)
        place, found = self._make_place(name, place, make)
        entry = place.of_top(found.record.ino, found.record.mode)
        try:
            self.enter(name, entry)
        except BaseException:
            with contextlib.suppress(OSError):
                self._door.remove(entry.spot)
            raise
        return entry, found

    def prepare_user(self, stored: Owner, volume: VolumeId = HOME) -> None:
        """Have the directory in *volume* in which the sets of *stored* lie. EngineFailed if the engine does not take it for a realm."""
        directory = Spot(stored, self._arrangement.user(stored.uid), volume=volume)
        if self._arrangement.of(volume) is Arrangement.SHARED:
            self._door.ensure_directory(directory)
            return
        if self._make_realm is not None and not self._read_only:
            self._make_realm(stored.uid, stored.gid)
        elif self._make_realm is None and not self._door.is_there(directory):
            raise Unsupported(f"there is no users/{stored.uid} yet, and only a mount can make it")
        self._door.ensure_directory(directory)
        self._door.ensure_directory(Spot(stored, self._arrangement.staging(stored.uid)))

    def _make_place(
        self, name: SetName, entry: SetEntry, make: Callable[[Spot], Found]
    ) -> tuple[SetEntry, Found]:
        try:
            return entry, make(entry.spot)
        except FileExistsError:
            # Another taker is about to win, or one died here: this one goes on beside it, and the name decides.
            entry = replace(entry, place=place_beside(name, entry.ino))
            return entry, make(entry.spot)

    def check_free(self, name: SetName) -> None:
        """Exists if *name* is taken; what a dead remover left is cleared away."""
        try:
            entry = self.read(name)
        except FileNotFoundError:
            return
        try:
            self.look(name)
        except FileNotFoundError:
            self.clear(name, entry)
        else:
            raise Exists("a set of that name exists")

    def staging_spot(self, stored: Owner, volume: VolumeId = HOME) -> Spot:
        """A unique name in a staging directory of *volume*, to be made as *stored*."""
        staging = self._arrangement.of(volume).staging(stored.uid)
        return Spot(stored, (*staging, unused_name(b"file")), volume=volume)

    # Removing

    def remove(
        self, name: SetName, remove: Callable[[SetEntry, Found], None], check: Callable[[Found], None]
    ) -> Found:
        """Take the set away: its place by *remove* (unlink or rmdir), then its name. Returns what its top was.

        *check* raises unless the caller may remove that.
        """
        said = self.read(name)
        entry, found = self.examine(name)
        check(found)
        if self.twins(name):  # the files stay with the other name
            self.clear(name, said)
            return found
        remove(entry, found)
        self.clear(name, said if said.ino == entry.ino else entry)
        return found
