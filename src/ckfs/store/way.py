"""The way to what lies in the store, for the door (:mod:`ckfs.store.door`): every step relative to a descriptor, with O_NOFOLLOW, as
the identity that a spot says; and the look at what is there.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from ckfs.errors import ReadOnly, Stale
from ckfs.model import Owner, Record
from ckfs.names import Gid, Inode, Uid
from ckfs.store import attributes, nameless, record, syscalls
from ckfs.store.entries import USERS
from ckfs.store.identity import ROOT, acting_as
from ckfs.store.quick import QuickReader
from ckfs.store.realms import realm_at
from ckfs.store.refusals import Refusals
from ckfs.store.reports import Reports, Unreported
from ckfs.store.spots import HOME, Found, OpenFile, Spot, Target, VolumeId
from ckfs.store.volumes import Volumes

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Way:
    """To what lies below *root_fd*, an O_PATH descriptor of the store's root that it owns, and in the further stores *volumes*."""

    def __init__(self, root_fd: int, *, read_only: bool = False, volumes: Volumes | None = None) -> None:
        self._root_fd = root_fd
        self._read_only = read_only
        self.volumes = Volumes("") if volumes is None else volumes
        self.refusals = Refusals()
        self.reports: Reports | Unreported = Unreported()

    def close(self) -> None:
        self.volumes.close()
        os.close(self._root_fd)

    # Getting there

    @contextmanager
    def _parent(self, spot: Spot) -> Iterator[tuple[int, bytes]]:
        """The directory that holds *spot*, open and entered as its identity, and the last component."""
        with self._root_of(spot) as root_fd, acting_as(spot.identity):
            fd = root_fd
            try:
                for component in spot.components[:-1]:
                    inner = _enter(component, fd)
                    if fd != root_fd:
                        os.close(fd)
                    fd = inner
                if spot.within is not None:
                    self.directory_record(fd, spot.within)
                yield fd, spot.components[-1]
            except OSError as error:
                raise self.refusals.told(error, realm_at(spot)) from None
            finally:
                if fd != root_fd:
                    os.close(fd)

    def _root_of(self, spot: Spot) -> AbstractContextManager[int]:
        """A descriptor of the root of the volume in which *spot* lies. Unreached, StoreDown."""
        return nullcontext(self._root_fd) if spot.volume == HOME else self.volumes.entered(spot)

    @contextmanager
    def _changed_parent(self, spot: Spot) -> Iterator[tuple[int, bytes]]:
        """As :meth:`_parent`, for who changes that directory."""
        self._check_writable()
        with self._parent(spot) as where:
            yield where

    def _check_writable(self) -> None:
        if self._read_only:
            raise ReadOnly("the mount is read-only")

    def directory_record(self, fd: int, expected: Inode | None) -> Record:
        """The record of the open directory *fd* (which may be O_PATH); Stale if it is not *expected*."""
        raw = attributes.get_or_none(b"/proc/self/fd/%d/." % fd, record.ATTRIBUTE)
        known = record.decode(raw) if raw is not None else None
        if known is None or (expected is not None and known.ino != expected):
            raise Stale("the directory is another by now")
        return known

    @contextmanager
    def opened(self, target: Target, flags: int, expected: Inode | None = None) -> Iterator[int]:
        """A descriptor of *target*, for the time of the block, in which the thread acts as its owner. Stale if it is not the
        inode *expected*, which of an open file is taken for granted."""
        if isinstance(target, OpenFile):
            with as_owner_of(target.fd):
                try:
                    yield target.fd
                except OSError as error:
                    raise self.refusals.told(error, Uid(os.fstat(target.fd).st_uid)) from None
            return
        with self._parent(target) as (dir_fd, name):
            fd = open_at(dir_fd, name, flags)
            try:
                if expected is not None:
                    check_same(self.found(os.fstat(fd), fd), expected)
                yield fd
            finally:
                os.close(fd)

    def _hold(self, fd: int) -> bool:
        """The file is open as *fd* from now on, for whoever takes its last name away. False where nobody asks."""
        is_asked = self.is_local and (not self.volumes.all() or syscalls.is_local(fd))
        if is_asked:
            nameless.hold(fd)
        return is_asked

    # Looking

    def found(self, status: os.stat_result, where: attributes.Where) -> Found:
        """What *status* was asked of, with its record; it gets one if it has none."""
        raw = attributes.get_or_none(where, record.ATTRIBUTE)
        known = record.decode(raw) if raw is not None else None
        if known is None:
            known = self._adopt(status, where)
        if isinstance(where, int) and status.st_nlink:
            value = record.encode(known) if raw is None else raw
            attributes.remember(where, (status.st_ino, known.ino), record.ATTRIBUTE, value)
        return Found(status, known)

    def _adopt(self, status: os.stat_result, where: attributes.Where) -> Record:
        new = record.adopted(status.st_mode, status.st_uid, status.st_gid, status.st_size)
        if self._read_only or not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            # Nothing can be kept with it: its number is at least stable while the store's is.
            return new.with_(ino=Inode(1 << 62 | status.st_ino & (1 << 62) - 1))
        try:
            attributes.create(where, record.ATTRIBUTE, record.encode(new))
        except FileExistsError:  # another mount was first
            raw = attributes.get_or_none(where, record.ATTRIBUTE)
            theirs = record.decode(raw) if raw is not None else None
            if theirs is None:
                raise OSError(errno.EIO, "a record of ckfs is damaged") from None
            return theirs
        return new

    def examine(self, target: Target, expected: Inode | None = None) -> Found:
        """Stat and record of *target*. A file without a record gets one. Stale if it is not the inode *expected*."""
        if isinstance(target, OpenFile):
            with as_owner_of(target.fd):
                found = self.found(os.fstat(target.fd), target.fd)
        else:
            with self._parent(target) as (dir_fd, name):
                found = self.examine_in(dir_fd, name)
        check_same(found, expected)
        return found

    def examine_if_there(self, spot: Spot) -> Found | None:
        with contextlib.suppress(FileNotFoundError, Stale):
            return self.examine(spot)
        return None

    def examine_in(self, dir_fd: int, name: bytes) -> Found:
        """As :meth:`examine`, for a name in an open directory, already acting as the owner."""
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        return self.found(status, attributes.path_of(dir_fd, name))

    def examine_entry(self, directory: OpenFile, name: bytes) -> Found:
        """An entry of an open directory."""
        with as_owner_of(directory.fd):
            return self.examine_in(directory.fd, name)

    def entries_from(self, directory: OpenFile, position: int | None) -> list[tuple[bytes, int]]:
        """As :func:`syscalls.directory_entries`, from where the open *directory* stands or from *position*.

        As its owner: GlusterFS asks who reads at every read, not only when a directory is opened.
        """
        with as_owner_of(directory.fd):
            if position is not None:
                os.lseek(directory.fd, position, os.SEEK_SET)
            return syscalls.directory_entries(directory.fd)

    def names_at(self, spot: Spot) -> list[bytes]:
        """The names in the directory *spot*."""
        with self.opened(spot, os.O_RDONLY | os.O_DIRECTORY) as fd:
            return list(syscalls.names_in(fd))

    def status(self, spot: Spot) -> os.stat_result:
        """The stat alone, also of what no record fits."""
        with self._parent(spot) as (dir_fd, name):
            return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)

    def is_there(self, spot: Spot) -> bool:
        """Whether there is anything, with or without a record."""
        with contextlib.suppress(FileNotFoundError, Stale):
            self.status(spot)
            return True
        return False

    # The store as a whole

    def room(self, volume: VolumeId = HOME) -> os.statvfs_result:
        """That of *volume* alone."""
        with self._root_of(Spot(ROOT, (USERS,), volume=volume)) as root_fd:
            return os.fstatvfs(root_fd)

    @functools.cached_property
    def unit(self) -> int:
        """In bytes: what the store's file system gives out space in."""
        return self.room().f_frsize

    @functools.cached_property
    def is_local(self) -> bool:
        """Whether the store is on this host's own disk or in its memory. Asked once: the event loop asks, too, and a store may be silent by
        then."""
        return syscalls.is_local(self._root_fd)

    def is_near(self, volume: VolumeId) -> bool:
        """As :attr:`is_local`, of *volume*, as it was at the last look."""
        return self.is_local if volume == HOME else self.volumes.is_near(volume)

    def quick_reader(self) -> QuickReader:
        return QuickReader(in_memory=not self.volumes.all() and syscalls.is_in_memory(self._root_fd))

    def open_directory(self, name: bytes) -> int:
        """A descriptor of the directory *name* right in the store, as root, which is the caller's to close."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=self._root_fd)

    def probe(self) -> None:
        """Ask the store for something that it cannot answer from a cache of ckfs."""
        os.close(os.open(b".", _DIRECTORY, dir_fd=self._root_fd))
        os.fstatvfs(self._root_fd)


def as_owner_of(fd: int) -> AbstractContextManager[None]:
    status = os.fstat(fd)
    return acting_as(Owner(Uid(status.st_uid), Gid(status.st_gid)))


def _enter(component: bytes, dir_fd: int) -> int:
    try:
        return os.open(component, _DIRECTORY, dir_fd=dir_fd)
    except (FileNotFoundError, NotADirectoryError):
        raise Stale("a directory on the way is gone by now") from None


def open_at(dir_fd: int, name: bytes, flags: int) -> int:
    # O_NONBLOCK: a fifo that somebody put into the store must not stop the thread.
    return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)


def check_same(found: Found, expected: Inode | None) -> None:
    if expected is not None and found.record.ino != expected:
        raise Stale("the name leads to another file by now")
