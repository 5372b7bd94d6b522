"""What somebody is charged with, counted in the store: what the meter heard (:mod:`ckfs.store.metering`) adds up to the same.

Somebody pays for all that lies under ``users/<uid>/`` and ``trash/<uid>/``, of the store and of all its further stores, but for sets
there that were given away and have yet to follow: these are paid for by their new owners. A copy that is just being made of a
set is nobody's, and so are the old files that it leaves. What has several names counts once.

What comes and goes meanwhile is counted or not. One name is held at a time, and of a directory what the kernel lists in one
call; only files with several names are remembered. All calls are synchronous, and raise OSError as the store does.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ckfs.errors import FsError, Stale, Unreached
from ckfs.model import Owner
from ckfs.names import Gid, Inode, MountId, SetName, Uid
from ckfs.policy.quota import NOTHING, Amount
from ckfs.store import attributes, shares, syscalls, writers
from ckfs.store.entries import USERS, SetEntry, place_of_copy
from ckfs.store.identity import ROOT, acting_as
from ckfs.store.layout import Store
from ckfs.store.metering import charge_of, number_at
from ckfs.store.realms import TRASH
from ckfs.store.spots import Spot, VolumeId

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_OPEN = 64
"""Directories of one tree that are open at a time: users make trees of any depth."""
_GONE = (FileNotFoundError, NotADirectoryError, Stale)

Place = tuple[VolumeId, bytes]
"""A volume, and a name in somebody's directory there."""
File = tuple[int, int]
"""The store's own device and inode numbers."""


def count(
    store: Store,
    uid: Uid,
    unit: int,
    written: Mapping[Inode, Amount] | None = None,
    lives: Callable[[MountId], bool] | None = None,
) -> Amount:
    """All that *uid* pays for; *unit* as of the door. What is being written by mounts of which *lives* says that they do counts as the
    ledger counts it: by what its marks say, or else with its base in *written*; so do the files of *written* that have no name.

    Stale if a directory is moved while what lies far below it is counted; BetweenMounts if of what a living mount writes a part is of a
    dead one. Unreached if this host does not reach all further stores that the policy names: nobody can tell from here what he has there.
    """
    _check_reaches_all(store, uid)
    counting = _Counting(unit, dict(written or {}), lives)
    copied = frozenset(store.names.copy_locks.locked())
    given, now = _read_names(store, copied)
    not_his = _NotHis(
        frozenset((entry.volume, entry.place) for _, entry in given if entry.stored.uid == uid),
        tuple(place_of_copy(name, entry.ino) for name, entry in given if entry.payer == uid),
        frozenset((entry.volume, entry.place) for entry in now if entry.stored.uid == uid),
        tuple(b"~%x" % ino for ino in copied),
        frozenset(_left(store, copied, now)),
    )
    for volume in store.volumes.ids():
        with _opened(store, volume, USERS, uid) as names:
            for fd, name in names:
                if not not_his.has(volume, name):
                    counting.add(fd, name)
        with _opened(store, volume, TRASH, uid) as names:
            for fd, name in names:
                counting.add(fd, name)
    for _, entry in given:
        if entry.payer == uid:
            _add_place(store, entry, counting)
    return sum(counting.written.values(), counting.total)


class BetweenMounts(FsError):
    """Nobody knows yet what a file is charged with: a dead mount was writing it, and a living one is."""


def payers(store: Store) -> set[Uid]:
    """Everybody who may be charged with something."""
    known = {entry.payer for _, entry in _read_names(store, frozenset())[0]}
    for volume in store.volumes.ids():
        for top in (USERS, TRASH):
            with contextlib.suppress(*_GONE, Unreached):
                names = store.door.names_at(Spot(store.service, (top,), volume=volume))
                known |= {Uid(int(name)) for name in names if _is_uid(name)}
    return known


def _check_reaches_all(store: Store, uid: Uid) -> None:
    missed = [volume.said.name for volume in store.volumes.missed()]
    if missed:
        raise Unreached(
            f"what uid {uid} has cannot be counted on this host, which does not reach {', '.join(missed)}:"
            " let a host that reaches every store of the policy do it"
        )


def _is_uid(name: bytes) -> bool:
    return name.isdigit() and b"%d" % int(name) == name


def _read_names(
    store: Store, copied: Container[Inode]
) -> tuple[list[tuple[SetName, SetEntry]], list[SetEntry]]:
    """The sets that were given away and have yet to follow, and what is said now of those that are being *copied*: few of both."""
    given, now = list[tuple[SetName, SetEntry]](), list[SetEntry]()
    for name in store.names.all():
        with contextlib.suppress(
            OSError
        ):  # gone, or damaged: what lies there is paid for by whose place it is
            entry = store.names.read(name)
            if entry.is_followed:
                given.append((name, entry))
            if entry.ino in copied:
                now.append(entry)
    return given, now


def _left(store: Store, copied: Iterable[Inode], now: list[SetEntry]) -> Iterator[Place]:
    """Where sets lay that have been copied, and whose old files have yet to go: nobody pays for these."""
    said = {(entry.volume, entry.stored.uid, entry.place) for entry in now}
    for ino in copied:
        old = store.names.copy_locks.noted(ino)
        if old is not None and (old.volume, old.stored.uid, old.place) not in said:
            yield old.volume, old.place


@dataclass(frozen=True, slots=True)
class _NotHis:
    """Places below ``users/<uid>/`` that he does not pay for: *given* away, *copies* that are made of what is given to him, and of
    sets that are being copied, whose *numbers* their names have, those that do not lie there *now*, and what is *left* of them."""

    given: frozenset[Place]
    copies: tuple[bytes, ...]
    now: frozenset[Place]
    numbers: tuple[bytes, ...]
    left: frozenset[Place]

    def has(self, volume: VolumeId, name: bytes) -> bool:
        place = volume, name
        if place in self.given or place in self.left:
            return True
        if place in self.now:
            return False
        return name.startswith(self.copies) or name.endswith(
            tuple(number + end for number in self.numbers for end in (b"~copy", b"~old"))
        )


@contextlib.contextmanager
def _opened(store: Store, volume: VolumeId, top: bytes, uid: Uid) -> Iterator[Iterator[tuple[int, bytes]]]:
    """The names in the directory of *uid* below *top* of *volume*, each with the directory's descriptor; the thread acts as him within the
    block."""
    spot = Spot(store.service, (top, b"%d" % uid), volume=volume)
    try:
        status = store.door.status(spot)
        spot = spot.at(*spot.components, identity=Owner(Uid(status.st_uid), Gid(status.st_gid)))
        opened = store.door.opened(spot, os.O_RDONLY | os.O_DIRECTORY)
        fd = opened.__enter__()
    except _GONE:
        yield iter(())
        return
    try:
        yield ((fd, name) for name in syscalls.names_in(fd))
    finally:
        opened.__exit__(None, None, None)


def _add_place(store: Store, entry: SetEntry, counting: _Counting) -> None:
    directory = entry.spot.at(*entry.spot.components[:-1])
    with contextlib.suppress(*_GONE), store.door.opened(directory, os.O_RDONLY | os.O_DIRECTORY) as fd:
        counting.add(fd, entry.place)


@dataclass(slots=True)
class _Level:
    """A directory on the way down. Of those high above only the names are kept that are still to be looked at."""

    fd: int | None
    status: os.stat_result
    names: Iterator[bytes]

    def put_aside(self) -> None:
        if self.fd is not None:
            self.names = iter(list(self.names))
            os.close(self.fd)
            self.fd = None


@dataclass(slots=True)
class _Counting:
    unit: int
    written: dict[Inode, Amount]
    """Of files that were not found yet."""
    lives: Callable[[MountId], bool] | None
    total: Amount = NOTHING
    linked: set[File] = field(default_factory=set)
    """The files with several names that are counted already, apart from what is *lately* known of."""
    lately: set[File] = field(default_factory=set)

    def add(self, dir_fd: int, name: bytes) -> None:
        """Count *name* in an open directory, and all below it; as root where its owner may not any more, as during a chown."""
        before, written = self.total, dict(self.written)
        try:
            self._add(dir_fd, name)
        except PermissionError:
            self.total, self.written = before, written
            self.lately.clear()
            with acting_as(ROOT):
                self._add(dir_fd, name)
        self.linked |= self.lately
        self.lately.clear()

    def _add(self, dir_fd: int, name: bytes) -> None:
        levels: list[_Level] = []
        try:
            self._enter(levels, dir_fd, name)
            while levels:
                level = levels[-1]
                assert level.fd is not None
                inner = next(level.names, None)
                if inner is None:
                    _leave(levels)
                else:
                    self._enter(levels, level.fd, inner)
        finally:
            for level in levels:
                if level.fd is not None:
                    os.close(level.fd)

    def _enter(self, levels: list[_Level], dir_fd: int, name: bytes) -> None:
        """Count *name*; if it is a directory, what is in it follows."""
        with contextlib.suppress(*_GONE):
            status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            where = attributes.path_of(dir_fd, name)
            if self._is_counted(status):
                self.total += self._charge_of(status, where)
            if stat.S_ISDIR(status.st_mode):
                fd = os.open(name, _DIRECTORY, dir_fd=dir_fd)
                levels.append(_Level(fd, os.fstat(fd), syscalls.names_in(fd)))
                if len(levels) > _MOST_OPEN:
                    levels[-1 - _MOST_OPEN].put_aside()

    def _is_counted(self, status: os.stat_result) -> bool:
        if stat.S_ISDIR(status.st_mode) or status.st_nlink == 1:
            return True
        file = (status.st_dev, status.st_ino)
        if file in self.linked or file in self.lately:
            return False
        self.lately.add(file)
        return True

    def _charge_of(self, status: os.stat_result, where: attributes.Where) -> Amount:
        if not (self.lives or self.written) or not stat.S_ISREG(status.st_mode):
            return charge_of(status, where, self.unit)
        names = attributes.names(where)
        base = self.written.pop(number_at(where), None) if self.written else None
        marks = shares.read(where, writers.among(names))
        having = {mount for mount, share in marks.items() if share is not None}
        living = {mount for mount in having if self.lives is not None and self.lives(mount)}
        if living and living != having:
            raise BetweenMounts("a dead mount has written what a living one is writing")
        if living:
            share = shares.total(marks)
            if base is None:
                return share
            # They differ for as long as a set that is given away, or an attribute, is told of: too much is put right later.
            return Amount(max(share.bytes, base.bytes), max(share.files, base.files))
        return charge_of(status, where, self.unit, names) if base is None else base


def _leave(levels: list[_Level]) -> None:
    """Go back to the directory above."""
    left = levels.pop()
    assert left.fd is not None
    try:
        if levels and levels[-1].fd is None:
            above = levels[-1]
            above.fd = os.open(b"..", _DIRECTORY, dir_fd=left.fd)
            if not os.path.samestat(os.fstat(above.fd), above.status):
                raise Stale("a directory was moved while it was counted")
    finally:
        os.close(left.fd)
