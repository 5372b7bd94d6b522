"""How far a command is: a line on a terminal on standard error, written over again and again."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

_EVERY_S = 0.2


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


@dataclass(slots=True)
class Progress:
    """*what* is counted."""

    what: str
    wanted: bool = field(default_factory=_is_terminal)
    said_at: float = 0.0
    is_there: bool = False

    def say(self, done: int, count: int) -> None:
        if not self.wanted or (done < count and time.monotonic() - self.said_at < _EVERY_S):
            return
        self.said_at, self.is_there = time.monotonic(), True
        print(f"\r{self.what}: {done} of {count}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self.is_there:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self.is_there = False
