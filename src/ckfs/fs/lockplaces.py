"""The files on which locks were asked for, and what the store is told of each: the half of :mod:`ckfs.fs.locking` that waits for it.

One descriptor in the store for each file has all that the owners of this mount have together (:mod:`ckfs.store.lockfiles`). It never has less
than the table says. It may have more for a while, after a call that failed or came late: the place is in *doubt* then, and is told again.
"""

from __future__ import annotations

import errno
import logging
import resource
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from fcntl import F_UNLCK
from functools import partial
from typing import TypeVar

import trio

from ckfs.errors import FsError, StoreDown
from ckfs.fs.core import Core
from ckfs.fs.lockranges import LAST, LockTable, Range
from ckfs.names import FileHandle, Inode, Uid
from ckfs.store.lockfiles import FLOCK_BYTE, LAST_SHARED, LockFile, LockFiles, Piece
from ckfs.store.locks import Held, InodeLocks

log = logging.getLogger(__name__)

T = TypeVar("T")

_LIMIT = 0.4
"""The part of op_timeout that a call on a lock's file may take. Not so long that the store would count as down: a server of NFS that has
just started grants no locks for a while, and does all else."""
_CALLS = -1
"""Under what the gate counts them all: a server that grants no locks must not keep threads from other calls. No set has the number."""
_AGAIN_S = 1.0
_ALL = Range(0, LAST, F_UNLCK)


@dataclass(eq=False, slots=True)
class Place:
    """A file on which locks were asked for, as long as a handle is open through which they were."""

    ino: Inode
    fcntl: LockTable = field(default_factory=LockTable)
    """By the kernel's numbers of lock owners."""
    flock: LockTable = field(default_factory=LockTable)
    """By handles; each lock is of the whole file."""
    handles: set[FileHandle] = field(default_factory=set)
    through: dict[int, set[FileHandle]] = field(default_factory=dict)
    """By which handles each owner of fcntl locks has set any."""
    payers: dict[tuple[bool, int], Uid] = field(default_factory=dict)
    """Whose the ranges of an owner are; whether it is flock's, and which."""
    changed: trio.Event = field(default_factory=trio.Event)
    """Set as soon as anything is unlocked."""
    file: LockFile | None = None
    opened_by: Uid = Uid(0)  # noqa: RUF009 - a number
    """Who pays for the descriptor."""

    def table(self, *, is_flock: bool) -> LockTable:
        return self.flock if is_flock else self.fcntl

    def has_changed(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class Places:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._files: LockFiles = core.store.names.lock_files
        self._is_shared: bool | None = False if core.store.read_only else None
        """Whether the store keeps locks; None: not found out yet."""
        self._turns = InodeLocks(core.op_timeout_s * _LIMIT)
        self._all: dict[Inode, Place] = {}
        self._open: Counter[Uid] = Counter()
        self._doubtful: set[Place] = set()
        self._doubt_arose = trio.Event()

    @property
    def is_idle(self) -> bool:
        return not (self._all or self._doubtful or len(self._turns) or self._open.total())

    def known(self, ino: Inode) -> Place | None:
        return self._all.get(ino)

    def at(self, ino: Inode, number: FileHandle) -> Place:
        """Where the locks are that are asked for by the handle *number*."""
        place = self._all.setdefault(ino, Place(ino))
        place.handles.add(number)
        return place

    async def run(self) -> None:
        """Tell the store again what it was not told, or not in time; for the life of the mount."""
        if not self._core.store.read_only:
            with suppress(OSError, FsError):
                await self._core.gate.transfer(self._files.clear)
        while True:
            await self._doubt_arose.wait()
            self._doubt_arose = trio.Event()
            for place in list(self._doubtful):
                await self.settle(place)
            if self._doubtful:
                await trio.sleep(_AGAIN_S)
                self._doubt_arose.set()

    # Taking

    def is_busy(self, place: Place) -> bool:
        """After StoreDown: whether the store does answer, and it was others for whom was waited."""
        return self._core.gate.is_up and not self._turns.is_overdue(place.ino)

    async def are_shared(self) -> bool:
        """Whether other mounts see locks; said in the log if they do not."""
        if self._is_shared is None:
            are_kept = await self._limited(partial(self._core.gate.call, self._files.are_kept, of_set=_CALLS))
            if self._is_shared is None and not are_kept:
                log.warning("the store keeps no locks: flock and fcntl locks are seen on this mount alone")
            self._is_shared = are_kept
        return self._is_shared

    @asynccontextmanager
    async def turn(self, place: Place) -> AsyncIterator[Held]:
        """For the time of the block nobody else gets locks there, or tells the store of them; for longer if a call does not come back."""
        turn = await self._turns.acquire(place.ino)
        try:
            yield turn
        finally:
            turn()

    async def lock(self, place: Place, turn: Held, piece: Piece, uid: Uid) -> bool:
        """Lock *piece* in the store, for *uid*; False if another mount has it."""
        file = await self._opened(place, turn, uid)
        return await self._call(place, turn, partial(file.set, (piece,)))

    async def other(self, place: Place, turn: Held, piece: Piece, uid: Uid) -> Piece | None:
        """What another mount has that keeps this one from locking *piece*."""
        file = await self._opened(place, turn, uid)
        return await self._call(place, turn, partial(file.get, piece))

    async def _opened(self, place: Place, turn: Held, uid: Uid) -> LockFile:
        file = self._file_of(place)
        if file is None:
            self._check_files(uid)
            place.opened_by = uid
            self._open[uid] += 1
            try:
                opening = partial(self._files.open, place.ino)
                place.file = file = await self._call(place, turn, opening, undo=LockFile.close)
            except BaseException:
                self._has_closed(place)
                raise
        return file

    def _check_files(self, uid: Uid) -> None:
        """ENOLCK: descriptors of locks are a small part of what the process may have, and one user's are half of these."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 16
        if self._open.total() >= most or (uid and self._open[uid] >= most // 2):
            raise OSError(errno.ENOLCK, "too many files have locks")

    # Giving back

    async def unlocked(self, place: Place, locks: Iterable[Range], *, is_flock: bool) -> None:
        """Of *locks* that somebody had there some are unlocked: let the store know it, now or later."""
        had = tuple(locks)
        with self._or_later(place):
            async with self.turn(place) as turn:
                file, pieces = self._file_of(place), _free(place, had, is_flock=is_flock)
                if file is not None and pieces:
                    await self._call(place, turn, partial(file.set, pieces))

    async def settle(self, place: Place) -> None:
        """Let the store have what the table says, and nothing if no handle is left; now or later."""
        self._doubtful.discard(place)
        with self._or_later(place):
            async with self.turn(place) as turn:
                if place.handles:
                    await self._tell(place, turn)
                else:
                    await self._leave(place, turn)

    async def _tell(self, place: Place, turn: Held) -> None:
        """All that the table says."""
        file = self._file_of(place)
        pieces = [*_pieces(place, (_ALL,), is_flock=False), *_pieces(place, (_ALL,), is_flock=True)]
        if file is not None and not await self._call(place, turn, partial(file.set, pieces)):
            log.warning("locks of inode %x were lost in the store, and another mount has them", place.ino)

    async def _leave(self, place: Place, turn: Held) -> None:
        file = self._file_of(place)
        if file is not None:
            await self._call(place, turn, file.close)
            self._file_of(place)
        if not place.handles and self._all.get(place.ino) is place:
            del self._all[place.ino]

    @contextmanager
    def _or_later(self, place: Place) -> Iterator[None]:
        """The caller's lock is gone from the table, whatever the store says to it."""
        try:
            yield
        except (OSError, FsError) as error:
            log.debug("locks of inode %x are settled later: %s", place.ino, error)
            self.doubt(place)
        except trio.Cancelled:
            self.doubt(place)
            raise

    def doubt(self, place: Place) -> None:
        """The store may have more than the table says."""
        self._doubtful.add(place)
        self._doubt_arose.set()

    def _file_of(self, place: Place) -> LockFile | None:
        """In the place's turn. None also of one that was closed after nobody waited for it any more."""
        if place.file is not None and place.file.is_closed:
            place.file = None
            self._has_closed(place)
        return place.file

    def _has_closed(self, place: Place) -> None:
        self._open[place.opened_by] -= 1
        if not self._open[place.opened_by]:
            del self._open[place.opened_by]

    # The store

    async def _call(
        self,
        place: Place,
        turn: Held,
        work: Callable[[], T],
        *,
        undo: Callable[[T], None] | None = None,
    ) -> T:
        """One call on the store; what that has is in doubt if it does not end well."""
        try:
            return await self._limited(
                lambda: self._core.gate.call(work, undo=undo, releases=(turn.share(),), of_set=_CALLS)
            )
        except BaseException:
            self.doubt(place)
            raise

    async def _limited(self, call: Callable[[], Awaitable[T]]) -> T:
        with trio.move_on_after(self._core.op_timeout_s * _LIMIT):
            return await call()
        raise StoreDown("the store does not say whether a lock can be had")


def stored_of(lock: Range, *, is_flock: bool) -> Piece | None:
    """What is locked in the store for it; None if that is nothing."""
    if is_flock:
        return FLOCK_BYTE, FLOCK_BYTE, lock.kind
    if lock.start > LAST_SHARED:
        return None
    return lock.start, min(lock.end, LAST_SHARED), lock.kind


def seen_of(piece: Piece) -> Range:
    """An fcntl lock of another mount."""
    start, end, kind = piece
    return Range(start, LAST if end >= LAST_SHARED else end, kind)


def _pieces(place: Place, within: Iterable[Range], *, is_flock: bool) -> Iterator[Piece]:
    """What the table says of all *within*, as the store is told it."""
    for one in within:
        for piece in place.table(is_flock=is_flock).pieces(one.start, one.end):
            stored = stored_of(piece, is_flock=is_flock)
            if stored is not None:
                yield stored


def _free(place: Place, had: tuple[Range, ...], *, is_flock: bool) -> list[Piece]:
    """What nobody has any more of what somebody *had*, in few pieces: between them there may be what others have, or nothing."""
    if not had:
        return []
    whole = Range(had[0].start, had[-1].end, F_UNLCK)
    ways = (
        [piece for piece in _pieces(place, within, is_flock=is_flock) if piece[2] == F_UNLCK]
        for within in (had, (whole,))
    )
    return min(ways, key=len)
