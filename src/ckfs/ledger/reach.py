"""Whether a ledger could be reached when it was asked last. Nobody asks it for that alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ckfs.errors import LedgerDown, LedgerUnusable, StoreUnusable
from ckfs.ledger.transaction import Backend, T, Transaction


@dataclass(frozen=True, slots=True)
class Reach:
    """*failure* is what it said, one line, or empty: it answered. *since_ns*, since the epoch, is when that began."""

    failure: str = ""
    since_ns: int = field(default_factory=time.time_ns)

    @property
    def is_there(self) -> bool:
        return not self.failure


class Listened:
    """A database of which is kept how it answered. Any thread may call it."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._reach = Reach()
        self.asked_ns = time.time_ns()
        """When it was asked last, since the epoch."""
        self.last_failure: Reach | None = None
        """When it began to fail the last time."""

    @property
    def kind(self) -> str:
        return self._backend.kind

    @property
    def reach(self) -> Reach:
        return self._reach

    def write(self, work: Callable[[Transaction], T]) -> T:
        return self._heard(lambda: self._backend.write(work))

    def read(self, work: Callable[[Transaction], T]) -> T:
        return self._heard(lambda: self._backend.read(work))

    def damage(self) -> list[str]:
        return self._backend.damage()

    def close(self) -> None:
        self._backend.close()

    def _heard(self, call: Callable[[], T]) -> T:
        try:
            answer = call()
        except (LedgerDown, LedgerUnusable, StoreUnusable) as error:
            self._note(str(error) or type(error).__name__)
            raise
        self._note("")
        return answer

    def _note(self, failure: str) -> None:
        self.asked_ns = time.time_ns()
        if self._reach.is_there and not failure:
            return
        with self._lock:
            if self._reach.is_there == (not failure):
                return
            self._reach = Reach(failure)
            if failure:
                self.last_failure = self._reach
