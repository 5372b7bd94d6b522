"""flock(2) and fcntl(2) locks of programs, for a transport to which the kernel leaves them.

What the owners of this mount have among themselves is a table for each file (:mod:`ckfs.fs.lockranges`); what they have together is
locked in the store, where other mounts see it (:mod:`ckfs.fs.lockplaces`). Who takes a lock has it in the store before it is in the
table; who gives one back has it out of the table before it is out of the store.

Locks go by the inode numbers of ckfs: they stay with a file that is renewed, copied or moved. Where the store keeps no locks, and on a
read-only mount, the table is all there is. Everything belongs to the event loop's thread.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fcntl import F_UNLCK

import trio

from ckfs.errors import BadHandle, Invalid, StoreDown
from ckfs.fs.core import Core
from ckfs.fs.lockplaces import Place, Places, seen_of, stored_of
from ckfs.fs.lockranges import LAST, LockTable, Range, Waiting, Waits
from ckfs.names import FileHandle, Uid
from ckfs.store.lockfiles import Piece

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 1.0
"""Of those who wait, between two looks at what other mounts have; longer if many wait."""
_MOST_LOOKS_PER_S = 100

MOST_WAITING, MOST_WAITING_OF_USER = 384, 256
"""Calls that wait for a lock; each has a task of the transport's."""
MOST_RANGES_OF_FILE, MOST_RANGES_OF_USER = 4096, 16384


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is asked for by *owner*, who is a handle's number if it *is_flock*."""

    place: Place
    number: FileHandle
    owner: int
    lock: Range
    uid: Uid
    is_flock: bool

    @property
    def table(self) -> LockTable:
        return self.place.table(is_flock=self.is_flock)

    @property
    def has(self) -> tuple[Range, ...]:
        return self.table.of(self.owner)

    def after(self) -> tuple[Range, ...]:
        return self.table.after(self.owner, self.lock)

    @property
    def stored(self) -> Piece | None:
        return stored_of(self.lock, is_flock=self.is_flock)


@dataclass(frozen=True, slots=True)
class _Left:
    """What a handle had of flock, and its owners of fcntl's, when it was closed."""

    place: Place
    flocked: tuple[Range, ...]
    had: tuple[Range, ...]


class Locking:
    """Owners of fcntl locks are the kernel's numbers of them; a flock's is the handle."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._places = Places(core)
        self._of: dict[FileHandle, Place] = {}
        self._let_go: dict[FileHandle, _Left] = {}
        """Of these the store has yet to be told."""
        self._ranges: Counter[Uid] = Counter()
        self._waiting: Counter[Uid] = Counter()
        self._waits = Waits()

    @property
    def is_idle(self) -> bool:
        """Whether nothing of any lock is left."""
        counted = self._ranges.total() + self._waiting.total()
        return self._places.is_idle and not (self._of or self._let_go or counted)

    async def run(self) -> None:
        """Tell the store again what it was not told, or not in time; for the life of the mount."""
        await self._places.run()

    # Calls

    async def get(self, number: FileHandle, owner: int, lock: Range) -> Range | None:
        """F_GETLK: a lock that keeps *owner* from *lock*; None if he could have it. Who has it on another mount has the pid 0."""
        wanted = self._wanted(number, owner, lock, is_flock=False)
        found, piece = wanted.table.conflict(owner, lock), wanted.stored
        if found is not None or piece is None or lock.kind == F_UNLCK or not await self._places.are_shared():
            return found
        async with self._places.turn(wanted.place) as turn:
            self._check_open(wanted)
            other = await self._places.other(wanted.place, turn, piece, wanted.uid)
        return None if other is None else seen_of(other)

    async def set(self, number: FileHandle, owner: int, lock: Range, *, is_flock: bool) -> None:
        """F_SETLK, or flock with LOCK_NB. EAGAIN if somebody else has it, here or on another mount; ENOLCK for too many."""
        wanted = self._wanted(number, owner, lock, is_flock=is_flock)
        if lock.kind == F_UNLCK:
            await self._unlock(wanted)
        elif not await self._take(wanted):
            raise BlockingIOError(errno.EAGAIN, "somebody else has the lock")

    async def set_waiting(self, number: FileHandle, owner: int, lock: Range, *, is_flock: bool) -> None:
        """F_SETLKW, or flock: as :meth:`set`, as soon as it can be had. Whoever waits no more cancels it; if it returns all the
        same, he has the lock. EDEADLK if fcntl locks of this mount would wait for each other: nobody tells that of
        those of other mounts, nor of flock's."""
        wanted = self._wanted(number, owner, lock, is_flock=is_flock)
        if lock.kind == F_UNLCK:
            await self._unlock(wanted)
            return
        pause_s = _FIRST_PAUSE_S
        with self._as_waiting(wanted.uid):
            while True:
                changed = wanted.place.changed  # as of before the look
                if await self._take_if_able(wanted):
                    return
                await self._wait(wanted, changed, pause_s)
                pause_s = min(2 * pause_s, max(_LONGEST_PAUSE_S, self._waiting.total() / _MOST_LOOKS_PER_S))

    async def _take_if_able(self, wanted: _Wanted) -> bool:
        """Who waits anyhow may wait for others' looks, too."""
        try:
            return await self._take(wanted)
        except StoreDown:
            if not self._places.is_busy(wanted.place):
                raise
            return False

    async def _wait(self, wanted: _Wanted, changed: trio.Event, pause_s: float) -> None:
        """For a while, or until something is unlocked here."""
        with self._told_apart(wanted), trio.move_on_after(pause_s):
            await changed.wait()

    @contextmanager
    def _told_apart(self, wanted: _Wanted) -> Iterator[None]:
        """For the time of the block others know for what is waited. EDEADLK if they wait for that owner."""
        if wanted.is_flock:
            yield
            return
        waiting = Waiting(wanted.owner, wanted.table, wanted.lock)
        if self._waits.is_deadlock(waiting):
            raise OSError(errno.EDEADLK, os.strerror(errno.EDEADLK))
        with self._waits.begun(waiting):
            yield

    async def release_owner(self, number: FileHandle, owner: int) -> None:
        """FLUSH: *owner* has closed a descriptor of the file, and with it lost all fcntl locks that he had there. Never fails."""
        place = self._of.get(number)
        if place is None:  # they were not set through this one
            with suppress(BadHandle):
                place = self._places.known(self._core.handle(number).node.ino)
        if place is not None and (had := place.fcntl.of(owner)):
            self._put(place, owner, (), is_flock=False)
            place.through.pop(owner, None)
            await self._places.unlocked(place, had, is_flock=False)

    def let_go(self, number: FileHandle) -> None:
        """What :meth:`released` does first, without waiting: from then on others of this mount can have what the handle had. The kernel
        does not wait for the answer to RELEASE, and whoever closed a file may ask for a lock by the next request."""
        place = self._of.pop(number, None)
        if place is None:
            return
        place.handles.discard(number)
        flocked, had = place.flock.of(number), list[Range]()
        self._put(place, number, (), is_flock=True)
        for owner, handles in list(place.through.items()):
            handles.discard(number)
            if not handles:
                del place.through[owner]
                had += place.fcntl.of(owner)
                self._put(place, owner, (), is_flock=False)
        had.sort(key=lambda lock: lock.start)
        self._let_go[number] = _Left(place, flocked, tuple(had))

    async def released(self, number: FileHandle) -> None:
        """RELEASE: the handle's flock goes, and what owners have set through it alone. Before or after the handle itself; never fails."""
        self.let_go(number)
        left = self._let_go.pop(number, None)
        if left is None:
            return
        if not left.place.handles:
            await self._places.settle(left.place)
            return
        if left.flocked:
            await self._places.unlocked(left.place, left.flocked, is_flock=True)
        if left.had:
            await self._places.unlocked(left.place, left.had, is_flock=False)

    def _wanted(self, number: FileHandle, owner: int, lock: Range, *, is_flock: bool) -> _Wanted:
        handle = self._core.handle(number)
        if not lock.is_valid:
            raise Invalid("no such range")
        place = self._of[number] = self._places.at(handle.node.ino, number)
        if is_flock:
            owner, lock = number, Range(0, LAST, lock.kind, lock.pid)
        return _Wanted(place, number, owner, lock, handle.opener.uid, is_flock)

    # Taking and giving back

    async def _take(self, wanted: _Wanted) -> bool:
        """Whether it could be had."""
        piece = wanted.stored if await self._places.are_shared() else None
        lost: tuple[Range, ...] = ()
        async with self._places.turn(wanted.place) as turn:
            self._check_open(wanted)
            self._check_ranges(wanted)
            is_had = wanted.table.conflict(wanted.owner, wanted.lock) is None
            if is_had and piece is not None and not wanted.table.covers(wanted.lock):
                is_had = await self._places.lock(wanted.place, turn, piece, wanted.uid)
                self._check_open(wanted)
            if is_had:
                self._put_wanted(wanted)
            elif wanted.is_flock and (lost := wanted.has):
                # As flock(2) has it: a lock that is to become another is gone if that one is not to be had.
                self._put(wanted.place, wanted.owner, (), is_flock=True)
        if lost:
            await self._places.unlocked(wanted.place, lost, is_flock=True)
        return is_had

    async def _unlock(self, wanted: _Wanted) -> None:
        lock, had = wanted.lock, wanted.has
        if not had:
            return
        self._check_ranges(wanted)
        self._put(wanted.place, wanted.owner, wanted.after(), is_flock=wanted.is_flock)
        wanted.place.has_changed()
        cut = (
            replace(one, start=max(one.start, lock.start), end=min(one.end, lock.end))
            for one in had
            if one.overlaps(lock)
        )
        await self._places.unlocked(wanted.place, cut, is_flock=wanted.is_flock)

    def _put_wanted(self, wanted: _Wanted) -> None:
        place, had = wanted.place, wanted.has
        place.payers.setdefault((wanted.is_flock, wanted.owner), wanted.uid)
        if not wanted.is_flock:
            place.through.setdefault(wanted.owner, set()).add(wanted.number)
        self._put(place, wanted.owner, wanted.after(), is_flock=wanted.is_flock)
        if had:  # what was locked for writing may be for reading now
            place.has_changed()

    def _put(self, place: Place, owner: int, locks: tuple[Range, ...], *, is_flock: bool) -> None:
        table, key = place.table(is_flock=is_flock), (is_flock, owner)
        if growth := len(locks) - len(table.of(owner)):
            payer = place.payers[key]
            self._ranges[payer] += growth
            if not self._ranges[payer]:
                del self._ranges[payer]
        table.put(owner, locks)
        if not locks:
            place.payers.pop(key, None)
            place.has_changed()

    # Refusing

    def _check_open(self, wanted: _Wanted) -> None:
        """BadHandle, and what the store was told is taken back."""
        if wanted.number not in wanted.place.handles:
            self._places.doubt(wanted.place)
            raise BadHandle("the file has been closed meanwhile")

    def _check_ranges(self, wanted: _Wanted) -> None:
        """ENOLCK for too many, also for unlocking the middle of one, as POSIX allows."""
        growth = len(wanted.after()) - len(wanted.has)
        of_file = len(wanted.place.fcntl) + len(wanted.place.flock) + growth
        of_user = self._ranges[wanted.uid] + growth
        if growth > 0 and (of_file > MOST_RANGES_OF_FILE or of_user > MOST_RANGES_OF_USER):
            raise OSError(errno.ENOLCK, "too many parts of files are locked")

    @contextmanager
    def _as_waiting(self, uid: Uid) -> Iterator[None]:
        """ENOLCK if too many wait."""
        most = MOST_WAITING_OF_USER if uid else MOST_WAITING
        if self._waiting.total() >= MOST_WAITING or self._waiting[uid] >= most:
            raise OSError(errno.ENOLCK, "too many wait for locks")
        self._waiting[uid] += 1
        try:
            yield
        finally:
            self._waiting[uid] -= 1
            if not self._waiting[uid]:
                del self._waiting[uid]
