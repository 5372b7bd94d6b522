"""Names of sets: each exists once in the cluster, whoever owns it.

A set is an entry of the store's ``names/`` directory, a symbolic link that nobody ever follows: making one is exclusive
and brings its content (:mod:`ckfs.store.entries`) with it in one step, on every file system. The set's files exist completely before its name does, so a taker that dies leaves
no name behind, at worst a place that nothing refers to. On removal the place goes first: a name without a place is what
a remover left that died, and the next taker clears it away (:meth:`SetNames.clear`).

The inode in the target is never used twice, so that "is it still the entry that I saw?" has an answer.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from ckfs.errors import Exists, ReadOnly, Stale, Unsupported
from ckfs.model import Owner
from ckfs.names import Gid, Inode, SetName, Uid, shown
from ckfs.store import syscalls
from ckfs.store.door import Door
from ckfs.store.entries import USERS, SetEntry, decode, encode, on_the_way, place_beside, place_of
from ckfs.store.identity import ROOT, acting_as
from ckfs.store.realms import STAGING, Arrangement
from ckfs.store.spare import Spare
from ckfs.store.spots import Found, Spot

log = logging.getLogger(__name__)

NAMES = b"names"

_LOCK = b"copying-"

MakeRealm = Callable[[Uid, Gid], None]
"""Have the directory of a user's sets, as the engine under the store wants it. Blocking; quick if it is there."""


class SetNames:
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
        self._door = door
        self._read_only = read_only
        self._service = service
        self._arrangement = arrangement
        self._make_realm: MakeRealm | None = None
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._names_fd = os.open(NAMES, flags, dir_fd=root_fd)
        self._staging_fd = os.open(STAGING, flags, dir_fd=root_fd)
        self._spare = Spare(root_fd, service)
        if not read_only:
            self._spare.keep()

    def close(self) -> None:
        os.close(self._names_fd)
        os.close(self._staging_fd)

    def make_realms_by(self, make_realm: MakeRealm) -> None:
        """Before the first call: whatever users' directories need so that the engine under the store enforces their quotas."""
        self._make_realm = make_realm

    @property
    def top(self) -> Spot:
        """Where the mount's root lies: its times and mode are those of ``names/``."""
        return Spot(self._service, (NAMES,))

    # Reading

    def read(self, name: SetName) -> SetEntry:
        """FileNotFoundError if there is no such set."""
        try:
            return decode(os.readlink(name, dir_fd=self._names_fd))
        except OSError as error:
            if error.errno == errno.EINVAL:  # not a link: nothing that ckfs made
                raise FileNotFoundError(errno.ENOENT, "no such set") from None
            raise

    def open_listing(self) -> int:
        """A descriptor of its own to list the sets with (offsets belong to a descriptor)."""
        return os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._names_fd)

    def all(self) -> Iterator[SetName]:
        """Every name that there is at the moment."""
        fd = self.open_listing()
        try:
            yield from map(SetName, syscalls.names_in(fd))
        finally:
            os.close(fd)

    def look_up_nothing(self) -> None:
        """Come back as soon as ``names/`` answers a look-up of a new name: not while a change of it hangs."""
        with contextlib.suppress(FileNotFoundError):
            os.stat(_unused_name(b"nothing"), dir_fd=self._names_fd, follow_symlinks=False)

    def look_up_nothing_of(self, stored: Owner) -> None:
        """As :meth:`look_up_nothing`, for the directory that holds the sets of *stored*."""
        self._door.examine_if_there(Spot(stored, (USERS, b"%d" % stored.uid, _unused_name(b"nothing"))))

    def examine(self, name: SetName) -> tuple[SetEntry, Found]:
        """The set's entry and its top; FileNotFoundError if there is none, or it is just being removed."""
        entry = self.read(name)
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
        self, name: SetName, owner: Owner | None, stored: Owner, ino: Inode, make: Callable[[Spot], Found]
    ) -> tuple[SetEntry, Found]:
        """Make a set: its top by *make*, then its name. Exists if somebody else has the name."""
        self.check_free(name)
        self.prepare_user(stored)
        entry, found = self._make_place(name, owner, stored, ino, make)
        entry = SetEntry(found.record.ino, entry.owner, entry.stored, entry.place)
        try:
            self.enter(name, entry)
        except BaseException:
            with contextlib.suppress(OSError):
                self._door.remove(entry.spot)
            raise
        return entry, found

    def prepare_user(self, stored: Owner) -> None:
        """Have the directory in which the sets of *stored* lie. EngineFailed if the engine does not take it for a realm."""
        directory = Spot(stored, self._arrangement.user(stored.uid))
        if self._arrangement is Arrangement.SHARED:
            self._door.ensure_directory(directory)
            return
        if self._make_realm is not None and not self._read_only:
            self._make_realm(stored.uid, stored.gid)
        elif self._make_realm is None and not self._door.is_there(directory):
            raise Unsupported(f"there is no users/{stored.uid} yet, and only a mount can make it")
        self._door.ensure_directory(directory)
        self._door.ensure_directory(Spot(stored, self._arrangement.staging(stored.uid)))

    def _make_place(
        self, name: SetName, owner: Owner | None, stored: Owner, ino: Inode, make: Callable[[Spot], Found]
    ) -> tuple[SetEntry, Found]:
        entry = SetEntry(ino, owner, stored, place_of(name, ino))
        try:
            return entry, make(entry.spot)
        except FileExistsError:
            # Another taker is about to win, or one died here: this one goes on beside it, and the name decides.
            entry = SetEntry(ino, owner, stored, place_beside(name, ino))
            return entry, make(entry.spot)

    def check_free(self, name: SetName) -> None:
        """Exists if *name* is taken; what a dead remover left is cleared away."""
        try:
            entry = self.read(name)
        except FileNotFoundError:
            return
        try:
            self.examine(name)
        except FileNotFoundError:
            self.clear(name, entry)
        else:
            raise Exists("a set of that name exists")

    def enter(self, name: SetName, entry: SetEntry) -> None:
        """Give the set its name; Exists if it has been taken."""
        with self._changing():
            try:
                os.symlink(encode(entry), name, dir_fd=self._names_fd)
            except FileExistsError:
                raise Exists("a set of that name exists") from None

    # Changing

    def change(self, name: SetName, seen: SetEntry, entry: SetEntry) -> None:
        """Let *name* say *entry* instead of *seen*. Stale if it does not say that any more: no name is made anew.

        The new link and the old one change places in one step, and what came out tells whether another mount was first.
        Where the store cannot do that (NFS, GlusterFS) the new link replaces the old one just after a look.
        """
        self._check_says(name, seen)
        token = _unused_name(b"staging")
        with self._changing(), self._with_spare(partial(self._stage, token, entry)):
            try:
                self._swap(token, name, seen, entry)
            finally:
                self._drop(token, seen, entry)

    def _stage(self, token: bytes, entry: SetEntry) -> None:
        os.symlink(encode(entry), token, dir_fd=self._staging_fd)

    @contextmanager
    def _with_spare(self, make: Callable[[], None]) -> Iterator[None]:
        """*make* something for the block, though the file system has no file left."""
        try:
            make()
        except OSError as error:
            if error.errno != errno.ENOSPC or not self._spare.give():
                raise
        else:
            yield
            return
        try:
            make()
            yield
        finally:
            self._spare.keep()

    def _drop(self, token: bytes, *known: SetEntry) -> None:
        """Unlink what is left in staging, unless it may be the last that says where another set lies."""
        with contextlib.suppress(OSError):
            if os.readlink(token, dir_fd=self._staging_fd) in map(encode, known):
                os.unlink(token, dir_fd=self._staging_fd)

    def _check_says(self, name: SetName, seen: SetEntry) -> None:
        try:
            if self.read(name) == seen:
                return
        except FileNotFoundError:
            pass
        raise Stale("the set has been renamed, removed or given away meanwhile")

    def _swap(self, token: bytes, name: SetName, seen: SetEntry, entry: SetEntry) -> None:
        try:
            self._exchange_with(token, name)
        except FileNotFoundError:
            raise Stale("the set has been renamed or removed meanwhile") from None
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            os.rename(token, name, src_dir_fd=self._staging_fd, dst_dir_fd=self._names_fd)
            return
        if os.readlink(token, dir_fd=self._staging_fd) != encode(seen):
            self._swap_back(token, name, entry)
            raise Stale("another mount has changed the set in that moment")

    def _swap_back(self, token: bytes, name: SetName, ours: SetEntry) -> None:
        """Another mount's link came out: it goes back. If that fails, since ours has been moved on, and it is another set's,
        that set gets its name again, or one beside it."""
        try:
            self._exchange_with(token, name)
            if os.readlink(token, dir_fd=self._staging_fd) != encode(ours):
                self._exchange_with(token, name)  # a third one has replaced ours meanwhile: the latest stays
        except FileNotFoundError:
            left = decode(os.readlink(token, dir_fd=self._staging_fd))
            if left.ino != ours.ino:
                self._put_back(token, name, left)
                os.unlink(token, dir_fd=self._staging_fd)

    def _exchange_with(self, token: bytes, name: SetName) -> None:
        syscalls.rename(self._staging_fd, token, self._names_fd, name, syscalls.RENAME_EXCHANGE)

    def move_over(self, old: SetName, new: SetName, replaced: SetEntry) -> None:
        """Rename the entry over that of *replaced*, in one step. Stale if *new* is another set by now."""
        self._check_still(new, replaced)
        with self._changing():
            os.rename(old, new, src_dir_fd=self._names_fd, dst_dir_fd=self._names_fd)

    def replace_if(self, name: SetName, replaced: SetEntry, entry: SetEntry) -> None:
        """Let *name* say *entry*; Stale if it is not the set *replaced* by now."""
        self.change(name, self._check_still(name, replaced), entry)

    def _check_still(self, name: SetName, seen: SetEntry) -> SetEntry:
        """What *name* says, if it is still the same set."""
        with contextlib.suppress(FileNotFoundError):
            said = self.read(name)
            if said.ino == seen.ino:
                return said
        raise Stale("another set has the name by now")

    def move_if_free(self, old: SetName, new: SetName) -> None:
        """Rename the entry; Exists if the new name has been taken."""
        with self._changing():
            try:
                syscalls.rename(self._names_fd, old, self._names_fd, new, syscalls.RENAME_NOREPLACE)
            except FileExistsError:
                raise Exists("a set of that name exists") from None
            except OSError as error:
                if (
                    error.errno != errno.EINVAL
                ):  # NFS and GlusterFS know no such flag, but links are as exclusive
                    raise
            else:
                return
        self._move_by_link(old, new)

    def _move_by_link(self, old: SetName, new: SetName) -> None:
        """Of several mounts that rename a set in one moment each gives it a name, and the one that gets the old name away
        has renamed it."""
        said = self.read(old)
        with self._changing():
            try:
                os.link(old, new, src_dir_fd=self._names_fd, dst_dir_fd=self._names_fd, follow_symlinks=False)
            except FileExistsError:
                raise Exists("a set of that name exists") from None
        # Where it was not renamed but removed, which leaves the files to another name, this one has to stay.
        if not self.clear(old, said) and self.twins(new):
            self.clear(new, said)
            raise FileNotFoundError(errno.ENOENT, "another mount has renamed the set in that moment")

    def finish_rename(self, old: SetName, new: SetName) -> bool:
        """Whether *old* and *new* were the same link, as a rename leaves them that died after it had linked; *old* is gone
        then. (Sets that are links of one file have a link each in ``names/``.)"""
        if old not in self.twins(new):
            return False
        self.clear(old, self.read(old))
        return True

    def twins(self, name: SetName) -> list[SetName]:
        """Other names that are the same link as *name*: a rename died between link and unlink."""
        status = self._status(name)
        if status.st_nlink == 1:
            return []
        return [other for other in self.all() if other != name and self._is_same(other, status)]

    def _is_same(self, name: SetName, status: os.stat_result) -> bool:
        try:
            return os.path.samestat(self._status(name), status)
        except FileNotFoundError:
            return False

    def _status(self, name: SetName) -> os.stat_result:
        return os.stat(name, dir_fd=self._names_fd, follow_symlinks=False)

    def exchange(self, one: SetName, other: SetName) -> None:
        with self._changing():
            syscalls.rename(self._names_fd, one, self._names_fd, other, syscalls.RENAME_EXCHANGE)

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

    def clear(self, name: SetName, entry: SetEntry) -> bool:
        """Take the name away if it still says *entry*, and return whether this call has done it.

        Moved aside and looked at there: of several that clear one name only one gets it, and an entry that another
        mount made in that very moment is put back.
        """
        with contextlib.suppress(FileNotFoundError):
            return self.read(name) == entry and self._take_aside(name, entry)
        return False

    def _take_aside(self, name: SetName, entry: SetEntry) -> bool:
        token = _unused_name(b"cleared")
        with self._changing():
            os.rename(name, token, src_dir_fd=self._names_fd, dst_dir_fd=self._staging_fd)
            taken = os.readlink(token, dir_fd=self._staging_fd) == encode(entry)
            if not taken:
                self._put_back(token, name, entry)
            os.unlink(token, dir_fd=self._staging_fd)
        return taken

    def _put_back(self, token: bytes, name: SetName, entry: SetEntry) -> None:
        for other in (name, SetName(place_beside(name, entry.ino))):
            try:
                os.link(
                    token,
                    other,
                    src_dir_fd=self._staging_fd,
                    dst_dir_fd=self._names_fd,
                    follow_symlinks=False,
                )
            except FileExistsError:
                log.warning(
                    "set %s was made twice in one moment; one goes on under a longer name", shown(name)
                )
            else:
                return

    def staging_spot(self, stored: Owner) -> Spot:
        """A unique name in a staging directory, to be made as *stored*."""
        return Spot(stored, (*self._arrangement.staging(stored.uid), _unused_name(b"file")))

    @contextmanager
    def _changing(self) -> Iterator[None]:
        if self._read_only:
            raise ReadOnly("the mount is read-only")
        with acting_as(self._service):
            yield

    # One mount at a time

    def lock_copy(self, ino: Inode) -> int:
        """Lock the set *ino* against copying by others. Returns what :meth:`unlock_copy` takes.

        BlockingIOError if another has it; OSError where the store keeps no locks. The lock ends with its process.
        """
        name = _lock_name(ino)
        with acting_as(self._service):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=self._staging_fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # NFS wants it open for writing
                if not os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=self._staging_fd)):
                    raise FileNotFoundError(errno.ENOENT, "unlocked in that moment")
            except FileNotFoundError:
                os.close(fd)
                raise BlockingIOError(errno.EAGAIN, "another mount has just copied it") from None
            except BlockingIOError:
                os.close(fd)
                raise BlockingIOError(errno.EAGAIN, "another mount is copying it") from None
            except BaseException:
                os.close(fd)
                raise
            return fd

    def locked_copies(self) -> list[Inode]:
        """Sets that are being copied, or were by one that died."""
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._staging_fd)
        try:
            return [
                Inode(int(name[len(_LOCK) :], 16)) for name in syscalls.names_in(fd) if name.startswith(_LOCK)
            ]
        finally:
            os.close(fd)

    def unlock_copy(self, ino: Inode, lock: int) -> None:
        with acting_as(self._service):
            try:
                os.unlink(_lock_name(ino), dir_fd=self._staging_fd)
            finally:
                os.close(lock)

    def sync(self) -> None:
        os.fsync(self._names_fd)


def _unused_name(purpose: bytes) -> bytes:
    return b"%s-%s" % (purpose, secrets.token_hex(8).encode())


def _lock_name(ino: Inode) -> bytes:
    return _LOCK + b"%x" % ino
