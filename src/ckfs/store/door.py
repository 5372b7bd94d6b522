"""The one door to the backing file system.

A :class:`Spot` says where something lies: components below the root of the store, or of a further one, and the identity to act as. Every step
there is an ``openat`` relative to a descriptor, with O_NOFOLLOW, as that identity; no path is ever followed by string.
All methods are synchronous, may block for as long as the store pleases, and raise OSError as the store does; they run
in worker threads (:mod:`ckfs.store.gate`).

The door has the calls on files that are there; those on directories are in :mod:`ckfs.store.namespace`, and the steps to both, with
what only looks, in :mod:`ckfs.store.way`.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ckfs.errors import Stale
from ckfs.model import Record
from ckfs.names import Inode, MountId
from ckfs.policy import lifecycle
from ckfs.store import allocated, attributes, record, syscalls, writers
from ckfs.store.alone import alone_with
from ckfs.store.metering import Meter, rounded
from ckfs.store.namespace import Namespace
from ckfs.store.refusals import noting
from ckfs.store.reports import Reports, Unreported
from ckfs.store.spots import Found, OpenFile, Spot, Target, Times
from ckfs.store.volumes import Volumes
from ckfs.store.way import as_owner_of, check_same, open_at

_KEPT_BY_DESCRIPTORS = os.O_ACCMODE | os.O_APPEND | os.O_SYNC | os.O_DIRECTORY


class Door(Namespace):
    """Calls on the backing file system below *root_fd*, an O_PATH descriptor of the store's root that it owns, and on those of the
    further stores *volumes*."""

    def __init__(
        self,
        root_fd: int,
        *,
        read_only: bool = False,
        meter: Meter | None = None,
        volumes: Volumes | None = None,
    ) -> None:
        super().__init__(root_fd, read_only=read_only, volumes=volumes)
        if meter is not None:
            self.report_to(meter)

    def report_to(self, meter: Meter) -> None:
        """Tell *meter* of everything that changes what somebody is charged with. Once, before the door is used by several
        threads."""
        self.reports = Reports(meter, self.unit, exact=self.is_local)

    @property
    def unmetered(self) -> Door:
        """The same door, which tells nobody anything. It is not to be closed."""
        if isinstance(self.reports, Unreported):
            return self
        return Door(self._root_fd, read_only=self._read_only, volumes=self.volumes)

    # Opening, and what a descriptor can do

    def open(self, spot: Spot, flags: int, expected: Inode) -> OpenFile:
        """Open an existing regular file or directory; Stale if the name leads to another inode by now."""
        return self.open_found(spot, flags, expected)[0]

    def open_found(self, spot: Spot, flags: int, expected: Inode) -> tuple[OpenFile, Found]:
        """As :meth:`open`, and what was opened."""
        if flags & os.O_ACCMODE:
            self._check_writable()
        with self._parent(spot) as (dir_fd, name):
            fd = open_at(dir_fd, name, flags)
            try:
                found = self.found(os.fstat(fd), fd)
                check_same(found, expected)
                if self._hold(fd) and not os.fstat(fd).st_nlink:
                    raise Stale("the file has just been removed")  # by whom may not know that it is open
            except BaseException:
                os.close(fd)
                raise
            return OpenFile(fd), found

    def open_again(self, file: OpenFile, flags: int, *, holding: bool = True) -> OpenFile:
        """A descriptor of its own for an open file, which may have no name any more. Not *holding*: nobody is to take the file for
        open because of it."""
        with as_owner_of(file.fd):
            fd = os.open(b"/proc/self/fd/%d" % file.fd, flags | os.O_CLOEXEC)
        if holding:
            self._hold(fd)
        return OpenFile(fd)

    def open_instead(self, target: Target, expected: Inode, fd: int) -> bool:
        """Let the descriptor *fd* lead to *target* from now on, opened as before; nobody needs to know. Whether that is another file
        of the store than before."""
        flags = fcntl.fcntl(fd, fcntl.F_GETFL) & _KEPT_BY_DESCRIPTORS
        if isinstance(target, OpenFile):
            opened = self.open_again(target, flags)
        else:
            opened = self.open(target, flags, expected)
        try:
            is_other = not syscalls.is_same_file(opened.fd, fd)
            os.dup2(opened.fd, fd, inheritable=False)
            return is_other
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

    def writers(self, target: Target, expected: Inode) -> frozenset[MountId]:
        """The mounts that say that they are writing *target*."""
        with self.opened(target, os.O_RDONLY, expected) as fd:
            return writers.of(fd)

    def had_another(self, target: Target, expected: Inode) -> bool:
        """As :func:`writers.had_another`."""
        with self.opened(target, os.O_RDONLY, expected) as fd:
            return writers.had_another(fd)

    def unmark(self, target: Target, expected: Inode, mount: MountId) -> None:
        """*mount*, this one, writes *target* no more."""
        with self.opened(target, os.O_RDONLY, expected) as fd:
            self.reports.unmark(fd, expected, mount)

    def birth_time(self, target: Target, expected: Inode) -> int | None:
        """As :func:`syscalls.birth_time_ns`."""
        with self.opened(target, os.O_RDONLY, expected) as fd:
            return syscalls.birth_time_ns(fd, b"")

    # Changing

    @contextmanager
    def opened_alone(self, target: Target, flags: int = os.O_RDONLY) -> Iterator[int]:
        """As :meth:`opened`, for who reads the record and writes it back: nobody else does within the block, on any mount of a store of this
        host, or of one behind a network for whose quotas files are locked anyway."""
        with self.opened(target, flags) as fd:
            if self.is_local or isinstance(self.reports, Reports):
                with alone_with(fd):
                    yield fd
            else:
                yield fd

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
        with self.opened_alone(target, flags) as fd:
            before = self.found(os.fstat(fd), fd)
            check_same(before, expected)
            after = change(before.record)
            if after != before.record:
                attributes.put(fd, record.ATTRIBUTE, record.encode(after))
            elif size is None and times is None:
                os.fchmod(
                    fd, stat.S_IMODE(before.stat.st_mode)
                )  # ext4 takes an equal attribute for no change
            if size is not None:
                with self.reports.cutting(target, fd, expected):
                    if not lifecycle.is_complete(before.record):  # else its number says that it was changed
                        writers.note_another(fd)
                    self._truncate(fd, size, before)
            if times is not None:
                syscalls.set_times(fd, times.atime_ns, times.mtime_ns)
            return Found(os.fstat(fd), after)

    def _truncate(self, fd: int, size: int, before: Found) -> None:
        """The record goes back to what it was if the store refuses."""
        try:
            os.ftruncate(fd, size)
        except OSError:
            attributes.put(fd, record.ATTRIBUTE, record.encode(before.record))
            raise
        if size > before.stat.st_size:
            return  # what was allocated stays
        # NFS does nothing where the size is the same; others free what was allocated behind the end.
        if size < before.stat.st_size or os.fstat(fd).st_blocks < before.stat.st_blocks:
            allocated.cut(fd, rounded(size, self.unit))

    @noting
    def amend(self, target: Target, expected: Inode, change: Callable[[Found], Record]) -> Found:
        """Rewrite the record if *change* changes it, and touch nothing otherwise."""
        self._check_writable()
        with self.opened_alone(target) as fd:
            before = self.found(os.fstat(fd), fd)
            check_same(before, expected)
            after = change(before)
            if after == before.record:
                return before
            attributes.put(fd, record.ATTRIBUTE, record.encode(after))
            return Found(os.fstat(fd), after)

    # Users' own attributes

    def get_attribute(self, target: Target, expected: Inode, name: bytes) -> bytes:
        with self.opened(target, os.O_RDONLY, expected) as fd:
            return attributes.get(fd, name)

    def set_attribute(self, target: Target, expected: Inode, name: bytes, value: bytes) -> None:
        self._check_writable()
        with (
            self.opened(target, os.O_RDONLY, expected) as fd,
            self.reports.changing(target, fd, expected, name),
        ):
            attributes.put(fd, name, value)

    def set_attribute_if(
        self, target: Target, expected: Inode, name: bytes, value: bytes, holds: Callable[[Found], bool]
    ) -> bool:
        """As :meth:`set_attribute`, only if *holds* says so of what is there now; returns what it said."""
        self._check_writable()
        with self.opened(target, os.O_RDONLY) as fd:
            now = self.found(os.fstat(fd), fd)
            check_same(now, expected)
            if holds(now):
                with self.reports.changing(target, fd, expected, name):
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
            self.reports.changing(target, fd, expected, name),
        ):
            attributes.remove(fd, name)
