"""Who has which parts of a file locked, and who would wait for whom. Pure; the rules are those of fcntl(2).

Offsets are those of the kernel's ``struct fuse_file_lock``: the end belongs to the range, and :data:`LAST` is the end of every file.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fcntl import F_RDLCK, F_UNLCK, F_WRLCK

LAST = (1 << 63) - 1
"""The kernel's OFFSET_MAX."""

_DEEPEST = 32
"""How many waiting owners one search for a deadlock passes; the kernel's own passes ten."""


@dataclass(frozen=True, slots=True)
class Range:
    """From *start* to *end*, both included. *kind*: F_RDLCK, F_WRLCK or F_UNLCK. *pid*: who has it; 0 for somebody on another mount."""

    start: int
    end: int
    kind: int
    pid: int = 0

    @property
    def is_valid(self) -> bool:
        return 0 <= self.start <= self.end <= LAST and self.kind in (F_RDLCK, F_WRLCK, F_UNLCK)

    def overlaps(self, other: Range) -> bool:
        return self.start <= other.end and other.start <= self.end

    def conflicts(self, other: Range) -> bool:
        """Whether two owners cannot have both."""
        return F_WRLCK in (self.kind, other.kind) and self.overlaps(other)


class LockTable:
    """The locks of one file. What an owner has is in order, and does not overlap; the locks of different owners do not conflict."""

    def __init__(self) -> None:
        self._of: dict[int, tuple[Range, ...]] = {}
        self._count = 0

    def __len__(self) -> int:
        """How many ranges are locked."""
        return self._count

    def of(self, owner: int) -> tuple[Range, ...]:
        return self._of.get(owner, ())

    def owners(self) -> tuple[int, ...]:
        return tuple(self._of)

    def conflict(self, owner: int, wanted: Range) -> Range | None:
        """The first lock of others that keeps *owner* from what is *wanted*."""
        return min(
            (lock for _, lock in self._conflicts(owner, wanted)), key=lambda lock: lock.start, default=None
        )

    def blockers(self, owner: int, wanted: Range) -> set[int]:
        """The owners of all locks that do."""
        return {other for other, _ in self._conflicts(owner, wanted)}

    def _conflicts(self, owner: int, wanted: Range) -> Iterator[tuple[int, Range]]:
        """Of each other owner the first one."""
        start, end = wanted.start, wanted.end
        for other, locks in self._of.items():
            if other == owner or locks[-1].end < start or locks[0].start > end:
                continue
            for lock in _overlapping(locks, start, end):
                if lock.conflicts(wanted):
                    yield other, lock
                    break

    def after(self, owner: int, wanted: Range) -> tuple[Range, ...]:
        """What *owner* would have once he had what is *wanted*, or with F_UNLCK had it no more."""
        left: list[Range] = []
        new = wanted
        for lock in self.of(owner):
            joins = lock.start <= new.end + 1 and new.start <= lock.end + 1
            if joins and lock.kind == new.kind:
                new = replace(new, start=min(lock.start, new.start), end=max(lock.end, new.end))
                continue
            if not lock.overlaps(new):
                left.append(lock)
                continue
            if lock.start < new.start:
                left.append(replace(lock, end=new.start - 1))
            if lock.end > new.end:
                left.append(replace(lock, start=new.end + 1))
        if new.kind != F_UNLCK:
            left.append(new)
        return tuple(sorted(left, key=lambda lock: lock.start))

    def put(self, owner: int, locks: tuple[Range, ...]) -> None:
        """*owner* has these from now on, as :meth:`after` says, and no others."""
        self._count += len(locks) - len(self.of(owner))
        if locks:
            self._of[owner] = locks
        else:
            self._of.pop(owner, None)

    def covers(self, wanted: Range) -> bool:
        """Whether the owners have all of *wanted* together, of that kind."""
        return all(piece.kind == wanted.kind for piece in self.pieces(wanted.start, wanted.end))

    def pieces(self, start: int, end: int) -> Iterator[Range]:
        """All from *start* to *end*, in order: what anybody has locked, of whatever kind, and with F_UNLCK what nobody has."""
        locked = sorted(
            (
                lock
                for locks in self._of.values()
                if locks[-1].end >= start and locks[0].start <= end
                for lock in _overlapping(locks, start, end)
            ),
            key=lambda lock: lock.start,
        )
        at = start
        for lock in locked:
            if lock.start > at:
                yield Range(at, lock.start - 1, F_UNLCK)
            if lock.end >= at:
                yield Range(max(lock.start, at), min(lock.end, end), lock.kind)
                at = lock.end + 1
        if at <= end:
            yield Range(at, end, F_UNLCK)


def _overlapping(locks: tuple[Range, ...], start: int, end: int) -> Iterator[Range]:
    for index in range(bisect_left(locks, start, key=lambda lock: lock.end), len(locks)):
        if locks[index].start > end:
            return
        yield locks[index]


@dataclass(frozen=True, slots=True)
class Waiting:
    """*owner* waits for what he *wanted* of *table*."""

    owner: int
    table: LockTable
    wanted: Range

    def blockers(self) -> set[int]:
        return self.table.blockers(self.owner, self.wanted)


@dataclass(slots=True)
class Waits:
    """Who waits for a lock, on any file."""

    _all: dict[Hashable, Waiting] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._all)

    @contextmanager
    def begun(self, waiting: Waiting) -> Iterator[None]:
        """For the time of the block."""
        key = object()
        self._all[key] = waiting
        try:
            yield
        finally:
            del self._all[key]

    def is_deadlock(self, waiting: Waiting) -> bool:
        """Whether somebody for whom this one would wait waits for *waiting*'s owner. No more than some are looked at."""
        seen: set[int] = set()
        ahead = waiting.blockers()
        while ahead and len(seen) < _DEEPEST:
            owner = ahead.pop()
            if owner == waiting.owner:
                return True
            seen.add(owner)
            for other in self._all.values():
                if other.owner == owner:
                    ahead |= other.blockers() - seen
        return False
