"""The way to the ledger for what a mount does there: one call at a time, and whether it is there at all.

Belongs to the event loop's thread; the calls are made in threads of its own, never in the store's.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from ckfs.errors import CkfsError, LedgerDown

log = logging.getLogger(__name__)

T = TypeVar("T")

_THREADS = 4


@dataclass(slots=True)
class Lane:
    """*timeout_s* bounds each call."""

    timeout_s: float
    alone: trio.Lock = field(default_factory=trio.Lock)
    """Held by whoever has calls to make, one after the other."""
    _back: trio.Event | None = None
    """Set when the ledger is back; None while it is there."""
    _limiter: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(_THREADS))

    @property
    def is_away(self) -> bool:
        """The last call met nobody."""
        return self._back is not None

    async def until_back(self, deadline_s: float) -> bool:
        """Whether the ledger is there, which may be waited for until *deadline_s* of the loop's clock."""
        if self._back is not None:
            with trio.move_on_at(deadline_s):
                await self._back.wait()
        return self._back is None

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """The lane, for a caller who waits. LedgerDown at once if those before him have found that the ledger is away: whether it
        is back is asked by who posts, so that the waits of many do not add up."""
        async with self.alone:
            if self._back is not None:
                raise LedgerDown("the ledger is away")
            yield

    async def ask(self, call: Callable[[], T]) -> T:
        """What *call*, on the ledger, returns. In the lane."""
        try:
            with trio.fail_after(self.timeout_s):
                answer = await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limiter)
        except (LedgerDown, CkfsError, trio.TooSlowError) as error:  # damage, too, may be mended meanwhile
            if self._back is None:
                self._back = trio.Event()
                log.warning(
                    "the ledger of quotas is away: grants are spent, and no new ones drawn: %s",
                    str(error) or f"it did not answer within {self.timeout_s:g} s",
                )
            raise LedgerDown("the ledger is away") from None
        if self._back is not None:
            log.warning("the ledger of quotas is back")
            self._back.set()
            self._back = None
        return answer
