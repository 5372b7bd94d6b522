"""Locks by inode, for calls that read a record and write it back."""

from __future__ import annotations

from collections import deque

import trio

from ckfs.errors import StoreDown
from ckfs.store.gate import Release


class InodeLocks:
    """One lock per inode that anybody holds or waits for. All methods belong to the event loop's thread."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._waiting: dict[int, deque[trio.Event]] = {}

    async def acquire(self, ino: int) -> Release:
        """Wait for *ino*'s lock and return what gives it back, which the gate calls when the store call is really over.

        StoreDown if whoever holds it does not finish in time.
        """
        queue = self._waiting.get(ino)
        if queue is None:
            self._waiting[ino] = deque()
        else:
            await self._wait(queue)
        return lambda: self._release(ino)

    async def _wait(self, queue: deque[trio.Event]) -> None:
        turn = trio.Event()
        queue.append(turn)
        try:
            with trio.move_on_after(self._timeout_s):
                await turn.wait()
        finally:
            if not turn.is_set():
                queue.remove(turn)
        if not turn.is_set():
            raise StoreDown("an earlier call on the same file is still under way")

    def _release(self, ino: int) -> None:
        queue = self._waiting[ino]
        if queue:
            queue.popleft().set()  # the lock passes on; nobody else can take it in between
        else:
            del self._waiting[ino]
