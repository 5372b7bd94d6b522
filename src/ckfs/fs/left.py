"""Images that nobody alive is writing, though their record says ``writing``: what they are worth, and settling them.

Of a mount that is only silent that is *derived*, each time anew: it lifts when the mount returns. What is stored is settled
only when every mount that marked the image is gone. Blocking; runs in the store's threads.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from ckfs.fs.core import Core
from ckfs.fs.guard import Guard
from ckfs.fs.inodes import Place
from ckfs.fs.liveness import Fate
from ckfs.model import Record, State
from ckfs.names import MountId
from ckfs.policy import lifecycle
from ckfs.policy.lifecycle import Event
from ckfs.policy.settings import Policy
from ckfs.store import walks, writing
from ckfs.store.door import Door
from ckfs.store.spots import Found, Spot, Target

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Leaving:
    """What to make of an image of the state ``writing`` that is marked by the mounts *marks*, of which none is alive: *event*,
    for good if *for_good*, else until one of them returns."""

    event: Event
    marks: frozenset[MountId]
    for_good: bool


def leaving(
    door: Door, target: Target, found: Found, name: bytes, policy: Policy, fate: Callable[[MountId], Fate]
) -> Leaving | None:
    """None if the image *found*, *target*, whose name is *name*, was not left by its writers."""
    if not found.record.is_regular or found.record.state is not State.WRITING:
        return None
    marks = door.writers(target, found.record.ino)
    fates = {fate(mount) for mount in marks}
    event = _event(found, name, policy, marks)
    if event is None or Fate.ALIVE in fates:
        return None
    return Leaving(event, marks, for_good=Fate.SILENT not in fates)


def _event(found: Found, name: bytes, policy: Policy, marks: frozenset[MountId]) -> Event | None:
    return lifecycle.as_left(
        found.record,
        marked=bool(marks),
        is_final=policy.is_final(name),
        size=found.stat.st_size,
        mtime_ns=found.stat.st_mtime_ns,
    )


def state_of(
    door: Door, target: Target, found: Found, name: bytes, policy: Policy, fate: Callable[[MountId], Fate]
) -> State:
    """What the image *found*, *target*, is worth, with nothing changed in the store."""
    left = leaving(door, target, found, name, policy, fate)
    return found.record.state if left is None else lifecycle.after(found.record, left.event).state


@dataclass(frozen=True, slots=True)
class Left:
    core: Core
    guard: Guard

    def state_of(self, target: Target, found: Found, place: Place) -> State:
        """What the image *found*, *target*, is worth now."""
        left = leaving(self.core.store.door, target, found, place.name, self.core.policy, self.core.fate)
        if left is None:
            return found.record.state
        if not left.for_good or self.core.store.read_only:
            return lifecycle.after(found.record, left.event).state
        return self.settle(target, found, place, left.marks).record.state

    def worst_state_below(self, spot: Spot, place: Place) -> State | None:
        """As :func:`walks.worst_state`."""

        def state_of(inner: Spot, found: Found) -> State:
            below = inner.components[len(spot.components) :]
            return self.state_of(inner, found, Place(place.set_name, (*place.below, *below)))

        return walks.worst_state(self.core.store.door, spot, state_of)

    def settle(self, target: Target, found: Found, place: Place, marks: frozenset[MountId]) -> Found:
        """Say for good what an image is worth whose writers' mounts, *marks*, are gone."""
        number = self.guard.next_number(self.guard.look(place.set_name), time.time_ns())

        def settled(found: Found) -> Record:
            event = _event(found, place.name, self.core.policy, marks)
            after = found.record if event is None else lifecycle.after(found.record, event)
            return after.with_(completed=number) if after.state is State.COMPLETE else after

        after = writing.settle_left(self.core.store.door, target, found.record.ino, marks, settled)
        if after.record.state is not found.record.state:
            log.info("image %s is %s: nobody writes it any more", place, after.record.state.value)
            self.guard.recount(place.set_name)
            if lifecycle.is_complete(after.record):
                self.core.undigested.add_from_thread(after.record.ino, place)
        return after
