"""Locks by inode, for calls that read a record and write it back and for changes of a directory; at the top, where
every entry is a set of its own, by name. And looks into directories that a change may hold for ever."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable
from dataclasses import dataclass, field

import trio

from ckfs.errors import StoreDown
from ckfs.store.gate import LockRelease

LockKey = tuple[int, bytes]
"""An inode, and one name in it; without a name the inode itself."""


@dataclass(slots=True)
class _Lock:
    """*overdue*: its holder's caller has been answered, but the store call itself has not come back."""

    waiting: deque[trio.Event] = field(default_factory=deque)
    overdue: bool = False


class InodeLocks:
    """One lock per inode, or name in it, that anybody holds or waits for. All methods belong to the event loop's thread."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._locks: dict[LockKey, _Lock] = {}

    def __len__(self) -> int:
        return len(self._locks)

    def is_overdue(self, ino: int) -> bool:
        """Whether a change of *ino*, or of any name in it that has a lock of its own, hangs in the store."""
        return any(lock.overdue for key, lock in self._locks.items() if key[0] == ino)

    async def acquire(self, ino: int, name: bytes = b"") -> Held:
        """Wait for the lock and return what gives it back, which the gate calls when the store call is really over.

        StoreDown if whoever holds it does not finish in time; at once if its time is over already, so that many who
        want the same do not wait one after the other.
        """
        key = (ino, name)
        lock = self._locks.get(key)
        if lock is None:
            self._locks[key] = _Lock()
        else:
            await self._wait(key, lock)
        return Held(self, key)

    async def _wait(self, key: LockKey, lock: _Lock) -> None:
        turn = trio.Event()
        lock.waiting.append(turn)
        try:
            if not lock.overdue:
                with trio.move_on_after(self._timeout_s):
                    await turn.wait()
        except BaseException:
            if turn not in lock.waiting:  # its turn came in the moment in which it was cancelled
                self.release(key)
            else:
                lock.waiting.remove(turn)
            raise
        if turn in lock.waiting:
            lock.waiting.remove(turn)
            raise StoreDown("an earlier call on the same file is still under way")

    def release(self, key: LockKey) -> None:
        lock = self._locks[key]
        lock.overdue = False
        if lock.waiting:
            lock.waiting.popleft().set()  # the lock passes on; nobody else can take it in between
        else:
            del self._locks[key]

    def overdue(self, key: LockKey) -> None:
        lock = self._locks[key]
        lock.overdue = True
        for turn in lock.waiting:
            turn.set()  # still in the queue: not granted


class Held(LockRelease):
    """Whoever has it, or a share of it, calls it once; the last call gives the lock back."""

    def __init__(self, locks: InodeLocks, key: LockKey) -> None:
        self._locks = locks
        self._key = key
        self._holders = 1

    def share(self) -> Held:
        """For one more who holds it."""
        self._holders += 1
        return self

    def __call__(self) -> None:
        self._holders -= 1
        if not self._holders:
            self._locks.release(self._key)

    def overdue(self) -> None:
        self._locks.overdue(self._key)


class Looks:
    """Which directories of the store are known to answer no look, since one that was begun has not come back."""

    def __init__(self) -> None:
        self._hanging: Counter[Hashable] = Counter()

    def begin(self, directory: Hashable) -> LockRelease:
        """What a look into *directory* passes to the gate. StoreDown if another look there hangs."""
        if directory in self._hanging:
            raise StoreDown("an earlier look at the same directory is still under way")
        return _Look(self._hanging, directory)


class _Look(LockRelease):
    def __init__(self, hanging: Counter[Hashable], directory: Hashable) -> None:
        self._hanging = hanging
        self._directory = directory
        self._hangs = False

    def __call__(self) -> None:
        if self._hangs:
            self._hanging[self._directory] -= 1
            if not self._hanging[self._directory]:
                del self._hanging[self._directory]

    def overdue(self) -> None:
        self._hangs = True
        self._hanging[self._directory] += 1
