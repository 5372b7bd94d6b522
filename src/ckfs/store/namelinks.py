"""The links of ``names/``, each changed in one step: what makes a set one's own, says where it lies, and lets go of it.

A set is an entry of the store's ``names/`` directory, a symbolic link that nobody ever follows: making one is exclusive
and brings its content (:mod:`ckfs.store.entries`) with it in one step, on every file system. What is to be put there, or was taken away, is for
the moment in ``staging/``.

The inode in the target is never used twice, so that "is it still the entry that I saw?" has an answer.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from ckfs.errors import Exists, ReadOnly, Stale
from ckfs.model import Owner
from ckfs.names import SetName, shown
from ckfs.store import syscalls
from ckfs.store.entries import SetEntry, decode, encode, place_beside
from ckfs.store.identity import acting_as
from ckfs.store.realms import STAGING
from ckfs.store.spare import Spare

log = logging.getLogger(__name__)

NAMES = b"names"


class NameLinks:
    """The ``names/`` directory of the store whose root is *root_fd*. *service* is the account that keeps it."""

    def __init__(self, root_fd: int, service: Owner, *, read_only: bool = False) -> None:
        self._read_only = read_only
        self._service = service
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._names_fd = os.open(NAMES, flags, dir_fd=root_fd)
        self._staging_fd = os.open(STAGING, flags, dir_fd=root_fd)
        self._spare = Spare(root_fd, service)
        if not read_only:
            self._spare.keep()

    def close(self) -> None:
        os.close(self._names_fd)
        os.close(self._staging_fd)

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
            os.stat(unused_name(b"nothing"), dir_fd=self._names_fd, follow_symlinks=False)

    # Changing

    def enter(self, name: SetName, entry: SetEntry) -> None:
        """Give the set its name; Exists if it has been taken."""
        with self._changing():
            try:
                os.symlink(encode(entry), name, dir_fd=self._names_fd)
            except FileExistsError:
                raise Exists("a set of that name exists") from None

    def change(self, name: SetName, seen: SetEntry, entry: SetEntry) -> None:
        """Let *name* say *entry* instead of *seen*. Stale if it does not say that any more: no name is made anew.

        The new link and the old one change places in one step, and what came out tells whether another mount was first.
        Where the store cannot do that (NFS, GlusterFS) the new link replaces the old one just after a look.
        """
        self._check_says(name, seen)
        token = unused_name(b"staging")
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
        if _is_made(make):
            yield
            return
        try:
            while self._spare.give():
                if _is_made(make):
                    break
            else:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
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

    # Renaming

    def move_over(self, old: SetName, new: SetName, replaced: SetEntry) -> None:
        """Rename the entry over that of *replaced*, in one step. Stale if *new* is another set by now."""
        self._check_still(new, replaced)
        with self._changing():
            os.rename(old, new, src_dir_fd=self._names_fd, dst_dir_fd=self._names_fd)

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

    # Letting go

    def clear(self, name: SetName, entry: SetEntry) -> bool:
        """Take the name away if it still says *entry*, and return whether this call has done it.

        Moved aside and looked at there: of several that clear one name only one gets it, and an entry that another
        mount made in that very moment is put back.
        """
        with contextlib.suppress(FileNotFoundError):
            return self.read(name) == entry and self._take_aside(name, entry)
        return False

    def _take_aside(self, name: SetName, entry: SetEntry) -> bool:
        token = unused_name(b"cleared")
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

    @contextmanager
    def _changing(self) -> Iterator[None]:
        if self._read_only:
            raise ReadOnly("the mount is read-only")
        with acting_as(self._service):
            yield

    def sync(self) -> None:
        os.fsync(self._names_fd)


def _is_made(make: Callable[[], None]) -> bool:
    """*make* it; False where the file system has no file left."""
    try:
        make()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


def unused_name(purpose: bytes) -> bytes:
    return b"%s-%s" % (purpose, secrets.token_hex(8).encode())
