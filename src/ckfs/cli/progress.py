"""How far a command is: a line on a terminal on standard error, written over again and again."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field

from ckfs.policy.sizes import shown_span

_EVERY_S = 0.2
_BAR = 24
_COLUMNS = 80


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


@dataclass(slots=True)
class Bar:
    """For what is of known length: how far, what is just being done, and how long the rest will take."""

    wanted: bool = field(default_factory=_is_terminal)
    began: float = field(default_factory=time.monotonic)
    is_there: bool = False

    def say(self, done: int, count: int, doing: str) -> None:
        if not self.wanted:
            return
        self.is_there = True
        full = _BAR * done // count
        left = f", {shown_span(self._left_s(done, count))} left" if count > done >= count / 4 else ""
        line = f"[{'#' * full}{'.' * (_BAR - full)}] {done}/{count} {doing}{left}"
        print(f"\r{line[: _width() - 1]}\x1b[K", end="", file=sys.stderr, flush=True)

    def _left_s(self, done: int, count: int) -> float:
        return (time.monotonic() - self.began) * (count - done) / done

    def clear(self) -> None:
        if self.is_there:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self.is_there = False


def _width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or _COLUMNS
    except (OSError, ValueError):
        return _COLUMNS
