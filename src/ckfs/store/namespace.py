"""What gets, changes and loses names in the store, for the door (:mod:`ckfs.store.door`)."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from ckfs.model import Owner, Record
from ckfs.names import Inode, MountId
from ckfs.store import attributes, record, syscalls, trees
from ckfs.store.realms import realm_at
from ckfs.store.refusals import noting
from ckfs.store.spots import Build, Found, Spot
from ckfs.store.way import Way, check_same

_PRIVATE_FILE = 0o600
_PRIVATE_DIRECTORY = 0o700
_SHARED_DIRECTORY = 0o1777


class Namespace(Way):
    """The calls that change directories. ReadOnly where the mount is."""

    # Making

    def make_directory(self, spot: Spot, build: Build) -> Found:
        with self._changed_parent(spot) as (dir_fd, name):
            new = self._built(dir_fd, spot, build)
            os.mkdir(name, _PRIVATE_DIRECTORY, dir_fd=dir_fd)
            found = self._with_record(dir_fd, name, new, lambda: os.rmdir(name, dir_fd=dir_fd))
            self.reports.made(spot, found.stat)
            return found

    def make_file(
        self, spot: Spot, build: Build, flags: int, writer: MountId | None = None
    ) -> tuple[int, Found]:
        """A new regular file, open with *flags* (access mode and O_APPEND) and marked as being written by *writer*;
        FileExistsError if the name is taken."""
        with self._changed_parent(spot) as (dir_fd, name), self.reports.naming(spot, dir_fd):
            new = self._built(dir_fd, spot, build)
            flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, _PRIVATE_FILE, dir_fd=dir_fd)
            try:
                found = self._with_record(dir_fd, name, new, lambda: os.unlink(name, dir_fd=dir_fd))
                file = (found.stat.st_ino, found.record.ino)
                attributes.remember(fd, file, record.ATTRIBUTE, record.encode(found.record))
                if writer is not None:
                    self._mark(fd, writer, lambda: os.unlink(name, dir_fd=dir_fd))
                self._hold(fd)
                self.reports.made(spot, found.stat)
                return fd, found
            except BaseException:
                os.close(fd)
                raise

    def make_placeholder(self, spot: Spot, build: Build, content: bytes, staging: Spot) -> Found:
        """A file that stands for a symlink, fifo, socket or device.

        It is made complete under the unique name *staging* and linked into place, so that nobody ever sees it as the
        regular file that it is in the store.
        """
        with self._changed_parent(spot) as (dir_fd, _):
            new = self._built(dir_fd, spot, build)
        self.make_hidden(staging, new, content)
        try:
            self.link(staging, spot)
        finally:
            self.unlink(staging)
        return self.examine(spot)

    def make_hidden(self, staging: Spot, new: Record, content: bytes) -> None:
        """A closed file with *content* under a name that nobody looks at yet."""
        fd, _ = self.make_file(staging, lambda _: new, os.O_WRONLY)
        try:
            with self.refusals.stored_as(realm_at(staging)):
                try:
                    _write_all(fd, content)
                finally:
                    os.close(fd)  # a network's store may say only now that there is no room
        except OSError:
            self.unlink(staging)
            raise

    def _built(self, dir_fd: int, spot: Spot, build: Build) -> Record:
        return build(self.directory_record(dir_fd, spot.within) if spot.within is not None else None)

    def _with_record(self, dir_fd: int, name: bytes, new: Record, undo: Callable[[], None]) -> Found:
        where = attributes.path_of(dir_fd, name)
        try:
            try:
                attributes.create(where, record.ATTRIBUTE, record.encode(new))
            except FileExistsError:  # another mount saw the new file first and numbered it: that number stays
                theirs = self.found(os.stat(name, dir_fd=dir_fd, follow_symlinks=False), where).record
                new = new.with_(ino=theirs.ino)
                attributes.put(where, record.ATTRIBUTE, record.encode(new))
            return Found(os.stat(name, dir_fd=dir_fd, follow_symlinks=False), new)
        except OSError:  # no room for the attribute: better no file than one without an owner
            with contextlib.suppress(OSError):
                undo()
            raise

    def _mark(self, fd: int, writer: MountId, undo: Callable[[], None]) -> None:
        try:
            self.reports.mark(fd, writer)
        except OSError:
            with contextlib.suppress(OSError):
                undo()
            raise

    @noting
    def ensure_directory(self, spot: Spot) -> None:
        """Make the one directory *spot* as its identity, unless it is there."""
        with self._parent(spot) as (dir_fd, name):
            try:
                os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            except FileNotFoundError:
                self._check_writable()
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, _PRIVATE_DIRECTORY, dir_fd=dir_fd)

    def ensure_shared_directory(self, spot: Spot) -> None:
        """As :meth:`ensure_directory`, for all users: mode 1777, also if one that died had made it without."""
        self.ensure_directory(spot)
        with self._parent(spot) as (dir_fd, name):
            status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            if stat.S_IMODE(status.st_mode) != _SHARED_DIRECTORY:
                self._check_writable()
                os.chmod(name, _SHARED_DIRECTORY, dir_fd=dir_fd)

    # Moving and removing

    def link(self, old: Spot, new: Spot, expected: Inode | None = None) -> None:
        with self._changed_parent(old) as (old_fd, old_name), self._parent(new) as (new_fd, new_name):
            if expected is not None:
                check_same(self.examine_in(old_fd, old_name), expected)
            with self.reports.naming(new, new_fd):
                told = self.reports.linking(old, new, (old_fd, old_name))
                os.link(old_name, new_name, src_dir_fd=old_fd, dst_dir_fd=new_fd, follow_symlinks=False)
                told()

    @noting
    def rename(self, old: Spot, new: Spot, flags: int = 0) -> None:
        """Rename within one identity. EINVAL where the store does not know a flag."""
        with self._changed_parent(old) as (old_fd, old_name), self._parent(new) as (new_fd, new_name):
            old_at, new_at = (old_fd, old_name), (new_fd, new_name)
            with (  # and inside both blocks, as the owner
                self.reports.naming(new, old_fd, new_fd),
                self.reports.moving(old, new, old_at, new_at, flags),
            ):
                syscalls.rename(*old_at, *new_at, flags)

    @noting
    def rename_noted(self, old: Spot, new: Spot, expected: Inode, name: bytes, value: bytes | None) -> Found:
        """Set an attribute of *old*, if there is a *value*, and rename it within one identity. Returns what is at *new* then: another file, if
        another mount gave it the name *old* in just that moment."""
        with self._changed_parent(old) as (old_fd, old_name), self._parent(new) as (new_fd, new_name):
            before = self.examine_in(old_fd, old_name)
            check_same(before, expected)
            if value is not None:
                attributes.put(attributes.path_of(old_fd, old_name), name, value)
            with self.reports.naming(old, old_fd, new_fd):
                told = self.reports.passing(old, new, (old_fd, old_name))
                syscalls.rename(old_fd, old_name, new_fd, new_name, 0)
                told()
            return self.examine_in(new_fd, new_name)

    @contextlib.contextmanager
    def _losing(self, spot: Spot) -> Iterator[tuple[int, bytes]]:
        with (
            self._changed_parent(spot) as (dir_fd, name),
            self.reports.naming(spot, dir_fd),
            self.reports.losing(spot, (dir_fd, name)),
        ):
            yield dir_fd, name

    def unlink(self, spot: Spot) -> None:
        with self._losing(spot) as (dir_fd, name):
            os.unlink(name, dir_fd=dir_fd)

    def rmdir(self, spot: Spot) -> None:
        with self._losing(spot) as (dir_fd, name):
            os.rmdir(name, dir_fd=dir_fd)

    def remove(self, spot: Spot) -> None:
        """Unlink or rmdir, whichever fits."""
        with self._losing(spot) as (dir_fd, name):
            try:
                os.unlink(name, dir_fd=dir_fd)
            except (IsADirectoryError, PermissionError):
                os.rmdir(name, dir_fd=dir_fd)

    def remove_tree(self, spot: Spot) -> None:
        """Remove *spot* and all below it, as its identity. FileNotFoundError if there is nothing."""

        def losing(inner_fd: int, inner: bytes, status: os.stat_result) -> AbstractContextManager[None]:
            return self.reports.losing(spot, (inner_fd, inner), status)

        with self._changed_parent(spot) as (dir_fd, name):
            trees.remove(dir_fd, name, losing)

    def change_owner(self, spot: Spot, owner: Owner) -> None:
        """chown *spot* and all below it to *owner*, the top last. PermissionError where root may not."""
        with self._changed_parent(spot) as (dir_fd, name):
            trees.change_owner(dir_fd, name, owner)


def _write_all(fd: int, content: bytes) -> None:
    while content:
        content = content[os.write(fd, content) :]
