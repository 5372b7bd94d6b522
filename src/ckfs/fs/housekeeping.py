"""What one mount does for all from time to time: old things go, and room is made ahead of need.

Each piece of work is a call of its own on the store, so that none takes longer than a call may; and before each it is asked
anew whether this mount still keeps house.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import trio

from ckfs.errors import FsError
from ckfs.fs.core import Core
from ckfs.fs.guard import Guard
from ckfs.fs.superseded import Superseded
from ckfs.model import JobFate, Role
from ckfs.names import ROOT_UID, SetName, shown
from ckfs.store.leftovers import Leftover, Leftovers, Look, NobodyKnown, Writers
from ckfs.store.removed import Damaged, Item

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Intervals:
    """In seconds, between the end of one round and the beginning of the next. The first begins with the mount."""

    room_s: float = 10.0
    expiry_s: float = 600.0
    superseded_s: float = 3600.0
    gc_s: float = 6 * 3600.0


class Keeper(Protocol):
    """Who keeps house: one mount of a store, never hundreds of nodes at once."""

    def is_housekeeper(self) -> bool:
        """Whether this mount does, now. In the event loop; at once."""


@dataclass(frozen=True, slots=True)
class ByRole:
    """Every mount that is a server's."""

    core: Core

    def is_housekeeper(self) -> bool:
        return self.core.role is not Role.NODE and not self.core.store.read_only


@dataclass(frozen=True, slots=True)
class Housekeeping:
    core: Core
    guard: Guard
    keeper: Keeper
    writers: Writers = field(default_factory=NobodyKnown)
    intervals: Intervals = field(default_factory=Intervals)

    async def run(self) -> None:
        """For the life of the mount."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._every, self.intervals.room_s, self.keep_free)
            nursery.start_soon(self._every, self.intervals.expiry_s, self.expire)
            nursery.start_soon(self._every, self.intervals.superseded_s, self.supersede)
            nursery.start_soon(self._every, self.intervals.gc_s, self.collect)

    async def _every(self, interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                if self.keeper.is_housekeeper():
                    await work()
            except (OSError, FsError, RecursionError) as error:
                log.info("housekeeping goes on later: %s", error)
            await trio.sleep(interval_s)

    # The trash

    async def expire(self) -> None:
        """Remove for good what has been in the trash for its time."""
        before_ns = time.time_ns() - int(self.core.policy.retention_s * 1e9)
        await self._for_each(lambda: self.core.store.trash.older(before_ns), self._purge)

    async def _purge(self, entry: Item | Damaged) -> None:
        await self.core.gate.transfer(lambda: self.core.store.trash.purge_if_able(entry))

    async def keep_free(self) -> None:
        """Before a quota of the store's own, or a write that does not pass through here, finds no room: as :meth:`expire`, the
        oldest first, for as long as too little of the store is free."""
        if not await self._is_short():
            return
        items = await self.core.gate.transfer(lambda: self.core.store.trash.older(time.time_ns()))
        if items:
            percent = self.core.policy.keep_free * 100
            log.info("less than %g %% of the store is free: the trash gives way", percent)
        for item in items:
            if not self.keeper.is_housekeeper() or not await self._is_short():
                return
            await self._purge(item)

    async def _is_short(self) -> bool:
        room = await self.core.gate.call(self.core.store.door.room)
        return room.f_bavail < room.f_blocks * self.core.policy.keep_free

    async def _for_each(self, listing: Callable[[], list[T]], act: Callable[[T], Awaitable[None]]) -> None:
        """*act* on all that *listing* gives, for as long as this mount keeps house."""
        for one in await self.core.gate.transfer(listing):
            if not self.keeper.is_housekeeper():
                return
            await act(one)

    # Checkpoints

    async def supersede(self) -> None:
        """Move superseded checkpoints to the trash whose time is over."""
        superseded = Superseded(self.core, self.guard)

        async def expire(base: SetName) -> None:
            await self._of_set(base, lambda: superseded.expire(base, time.time_ns()))

        if self.core.policy.superseded_s:
            await self._for_each(superseded.families, expire)

    async def _of_set(self, name: SetName, work: Callable[[], T]) -> T | None:
        """One set that cannot be read does not keep the others from being looked at."""
        try:
            return await self.core.gate.transfer(work)
        except (OSError, FsError, RecursionError) as error:
            log.info("housekeeping passes over set %s: %s", shown(name), error)
            return None

    # Leftovers

    async def collect(self) -> None:
        """Move to the trash what was left behind, if the policy wants that without being asked."""
        if not self.core.policy.gc.automatic:
            return
        found = Leftovers(self.core.store, self.core.policy, self.writers)

        async def of_set(name: SetName) -> None:
            look = await self._of_set(name, lambda: found.look(name))
            if look is None:
                return
            for left in found.judge(look, await self._fate(found, look)):
                await self._take(found, left, await self._fate(found, look))

        async def outside(left: Leftover) -> None:
            await self._take(found, left, JobFate.UNKNOWN)

        await self._for_each(found.sets, of_set)
        await self._for_each(found.places, outside)
        await self._for_each(found.unfinished, outside)

    async def _fate(self, found: Leftovers, look: Look) -> JobFate:
        if not found.depends_on_job(look):
            return JobFate.UNKNOWN
        name = look.facts.name
        fate = await self.core.aside.ask(lambda: self.core.lookup.fate_of_set(name), ROOT_UID)
        return JobFate.UNKNOWN if fate is None else fate

    async def _take(self, found: Leftovers, left: Leftover, fate: JobFate) -> None:
        await self._of_set(left.name, lambda: found.take(left, fate, self.core.node_name))
