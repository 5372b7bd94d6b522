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

    @property
    def are_none(self) -> bool:
        return not self._count

    def begin(self) -> None:
        self._count += 1
        self._begun += 1

    def end(self) -> None:
        self._count -= 1
        if not self._count:
            self._idle.set()
            self._idle = trio.Event()

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
            await self._idle.wait()

    async def quiet(self, for_s: float) -> bool:
        """Whether no request comes for *for_s* seconds; False as soon as one that came meanwhile is answered."""
        before = self._begun
        with trio.move_on_after(for_s):
            await self._idle.wait()
        return self._begun == before
