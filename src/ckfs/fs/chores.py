"""The chores of the mount that keeps house, in which old things go and room is made ahead of need.

Each is a generator of steps (:class:`ckfs.fs.housekeeping.Chore`): between two of them this mount may cease to keep house, and a
set that cannot be read ends no round. Blocking; runs in the store's threads.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ckfs.errors import FsError
from ckfs.fs.clocks import slowest_clock_ns
from ckfs.fs.core import Core
from ckfs.fs.guard import Guard
from ckfs.fs.housekeeping import Chore
from ckfs.fs.liveness import Fate
from ckfs.fs.superseded import Superseded
from ckfs.model import JobFate
from ckfs.names import MountId, SetName, shown
from ckfs.store.door import Door
from ckfs.store.leftovers import Leftovers, Look
from ckfs.store.spots import Found, Spot, VolumeId

log = logging.getLogger(__name__)

_RESOLVER_S = 30.0
"""How long resolvers may take for one job before none is asked any more in this round: they have limits of their own."""


@dataclass(frozen=True, slots=True)
class Intervals:
    """In seconds, from the beginning of one round to that of the next."""

    room_s: float = 10.0
    expiry_s: float = 600.0
    superseded_s: float = 3600.0
    gc_s: float = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Marks:
    """Who may be writing what, by the marks of mounts: a mount that is only silent may come back."""

    door: Door
    fate: Callable[[MountId], Fate]

    def is_live(self, spot: Spot, found: Found) -> bool:
        marks = self.door.writers(spot, found.record.ino)
        return any(self.fate(mount) is not Fate.GONE for mount in marks)


@dataclass(frozen=True, slots=True)
class Chores:
    core: Core
    guard: Guard
    intervals: Intervals = field(default_factory=Intervals)

    def all(self) -> tuple[Chore, ...]:
        every = self.intervals
        return (
            Chore("keeping room free", lambda: every.room_s, self.keep_free),
            Chore("expiry of the trash", lambda: every.expiry_s, self.expire),
            Chore("superseded checkpoints", lambda: every.superseded_s, self.supersede),
            Chore("leftovers", lambda: every.gc_s, self.collect),
        )

    # The trash

    def expire(self) -> Iterator[None]:
        """Remove for good what has been in the trash for its time."""
        trash = self.core.store.trash
        for entry in trash.older(slowest_clock_ns(self.core) - int(self.core.policy.retention_s * 1e9)):
            yield
            trash.purge_if_able(entry)

    def keep_free(self) -> Iterator[None]:
        """Before a quota of the store's own, or a write that does not pass through here, finds no room: as :meth:`expire`, the
        oldest first, for as long as too little of the store is free."""
        for volume in filter(self._is_short, self.core.store.volumes.ids()):
            yield from self._make_free(volume)

    def _make_free(self, volume: VolumeId) -> Iterator[None]:
        trash = self.core.store.trash
        entries = [entry for entry in trash.oldest_first() if entry.spot.volume == volume]
        if entries:
            percent = self.core.policy.keep_free * 100
            log.info("less than %g %% of the store is free: the trash gives way", percent)
        for entry in entries:
            yield
            if not self._is_short(volume):
                return
            trash.purge_if_able(entry)

    def _is_short(self, volume: VolumeId) -> bool:
        room = self.core.store.door.room(volume)
        return room.f_bavail < room.f_blocks * self.core.policy.keep_free

    # Checkpoints

    def supersede(self) -> Iterator[None]:
        """Move superseded checkpoints to the trash whose time is over. Before that they are counted anew: of those that outlived
        them, some may have been found damaged, which counts no more."""
        superseded, now_ns = Superseded(self.core, self.guard), slowest_clock_ns(self.core)
        for base in superseded.families():
            yield
            with _passing_over(base):
                self.guard.recount(base)
                superseded.expire(base, now_ns)

    # Leftovers

    def collect(self) -> Iterator[None]:
        """Move to the trash what was left behind, if the policy wants that without being asked."""
        if not self.core.policy.gc.automatic:
            return
        marks = Marks(self.core.store.door, self.core.fate)
        now_ns = slowest_clock_ns(self.core)
        leftovers = Leftovers(self.core.store, self.core.policy, marks, lambda: now_ns)
        jobs = _Jobs(self.core.lookup.fate_of_set)
        for name in leftovers.sets():
            yield
            with _passing_over(name):
                self._collect_of_set(leftovers, jobs, name)
        for left in [*leftovers.places(), *leftovers.unfinished()]:
            yield
            with _passing_over(left.name):
                leftovers.take(left, JobFate.UNKNOWN, self.core.node_name)

    def _collect_of_set(self, leftovers: Leftovers, jobs: _Jobs, name: SetName) -> None:
        look = leftovers.look(name)
        if look is None:
            return
        for left in leftovers.judge(look, jobs.fate(leftovers, look)):
            leftovers.take(left, jobs.fate(leftovers, look), self.core.node_name)


@contextmanager
def _passing_over(name: SetName) -> Iterator[None]:
    """One set that cannot be read does not keep the others from being looked at."""
    try:
        yield
    except (OSError, FsError, RecursionError) as error:
        log.info("housekeeping passes over %s: %s", shown(name), error)


@dataclass(slots=True)
class _Jobs:
    """Asks what has become of jobs, aside: a resolver that hangs is not the store."""

    ask: Callable[[SetName], JobFate]
    _hang: bool = False

    def fate(self, leftovers: Leftovers, look: Look) -> JobFate:
        if self._hang or not leftovers.depends_on_job(look):
            return JobFate.UNKNOWN
        answers: list[JobFate] = []
        asking = threading.Thread(target=lambda: answers.append(self.ask(look.facts.name)), daemon=True)
        asking.start()
        asking.join(_RESOLVER_S)
        if not answers:
            log.info("housekeeping asks after no more jobs in this round: no answer within %g s", _RESOLVER_S)
            self._hang = True
            return JobFate.UNKNOWN
        return answers[0]
