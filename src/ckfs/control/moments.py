"""Long work on the store for a command, by calls that each take a moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import trio

from ckfs.fs.core import Core

T = TypeVar("T")

_MOMENT_S = 0.5
_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Moments:
    """*store_calls* says how many such calls there may be at a time."""

    core: Core
    store_calls: trio.CapacityLimiter

    async def next_of(self, steps: Iterator[T | None]) -> tuple[list[T], bool]:
        """What comes of *steps* in a moment, and whether there may be more."""
        return await self.in_store(lambda: _taken(steps))

    async def in_store(self, work: Callable[[], T]) -> T:
        async with self.store_calls:
            return await self.core.gate.transfer(work)


def _taken(steps: Iterator[T | None]) -> tuple[list[T], bool]:
    values: list[T] = []
    until = time.monotonic() + _MOMENT_S
    for value in steps:
        if value is not None:
            values.append(value)
        if len(values) >= _AT_ONCE or time.monotonic() > until:
            return values, True
    return values, False
