"""The one door to the backing file system.

A :class:`Spot` says where something lies: components below the store's root, and the identity to act as. Every step
there is an ``openat`` relative to a descriptor, with O_NOFOLLOW, as that identity; no path is ever followed by string.
All methods are synchronous, may block for as long as the store pleases, and raise OSError as the store does; they run
in worker threads (:mod:`ckfs.store.gate`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Concatenate, ParamSpec, TypeVar

from ckfs.errors import ReadOnly, Stale
from ckfs.model import Owner, Record
from ckfs.names import Gid, Inode, MountId, Uid
from ckfs.policy.quota import NOTHING, Amount
from ckfs.store import attributes, record, syscalls, trees, writers
from ckfs.store.identity import ROOT, acting_as
from ckfs.store.metering import Meter, attribute_bytes, charge_of, is_charged, rounded
from ckfs.store.quick import QuickReader
from ckfs.store.realms import realm_of
from ckfs.store.reports import Reports, untold
from ckfs.store.spots import Build, Found, OpenFile, Spot, Target, Times

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT_BY_DESCRIPTORS = os.O_ACCMODE | os.O_APPEND | os.O_SYNC | os.O_DIRECTORY
_PRIVATE_FILE = 0o600
_PRIVATE_DIRECTORY = 0o700
_SHARED_DIRECTORY = 0o1777
_TMPFS = 0x01021994
_LOCAL_FILE_SYSTEMS = {
    _TMPFS: "tmpfs",
    0xEF53: "ext2, ext3, ext4",
    0x58465342: "XFS",
    0x9123683E: "btrfs",
    0xF2F52010: "F2FS",
    0x2FC12FC1: "ZFS",
}
"""By the kernel's magic numbers. All others may have to wait for another machine or process."""

OverQuota = Callable[[Uid], bool]
"""Whether it is this user's own limit that an ENOSPC tells of, not the end of the store. Blocking, and raises nothing."""

Headroom = Callable[[Uid], AbstractContextManager[None]]
"""In the block this user may have a little more than his limit. Blocking."""

P = ParamSpec("P")
T = TypeVar("T")
Where = TypeVar("Where", bound=Target)


def noting(
    method: Callable[Concatenate[Door, Where, P], T],
) -> Callable[Concatenate[Door, Where, P], T]:
    """For what takes no room to speak of: also where the engine refuses it to one at his limit."""

    @functools.wraps(method)
    def noted(self: Door, where: Where, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, where, *args, **kwargs)
        except OSError as error:
            if error.errno != errno.EDQUOT:
                raise
            headroom = self.headroom(where)
            if headroom is None:
                raise
        with headroom:
            return method(self, where, *args, **kwargs)

    return noted


class Door:
    """Calls on the backing file system below *root_fd*, an O_PATH descriptor of the store's root that it owns."""

    def __init__(self, root_fd: int, *, read_only: bool = False, meter: Meter | None = None) -> None:
        self._root_fd = root_fd
        self._read_only = read_only
        self._over_quota: OverQuota | None = None
        self._headroom: Headroom | None = None
        self._reports: Reports | None = None
        if meter is not None:
            self.report_to(meter)

    def close(self) -> None:
        os.close(self._root_fd)

    def tell_quotas_by(self, over_quota: OverQuota) -> None:
        """Before the first call: for a store whose engine says ENOSPC to one who is over his own limit."""
        self._over_quota = over_quota

    def note_by(self, headroom: Headroom) -> None:
        """Before the first call: for a store whose engine refuses notes and renames to one at his limit."""
        self._headroom = headroom

    def headroom(self, where: Target) -> AbstractContextManager[None] | None:
        """In the block whose *where* is may have a little more than his limit; None if that is not for ckfs to say."""
        uid = realm_of(where.components) if isinstance(where, Spot) else Uid(os.fstat(where.fd).st_uid)
        return None if self._headroom is None or uid is None else self._headroom(uid)

    @contextmanager
    def stored_as(self, uid: Uid | None) -> Iterator[None]:
        """In the block something of *uid*'s is written (None: nobody's): ENOSPC that is due to his own limit is EDQUOT, as everywhere else."""
        try:
            yield
        except OSError as error:
            raise self._told(error, uid) from None

    def _told(self, error: OSError, uid: Uid | None) -> OSError:
        if error.errno != errno.ENOSPC or self._over_quota is None or uid is None:
            return error
        with acting_as(ROOT):
            is_his = self._over_quota(uid)
        return OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)) if is_his else error

    # What is charged

    def report_to(self, meter: Meter) -> None:
        """Tell *meter* of everything that changes what somebody is charged with. Once, before the door is used by several
        threads."""
        self._reports = Reports(meter, self.unit, exact=self.is_local)

    @property
    def unmetered(self) -> Door:
        """The same door, which tells nobody anything. It is not to be closed."""
        return self if self._reports is None else Door(self._root_fd, read_only=self._read_only)

    @functools.cached_property
    def unit(self) -> int:
        """In bytes: what the store's file system gives out space in."""
        return self.room().f_frsize

    def charge_of(self, target: Target) -> Amount:
        """What *target* is charged with; nothing of a file that has no name any more."""
        with self.opened(target, os.O_RDONLY) as fd:
            status = os.fstat(fd)
            return charge_of(status, fd, self.unit) if status.st_nlink else NOTHING

    def charge_open(self, file: OpenFile) -> tuple[Amount, bool]:
        """What the open *file* is charged with for as long as it is open, and whether it has no name any more."""
        with self.opened(file, os.O_RDONLY) as fd:
            status = os.fstat(fd)
            return charge_of(status, fd, self.unit), not status.st_nlink

    def end_of(self, file: OpenFile, own: MountId) -> tuple[int, bool]:
        """The size of the open *file* in bytes, and whether mounts other than *own* say that they are writing it."""
        with self.opened(file, os.O_RDONLY) as fd:
            return os.fstat(fd).st_size, bool(writers.of(fd) - {own})

    def is_gone_for_us(self, file: OpenFile) -> bool:
        """Whether the open *file*, which is not written here any more, has lost its last name, and nobody else tells of that."""
        reports = self._reports
        if reports is None or not reports.exact:
            return True
        with self.opened(file, os.O_RDONLY) as fd:
            return reports.is_gone_for_us(fd)

    def charge_of_attributes(self, target: Target, name: bytes = b"", size: int | None = None) -> int:
        """What the users' own attributes of *target* are charged with, in bytes; *size*: if the value of *name* had as many."""
        with self.opened(target, os.O_RDONLY) as fd:
            charged = attribute_bytes(fd)
            if size is not None and is_charged(name):
                before = attributes.get_or_none(fd, name)
                charged += len(name) + size - (0 if before is None else len(name) + len(before))
            return rounded(charged, self.unit)

    def data_in(self, target: Target, begin: int, end: int) -> list[tuple[int, int]]:
        """The parts of the file *target* between the offsets *begin* and *end* that are no holes."""
        with self.opened(target, os.O_RDONLY) as fd:
            return list(syscalls.data_in(fd, begin, end))

    def _losing(self, spot: Spot, dir_fd: int, name: bytes) -> AbstractContextManager[None]:
        """While something loses its name."""
        if self._reports is None:
            return contextlib.nullcontext()
        return self._reports.losing(spot, (dir_fd, name))

    def _made(self, spot: Spot, found: Found) -> Found:
        if self._reports is not None:
            self._reports.made(spot, found.stat)
        return found

    def _cutting(self, target: Target, fd: int, ino: Inode) -> AbstractContextManager[None]:
        """While the open file *fd* gets another size."""
        return contextlib.nullcontext() if self._reports is None else self._reports.cutting(target, fd, ino)

    def _changing(
        self, target: Target, fd: int, expected: Inode, name: bytes
    ) -> AbstractContextManager[None]:
        """While the attribute *name* of the open file *fd* is changed."""
        if self._reports is None:
            return contextlib.nullcontext()
        return self._reports.changing(target, fd, expected, name)

    # Getting there

    @contextmanager
    def _parent(self, spot: Spot) -> Iterator[tuple[int, bytes]]:
        """The directory that holds *spot*, open and entered as its identity, and the last component."""
        with acting_as(spot.identity):
            fd = self._root_fd
            try:
                for component in spot.components[:-1]:
                    inner = _enter(component, fd)
                    if fd != self._root_fd:
                        os.close(fd)
                    fd = inner
                if spot.within is not None:
                    self.directory_record(fd, spot.within)
                yield fd, spot.components[-1]
            except OSError as error:
                raise self._told(error, realm_of(spot.components)) from None
            finally:
                if fd != self._root_fd:
                    os.close(fd)

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
            with _as_owner_of(target.fd):
                try:
                    yield target.fd
                except OSError as error:
                    raise self._told(error, Uid(os.fstat(target.fd).st_uid)) from None
            return
        with self._parent(target) as (dir_fd, name):
            fd = _open(dir_fd, name, flags)
            try:
                if expected is not None:
                    _check_same(self.found(os.fstat(fd), fd), expected)
                yield fd
            finally:
                os.close(fd)

    # Looking

    def examine(self, target: Target, expected: Inode | None = None) -> Found:
        """Stat and record of *target*. A file without a record gets one. Stale if it is not the inode *expected*."""
        if isinstance(target, OpenFile):
            with _as_owner_of(target.fd):
                found = self.found(os.fstat(target.fd), target.fd)
        else:
            with self._parent(target) as (dir_fd, name):
                found = self.examine_in(dir_fd, name)
        _check_same(found, expected)
        return found

    def examine_if_there(self, spot: Spot) -> Found | None:
        with contextlib.suppress(FileNotFoundError, Stale):
            return self.examine(spot)
        return None

    def examine_in(self, dir_fd: int, name: bytes) -> Found:
        """As :meth:`examine`, for a name in an open directory, already acting as the owner."""
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        return self.found(status, attributes.path_of(dir_fd, name))

    def found(self, status: os.stat_result, where: attributes.Where) -> Found:
        """What *status* was asked of, with its record; it gets one if it has none."""
        raw = attributes.get_or_none(where, record.ATTRIBUTE)
        known = record.decode(raw) if raw is not None else None
        if known is None:
            known = self._adopt(status, where)
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

    def examine_entry(self, directory: OpenFile, name: bytes) -> Found:
        """An entry of an open directory."""
        with _as_owner_of(directory.fd):
            return self.examine_in(directory.fd, name)

    def entries_from(self, directory: OpenFile, position: int | None) -> list[tuple[bytes, int]]:
        """As :func:`syscalls.directory_entries`, from where the open *directory* stands or from *position*.

        As its owner: GlusterFS asks who reads at every read, not only when a directory is opened.
        """
        with _as_owner_of(directory.fd):
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

    def writers(self, target: Target, expected: Inode) -> frozenset[MountId]:
        """The mounts that say that they are writing *target*."""
        with self.opened(target, os.O_RDONLY, expected) as fd:
            return writers.of(fd)

    # Making

    def make_directory(self, spot: Spot, build: Build) -> Found:
        with self._changed_parent(spot) as (dir_fd, name):
            new = self._built(dir_fd, spot, build)
            os.mkdir(name, _PRIVATE_DIRECTORY, dir_fd=dir_fd)
            found = self._with_record(dir_fd, name, new, lambda: os.rmdir(name, dir_fd=dir_fd))
            return self._made(spot, found)

    def make_file(
        self, spot: Spot, build: Build, flags: int, writer: MountId | None = None
    ) -> tuple[int, Found]:
        """A new regular file, open with *flags* (access mode and O_APPEND) and marked as being written by *writer*;
        FileExistsError if the name is taken."""
        with self._changed_parent(spot) as (dir_fd, name):
            new = self._built(dir_fd, spot, build)
            flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, _PRIVATE_FILE, dir_fd=dir_fd)
            try:
                found = self._with_record(dir_fd, name, new, lambda: os.unlink(name, dir_fd=dir_fd))
                if writer is not None:
                    self._mark(fd, writer, lambda: os.unlink(name, dir_fd=dir_fd))
                return fd, self._made(spot, found)
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
            with self.stored_as(realm_of(staging.components)):
                _write_all(fd, content)
        except OSError:
            self.unlink(staging)
            raise
        finally:
            os.close(fd)

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

    @staticmethod
    def _mark(fd: int, writer: MountId, undo: Callable[[], None]) -> None:
        try:
            writers.put(fd, writer)
        except OSError:
            with contextlib.suppress(OSError):
                undo()
            raise

    # Opening, and what a descriptor can do

    def open(self, spot: Spot, flags: int, expected: Inode) -> OpenFile:
        """Open an existing regular file or directory; Stale if the name leads to another inode by now."""
        return self.open_found(spot, flags, expected)[0]

    def open_found(self, spot: Spot, flags: int, expected: Inode) -> tuple[OpenFile, Found]:
        """As :meth:`open`, and what was opened."""
        if flags & os.O_ACCMODE:
            self._check_writable()
        with self._parent(spot) as (dir_fd, name):
            fd = _open(dir_fd, name, flags)
            try:
                found = self.found(os.fstat(fd), fd)
                _check_same(found, expected)
            except BaseException:
                os.close(fd)
                raise
            return OpenFile(fd), found

    def open_again(self, file: OpenFile, flags: int) -> OpenFile:
        """A descriptor of its own for an open file, which may have no name any more."""
        with _as_owner_of(file.fd):
            return OpenFile(os.open(b"/proc/self/fd/%d" % file.fd, flags | os.O_CLOEXEC))

    def open_instead(self, spot: Spot, expected: Inode, fd: int) -> None:
        """Let the descriptor *fd* lead to what is at *spot* now, opened as before; nobody needs to know."""
        flags = fcntl.fcntl(fd, fcntl.F_GETFL) & _KEPT_BY_DESCRIPTORS
        opened = self.open(spot, flags, expected)
        try:
            os.dup2(opened.fd, fd, inheritable=False)
        finally:
            os.close(opened.fd)

    @contextmanager
    def reading(self, target: Target, expected: Inode) -> Iterator[int]:
        """A descriptor to read *target* by, as its owner, for the time of the block."""
        with self.opened(target, os.O_RDONLY, expected) as fd:
            yield fd

    def read_content(self, target: Target, limit: int, expected: Inode) -> bytes:
        with self.opened(target, os.O_RDONLY, expected) as fd:
            return os.pread(fd, limit, 0)

    # Changing

    @noting
    def update(
        self,
        target: Target,
        expected: Inode,
        change: Callable[[Record], Record],
        *,
        size: int | None = None,
        times: Times | None = None,
    ) -> Found:
        """Rewrite the record, truncate, set times, in this order: whoever dies in between has left no torn image that counts
        as whole, and truncating touches the times that are set.

        The ctime moves even if nothing changes, as with chmod and chown.
        """
        self._check_writable()
        flags = os.O_RDONLY if size is None else os.O_WRONLY
        with self.opened(target, flags) as fd:
            before = self.found(os.fstat(fd), fd)
            _check_same(before, expected)
            after = change(before.record)
            if after != before.record:
                attributes.put(fd, record.ATTRIBUTE, record.encode(after))
            elif size is None and times is None:
                os.fchmod(
                    fd, stat.S_IMODE(before.stat.st_mode)
                )  # ext4 takes an equal attribute for no change
            if size is not None:
                with self._cutting(target, fd, expected):
                    self._truncate(fd, size, before.record)
            if times is not None:
                syscalls.set_times(fd, times.atime_ns, times.mtime_ns)
            return Found(os.fstat(fd), after)

    @staticmethod
    def _truncate(fd: int, size: int, before: Record) -> None:
        """The record goes back to what it was if the store refuses."""
        try:
            os.ftruncate(fd, size)
        except OSError:
            attributes.put(fd, record.ATTRIBUTE, record.encode(before))
            raise

    @noting
    def amend(self, target: Target, expected: Inode, change: Callable[[Found], Record]) -> Found:
        """Rewrite the record if *change* changes it, and touch nothing otherwise."""
        self._check_writable()
        with self.opened(target, os.O_RDONLY) as fd:
            before = self.found(os.fstat(fd), fd)
            _check_same(before, expected)
            after = change(before)
            if after == before.record:
                return before
            attributes.put(fd, record.ATTRIBUTE, record.encode(after))
            return Found(os.fstat(fd), after)

    def unlink(self, spot: Spot) -> None:
        with self._changed_parent(spot) as (dir_fd, name), self._losing(spot, dir_fd, name):
            os.unlink(name, dir_fd=dir_fd)

    def rmdir(self, spot: Spot) -> None:
        with self._changed_parent(spot) as (dir_fd, name), self._losing(spot, dir_fd, name):
            os.rmdir(name, dir_fd=dir_fd)

    def remove(self, spot: Spot) -> None:
        """Unlink or rmdir, whichever fits."""
        with self._changed_parent(spot) as (dir_fd, name), self._losing(spot, dir_fd, name):
            try:
                os.unlink(name, dir_fd=dir_fd)
            except (IsADirectoryError, PermissionError):
                os.rmdir(name, dir_fd=dir_fd)

    def remove_tree(self, spot: Spot) -> None:
        """Remove *spot* and all below it, as its identity. FileNotFoundError if there is nothing."""
        with self._changed_parent(spot) as (dir_fd, name):
            trees.remove(dir_fd, name, self._losing_below(spot))

    @noting
    def rename(self, old: Spot, new: Spot, flags: int = 0) -> None:
        """Rename within one identity. EINVAL where the store does not know a flag."""
        with self._changed_parent(old) as (old_fd, old_name), self._parent(new) as (new_fd, new_name):
            moving: AbstractContextManager[None] = contextlib.nullcontext()
            if self._reports is not None:
                moving = self._reports.moving(old, new, (old_fd, old_name), (new_fd, new_name), flags)
            with moving:  # and inside both blocks, as the owner
                syscalls.rename(old_fd, old_name, new_fd, new_name, flags)

    @noting
    def rename_noted(self, old: Spot, new: Spot, expected: Inode, name: bytes, value: bytes | None) -> Found:
        """Set an attribute of *old*, if there is a *value*, and rename it within one identity. Returns what is at *new* then: another file, if
        another mount gave it the name *old* in just that moment."""
        with self._changed_parent(old) as (old_fd, old_name), self._parent(new) as (new_fd, new_name):
            before = self.examine_in(old_fd, old_name)
            _check_same(before, expected)
            if value is not None:
                attributes.put(attributes.path_of(old_fd, old_name), name, value)
            told = untold
            if self._reports is not None:
                told = self._reports.passing(old, new, (old_fd, old_name))
            syscalls.rename(old_fd, old_name, new_fd, new_name, 0)
            told()
            return self.examine_in(new_fd, new_name)

    def link(self, old: Spot, new: Spot, expected: Inode | None = None) -> None:
        with self._changed_parent(old) as (old_fd, old_name), self._parent(new) as (new_fd, new_name):
            if expected is not None:
                _check_same(self.examine_in(old_fd, old_name), expected)
            told = untold
            if self._reports is not None:
                told = self._reports.linking(old, new, (old_fd, old_name))
            os.link(old_name, new_name, src_dir_fd=old_fd, dst_dir_fd=new_fd, follow_symlinks=False)
            told()

    def change_owner(self, spot: Spot, owner: Owner) -> None:
        """chown *spot* and all below it to *owner*, the top last. PermissionError where root may not."""
        with self._changed_parent(spot) as (dir_fd, name):
            trees.change_owner(dir_fd, name, owner)

    def _losing_below(self, spot: Spot) -> trees.Losing:
        reports = self._reports
        if reports is None:
            return lambda dir_fd, name, status: contextlib.nullcontext()
        return lambda dir_fd, name, status: reports.losing(spot, (dir_fd, name), status)

    # Users' own attributes

    def get_attribute(self, target: Target, expected: Inode, name: bytes) -> bytes:
        with self.opened(target, os.O_RDONLY, expected) as fd:
            return attributes.get(fd, name)

    def set_attribute(self, target: Target, expected: Inode, name: bytes, value: bytes) -> None:
        self._check_writable()
        with (
            self.opened(target, os.O_RDONLY, expected) as fd,
            self._changing(target, fd, expected, name),
        ):
            attributes.put(fd, name, value)

    def set_attribute_if(
        self, target: Target, expected: Inode, name: bytes, value: bytes, holds: Callable[[Found], bool]
    ) -> bool:
        """As :meth:`set_attribute`, only if *holds* says so of what is there now; returns what it said."""
        self._check_writable()
        with self.opened(target, os.O_RDONLY) as fd:
            now = self.found(os.fstat(fd), fd)
            _check_same(now, expected)
            if holds(now):
                with self._changing(target, fd, expected, name):
                    attributes.put(fd, name, value)
                return True
            return False

    def list_attributes(self, target: Target, expected: Inode) -> list[bytes]:
        with self.opened(target, os.O_RDONLY, expected) as fd:
            return attributes.names(fd)

    def remove_attribute(self, target: Target, expected: Inode, name: bytes) -> None:
        self._check_writable()
        with (
            self.opened(target, os.O_RDONLY, expected) as fd,
            self._changing(target, fd, expected, name),
        ):
            attributes.remove(fd, name)

    # The store as a whole

    def room(self) -> os.statvfs_result:
        return os.fstatvfs(self._root_fd)

    @property
    def is_local(self) -> bool:
        """Whether the store is on this host's own disk or in its memory."""
        return syscalls.file_system_magic(self._root_fd) in _LOCAL_FILE_SYSTEMS

    def quick_reader(self) -> QuickReader:
        return QuickReader(in_memory=syscalls.file_system_magic(self._root_fd) == _TMPFS)

    def open_directory(self, name: bytes) -> int:
        """A descriptor of the directory *name* right in the store, as root, which is the caller's to close."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=self._root_fd)

    def probe(self) -> None:
        """Ask the store for something that it cannot answer from a cache of ckfs."""
        os.close(os.open(b".", _DIRECTORY, dir_fd=self._root_fd))
        os.fstatvfs(self._root_fd)

    def is_there(self, spot: Spot) -> bool:
        """Whether there is anything, with or without a record."""
        with contextlib.suppress(FileNotFoundError, Stale):
            self.status(spot)
            return True
        return False

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

    @contextmanager
    def _changed_parent(self, spot: Spot) -> Iterator[tuple[int, bytes]]:
        self._check_writable()
        with self._parent(spot) as where:
            yield where

    def _check_writable(self) -> None:
        if self._read_only:
            raise ReadOnly("the mount is read-only")


def _as_owner_of(fd: int) -> AbstractContextManager[None]:
    status = os.fstat(fd)
    return acting_as(Owner(Uid(status.st_uid), Gid(status.st_gid)))


def _enter(component: bytes, dir_fd: int) -> int:
    try:
        return os.open(component, _DIRECTORY, dir_fd=dir_fd)
    except (FileNotFoundError, NotADirectoryError):
        raise Stale("a directory on the way is gone by now") from None


def _open(dir_fd: int, name: bytes, flags: int) -> int:
    # O_NONBLOCK: a fifo that somebody put into the store must not stop the thread.
    return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)


def _check_same(found: Found, expected: Inode | None) -> None:
    if expected is not None and found.record.ino != expected:
        raise Stale("the name leads to another file by now")


def _write_all(fd: int, content: bytes) -> None:
    while content:
        content = content[os.write(fd, content) :]
