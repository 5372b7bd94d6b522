"""Locks by inode: for calls that read a record and write it back, and for changes of a directory."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import trio

from ckfs.errors import StoreDown
from ckfs.store.gate import LockRelease


@dataclass(slots=True)
class _Lock:
    """*overdue*: its holder's caller has been answered, but the store call itself has not come back."""

    waiting: deque[trio.Event] = field(default_factory=deque)
    overdue: bool = False


class InodeLocks:
    """One lock per inode that anybody holds or waits for. All methods belong to the event loop's thread."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._locks: dict[int, _Lock] = {}

    def __len__(self) -> int:
        return len(self._locks)

    async def acquire(self, ino: int) -> LockRelease:
        """Wait for *ino*'s lock and return what gives it back, which the gate calls when the store call is really over.

        StoreDown if whoever holds it does not finish in time; at once if its time is over already, so that many who
        want the same do not wait one after the other.
        """
        lock = self._locks.get(ino)
        if lock is None:
            self._locks[ino] = _Lock()
        else:
            await self._wait(ino, lock)
        return _Held(self, ino)

    async def _wait(self, ino: int, lock: _Lock) -> None:
        turn = trio.Event()
        lock.waiting.append(turn)
        try:
            if not lock.overdue:
                with trio.move_on_after(self._timeout_s):
                    await turn.wait()
        except BaseException:
            if turn not in lock.waiting:  # its turn came in the moment in which it was cancelled
                self.release(ino)
            else:
                lock.waiting.remove(turn)
            raise
        if turn in lock.waiting:
            lock.waiting.remove(turn)
            raise StoreDown("an earlier call on the same file is still under way")

    def release(self, ino: int) -> None:
        lock = self._locks[ino]
        lock.overdue = False
        if lock.waiting:
            lock.waiting.popleft().set()  # the lock passes on; nobody else can take it in between
        else:
            del self._locks[ino]

    def overdue(self, ino: int) -> None:
        lock = self._locks[ino]
        lock.overdue = True
        for turn in lock.waiting:
            turn.set()  # still in the queue: not granted


class _Held(LockRelease):
    def __init__(self, locks: InodeLocks, ino: int) -> None:
        self._locks = locks
        self._ino = ino

    def __call__(self) -> None:
        self._locks.release(self._ino)

    def overdue(self) -> None:
        self._locks.overdue(self._ino)
