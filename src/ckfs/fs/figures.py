"""What a mount counts of itself since it began, for those who ask."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field, replace

import trio

log = logging.getLogger(__name__)

_INTERVAL_S = 600.0


@dataclass(frozen=True, slots=True)
class Counts:
    """Removals and changes of what is protected that were refused: to a batch system's mom, who tries as a matter of
    course, and to others; and how many items programs put into the trash through this mount, not what housekeeping moves."""

    refused_to_moms: int = 0
    refused_to_others: int = 0
    trashed: int = 0


@dataclass(slots=True)
class Traffic:
    """What went through this mount: bytes, and the tops of the different sets that they were of (0: of none any more). Belongs
    to the event loop's thread. What the kernel reads from its page cache is not heard of."""

    bytes_written: int = 0
    bytes_read: int = 0
    sets_written: set[int] = field(default_factory=set)
    sets_read: set[int] = field(default_factory=set)

    @property
    def written(self) -> int:
        """How many different sets were written."""
        return len(self.sets_written) - (0 in self.sets_written)

    @property
    def read(self) -> int:
        """How many different sets were read."""
        return len(self.sets_read) - (0 in self.sets_read)


@dataclass(slots=True)
class Figures:
    """Counted in any thread."""

    traffic: Traffic = field(default_factory=Traffic)
    _counts: Counts = field(default_factory=Counts)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self) -> Counts:
        return self._counts

    def refused(self, *, to_mom: bool) -> None:
        with self._lock:
            now = self._counts
            self._counts = (
                replace(now, refused_to_moms=now.refused_to_moms + 1)
                if to_mom
                else replace(now, refused_to_others=now.refused_to_others + 1)
            )

    def trashed(self) -> None:
        with self._lock:
            self._counts = replace(self._counts, trashed=self._counts.trashed + 1)

    async def sum_up(self) -> None:
        """Log now and then what moms were refused, one line instead of one each; runs for the life of the mount."""
        told = 0
        try:
            while True:
                await trio.sleep(_INTERVAL_S)
                told = self._tell(told)
        finally:
            self._tell(told)

    def _tell(self, told: int) -> int:
        now = self._counts.refused_to_moms
        if now != told:
            log.info(
                "kept %d times what is protected from the batch system's mom, as usual; %d since the mount began",
                now - told,
                now,
            )
        return now
