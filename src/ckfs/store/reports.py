"""What the door tells its meter: each change of what somebody is charged with, after it happened.

What goes is looked at just before: a stat, the names of its attributes, its number; values of attributes only where users
have set some. Nothing is raised here that would keep anybody from removing a file. What has several names counts until
the last one goes.

On a store of this host one mount at a time changes the names of a directory. On another one two that change the same name at the very
same moment may both have seen what was there before: a recount puts right what was counted twice then.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from ckfs.names import Inode, MountId, Uid
from ckfs.policy.quota import NOTHING, Amount
from ckfs.store import attributes, syscalls, writers
from ckfs.store.alone import alone_in, alone_with
from ckfs.store.metering import Meter, attribute_bytes, bytes_of, charge_of, is_charged, number_at, rounded
from ckfs.store.removed import ATTRIBUTE as NOTE
from ckfs.store.shares import Shares
from ckfs.store.spots import HOME, OpenFile, Spot, Target
from ckfs.store.syscalls import RENAME_EXCHANGE

_MOST_NAMES_BYTES = 60_000
"""The kernel lists 64 KiB of names, and nobody could count what it does not list. The rest is for ckfs's own attributes."""

At = tuple[int, bytes]
"""An open directory, and a name in it."""
Told = Callable[[], None]
"""Called once it has happened."""


def untold() -> None:
    """There is nothing to tell, or nobody."""


class Unreported:
    """What a door says that has nobody to tell: nothing, and so it looks at nothing for that."""

    def naming(self, spot: Spot, *directories: int) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def made(self, spot: Spot, status: os.stat_result) -> None:
        pass

    def losing(
        self, spot: Spot, at: At, status: os.stat_result | None = None
    ) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def moving(
        self, old: Spot, new: Spot, old_at: At, new_at: At, flags: int
    ) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def passing(self, old: Spot, new: Spot, at: At) -> Told:
        return untold

    def linking(self, old: Spot, new: Spot, at: At) -> Told:
        return untold

    def cutting(self, target: Target, fd: int, ino: Inode) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def changing(self, target: Target, fd: int, ino: Inode, name: bytes) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def differs(self, payer: Uid, ino: Inode, by_bytes: int) -> None:
        pass

    def mark(self, fd: int, mount: MountId) -> None:
        writers.put(fd, mount)

    def unmark(self, fd: int, ino: Inode, mount: MountId) -> None:
        writers.drop(fd, mount)

    def unmark_dead(self, fd: int, mount: MountId) -> None:
        writers.drop(fd, mount)


@dataclasses.dataclass(frozen=True, slots=True)
class _Counted:
    """A file or directory with what it is charged with."""

    ino: Inode
    charge: Amount


@dataclasses.dataclass(frozen=True, slots=True)
class Reports:
    """*unit* in bytes: what the store's file system gives out space in. *exact*: it says at once of an open file whether that has lost
    its last name."""

    meter: Meter
    unit: int
    exact: bool

    @property
    def shares(self) -> Shares:
        return Shares(self.meter, self.unit)

    # Who writes

    def mark(self, fd: int, mount: MountId) -> None:
        """*mount* begins to write the open file *fd*."""
        self.shares.begin(fd, mount)

    def unmark(self, fd: int, ino: Inode, mount: MountId) -> None:
        """*mount*, this one, writes the open file *fd* no more."""
        self.shares.end(fd, ino, mount)

    def unmark_dead(self, fd: int, mount: MountId) -> None:
        """*mount* is gone."""
        self.shares.drop(fd, mount)

    # What comes and goes

    def naming(self, spot: Spot, *directories: int) -> AbstractContextManager[None]:
        """While the block gives or takes *spot*, or another name in the open *directories*, no other mount of this host does: what
        is there before is what is replaced, or goes."""
        if spot.charged_to is None or not self._is_exact(spot, directories[0]):
            return contextlib.nullcontext()
        return alone_in(directories)

    def made(self, spot: Spot, status: os.stat_result) -> None:
        """A new file or directory, without anything in it."""
        if (payer := spot.charged_to) is not None:
            self.meter.made(payer, Amount(self.unit if stat.S_ISDIR(status.st_mode) else 0, 1))

    @contextlib.contextmanager
    def losing(self, spot: Spot, at: At, status: os.stat_result | None = None) -> Iterator[None]:
        """While *at* loses its name, which is *spot* or lies below it."""
        payer, gone = spot.charged_to, None
        with contextlib.suppress(FileNotFoundError):
            status = status or os.stat(at[1], dir_fd=at[0], follow_symlinks=False)
        if payer is None or status is None:
            yield
            return
        exactly = self._is_exact(spot, at[0]) and spot.payer is None and stat.S_ISREG(status.st_mode)
        with _held(at) if exactly else contextlib.nullcontext() as held:
            gone = None if exactly else self._seen_before(spot, at, status)
            yield
            if held is not None and (charge := self.shares.gone(held, payer)) is not None:
                gone = _Counted(number_at(held), charge)
            if gone is not None:
                self.meter.gone(payer, gone.ino, gone.charge)

    def _is_exact(self, spot: Spot, dir_fd: int) -> bool:
        return self.exact and (spot.volume == HOME or syscalls.is_local(dir_fd))

    def _seen_before(self, spot: Spot, at: At, status: os.stat_result) -> _Counted | None:
        """What will be gone with the name *at*; None if that is told by others, or another name stays."""
        names = _names(attributes.path_of(*at))
        others = writers.among(names) - {self.meter.mount}
        if _has_other_name(spot, status, names) or self.shares.living(others):
            return None
        return self._counted(at, status, names)

    # What moves

    @contextlib.contextmanager
    def moving(self, old: Spot, new: Spot, old_at: At, new_at: At, flags: int) -> Iterator[None]:
        """While something is renamed."""
        passing = [self.passing(old, new, old_at)]
        if flags & RENAME_EXCHANGE:
            passing.append(self.passing(new, old, new_at))
        with contextlib.nullcontext() if flags else self._replacing(new, old_at, new_at):
            yield
        for told in passing:
            told()

    def _replacing(self, new: Spot, old_at: At, new_at: At) -> AbstractContextManager[None]:
        try:
            status = os.stat(new_at[1], dir_fd=new_at[0], follow_symlinks=False)
            moved = os.stat(old_at[1], dir_fd=old_at[0], follow_symlinks=False)
        except FileNotFoundError:
            return contextlib.nullcontext()
        return (
            contextlib.nullcontext() if os.path.samestat(status, moved) else self.losing(new, new_at, status)
        )

    def passing(self, old: Spot, new: Spot, at: At) -> Told:
        """Before *at* comes under *new*: whoever pays there takes over all of it."""
        giver, taker = old.charged_to, new.charged_to
        if giver == taker:
            return untold
        passing = list(self._all(at))

        def tell() -> None:
            for one in passing:
                if giver is not None:
                    self.meter.made(giver, -one.charge)
                if taker is not None:
                    self.meter.made(taker, one.charge)

        return tell

    def linking(self, old: Spot, new: Spot, at: At) -> Told:
        """Before *at* gets another name: that is charged only where its first one is not."""
        payer = new.charged_to
        if payer is None or payer == old.charged_to:
            return untold
        linked = list(self._all(at))
        return lambda: self.meter.made(payer, sum((one.charge for one in linked), NOTHING))

    # What changes

    @contextlib.contextmanager
    def cutting(self, target: Target, fd: int, ino: Inode) -> Iterator[None]:
        """While the block gives the open file *fd*, which is *target*, another size."""
        with alone_with(fd):
            before = bytes_of(os.fstat(fd), fd, self.unit)
            yield
            if self.shares.is_told_of_cut(fd, ino):
                self._tell_change(target, fd, ino, bytes_of(os.fstat(fd), fd, self.unit) - before)

    @contextlib.contextmanager
    def changing(self, target: Target, fd: int, ino: Inode, name: bytes) -> Iterator[None]:
        """While the block sets or removes the attribute *name* of the open file *fd*, which is *target*."""
        names = attributes.names(fd) if is_charged(name) else []
        if (
            is_charged(name)
            and name not in names
            and sum(len(known) + 1 for known in (*names, name)) > _MOST_NAMES_BYTES
        ):
            raise OSError(errno.ENOSPC, "the names of its attributes could not be listed any more")
        if not is_charged(name):
            yield
            return
        with alone_with(fd):
            before = rounded(attribute_bytes(fd), self.unit)
            yield
            by_bytes = rounded(attribute_bytes(fd), self.unit) - before
            if by_bytes > 0 or not self.shares.living(writers.of(fd)):
                self._tell_change(target, fd, ino, by_bytes)
            # Else who ends last sees it: less than is noted of a file that is being written no recount would believe.

    def _tell_change(self, target: Target, fd: int, ino: Inode, by_bytes: int) -> None:
        status = os.fstat(fd)
        payer = status.st_uid if isinstance(target, OpenFile) and target.payer is None else _payer(target)
        if payer is None or by_bytes == 0 or not self.shares.still_counts(fd):
            return
        is_written = self.shares.take_in(fd, by_bytes)
        self.meter.changed(Uid(payer), ino if is_written else None, by_bytes)

    def differs(self, payer: Uid, ino: Inode, by_bytes: int) -> None:
        """A copy that has become the set *ino* is charged with so much more than what it is of."""
        self.meter.changed(payer, None, by_bytes)

    # Looking

    def _counted(self, at: At, status: os.stat_result, names: list[bytes]) -> _Counted:
        where = attributes.path_of(*at)
        charge = Amount(status.st_blocks * 512, 1)
        with contextlib.suppress(OSError):
            counted = self.shares.counted(where, names)
            charge = charge_of(status, where, self.unit, names) if counted is None else counted
        return _Counted(number_at(where), charge)

    def _all(self, at: At) -> Iterator[_Counted]:
        """*at* and all below it, each file once."""
        seen: set[int] = set()
        for inner, status in _everything(at):
            if status.st_ino not in seen:
                seen.add(status.st_ino)
                yield self._counted(inner, status, _names(attributes.path_of(*inner)))


def _payer(target: Target) -> Uid | None:
    return target.payer if isinstance(target, OpenFile) else target.charged_to


def _has_other_name(spot: Spot, status: os.stat_result, names: list[bytes]) -> bool:
    """Whether what loses a name keeps another, for which the same one pays: not one in the trash, if the set there has not
    followed its owner."""
    if stat.S_ISDIR(status.st_mode) or status.st_nlink == 1:
        return False
    return spot.payer is None or status.st_nlink > 2 or NOTE not in names


@contextlib.contextmanager
def _held(at: At) -> Iterator[int | None]:
    """A descriptor of the file *at*, by which it can be looked at when its name has gone; None if it has gone already."""
    fd = None
    with contextlib.suppress(OSError):
        fd = os.open(at[1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at[0])
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def _names(where: attributes.Where) -> list[bytes]:
    with contextlib.suppress(OSError):
        return attributes.names(where)
    return []


def _everything(at: At) -> Iterator[tuple[At, os.stat_result]]:
    try:
        status = os.stat(at[1], dir_fd=at[0], follow_symlinks=False)
    except FileNotFoundError:
        return
    yield at, status
    if stat.S_ISDIR(status.st_mode):
        fd = os.open(at[1], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at[0])
        try:
            for name in syscalls.names_in(fd):
                yield from _everything((fd, name))
        finally:
            os.close(fd)
