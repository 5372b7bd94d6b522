"""Questions that are not for the store, and whose answer may never come: who a user is, whose a job is.

Each is asked in a thread with a time limit. Such a thread cannot be stopped, so each asker has few of them, and users
together no more than leaves root, and with that the batch system, threads of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar, cast

import trio

from ckfs.names import ROOT_UID, Uid

log = logging.getLogger(__name__)

T = TypeVar("T")

_TIMEOUT_S = 10.0
_THREADS = 8
_THREADS_PER_USER = 2


class _Both:
    """Two limits at once, to trio.to_thread.run_sync one limiter: held until the thread is really done."""

    def __init__(self, own: trio.CapacityLimiter, shared: trio.CapacityLimiter) -> None:
        self._own = own
        self._shared = shared

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        await self._own.acquire_on_behalf_of(borrower)
        try:
            await self._shared.acquire_on_behalf_of(borrower)
        except BaseException:
            self._own.release_on_behalf_of(borrower)
            raise

    def release_on_behalf_of(self, borrower: object) -> None:
        self._shared.release_on_behalf_of(borrower)
        self._own.release_on_behalf_of(borrower)


class Aside:
    """Belongs to the event loop's thread. *timeout_s* bounds a question, with its wait for a thread."""

    def __init__(self, timeout_s: float = _TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._root = trio.CapacityLimiter(_THREADS)
        self._users = trio.CapacityLimiter(_THREADS)
        self._each: dict[Uid, trio.CapacityLimiter] = {}

    async def ask(self, question: Callable[[], T | None], asker: Uid) -> T | None:
        """The answer for *asker*; None if there is none in time, or no thread to ask in."""
        with trio.move_on_after(self._timeout_s):
            try:
                return await trio.to_thread.run_sync(
                    question, abandon_on_cancel=True, limiter=self._limiter_of(asker)
                )
            except RuntimeError as error:
                log.warning("a question about users was not asked: %s", error)
        return None

    def _limiter_of(self, asker: Uid) -> trio.CapacityLimiter:
        if asker == ROOT_UID:
            return self._root
        own = self._each.get(asker)
        if own is None:
            self._each = {uid: used for uid, used in self._each.items() if _is_used(used)}
            own = self._each[asker] = trio.CapacityLimiter(_THREADS_PER_USER)
        return cast(
            "trio.CapacityLimiter", _Both(own, self._users)
        )  # trio asks for nothing but these two methods


def _is_used(limiter: trio.CapacityLimiter) -> bool:
    return limiter.borrowed_tokens > 0 or limiter.statistics().tasks_waiting > 0
