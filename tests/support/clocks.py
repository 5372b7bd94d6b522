"""A clock that goes where a test sets it. In a module of its own, so that other processes find it."""

from __future__ import annotations

from dataclasses import dataclass

SECOND_NS = 1_000_000_000


@dataclass
class WallClock:
    """A clock that goes where a test sets it."""

    now_ns: int = 1_800_000_000 * SECOND_NS

    def __call__(self) -> int:
        return self.now_ns

    def forward(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND_NS)

    def back(self, seconds: float) -> None:
        self.now_ns -= int(seconds * SECOND_NS)
