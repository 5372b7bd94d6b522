"""How many requests are being answered, for whoever waits until there are none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class UnderWay:
    def __init__(self) -> None:
        self._count = 0
        self._begun = 0
        self._idle = trio.Event()
        self._is_awaited = False
        """Somebody may wait for that, which is made anew for each of them only."""

    @property
    def are_none(self) -> bool:
        return not self._count

    def begin(self) -> None:
        self._count += 1
        self._begun += 1

    def end(self) -> None:
        self._count -= 1
        if self._is_awaited and not self._count:
            self._tell()

    def was_answered(self) -> None:
        """One came, and is over."""
        self._begun += 1
        if self._is_awaited and not self._count:
            self._tell()

    def _tell(self) -> None:
        self._idle.set()
        self._idle, self._is_awaited = trio.Event(), False

    @contextmanager
    def waiting_for_others(self) -> Iterator[None]:
        """Within the block one of them is not counted: nobody knows when that will be answered."""
        self.end()
        try:
            yield
        finally:
            self.begin()

    async def idle(self) -> None:
        """Wait until no request is being answered."""
        while self._count:
            await self._next_idle()

    async def quiet(self, for_s: float) -> bool:
        """Whether no request comes for *for_s* seconds; False as soon as one that came meanwhile is answered."""
        before = self._begun
        with trio.move_on_after(for_s):
            await self._next_idle()
        return self._begun == before

    async def _next_idle(self) -> None:
        self._is_awaited = True
        await self._idle.wait()
